"""The scripts of results/analysis, over the public names that a user has."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from harness.archive.archive import Archive
from tests.harness.experiment.finished import export_to, finished
from tests.values import REPOSITORY, RESULTS


@pytest.fixture(autouse=True)
def _on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(REPOSITORY / "results" / "analysis"), *sys.path])


def test_the_answer_is_that_of_the_page() -> None:
    import answer

    archive = Archive(RESULTS)
    lines = list(answer.lines(archive))
    table = answer.table(lines, answer.mean_of(answer.averaged(lines)))
    ranked = answer.leaderboard_table(answer.board(archive), most=15)
    whole = (REPOSITORY / "docs" / "findings.md").read_text(encoding="utf-8")
    assert ranked in whole, "new records: python results/analysis/answer.py --docs docs"
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


def test_white_noise_has_all_frequencies_alike_and_a_constant_none() -> None:
    import insides
    import torch

    noise = torch.randn(8, 64, 16, 16, generator=torch.Generator().manual_seed(0))
    curve = insides.half_diagonal(noise)
    assert curve[1:].std() < 0.05
    assert insides.half_diagonal(torch.ones(1, 4, 16, 16))[-1] < -10


def test_a_tuned_encoder_is_set_beside_its_frozen_one(results: Path, tmp_path: Path) -> None:
    import insides
    import torch
    from PIL import Image

    run = finished(results, "lora")
    assert export_to(results, run, tmp_path / "a.safetensors", "--adapter-only") == 0
    pixels = torch.randint(0, 255, (2, 32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    (tmp_path / "images").mkdir()
    for number, image in enumerate(pixels):
        Image.fromarray(image.numpy()).save(tmp_path / "images" / f"{number}.png")
    lines = insides.insides(tmp_path / "a.safetensors", tmp_path / "images")
    assert [line[1] for line in lines] == [3, "global", 3, "global"]
    for _, _, uniform, frozen, tuned, *_ in lines:
        assert 0.5 * uniform < frozen < 1.5 * uniform
        assert frozen != tuned
