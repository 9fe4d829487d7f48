"""Scores of a split: conventions, ignored pixels, order, merging, refusals."""

from __future__ import annotations

import pickle
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from harness.comparison import names
from harness.evaluation.conventions import CLASSES, LABEL_METRICS, METRICS, Conventions, higher_is_better
from harness.evaluation.resize import resize_bilinear, resize_nearest
from harness.evaluation.scorer import SplitScorer
from harness.system.errors import UsageError
from tests.harness.evaluation.pairs import blob, random_pairs, soft

EMPTY = np.zeros((8, 8), dtype=np.uint8)


def example(seed=0, height=50, width=40):
    rng = np.random.default_rng(seed)
    mask = blob(rng, height, width)
    return soft(rng, mask) / 255, mask


def test_only_mae_and_ber_are_better_lower():
    assert [metric for metric in METRICS if not higher_is_better(metric)] == ["mae", "ber"]


@pytest.mark.parametrize("name", [*METRICS, *LABEL_METRICS])
def test_tables_rank_by_the_direction_that_chooses_epochs_and_rates(name):
    assert (names.sign(name) > 0) is higher_is_better(name)


@pytest.mark.parametrize("metric", METRICS)
def test_a_perfect_prediction_scores_best(metric):
    _, mask = example()
    value = SplitScorer([metric]).measure(mask.astype(float), mask).values[metric]
    if metric in ("e_mean", "e_max", "e_adaptive", "dice_mean", "iou_mean"):
        # The E-measure divides by N − 1; means include the threshold 0, at which everything is predicted.
        assert value > 0.995
    else:
        assert value == pytest.approx(1.0 if higher_is_better(metric) else 0.0, abs=1e-9)


@pytest.mark.parametrize("min_max", [True, False])
@pytest.mark.parametrize("metric", METRICS)
def test_ignored_pixels_change_nothing(metric, min_max):
    prediction, mask = example(1)
    mask[10:25, 5:30] = 255
    other = prediction.copy()
    other[10:25, 5:30] = np.random.default_rng(0).random((15, 25))
    other[12, 12], other[13, 13] = 0.0, 1.0
    scorer = SplitScorer([metric], conventions=Conventions(min_max=min_max))
    assert scorer.measure(prediction, mask).values == scorer.measure(other, mask).values


@pytest.mark.parametrize("min_max", [True, False])
def test_ignoring_a_margin_equals_cutting_it_off(min_max):
    """True of metrics that do not look at neighbours, and of the S-measure, whose centroid moves along."""
    prediction, mask = example(2)
    prediction = 0.2 + 0.6 * prediction  # unless it is stretched, no pixel counts as 0
    holes = np.full((70, 40), 255, dtype=np.uint8)
    holes[:50] = mask
    padded = np.concatenate([prediction, np.random.default_rng(1).random((20, 40))])
    metrics = [metric for metric in METRICS if metric != "weighted_f"]
    scorer = SplitScorer(metrics, conventions=Conventions(min_max=min_max))
    cut, ignored = scorer.measure(prediction, mask), scorer.measure(padded, holes)
    assert ignored.values == pytest.approx(cut.values, abs=1e-12)


def test_an_image_whose_every_pixel_is_ignored_is_left_out_of_all_metrics_alike():
    ignored = np.full((8, 8), 0.3), np.full((8, 8), 255, dtype=np.uint8)
    alone, both, nothing = (SplitScorer(METRICS) for _ in range(3))
    for scorer in (alone, both):
        scorer.insert("a", scorer.measure(*example()))
    both.insert("b", both.measure(*ignored))
    nothing.insert("b", nothing.measure(*ignored))
    assert both.summary() == alone.summary()
    assert [*both.images()] == ["a"]
    assert (both.ignored(), alone.ignored()) == (["b"], [])
    with pytest.raises(UsageError, match="ignored"):
        nothing.summary()


FULL = np.ones((8, 8), dtype=np.uint8)
ONE_COUNTS = np.where(np.arange(64).reshape(8, 8) == 9, FULL, np.uint8(255))
OVERLAP = ("iou", "dice", "jaccard")


def flat(value: float, **rows: float) -> NDArray[np.float64]:
    """A map of one probability, with other ones in the first rows."""
    plane = np.full((8, 8), value)
    for row, other in enumerate(rows.values()):
        plane[row] = other
    return plane


