"""The scripts of results/analysis, over the public names that a user has."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest

from harness.archive.archive import Archive
from tests.values import REPOSITORY, RESULTS


@pytest.fixture(autouse=True)
def _on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(REPOSITORY / "results" / "analysis"), *sys.path])


def test_findings_and_readme_show_the_leaderboard_of_the_committed_records() -> None:
    import answer

    leaders = answer.board(Archive(RESULTS))
    for page, text in {
        "docs/findings.md": answer.summary(leaders, most=answer.ROWS),
        "README.md": answer.first_ten(leaders),
    }.items():
        whole = (REPOSITORY / page).read_text(encoding="utf-8")
        assert text in whole, "new records: python results/analysis/answer.py --docs docs"


def test_recommendations_give_differences_of_the_leaderboard() -> None:
    import answer

    leaders = answer.board(Archive(RESULTS))
    page = (REPOSITORY / "docs" / "methods.md").read_text(encoding="utf-8").replace("−", "-")
    section = page.partition("## Which one to take")[2].partition("\n## ")[0]
    differences, times = re.findall(r"[+-]\d+\.\d \[[^]]+\]", section), re.findall(r"[\d.]+×", section)
    assert differences
    assert times
    said = {
        answer.with_interval(difference)
        for row in leaders.standings
        for name in ("", *leaders.columns)
        if (difference := answer.against(row, name))
    }
    said |= {"1×", *(f"{row.time.value:.2f}×" for row in leaders.standings if row.time)}
    assert {*differences, *times} - said == set()


def test_the_answer_is_that_of_the_page() -> None:
    import answer

    lines = list(answer.lines(Archive(RESULTS)))
    table = answer.table(lines, answer.mean_of(answer.averaged(lines)))
    page = (REPOSITORY / "docs" / "findings.md").read_text(encoding="utf-8").replace("−", "-")
    shown = [row.rpartition(" | ")[0] + " |" for row in table.splitlines()[2:]]
    assert [row for row in shown if row.startswith("| ") and row not in page and "mean of" not in row] == []
    assert "-0.02 [-0.97, +0.92]" in table


@pytest.mark.parametrize(
    ("grid", "window", "pixels"),
    [((64, 64), 0, 533.9), ((14, 14), 14, 116.5)],  # of the papers' own code
)
def test_uniform_attention_reaches_as_far_as_the_papers_say(grid: Any, window: int, pixels: float) -> None:
    import insides

    assert insides.uniform_distance(grid, window=window, patch=16) == pytest.approx(pixels, abs=0.1)
