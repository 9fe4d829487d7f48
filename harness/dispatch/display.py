"""Progress of many runs: a bar on a terminal, one line a change elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from harness.dispatch.run_states import FINISHED, RUNNING, RunState


def eta(runs: Mapping[str, RunState], *, now: float) -> float | None:
    """Seconds until all runs are done, from the mean time of finished ones and how many run at once; None if unknown."""
    finished = [run.seconds for run in runs.values() if run.state == FINISHED and run.seconds > 0]
    running = [run for run in runs.values() if run.state == RUNNING]
    open_runs = [run for run in runs.values() if run.unsettled]
    if not open_runs:
        return 0.0
    if not running:
        return None
    shares = [(now - run.started) / run.done for run in running if run.done > 0.05 and run.started]
    known = finished or shares
    if not known:
        return None
    mean = sum(known) / len(known)
    left = sum(mean * (1.0 - run.done) for run in open_runs)
    return left / len(running)


def clock(seconds: float | None) -> str:
    """``1:02:03``, ``2:03`` or ``?``."""
    if seconds is None:
        return "?"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


LINE_SECONDS = 30.0
"""Without a terminal, a running run says where it is at most this often."""


class Display:
    """Shows states as they change; use as a context manager.

    Args:
        total: number of runs.
    """

    def __init__(self, *, total: int) -> None:
        self._total = total
        self._shown: dict[str, str] = {}
        self._told: dict[str, float] = {}
        self._began = time.time()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Display:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            columns = (BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f} runs  {task.description}"))
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("", total=self._total)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, runs: Mapping[str, RunState]) -> None:
        """Print what changed since the last call."""
        settled = [run for run in runs.values() if not run.unsettled]
        for number, run in enumerate([run for run in settled if self._shown.get(run.key) != run.state], start=1):
            self._shown[run.key] = run.state
            self._line(run, sum(1 for _ in self._shown) if number else 0)
        running = [run for run in runs.values() if run.state == RUNNING]
        if self._bar is None:
            self._tell_stages(running)
            return
        names = ", ".join(f"{run.variant} on {run.benchmark} {100 * run.done:.0f} %" for run in running[:2])
        text = f"{names}{' …' if len(running) > 2 else ''}  {clock(eta(runs, now=time.time()))} left"
        self._bar.update(self._task, completed=len(settled), description=text)

    def _tell_stages(self, running: Sequence[RunState]) -> None:
        now = time.monotonic()
        for run in running:
            if run.stage and now - self._told.setdefault(run.key, now) >= LINE_SECONDS:
                self._told[run.key] = now
                text = f"{run.variant} on {run.benchmark}, seed {run.seed}: {run.stage}"
                print(text, file=sys.stderr, flush=True)

    def _line(self, run: RunState, number: int) -> None:
        took = f" ({clock(run.seconds)})" if run.seconds else ""
        why = f": {run.message}" if run.message and run.state != FINISHED else ""
        text = f"[{number}/{self._total}] {run.variant} on {run.benchmark}, seed {run.seed}: {run.state}{took}{why}"
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)
