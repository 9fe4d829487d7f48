"""Carved splits: deterministic, disjoint, groups whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.datasets.base import DatasetError, Pair
from harness.datasets.cvc612 import FIRST_FRAMES, sequence_of
from harness.datasets.reading.splitting import carve


def _pairs(count: int) -> list[Pair]:
    return [
        Pair(stem=str(number), image=Path(f"{number}.jpg"), mask=Path(f"{number}.png"))
        for number in range(1, count + 1)
    ]


def test_carve_is_disjoint_complete_and_of_the_size_asked_for() -> None:
    pairs = _pairs(100)
    rest, carved = carve(pairs, count=15, seed=0)
    assert len(carved) == 15
    assert {pair.stem for pair in rest} | {pair.stem for pair in carved} == {pair.stem for pair in pairs}
    assert not {pair.stem for pair in rest} & {pair.stem for pair in carved}


def test_carve_depends_on_seed_and_stems_but_not_on_order() -> None:
    pairs = _pairs(60)
    chosen = {pair.stem for pair in carve(pairs, count=10, seed=0)[1]}
    assert chosen == {pair.stem for pair in carve(pairs[::-1], count=10, seed=0)[1]}
    assert chosen != {pair.stem for pair in carve(pairs, count=10, seed=1)[1]}


def test_carve_is_the_committed_rule() -> None:
    """Pinned: a change here changes every carved split ever recorded."""
    assert [pair.stem for pair in carve(_pairs(20), count=4, seed=0)[1]] == ["7", "15", "18", "20"]


def test_groups_stay_whole() -> None:
    rest, carved = carve(_pairs(612), count=61, seed=0, group=lambda pair: str(sequence_of(pair.stem)))
    assert not {sequence_of(pair.stem) for pair in rest} & {sequence_of(pair.stem) for pair in carved}
    assert 61 <= len(carved) < 61 + 25


def test_nothing_left_on_one_side_is_an_error() -> None:
    with pytest.raises(DatasetError, match="too few"):
        carve(_pairs(3), count=3, seed=0)


def test_the_29_sequences() -> None:
    assert len(FIRST_FRAMES) == 29
    ends = {1: 1, 25: 1, 26: 2, 50: 2, 199: 9, 200: 10, 205: 10, 206: 11, 591: 28, 592: 29, 612: 29}
    assert {frame: sequence_of(str(frame)) for frame in ends} == ends
    for stem in ("0", "613", "cju0"):
        with pytest.raises(DatasetError, match="numbered 1 to 612"):
            sequence_of(stem)
