"""Shares of classes, near copies, and how the check tells what it found."""

from __future__ import annotations

import os

import numpy as np
import pytest

from harness.datasets.preparing import fingerprints
from harness.datasets.preparing.checking import _ranges, available_cores


def test_a_class_has_its_share_of_the_pixels_that_are_known() -> None:
    assert fingerprints.class_shares(np.array([[1, 255], [255, 255]], dtype=np.uint8), 2) == (0.0, 1.0)
    assert fingerprints.class_shares(np.array([[1, 0], [0, 0]], dtype=np.uint8), 2) == (0.75, 0.25)
    assert fingerprints.class_shares(np.full((2, 2), 255, dtype=np.uint8), 2) == (0.0, 0.0)


def test_hashes_are_close_up_to_the_bound_in_every_block_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "_ROWS", 4)
    bits = np.random.default_rng(0).random((12, 64)) < 0.5
    bits[10] = bits[5]
    bits[10, : fingerprints.MOST_BITS] ^= True
    bits[11] = bits[6]
    bits[11, : fingerprints.MOST_BITS + 1] ^= True
    assert fingerprints._close(bits, bits) == [(5, 10)]
    dark = np.zeros((2, 64), dtype=np.bool_)
    assert fingerprints._close(dark, dark) == fingerprints._close(~dark, ~dark) == [(0, 1)]
    assert fingerprints._close(dark, ~dark) == []


@pytest.mark.parametrize(
    ("values", "told"), [([0, 1, 2, 254, 255], "0-2, 254-255"), ([5, 7, 8], "5, 7-8"), ([], ""), ([3], "3")]
)
def test_values_are_told_in_runs(values: list[int], told: str) -> None:
    assert _ranges(values) == told


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system binds no process to cores")
def test_the_cores_are_those_of_this_process() -> None:
    assert available_cores() == len(os.sched_getaffinity(0))
