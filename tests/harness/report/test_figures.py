"""Six figures of a table: each is drawn where the runs have its numbers, and equal runs give equal bytes."""

from __future__ import annotations

import base64
import io
import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.archive.archive import Archive
from harness.archive.files import images_csv
from harness.archive.masks import KeptMask, encoded_masks
from harness.comparison import grids, leaderboards
from harness.report import masks
from harness.report.figures import alpha, cost, curves, differences, draw
from harness.report.sentences import enumerated, short_number
from harness.report.site import site
from harness.report.style import BASELINE, BETTER, GREY, INK, WORSE, encoded_figure, inline, limits, styled
from tests.harness.report.sample import MadeUp, measured_on, record, store_of
from tests.harness.report.test_costs import method, session
from tests.values import there

HISTORY = [{"epoch": epoch, "loss": 1.0, "val": {"s_measure": 0.5 + 0.01 * epoch}} for epoch in (1, 2, 3)]


def made(root: Path, **changes: Any) -> Any:
    records = [
        record(0.7 + 0.01 * seed + shift, method=method, seed=seed, history=HISTORY, **changes)
        for method, shift in (("lora", 0.0), ("full", 0.1), ("decoder", -0.2))
        for seed in range(3)
    ]
    store_of(root, records)
    return leaderboards(grids(Archive(root)))[0]


def lines_of(ax: Any) -> list[tuple[str, float, list[float], list[float]]]:
    """Colour, width, x and y of every line."""
    return [
        (line.get_color(), line.get_linewidth(), *np.round(np.array(line.get_data(), float), 2).tolist())
        for line in ax.lines
    ]


def test_runs_with_scores_and_curves_give_their_figures(tmp_path: Path) -> None:
    drawn = {name: caption for name, _, caption in draw(made(tmp_path))}
    assert drawn.keys() == {"differences-kvasir", "curves-kvasir"}
    assert all("hash aaaa0000aaaa0000" in caption for caption in drawn.values())
    assert "Grey" not in drawn["curves-kvasir"], "every row has a colour"
    figure, caption = there(curves(made(tmp_path), "kvasir", coloured=2))
    assert lines_of(figure.axes[0])[0] == (GREY, 0.5, [1.0, 2.0, 3.0], [51.0, 52.0, 53.0])
    assert [line[0] for line in lines_of(figure.axes[0])] == [GREY, BASELINE, BETTER]
    assert "Grey: the other 1 rows" in caption


def test_rows_with_a_collapsed_run_have_an_open_mark_and_rows_like_the_baseline_a_shade(tmp_path: Path) -> None:
    rows = {
        "lora": (0.7, 0.71, 0.69),
        "full": (0.72, 0.73, 0.1),
        "decoder": (0.69, 0.71, 0.7),
        "bitfit": (0.3, 0.31, 0.29),
    }
    store_of(tmp_path, [record(v, method=m, seed=seed) for m, values in rows.items() for seed, v in enumerate(values)])
    with styled():
        figure, caption = there(differences(leaderboards(grids(Archive(tmp_path)))[0], "kvasir"))
        figure.draw_without_rendering()
    ax = figure.axes[0]
    faces = [line.get_markerfacecolor() for line in ax.lines if line.get_marker() == "o"]
    assert (faces.count("none"), len(faces), len(ax.patches)) == (1, 3, 1)
    assert lines_of(ax)[:1] + lines_of(ax)[-2:] == [
        (INK, 0.6, [0.0, 0.0], [0.0, 1.0]), (WORSE, 1.3, [-42.34, -37.66], [2.0, 2.0]), (WORSE, 1.2, [-40.0], [2.0]),
    ]  # fmt: skip
    assert [*ax.get_xlim(), *ax.get_ylim()] == pytest.approx([-45.916, 5.916, 2.6, -0.6], abs=1e-3)
    assert figure.get_size_inches().tolist() == pytest.approx([3.35, 1.08])
    assert "Shaded" in caption
    assert "Open" in caption
    assert [limits([0.0, 10.0, 20.0, 30.0, 100.0][-count:])[1] for count in (4, 5)] == pytest.approx([107.2, 32.4])
    labels = [label.get_window_extent() for label in ax.get_yticklabels()]
    assert all(above.y0 >= below.y1 - 1 for above, below in itertools.pairwise(labels)), "names touch nothing"


