"""The stages of a run add up to its time, each second in one of them."""

from __future__ import annotations

import time

import pytest

from harness.experiment.stages import STAGES, Stages, process_started


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_stages_exclude_each_other_and_add_up() -> None:
    clock = Clock()
    stages = Stages(started=97.0, clock=clock)

    def predict(images: int) -> int:
        clock.now += 2.0
        return images

    with stages.during("training"):
        clock.now += 10.0
        with stages.during("validating"):
            clock.now += 1.0
            assert stages.timed(predict)(5) == 5
        clock.now += 4.0
    clock.now += 0.5
    cost = stages.cost({"train_time_s": 12.0, "data_wait_s": 0.1, "steps": 10.0})
    told = {"start": 3.0, "training": 14.0, "validating": 3.0, "other": 0.5}
    assert cost == {**{f"stage_{name}_s": told.get(name, 0.0) for name in STAGES}, "passes_s": 13.0}
    assert sum(cost[f"stage_{name}_s"] for name in STAGES) == clock.now - 97.0


def test_updates_of_earlier_starts_are_not_counted() -> None:
    clock = Clock()
    stages = Stages(clock=clock)
    with stages.during("training"):
        clock.now += 5.0
    assert stages.cost({"train_time_s": 100.0})["passes_s"] == 5.0


def test_a_stage_that_fails_is_counted() -> None:
    clock = Clock()
    stages = Stages(clock=clock)

    def fails() -> None:
        clock.now += 5.0
        raise RuntimeError

    with pytest.raises(RuntimeError), stages.during("testing"):
        fails()
    assert stages.cost({})["stage_testing_s"] == 5.0


def test_the_process_began_before_now() -> None:
    began = process_started()
    assert began is not None
    assert 0 < time.monotonic() - began < 3600