BY_HAND: dict[str, tuple[dict[str, Any], NDArray[Any], NDArray[np.uint8], dict[str, float]]] = {
    "nothing where nothing is": ({}, flat(0), EMPTY, dict.fromkeys(OVERLAP, 1.0)),
    "nothing where nothing is, by the other rule": ({"empty": 0.0}, flat(0), EMPTY, dict.fromkeys(OVERLAP, 0.0)),
    "a false alarm where nothing is": ({"empty": 1.0}, np.eye(8), EMPTY, {"iou": 0.0, "dice": 0.0}),
    # As released: S is 1 − the mean of the map, the weighted F 0.
    "an empty mask": ({}, np.linspace(0, 1, 64).reshape(8, 8), EMPTY, {"s_measure": 0.5, "weighted_f": 0.0}),
    "one pixel that counts": ({}, flat(1), ONE_COUNTS, {"e_mean": 1.0, "e_max": 1.0, "e_adaptive": 1.0}),
    "BER without shadow is the error rate outside": ({}, flat(0, first=1), EMPTY, {"ber": 1 / 8}),
    "BER has its own threshold": ({}, flat(0.495), FULL, {"ber": 0.0, "iou": 0.0}),
    "on BER's threshold lies background": ({}, flat(125 / 255), FULL, {"ber": 1.0}),
    "on the threshold lies background": (
        {},
        flat(0.5, first=np.nextafter(0.5, 1)),
        (flat(0, first=1, second=1)).astype(np.uint8),
        {"iou": 0.5, "dice": 2 / 3, "miou": (0.5 + 48 / 56) / 2},
    ),
    "thresholds apply before stretching": ({}, flat(0.2, first=0.1), FULL, {"iou": 0.0, "mae": 1 / 8}),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_values_of_an_image_worked_by_hand(case):
    rules, prediction, mask, expected = BY_HAND[case]
    values = SplitScorer([*expected], conventions=Conventions(**rules)).measure(prediction, mask).values
    assert values == pytest.approx(expected, abs=1e-9)


def test_a_class_that_is_predicted_and_in_no_mask_counts_nothing_in_the_mean():
    """Mask: half class 0, half class 1; a quarter of the image is called class 2: IoU 1/2, 1 and 0, class 3 left out."""
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[4:] = 1
    labels = mask.copy()
    labels[:2] = 2
    scorer = SplitScorer(CLASSES, task="multiclass", num_classes=4)
    scorer.insert("a", scorer.measure(labels, mask))
    assert scorer.summary() == {"miou": pytest.approx((0.5 + 1 + 0) / 3), "accuracy": 0.75}


def test_a_class_is_seen_if_one_image_of_the_split_has_it():
    """Counts are summed first: image b has class 1 nowhere, and its false alarms of class 1 still lower class 1's IoU."""
    scorer = SplitScorer(["miou"], task="multiclass", num_classes=3)
    ones, zeros = np.ones((4, 4), dtype=np.uint8), np.zeros((4, 4), dtype=np.uint8)
    scorer.insert("a", scorer.measure(ones, ones))
    scorer.insert("b", scorer.measure(ones, zeros))
    assert scorer.summary()["miou"] == pytest.approx((0 + 16 / 32) / 2)


def test_native_resolution_resizes_the_prediction_and_input_the_mask():
    prediction, mask = example(3, height=60, width=60)
    small = prediction[::3, ::3]
    native = SplitScorer(METRICS).measure(small, mask)
    at_input = SplitScorer(METRICS, conventions=Conventions(resolution="input")).measure(small, mask)
    assert native.counts is not None
    assert native.counts[1].sum() == mask.sum()
    assert at_input.counts is not None
    assert at_input.counts[1].sum() == mask[1::3, 1::3].sum()
    assert native.values != at_input.values


def test_labels_keep_their_values_when_they_are_resized():
    labels = np.array([[0, 2], [2, 0]], dtype=np.int64)  # between which interpolation would see class 1
    scorer = SplitScorer(("miou",), task="multiclass", num_classes=3)
    assert scorer.measure(labels, np.kron(labels, np.ones((4, 4))).astype(np.uint8)).values["miou"] == 1.0


def _of_classes(seed: int) -> list[tuple[str, NDArray[Any], NDArray[np.uint8]]]:
    rng = np.random.default_rng(seed)
    return [(str(n), *(rng.integers(0, 4, (20, 20)).astype(np.uint8) for _ in range(2))) for n in range(6)]  # type: ignore[misc]


@pytest.mark.parametrize("kind", ["per-image", "accumulated", "classes"])
def test_merged_parts_equal_the_whole(kind):
    """Easy + hard = all, and several processes = one; parts travel pickled."""
    if kind == "classes":
        new, pairs = partial(SplitScorer, CLASSES, task="multiclass", num_classes=4), _of_classes(6)
    else:
        new = partial(SplitScorer, METRICS, conventions=Conventions(overlap=kind))
        pairs = [(name, prediction / 255, mask) for name, prediction, mask in random_pairs(20, seed=5)]
    whole, easy, hard = new(), new(), new()
    for index, (name, prediction, mask) in enumerate(pairs):
        for scorer in (whole, easy if index % 3 else hard):
            scorer.insert(name, scorer.measure(prediction, mask))
    easy.merge(pickle.loads(pickle.dumps(hard)))
    assert easy.summary() == whole.summary()
    assert easy.images() == whole.images()
    with pytest.raises(ValueError, match="was scored already"):
        easy.merge(hard)


def test_metrics_of_binary_masks_are_refused_for_multiclass():
    for metric in {*METRICS} - {*CLASSES}:
        with pytest.raises(UsageError, match="binary masks"):
            SplitScorer([metric], task="multiclass", num_classes=3)


@pytest.mark.parametrize(
    ("prediction", "mask", "message"),
    [
        (np.full((8, 8), np.nan), EMPTY, "finite"),
        (np.full((8, 8), 3.0), EMPTY, r"within \[0, 1\]"),
        (np.zeros((2, 8, 8)), EMPTY, "cannot score"),
        (np.zeros((8, 8)), EMPTY.astype(np.int64), "cannot score"),
        (np.zeros((8, 8)), EMPTY + np.uint8(2), "the mask has class 2, but there are 2 classes"),
    ],
)
def test_what_cannot_be_scored_is_refused(prediction, mask, message):
    with pytest.raises(ValueError, match=message):
        SplitScorer(["iou"]).measure(prediction, mask)
    with pytest.raises(ValueError, match="no image was scored"):
        SplitScorer(["iou"]).summary()


@pytest.mark.parametrize(
    ("scores", "message"), [(np.zeros((2, 8, 8)), "of 3 classes"), (np.zeros((8, 8)), "must be integers")]
)
def test_scores_of_other_classes_are_refused(scores, message):
    with pytest.raises(ValueError, match=message):
        SplitScorer(["miou"], task="multiclass", num_classes=3).measure(scores, EMPTY)


@pytest.mark.parametrize(
    ("predicted", "masks", "nothing"),
    [
        ([0, 0], [1, 0], True),
        ([0, 1], [1, 0], False),  # a false alarm is an object
        ([0, 0], [0, 0], False),  # there was nothing to find
        ([0, 1], [1, 1], False),
    ],
)
@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_background_in_every_image_differs_from_a_poor_score(predicted, masks, nothing, task):
    classes = 2 if task == "binary" else 3
    scorer = SplitScorer(["iou"] if task == "binary" else ["miou"], task=task, num_classes=classes)
    for index, (guess, true) in enumerate(zip(predicted, masks, strict=True)):
        prediction, mask = np.zeros((8, 8), int), np.zeros((8, 8), np.uint8)
        prediction[1, 1], mask[4, 4] = guess * (classes - 1), true
        scorer.insert(str(index), scorer.measure(prediction.astype(float) if task == "binary" else prediction, mask))
    assert scorer.is_blank() == nothing
    assert not SplitScorer(["iou"]).is_blank()


@pytest.mark.parametrize(("predicted", "true", "share"), [(0, 8, 0.0), (4, 8, 0.5), (16, 8, 2.0), (4, 0, None)])
def test_how_much_foreground_is_predicted_is_a_share_of_the_masks(predicted: int, true: int, share: float | None):
    """Over two images, of which the second has four times the pixels and the same shares."""
    scorer = SplitScorer(["iou"])
    for size in (8, 16):
        probability, mask = np.zeros((size, size)), np.zeros((size, size), np.uint8)
        probability.flat[: predicted * size**2 // 64], mask.flat[: true * size**2 // 64] = 1, 1
        scorer.insert(str(size), scorer.measure(probability, mask))
    assert scorer.foreground() == share
    assert SplitScorer(["miou"], task="multiclass", num_classes=3).foreground() is None


SIZES = [(40, 50), (9, 12), (17, 60), (34, 62), (1, 1), (17, 31)]


@pytest.mark.parametrize("size", SIZES)
def test_bilinear_equals_interpolate(size):
    """In float64, but for what two directions of a rounded weight, two products and a sum may lose: 8 roundings below 1."""
    scores = np.random.default_rng(0).random((3, 17, 31), dtype=np.float32)
    expected = torch.nn.functional.interpolate(torch.from_numpy(scores).double()[None], size, mode="bilinear")[0]
    np.testing.assert_allclose(resize_bilinear(scores, size), expected.numpy(), atol=8 * 2**-24, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_nearest_equals_pillow(size):
    labels = np.random.default_rng(0).integers(0, 12, (17, 31), dtype=np.uint8)
    expected = Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST)
    assert (resize_nearest(labels, size) == np.asarray(expected)).all()


PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"


def test_the_page_explains_every_metric_and_every_convention():
    text = PAGE.read_text(encoding="utf-8")
    assert not [name for name in (*METRICS, *(field.name for field in fields(Conventions))) if f"`{name}`" not in text]
