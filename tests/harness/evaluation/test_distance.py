"""Distances by OpenCV and by SciPy are the same numbers, and so is what the weighted F-measure makes of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from harness.evaluation import weighted_f as module
from harness.evaluation.saliency import saliency_map
from harness.evaluation.weighted_f import _by_opencv, _nearest, by_scipy, squared_distances, weighted_f
from tests.harness.evaluation.pairs import random_pairs

Mask = NDArray[np.bool_]


def masks() -> Iterator[Mask]:
    """Every kind of mask, crowded ones among them, and a large one."""
    rng = np.random.default_rng(0)
    for _, _, mask in random_pairs(40):
        yield mask == 1
    for share in (0.0005, 0.01, 0.1, 0.5, 0.9, 0.999):
        yield rng.random((rng.integers(1, 90), rng.integers(1, 90))) < share
    y, x = np.mgrid[:600, :600] / 600
    yield ((y - 0.5) / 0.48) ** 2 + ((x - 0.55) / 0.42) ** 2 < 1
    yield (y > 0.9) | (x < 0.6) & (x > 0.02)
    yield (y > 0.999) & (x > 0.999)
    yield np.any([(y - a) ** 2 + (x - b) ** 2 < 0.003 for a, b in ((0.1, 0.1), (0.9, 0.2), (0.5, 0.8))], axis=0)


@pytest.fixture
def without_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "opencv", None)


def test_opencv_gives_scipys_distances_to_the_last_bit() -> None:
    cv2 = pytest.importorskip("cv2")
    compared = 0
    for mask in filter(np.any, masks()):
        compared += 1
        assert np.array_equal(_by_opencv(mask, cv2), by_scipy(mask)), mask.shape
    assert compared > 40


@pytest.mark.parametrize("reach", [4, 20, 90])
def test_distances_are_exact_within_reach_and_larger_beyond(reach: int) -> None:
    in_boxes = False
    for mask in filter(np.any, masks()):
        distances, plain = squared_distances(mask, reach=reach), by_scipy(mask)
        within = plain <= reach**2
        assert np.array_equal(distances[within], plain[within]), mask.shape
        assert (distances[~within] > reach**2).all(), mask.shape
        in_boxes |= bool(np.isinf(distances).any())  # the transform left a part out
    assert in_boxes


def test_what_the_blur_reads_takes_the_foreground_that_scipy_calls_the_nearest() -> None:
    for mask in filter(np.any, masks()):
        (row, column), positions = _nearest(mask, by_scipy(mask))
        nearest = distance_transform_edt(~mask, return_distances=False, return_indices=True)
        assert np.array_equal(positions, nearest[:, row, column]), mask.shape
        # every background pixel within three rows and three columns of the foreground, and no foreground
        near = np.zeros(mask.shape, dtype=np.bool_)
        near[row, column] = True
        reached = np.lib.stride_tricks.sliding_window_view(np.pad(mask, 3), (7, 7)).any(axis=(2, 3))
        assert not (near & mask).any()
        assert near[reached & ~mask].all()


def test_the_weighted_f_is_the_same_number_with_and_without_opencv(without_opencv: None) -> None:
    def measured() -> list[float]:
        rng = np.random.default_rng(1)
        return [weighted_f(saliency_map(rng.random(mask.shape), mask, min_max=False)) for mask in masks()]

    plain = measured()
    with pytest.MonkeyPatch.context() as installed:
        installed.setattr(module, "opencv", pytest.importorskip("cv2"))
        assert measured() == plain