def test_equal_runs_give_equal_bytes_and_a_page_its_own_colours(tmp_path: Path) -> None:
    first, second = (list(draw(made(tmp_path / name))) for name in ("a", "b"))
    for (name, figure, caption), (_, other, _) in zip(first, second, strict=True):
        assert encoded_figure(figure, "svg", title=name, caption=caption) == encoded_figure(
            other, "svg", title=name, caption=caption
        )
        assert "currentColor" in inline(figure, name=name)
        assert "<metadata" not in inline(figure, name=name)


def test_each_searched_row_has_a_panel_with_a_line_an_operation(tmp_path: Path) -> None:
    shares = [{"q": [0.125] * 8}, {}, {"q": [0.4, *[0.1] * 6, 0.0], "v": [0.2, *[0.1] * 6, 0.2]}]

    def searched(rank: int, **changes: Any) -> Any:
        return record(method="naslora", config={"operations": "all", "rank": rank}, changed={"rank": rank}, **changes)

    records = [searched(rank, architecture=shares) for rank in range(2, 9)]
    store_of(tmp_path, [*records, searched(2, architecture=shares[2:], seed=1)])
    figure, _ = there(alpha(leaderboards(grids(Archive(tmp_path)))[0], "kvasir"))
    assert [ax.get_title(loc="left") for ax in figure.axes] == [f"NAS-LoRA (rank={rank})" for rank in range(2, 8)]
    assert lines_of(figure.axes[0])[1][2:] == ([1.0], [0.21]), "epochs that all seeds have"
    alike, first, *_ = lines_of(figure.axes[1])
    assert (alike, first[0], first[2:]) == ((GREY, 0.7, [0.0, 1.0], [0.12, 0.12]), BETTER, ([1.0, 2.0], [0.12, 0.3]))
    assert len({(line.get_color(), line.get_marker()) for line in figure.axes[0].lines}) == 9
    assert figure.get_size_inches().tolist() == pytest.approx([6.9, 3.8])


def test_a_history_of_no_cells_draws_no_figure(tmp_path: Path) -> None:
    store_of(tmp_path, [record(method="naslora", config={"operations": "all"}, architecture=[{}])])
    (board,) = leaderboards(grids(Archive(tmp_path)))
    assert alpha(board, "kvasir") is None


def test_names_are_enumerated_and_many_are_counted() -> None:
    said = [enumerated("ABCD"[:count], most=3) for count in range(1, 5)]
    assert said == ["A", "A and B", "A, B and C", "A, B, C and 1 more"]


def test_a_count_is_three_digits_and_its_unit() -> None:
    counts = (0, 999, 22_272, 999_400, 999_600, 5_743_892, 1_137_000_000)
    assert list(map(short_number, counts)) == ["0", "999", "22.3k", "999k", "1M", "5.74M", "1.14B"]


def test_found_missed_and_invented_foreground_have_different_kinds() -> None:
    truth = np.array([[0, 1, 1, 2, 255, 0]], np.uint8)
    predicted = np.array([[0, 1, 0, 1, 1, 1]], np.uint8)
    assert masks.kinds(predicted, truth).tolist() == [[0, 1, 2, 4, 5, 3]]


