"""Distances by OpenCV and by SciPy are the same numbers, from which all else of the weighted F-measure follows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from harness.evaluation import weighted_f as module
from harness.evaluation.weighted_f import _nearest, squared_distances
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


def by_scipy(mask: Mask) -> NDArray[np.float32]:
    with pytest.MonkeyPatch.context() as absent:
        absent.setattr(module, "opencv", None)
        return squared_distances(mask)


def test_opencv_gives_scipys_distances_to_the_last_bit() -> None:
    pytest.importorskip("cv2")
    compared = [np.array_equal(squared_distances(mask), by_scipy(mask)) for mask in filter(np.any, masks())]
    assert len(compared) > 40
    assert all(compared)


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
