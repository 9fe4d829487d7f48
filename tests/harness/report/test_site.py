"""The pages of a results folder: one leaderboard, one picture, one sentence, then a page a benchmark; they open offline."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.archive.archive import Archive
from harness.cli.report import is_redistributable, main
from harness.comparison import grids, leaderboards
from harness.report.sentences import sentence
from harness.report.site import INDEX, LEADERBOARD, file_names, site
from harness.system.errors import UsageError
from tests.harness.report.sample import record, store_of

LORA = (0.70, 0.71, 0.72)


def runs(method: str, values: tuple[float, ...] = LORA, *, shift: float = 0.0, **changes: Any) -> list[Any]:
    return [record(value + shift, method=method, seed=seed, **changes) for seed, value in enumerate(values)]


def board_of(root: Path, records: list[Any], **options: Any) -> Any:
    store_of(root, records)
    return leaderboards(grids(Archive(root)), baseline=options.pop("baseline", ""))[0]


def pages_of(root: Path, records: list[Any]) -> dict[str, str]:
    store_of(root, records)
    made = leaderboards(grids(Archive(root)))
    return site(made, title="Results", photographs=None, withheld="none")


def column(page: str, index: int) -> list[str]:
    """The text of one column of the first table."""
    rows = page.partition("<tbody>")[2].partition("</tbody>")[0].split("<tr")[1:]
    cells = [re.split(r"<t[dh][^>]*>", row) for row in rows]
    return [re.sub(r"<[^>]+>|\s+", " ", line[1 + index]).strip() for line in cells]


def test_the_first_page_has_the_rows_from_the_best_and_links_a_page_a_benchmark(tmp_path: Path) -> None:
    records = [
        *runs("lora"), *runs("full", shift=0.10), *runs("decoder", shift=-0.20),
        *runs("lora", benchmark="leaf"), *runs("full", shift=0.12, benchmark="leaf"), *runs("decoder", benchmark="leaf", shift=-0.1),
    ]  # fmt: skip
    pages = pages_of(tmp_path, records)
    assert set(pages) == {INDEX, "kvasir.html", "leaf.html", LEADERBOARD}
    assert column(pages[INDEX], 0) == ["Full fine-tuning", "LoRA", "Decoder alone"]
    assert column(pages[INDEX], 1)[1] == "baseline"
    assert column(pages[INDEX], 1)[0].startswith("+11.0 [")
    assert pages[INDEX].count("<table") == 1
    assert pages[INDEX].count("<figure") == 1
    for name, text in pages.items():
        if name.endswith(".html"):
            assert 'href="kvasir.html"' in text
            assert not re.search(r'(?:src|<link[^>]*href)="(?:https?:)?//', text), "a page fetches nothing"
            assert "default-src 'none'" in text


def test_a_row_with_a_collapsed_run_is_marked_and_not_like_the_best(tmp_path: Path) -> None:
    records = [*runs("lora"), *runs("full", (0.73, 0.72, 0.1)), *runs("decoder", (0.69, 0.72, 0.7))]
    page = pages_of(tmp_path, records)[INDEX]
    scores = dict(zip(column(page, 0), column(page, 1), strict=True))
    assert scores["Full fine-tuning"].split() == ["51.7", "±", "36.1", "(3)", "COLLAPSED"]
    assert "≈" in scores["Decoder alone"]


def test_the_csv_of_the_site_has_a_line_a_run_and_metric(tmp_path: Path) -> None:
    table = pd.read_csv(io.StringIO(pages_of(tmp_path, [*runs("lora"), *runs("full", shift=0.1)])[LEADERBOARD]))
    assert {"method", "options", "benchmark", "seed", "metric", "value"} <= set(table.columns)
    chosen = table[(table.row == "LoRA") & (table.metric == "s_measure")]
    assert list(chosen.sort_values("seed").value) == list(LORA)
    two = pages_of(tmp_path / "two", [*runs("lora"), *runs("full"), *runs("decoder", protocol_hash="bbbb0000bbbb0000")])
    assert "decoder" not in two[LEADERBOARD]
    assert "every run" not in two[INDEX]


def test_a_run_on_another_split_has_its_line_and_a_record_without_a_size_a_page(tmp_path: Path) -> None:
    other = record(0.9, manifest="other", seed=7)
    assert other.key in pages_of(tmp_path / "splits", [*runs("lora"), other, *runs("full")])["kvasir.html"]
    sizeless: dict[str, Any] = {"rules": {"protocol": "aaaa0000aaaa0000"}}
    assert " px" not in pages_of(tmp_path / "sizes", [*runs("lora", **sizeless), *runs("full", **sizeless)])[INDEX]


EMPTY: dict[str, Any] = {"foreground": {"test": 0.05}}


@pytest.mark.parametrize(
    ("records", "words"),
    [
        (
            [*runs("lora"), *runs("full", shift=0.1), *runs("decoder", shift=-0.1)],
            ["Sα (tiny, 64 px, 20 training images, 3 seeds): Full fine-tuning beats LoRA; Decoder alone is worse."],
        ),
        (
            [*runs("lora"), *runs("full", (0.70, 0.75, 0.68))],
            ["no method beats LoRA; 1 method cannot be told apart from it."],
        ),
        (
            [*runs("lora", (0.7,)), *runs("full", (0.8,))],
            ["Full fine-tuning has the best score (80.0)", "too few seeds"],
        ),
        ([*runs("lora", **EMPTY), *runs("full", shift=0.1, **EMPTY)], ["almost empty", "nothing is ranked"]),
        (runs("lora", origin="generated"), ["generated", "do not rank"]),
        (
            [*runs("lora"), *runs("full", shift=0.1, **EMPTY)],
            ["LoRA has the best score", "masks of Full fine-tuning are"],
        ),
        ([*runs("lora", (0.7, 0.1, 0.7)), *runs("full")], ["a run of LoRA collapsed"]),
        ([*runs("lora")[:2], *runs("full"), record(seed=2, code="OOM")], ["LoRA lacks seeds"]),
        (runs("lora"), ["no other row has all of its seeds"]),
        ([*runs("full", (0.8, 0.81)), record(method="full", seed=2, code="OOM")], ["no row has all of its seeds"]),
    ],
)
def test_the_sentence_says_what_differs_from_the_baseline(tmp_path: Path, records: list[Any], words: list[str]) -> None:
    board = board_of(tmp_path, records)
    said = sentence(board, board.leading)
    assert [word for word in words if word not in said] == []


def test_the_baseline_is_the_one_named_else_the_usual_else_the_first(tmp_path: Path) -> None:
    records = [*runs("full"), *runs("decoder")]
    assert board_of(tmp_path, records).baseline == "Decoder alone"
    assert board_of(tmp_path, records, baseline="Full fine-tuning").baseline == "Full fine-tuning"
    assert board_of(tmp_path, [*records, *runs("lora")]).baseline == "LoRA"
    with pytest.raises(UsageError, match="LoRA"):
        board_of(tmp_path, records, baseline="Lora")


def test_words_of_a_record_are_text_on_a_page(tmp_path: Path) -> None:
    own: dict[str, Any] = {"benchmark": "x y", "benchmark_title": "<script>alert(1)</script>\u202e"}
    pages = pages_of(tmp_path, [*runs("lora", **own), *runs("full", shift=0.1, **own)])
    assert set(pages) == {INDEX, "x-y.html", LEADERBOARD}
    for text in (text for name, text in pages.items() if name.endswith(".html")):
        assert "<script>alert" not in text
        assert "\u202e" not in text
    odd = board_of(tmp_path / "odd", [record(benchmark=name) for name in ("x y", "x-y", "§", "Index")])
    assert set(file_names([odd]).values()) == {"x-y.html", "x-y-2.html", "benchmark.html", "index-2.html"}


@pytest.mark.parametrize(
    ("changes", "may"),
    [
        ({"benchmark": "isic2017"}, True),  # CC0
        ({"benchmark": "camo"}, False),
        ({"benchmark": "camo", "origin": "generated"}, True),
        ({"benchmark": "pets", "rules": {"own_classes": ["background", "cat"]}}, True),
        ({"benchmark": "of-a-plug-in"}, False),
    ],
)
def test_photographs_of_ones_own_and_redistributable_ones_are_shown(changes: dict[str, Any], may: bool) -> None:
    assert is_redistributable(record(**changes)) is may


def test_the_verb_overwrites_its_own_site_and_figures(tmp_path: Path, says: Any) -> None:
    store_of(tmp_path, [*runs("lora"), *runs("full", shift=0.1)])
    for _ in range(2):
        says(main, "--results", tmp_path)
    assert {path.name for path in (tmp_path / "site").iterdir()} == {INDEX, "kvasir.html", LEADERBOARD}
    says(main, "--results", tmp_path, "--figures")
    assert {path.name for path in (tmp_path / "figures").glob("differences-kvasir.*")} == {
        f"differences-kvasir.{ending}" for ending in ("svg", "pdf", "png", "txt")
    }
    (own := tmp_path / "own").mkdir()
    (own / "index.html").write_text("mine")
    assert "name another folder" in says(main, "--results", tmp_path, "--out", own, code=2)
    assert (own / "index.html").read_text() == "mine"


def test_a_damaged_history_of_alpha_costs_its_figure_and_a_line(tmp_path: Path, says: Any) -> None:
    history = [{"epoch": epoch, "val": {"s_measure": 0.5}} for epoch in (1, 2)]
    searched = record(
        method="naslora", config={"operations": "all"}, history=history, architecture=[{"q": [0.125] * 8}]
    )
    store = store_of(tmp_path, [searched])
    says(main, "--results", tmp_path)
    whole = (tmp_path / "site" / "kvasir.html").read_text()
    store.architecture_path(searched.key).write_text("epoch,site,w0\n1,q,x\n")
    assert f"left out of the figure of α: {searched.key}" in says(main, "--results", tmp_path)
    page = (tmp_path / "site" / "kvasir.html").read_text()
    assert (whole.count("<figure"), page.count("<figure")) == (2, 1), "the curves stay"


def test_pages_link_what_is_named_the_papers_and_say_the_day_of_the_last_run(tmp_path: Path, says: Any) -> None:
    store_of(tmp_path, [*runs("lora", finished="2026-01-02T03:04:05"), *runs("full", shift=0.1)])
    words, out = ["--results", tmp_path, "--out", tmp_path / "site"], tmp_path / "site"
    links = ["--link", "Code=https://example.org/code", "--link", "Documentation=docs/index.html"]
    says(main, *words, *links)
    page = (out / INDEX).read_text(encoding="utf-8")
    for part in (
        'href="https://example.org/code"',
        'href="docs/index.html"',
        "arxiv.org/abs/2106.09685",
        "2026-01-02",
    ):
        assert part in page
    assert "NAME=https" in says(main, *words, "--link", "Code=javascript:alert(1)", code=2)