def test_each_row_shows_its_own_extremes_of_all_test_images(tmp_path: Path) -> None:
    board = made(tmp_path)
    square = np.ones((8, 8), np.uint8)
    (run,) = [run for run in board.grid.records_of("LoRA") if run.run.seed == 0]
    scores = {"a": 0.5, "b": 0.9, "c": 0.1, "d": 0.6, "e": 0.3}
    table = {"best": {"test": {stem: {"s_measure": score} for stem, score in scores.items()}}}
    board.grid.archive.store.images_path(run.key).write_bytes(images_csv(table, {}).encode())
    ranked = sorted(scores, key=lambda stem: (-scores[stem], stem))
    kept = [ranked[1], ranked[0], ranked[-1]]
    masks_of = [KeptMask(split="test", stem=stem, predicted=square, truth=square) for stem in kept]
    board.grid.archive.store.masks_path(run.key).write_bytes(encoded_masks(masks_of))
    found = masks.tiles(board, "kvasir", None)
    own = {title: [(tile.name, tile.score) for tile in line] for title, line in found.items() if "own" in title}
    assert own == {
        f"{word} of {len(scores)} test images, each row's own": [("LoRA", f"{100 * scores[stem]:.1f}")]
        for word, stem in (("best", ranked[0]), ("worst", ranked[-1]))
    }


def test_tiles_are_of_the_seed_that_most_rows_kept_and_lie_on_the_photograph(tmp_path: Path) -> None:
    board = made(tmp_path)
    store = board.grid.archive.store
    square = np.zeros((500, 500), np.uint8)
    square[2:6, 2:6] = 1
    kept = encoded_masks([KeptMask(split="test", stem=stem, predicted=square, truth=square) for stem in "abc"])
    for row, seeds in (("LoRA", (0, 1)), ("Full fine-tuning", (1,))):
        for run in board.grid.records_of(row):
            if run.run.seed in seeds:
                store.masks_path(run.key).write_bytes(kept)
    photograph = np.full((500, 500, 3), 100, np.uint8)
    found = masks.tiles(board, "kvasir", lambda *_: photograph)
    assert [tile.name for tile in next(iter(found.values()))] == ["image", "truth", "LoRA", "Full fine-tuning"]
    assert len(found) == 3
    truth = next(iter(found.values()))[1].picture
    assert (truth.shape, truth[0, 0].tolist()) == ((250, 250, 3), [100, 100, 100])
    assert truth[1, 1].tolist() == [179, 179, 179]  # found foreground, 235, of an opacity of 150 in 255
    assert next(iter(masks.tiles(board, "kvasir", None).values()))[0].name == "truth"
    ((figure, caption),) = ((figure, caption) for name, figure, caption in draw(board) if name == "masks-kvasir")
    assert {drawn.get_interpolation() for ax in figure.axes for drawn in ax.images} == {"nearest"}
    assert caption.startswith("Masks of test images on Kvasir-SEG by the best checkpoint on validation")
    page = site([board], title="t", photographs=lambda *_: photograph, withheld="")["kvasir.html"]
    shown = [base64.b64decode(each) for each in re.findall(r"data:image/webp;base64,([\w+/=]+)", page)]
    assert [Image.open(io.BytesIO(each)).size for each in shown] == [(192, 192)] * sum(map(len, found.values()))


def test_the_panels_of_cost_draw_time_and_memory() -> None:
    records = [record(0.7, method=name) for name in ("lora", "decoder")]
    measured = session(
        comparability=measured_on(backbone="tiny", image_size=64),
        methods=[
            method(made.run.method, [step, step], config=made.run.method_config, memory_bytes={"allocated": memory})
            for made, step, memory in zip(records, (0.1, 0.05), (2**30, 2**28), strict=True)
        ],
    )
    figure, _ = there(cost(leaderboards(grids(MadeUp(records, costs=[measured])))[0]))
    drawn = [[np.asarray(line.get_xdata())[0] for line in ax.lines if line.get_marker() == "o"] for ax in figure.axes]
    assert drawn == [[pytest.approx(0.5)], [pytest.approx(0.25)]]
    assert [len(ax.lines) for ax in figure.axes] == [4, 3], "memory has no interval"
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["Decoder alone"]
