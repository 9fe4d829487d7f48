"""Figures from records alone: what they show, how they look, and that equal records give equal bytes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.text import Annotation

from harness.archive.store import RecordStore
from harness.cli import figures as verb
from harness.cli import tables
from harness.comparison.rows import Row, Sheet
from harness.registry import METHODS
from harness.report.figures import FIGURES, draw
from harness.report.figures.curves import largest_drop
from harness.report.figures.insides import merged
from harness.report.figures.material import NothingToDrawError
from harness.report.figures.mixtures import cap
from harness.report.figures.pareto import _scale, front
from harness.report.figures.ranks import cliques
from harness.report.figures.style import COLUMN, DASHES, PAGE, encoded, limits, looks, new_figure, split_by_length
from harness.studies import study_from_dict
from tests.harness.report.figures.sample import METRICS, material_of, write_results
from tests.harness.report.sample import record
from tests.values import there

FROM_THESE = [
    name for name in FIGURES if name not in ("masks", "strip", "lengths", "readings")
]  # which have tests of their own


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("results")
    write_results(root)
    return root


@pytest.mark.parametrize("name", FROM_THESE)
def test_every_figure_fits_a_paper_and_says_what_it_shows(results: Path, name: str):
    drawings = dict(draw(name, material_of(results)))
    assert drawings
    for stem, drawing in drawings.items():
        assert stem.startswith(f"demo-aaaa0000aaaa0000-{name}")
        assert "n = 2 seeds (0, 1)" in drawing.caption
        assert "hash aaaa0000aaaa0000" in drawing.caption
        assert drawing.figure.get_size_inches()[0] in (COLUMN, PAGE)
        assert drawing.figure.axes


def test_equal_records_give_equal_bytes_in_another_process(results: Path, tmp_path: Path, says):
    first, second = tmp_path / "first", tmp_path / "second"
    words = ["forest", "--results", str(results), "--out"]
    says(verb.main, *words, first)
    environment = {**os.environ, "PYTHONHASHSEED": "5", "MPLBACKEND": "pdf"}
    command = [sys.executable, "-m", "harness", "figures", *words, str(second)]
    subprocess.run(command, check=True, capture_output=True, env=environment)
    files = sorted(path.name for path in first.iterdir())
    assert {Path(name).suffix for name in files} == {".svg", ".pdf", ".png", ".txt"}
    assert files == sorted(path.name for path in second.iterdir())
    for name in files:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_files_hold_their_fonts_and_no_date(results: Path):
    ((stem, drawing),) = draw("forest", material_of(results))
    vector = encoded(drawing.figure, "svg", title=stem, caption=drawing.caption)
    page = encoded(drawing.figure, "pdf", title=stem, caption=drawing.caption)
    assert b"<text" not in vector  # letters are shapes
    assert b"dc:date" not in vector
    assert drawing.caption.split(";")[0].encode() in vector
    assert b"/FontFile2" in page
    assert b"/Type3" not in page
    assert b"CreationDate" not in page


def row(label: str, method: str) -> Row:
    return Row(sheet=Sheet(protocol="", protocol_hash="", backbone="", checkpoint=""), label=label, method=method)


def test_a_method_looks_the_same_beside_whatever_rows():
    (alone,) = looks([row("mine", "naslora")]).values()
    rows = [*(row(name, name) for name in METHODS.names()), row("plug", "zzz")]
    every = {entry.label: look for entry, look in looks(rows).items()}
    assert (alone.colour, alone.marker) == (every["naslora"].colour, every["naslora"].marker)
    known = [every[name] for name in METHODS.names()]
    assert len({look.colour for look in known}) == len({look.marker for look in known}) == len(known)
    alike = looks([row(str(number), "naslora") for number in range(12)]).values()
    assert {look.colour for look in alike} == {alone.colour}
    assert len({(str(look.points()["marker"]), look.points()["markerfacecolor"]) for look in alike}) == 12
    assert len({(look.line()["linestyle"], look.line()["markerfacecolor"]) for look in alike}) == len(DASHES) + 1


def test_the_drop_around_the_start_of_the_search():
    curve = {7: 90.0, 8: 80.0, 9: 82.0, 10: 81.0, 11: 79.5, 12: 83.0, 13: 60.0}
    assert largest_drop(curve, 10) == pytest.approx(2.5)  # 82 to 79.5; 90 and 60 lie outside
    assert largest_drop({9: 1.0, 10: 2.0}, 10) == 0.0
    assert largest_drop({9: 1.0, 10: 2.0}, 10, lower_is_better=True) == pytest.approx(1.0)
    assert largest_drop({10: 1.0}, 10) is None


def test_the_front_keeps_what_nothing_beats():
    points = {"a": (1.0, 5.0), "b": (2.0, 4.0), "c": (3.0, 6.0), "d": (3.0, 5.5), "e": (1.0, 4.9)}
    assert [entry.label for entry in front({row(name, name): point for name, point in points.items()})] == ["a", "c"]


def test_the_front_of_an_error_keeps_the_lowest(tmp_path: Path):
    """Of three rows at rising cost the cheapest errs least, so that nothing else is on the front; of a score all three are."""
    for place, method in enumerate(("decoder", "bitfit", "lora")):
        for benchmark in ("kvasir", "sbu"):
            scores = {"best": {"test": {METRICS[benchmark]: 0.1 * (place + 1)}}}
            counts = {"encoder": 1000 * (place + 1), "decoder": 1, "trainable": 1, "total": 9000}
            RecordStore(tmp_path).write(record(method=method, benchmark=benchmark, scores=scores, parameters=counts))
    material = material_of(tmp_path)
    lines = {drawing.benchmark: drawing.figure.axes[0].lines[0] for _, drawing in draw("pareto", material)}
    heights = {name: np.asarray(line.get_ydata(), dtype=float).round().tolist() for name, line in lines.items()}
    assert heights == {"kvasir": [10, 20, 30], "sbu": [10]}


@pytest.mark.parametrize("folds", [True, False])
def test_bars_of_folds_count_what_the_splits_share_and_captions_say_so(tmp_path: Path, *, folds: bool):
    counts = {"encoder": 1000, "decoder": 1, "trainable": 1, "total": 9000}
    for place, method in enumerate(("decoder", "lora")):
        for seed, value in enumerate((0.7, 0.8, 0.9)):
            made = record(
                value - place * seed / 100, method=method, seed=seed, parameters=counts,
                rules={"split_follows_seed": folds}, counts={"train": 20, "test": 10},
            )  # fmt: skip
            RecordStore(tmp_path).write(made)
    material = material_of(tmp_path, baseline="lora")
    pareto, forest = (dict(draw(name, material)) for name in ("pareto", "forest"))
    (drawing,) = pareto.values()
    bars_of: Any = drawing.figure.axes[0].containers[0]
    bars = bars_of.lines[2][1].get_segments()[0]
    factor = (1 + 3 * 10 / 20) ** 0.5 if folds else 1.0
    assert bars[1][1] - bars[0][1] == pytest.approx(
        2 * 24.841 * factor, abs=0.01
    )  # t of 2 df, SD 10 of 3: 4.3027 * 5.7735
    assert ("splits, one a seed" in drawing.caption) == folds
    assert ("splits, one a seed" in next(iter(forest.values())).caption) == folds


def test_merged_less_unmerged_is_below_zero_where_merging_costs_score(tmp_path: Path):
    for seed in range(2):
        scores = {name: {"test": {"s_measure": value}} for name, value in (("best", 0.9), ("merged-exact", 0.88))}
        report = {"mode": "exact", "folded": ["a"], "left": {}, "relative_deviation": 1e-6}
        RecordStore(tmp_path).write(record(seed=seed, scores=scores, merge={"exact": report}))
    (change,) = merged(material_of(tmp_path))
    assert there(change.difference).mean == pytest.approx(-2.0)


@pytest.mark.parametrize(("caps", "shown"), [((0.3, 0.4), 0.4), ((0.3, None), None), ((None, None), None)])
def test_a_cap_is_shown_where_every_run_knows_it(caps: tuple[float | None, ...], shown: float | None):
    assert cap([record(budget={} if share is None else {"share_cap": share}) for share in caps]) == shown


@pytest.mark.parametrize(
    ("costs", "ticks"),
    [
        ((142, 420, 790), [100, 200, 500]),
        ((0.0, 0.05, 21.6), [0, 0.01, 0.1, 1, 10]),
        ((200, 300, 500), [200, 300, 400, 500]),
    ],
    ids=["a decade", "decades from 0", "a factor of three"],
)
def test_an_axis_of_costs_has_more_than_one_tick(costs: tuple[float, ...], ticks: list[float]):
    ax = new_figure(COLUMN, 2.4).subplots()
    ax.plot(costs, costs)
    _scale(ax, costs)
    low, high = ax.get_xlim()
    assert [tick for tick in ax.get_xticks() if max(0, 0.999 * low) <= tick <= high] == pytest.approx(ticks)


def test_rows_beyond_the_axis_are_named_where_they_are(tmp_path: Path):
    """One of a score where less is better collapses upwards; the arrow must not point down."""
    material = material_of(_collapsed(tmp_path, "sbu"))
    (drawing,) = [figure for stem, figure in draw("pareto", material) if stem.endswith("sbu")]
    ax = drawing.figure.axes[0]
    arrow, note = (text for text in ax.texts if isinstance(text, Annotation))
    assert (arrow.get_text(), note.get_text()) == ("", "99.0, 98.0")
    assert arrow.xy == note.xy
    assert note.xy[1] == ax.get_ylim()[1]
    drawing.figure.draw_without_rendering()
    words, head = note.get_window_extent(), ax.transData.transform(note.xy)
    assert (
        not words.x0 - 2 < head[0] < words.x1 + 2
    )  # beside the arrow, so that no marker of the same cost stands on it
    assert note.get_zorder() > 3


def test_a_run_that_ends_beyond_the_axis_of_curves_is_marked_and_the_caption_says_so(tmp_path: Path):
    store = RecordStore(tmp_path)
    for method, seed, end in (("lora", 0, 0.2), ("lora", 1, 0.8), ("lora", 2, 0.8), ("decoder", 0, 0.9)):
        history = [{"epoch": epoch, "loss": 0.5, "val": {"s_measure": end - 0.1 / epoch}} for epoch in (1, 2)]
        store.write(record(0.8, method=method, seed=seed, history=history))
    drawings = {drawing.part: drawing for _, drawing in draw("curves", material_of(tmp_path))}
    of_lora = next(ax for ax in drawings["kvasir"].figure.axes if ax.get_title("left") == "lora")
    assert [text.get_text() for text in of_lora.texts] == ["", "15.0"]  # an arrow, and where the run ended
    assert "a run that ends beyond the axis" in drawings["kvasir"].caption
    assert "beyond the axis" not in drawings["kvasir-loss"].caption


def _collapsed(root: Path, benchmark: str) -> Path:
    usual = {"full": 0.5, "bitfit": 0.5, "ssf": 0.51, "vpt": 0.52, "lst": 0.49, "lora": 0.5, "samed": 0.51, "vera": 0.5}
    values = {**usual, "dora": 0.99, "fact": 0.98}
    store = RecordStore(root)
    for place, (method, value) in enumerate(values.items()):
        counts = {"encoder": 1000 * place, "decoder": 1, "trainable": 1, "total": 9000}
        scores = {"best": {"test": {METRICS[benchmark]: value}}}
        store.write(record(value, method=method, benchmark=benchmark, scores=scores, parameters=counts))
    return root


def test_rows_that_read_alike_when_cut_are_numbered_and_spelt_out(tmp_path: Path):
    write_results(tmp_path)
    begin = "scale=10.667, alternate=iteration, style="
    entries = [{"label": begin + end, "method": name} for end, name in (("linear", "decoder"), ("darts", "lora"))]
    asked = {"title": "t", "protocol": "demo", "benchmarks": ["kvasir", "leaf"], "seeds": 2}
    study = study_from_dict({**asked, "entries": [*entries, "naslora"]}, name="mine")
    material = material_of(tmp_path, study=study, baseline="naslora")
    assert material.short(material.baseline) == "naslora"
    cut = [material.short(row, most=24) for row in material.grid.rows[:2]]
    assert cut == ["scale=10.667, alter… [1]", "scale=10.667, alter… [2]"]
    ((_, drawing),) = draw("forest", material)
    assert f"Rows cut short: [1] {begin}linear; [2] {begin}darts." in drawing.caption


def test_no_figure_is_too_small_for_its_labels_which_are_text_whatever_they_hold(tmp_path: Path, recwarn):
    label = r"<script>$\frac$_{x" + "scale=10.667, alternate=iteration, style=linear, norm=batch, sites=q,k,v" * 2
    write_results(tmp_path, seeds=1, label=label)
    material = material_of(tmp_path)
    for name in ("curves", "pareto", "forest", "alpha", "alpha-entropy"):
        for stem, drawing in draw(name, material):
            assert b"<script>" not in encoded(drawing.figure, "svg", title=stem, caption=drawing.caption)
    assert [str(warning.message) for warning in recwarn if "constrained_layout" in str(warning.message)] == []


def test_cliques_limits_and_pages_of_a_figure():
    """What is no further apart than the critical difference is joined, a collapsed row flattens no axis, panels are split."""
    assert cliques([1.0, 1.5, 3.0, 3.4], 2.0) == [(0, 2), (1, 3)]
    assert cliques([1.0, 4.0], 2.0) == []
    low, high = limits([80.0, 81.0, 82.0, 83.0, 84.0, 10.0], margin=0.15)
    assert 70 < low < 80 < 84 < high
    assert list(split_by_length("abcdefg", columns=3, height=lambda _: 4.0)) == [list("abcdef"), ["g"]]
    assert list(split_by_length("ab", columns=3, height=lambda _: 99.0)) == [["a", "b"]]


def test_too_little_is_one_line(tmp_path: Path, results: Path, says):
    assert "run something first" in says(verb.main, "forest", "--results", tmp_path, code=2)
    (tmp_path / "records").mkdir()
    says(verb.main, "all", "--results", tmp_path, code=2)
    (tmp_path / "page.md").touch()
    for words, said in (
        (["fores"], "did you mean 'forest'"),
        (["forest", "--out", tmp_path / "page.md" / "x"], "page.md/x cannot be written (Not a directory)"),
        (["forest", "--format", "gif"], "svg, pdf, png"),
        (["forest", "--baseline", "x"], "no row is called 'x'"),
        (["forest", "--benchmark", "kvazir"], "unknown benchmark 'kvazir' (did you mean 'kvasir'?)"),
        (["forest", "--benchmark", "camo"], f"no run on camo in {results}; it has kvasir, sbu, leaf"),
        (["forest", "--benchmark", "Kvasir"], "no forest: it shows all benchmarks at once; leave --benchmark away"),
        (["masks", "--seed", "77"], "no run of seed 77; there are 0, 1"),
        (["masks", "--seed", "1"], "no run of seed 1 has masks beside it"),
    ):
        assert said in says(verb.main, *words, "--results", results, code=2)
    write_results(tmp_path / "one", seeds=1)
    said = says(verb.main, "stability", "readings", "--results", tmp_path / "one", code=2)
    assert re.search(r"one seed only.* \(and 1 more like it\)", said)


def test_no_alpha_no_figure_of_it(results: Path):
    material = material_of(results)
    bare = tuple(row for row in material.grid.rows if row.method != "naslora")
    assert len(bare) == 2
    grid = replace(material.grid, rows=bare)
    with pytest.raises(NothingToDrawError, match="no run here has an α history"):
        list(draw("alpha", replace(material, grid=grid)))


def test_the_check_covers_figures_that_are_there(tmp_path: Path, says):
    write_results(tmp_path)
    words = ["--results", tmp_path]
    says(tables.main, *words)
    says(verb.main, "forest", *words, "--format", "svg")
    assert "1 figures" in says(tables.main, *words, "--check")
    (path,) = (tmp_path / "figures").glob("*.svg")
    path.write_bytes(path.read_bytes().replace(b"<path", b"<path ", 1))
    path.with_name("demo-gone-forest.svg").write_bytes(path.read_bytes())
    out = says(verb.main, "--check", *words, code=1)
    assert "differs from the records" in out
    assert "no record gives this figure" in out
    says(tables.main, *words, "--check", code=1)
    says(verb.main, "forest", "--check", *words, code=2)  # it would look at all of them
    says(verb.main, "--check", "--study", "rank", *words, code=2)


def test_records_that_cannot_be_read_are_named(tmp_path: Path, says):
    write_results(tmp_path)
    (tmp_path / "records" / "0000.json").write_text("{", encoding="utf-8")
    assert "0000.json" in says(verb.main, "forest", "--results", tmp_path, "--format", "svg")
