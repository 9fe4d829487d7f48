"""How long runs still take, and from what that was estimated."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from harness.dispatch.run_states import FINISHED, RUNNING, RunState

LEAST_DONE = 0.05
"""Share of a run before its own pace says something."""


@dataclass(frozen=True, kw_only=True)
class TimeLeft:
    """Seconds until all runs are done, None if nothing tells, and in words what does."""

    seconds: float | None
    origin: str

    def __str__(self) -> str:
        return self.origin if self.seconds is None else f"{clock(self.seconds)} left, {self.origin}"


@dataclass
class _Took:
    """How many runs finished, and the seconds that they took together: of whole runs where some tell, else of training."""

    count: int = 0
    seconds: float = 0.0
    whole: bool = False

    def add(self, run: RunState) -> None:
        if run.whole and not self.whole:
            self.count, self.seconds, self.whole = 0, 0.0, True
        if run.whole == self.whole:
            self.count += 1
            self.seconds += run.seconds


def time_left(runs: Mapping[str, RunState], *, now: float) -> TimeLeft:
    """From what finished runs took (of the same row where there are some), else from the pace of those that run; as many at
    once as now."""
    took: dict[str, _Took] = {}
    for run in runs.values():
        if run.state == FINISHED and run.seconds > 0:
            took.setdefault(run.variant, _Took()).add(run)
    open_runs = [run for run in runs.values() if run.unsettled]
    running = [run for run in open_runs if run.state == RUNNING]
    if not open_runs:
        return TimeLeft(seconds=0.0, origin="all done")
    if not running:
        return TimeLeft(seconds=None, origin="time left: known once runs are under way")
    rows = [one for one in took.values() if one.whole] or list(took.values())
    finished = sum(one.count for one in rows)
    paces = [pace for run in running if (pace := own_pace(run, now=now)) is not None]
    if not finished and not paces:
        return TimeLeft(seconds=None, origin="time left: known after the first epochs")
    known = [one.seconds for one in rows] if finished else paces
    usual = math.fsum(known) / (finished or len(paces))
    total = 0.0
    for run in open_runs:
        of_row = took.get(run.variant)
        whole = of_row.seconds / of_row.count if of_row else usual
        total += _rest(run, whole, now=now) if run.state == RUNNING else whole
    origin = f"told from {_in_words(took.values())}" if finished else "at the pace of those that run"
    return TimeLeft(seconds=total / len(running), origin=origin)


def _in_words(took: Collection[_Took]) -> str:
    """``4 finished runs and the training of 2 others``."""
    whole = sum(one.count for one in took if one.whole)
    trained = sum(one.count for one in took if not one.whole)
    if not whole:
        return f"the training of {_count(trained, 'finished run')}"
    others = f" and the training of {_count(trained, 'other')}" if trained else ""
    return f"{_count(whole, 'finished run')}{others}"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'s' if number != 1 else ''}"


def run_left(run: RunState, finished: Sequence[RunState], *, now: float) -> float | None:
    """Seconds that a running run still takes: as finished ones of its row took, on its benchmark if any, else at its own
    pace."""
    of_row = [one for one in finished if one.variant == run.variant and one.seconds]
    of_row = [one for one in of_row if one.whole] or of_row
    alike = [one.seconds for one in of_row if one.benchmark == run.benchmark] or [one.seconds for one in of_row]
    if alike and run.started:
        return _rest(run, math.fsum(alike) / len(alike), now=now)
    pace = own_pace(run, now=now)
    return None if pace is None or run.done >= 1.0 else pace * (1.0 - run.done)


def own_pace(run: RunState, *, now: float) -> float | None:
    """Seconds that all of a run would take at the pace of this start; None before that tells."""
    made = run.done - run.begun
    return (now - run.started) / made if run.started and made > LEAST_DONE else None


def _rest(run: RunState, whole: float, *, now: float) -> float:
    """Of a run that takes ``whole`` seconds: by the clock where this start began it, by its epochs where it went on."""
    if run.started and not run.begun:
        return max(0.0, whole - (now - run.started))
    return whole * (1.0 - run.done)


def clock(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
