"""Kept masks side by side: which are shown, and how errors are coloured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from harness.archive.masks import KeptMask, encoded_masks
from harness.archive.store import RecordStore
from harness.cli import figures as verb
from harness.registry import BENCHMARKS
from harness.report.figures import draw, masks
from harness.report.figures.masks import best_median_worst, kept, painted
from harness.report.figures.material import NothingToDrawError
from tests.harness.report.figures.sample import material_of, write_results
from tests.harness.report.sample import record
from tests.values import REPOSITORY

STEMS = ("a", "b", "c", "d", "e")
SCORES = "".join(f"best,test,{stem},0.{9 - place}\n" for place, stem in enumerate(STEMS))
IMAGES = f"variant,split,stem,s_measure\n{SCORES}"


def _write(root: Path, method: str, *, seed: int = 0, value: float = 0.7) -> str:
    truth = np.zeros((8, 8), np.uint8)
    truth[2:6, 2:6] = 1
    masks = [KeptMask(split="test", stem=stem, predicted=np.roll(truth, 1), truth=truth) for stem in STEMS]
    made = record(value, method=method, seed=seed)
    RecordStore(root).write(made, IMAGES, encoded_masks(masks))
    return made.key


def test_errors_have_their_colours():
    predicted = np.array([[0, 1, 0, 1, 2, 1]], np.uint8)
    truth = np.array([[0, 1, 1, 0, 1, 255]], np.uint8)
    assert [tuple(map(int, pixel)) for pixel in painted(predicted, truth)[0]] == list(masks.COLOURS)


def test_best_median_and_worst_by_the_baseline():
    scores = {("test", stem): float(place) for place, stem in enumerate(STEMS)}
    assert best_median_worst(scores) == {"best": ("test", "e"), "median": ("test", "c"), "worst": ("test", "a")}
    assert best_median_worst(scores, lower_is_better=True)["best"] == ("test", "a")
    assert best_median_worst({("test", "x"): 1.0}) == {"best": ("test", "x")}


@pytest.mark.parametrize("methods", [("lora",), ("decoder", "lora", "naslora")])
def test_rows_stand_side_by_side_with_the_score_of_the_image(tmp_path: Path, methods: tuple[str, ...]):
    for method in methods:
        _write(tmp_path, method)
    ((stem, drawing),) = draw("masks", material_of(tmp_path))
    assert stem.endswith("masks-kvasir")
    titles = [ax.get_title() for ax in drawing.figure.axes if ax.images]
    assert titles == [
        title for score in ("90.0", "70.0", "50.0") for title in ("truth", *(f"{name}\n{score}" for name in methods))
    ]
    assert "best: a, median: c, worst: e" in drawing.caption


def test_images_are_shown_where_they_are_at_hand(tmp_path: Path):
    _write(tmp_path, "lora")
    material = material_of(tmp_path, pictures=lambda record, split, stem: np.zeros((8, 8, 3), np.uint8))
    ((_, drawing),) = draw("masks", material)
    assert [ax.get_title() for ax in drawing.figure.axes if ax.images][:3] == ["image", "truth", "lora\n90.0"]


def test_masks_that_are_damaged_or_that_another_record_left_are_not_shown_and_none_is_one_line(tmp_path: Path, says):
    store = RecordStore(tmp_path)
    path = store.masks_path(_write(tmp_path, "lora"))
    left = path.read_bytes()
    path.write_bytes(b"no picture")
    material = material_of(tmp_path)
    assert kept(material, "kvasir") == []
    with pytest.raises(NothingToDrawError, match="no record has masks"):
        list(draw("masks", material))
    store.write(record(0.7, method="lora"), IMAGES)
    path.write_bytes(left)
    assert kept(material_of(tmp_path), "kvasir") == []
    write_results(tmp_path / "old", seeds=1)
    assert "keep_masks" in says(verb.main, "masks", "--results", tmp_path / "old", code=2)


def test_masks_are_drawn_where_neither_data_nor_card_are_known_here_and_a_strip_is_not(tmp_path: Path, says):
    _write(tmp_path, "lora")
    words = ["--results", tmp_path, "--format", "svg"]
    says(verb.main, "masks", *words)
    says(verb.main, "masks", *words, "--data", tmp_path, code=2)
    says(verb.main, "masks", *words, "--seed", "5", code=2)
    assert "--data" in says(verb.main, "strip", *words, code=2)


def test_one_seed_is_shown_that_most_rows_have_masks_of(tmp_path: Path):
    _write(tmp_path, "lora", seed=0)
    _write(tmp_path, "lora", seed=1)
    _write(tmp_path, "decoder", seed=1)
    material = material_of(tmp_path)
    assert {strip.record.run.seed for strip in kept(material, "kvasir")} == {1}


def test_a_run_that_collapsed_is_no_example_unless_its_seed_is_asked_for(tmp_path: Path):
    for seed, value in enumerate((0.2, 0.9, 0.7, 0.71)):  # of three equally many the one nearest to the median 0.705
        _write(tmp_path, "lora", seed=seed, value=value)
    (shown,) = kept(material_of(tmp_path), "kvasir")
    assert shown.record.run.seed == 2
    (shown,) = kept(material_of(tmp_path, seed=0), "kvasir")
    assert shown.record.run.seed == 0


def test_a_strip_shows_the_median_photograph_and_one_row_a_method(tmp_path: Path):
    for method in ("lora", "naslora", "decoder"):
        _write(tmp_path, method)
    material = material_of(tmp_path, pictures=lambda record, split, stem: np.full((8, 8, 3), 90, np.uint8), seed=0)
    ((stem, drawing),) = draw("strip", material)
    titles = [ax.get_title().split("\n") for ax in drawing.figure.axes]
    assert stem.endswith("strip-kvasir")
    assert sorted(title[0] for title in titles) == ["decoder", "image", "lora", "naslora", "truth"]
    assert [title[1][-4:] for title in titles[2:]] == ["70.0"] * 3
    assert "median by lora" in drawing.caption
    assert " c (terms of the images: research and education)" in drawing.caption


def test_photographs_of_this_repository_may_be_redistributed():
    kept_here = sorted((REPOSITORY / "docs" / "figures").glob("*.png"))
    assert kept_here
    for path in kept_here:
        name = path.stem.rpartition("-")[2]
        assert BENCHMARKS.get(name).terms.startswith("CC0")
        assert path.stat().st_size < 200_000
        assert "terms of the images: CC0" in path.with_suffix(".txt").read_text()
