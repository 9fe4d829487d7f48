"""Progress of many runs: on a terminal a line for each run at work, elsewhere one line a change."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import TracebackType

from harness.dispatch.run_states import FINISHED, RUNNING, RunState, clock, run_left, time_left
from harness.system.streams import Live

LINE_SECONDS = 30.0
"""Without a terminal, a running run says where it is at most this often."""
MOST_LINES = 8
"""Runs at work that have a line on a terminal."""
BAR = 16


class Display:
    """Shows states as they change; use as a context manager.

    Args:
        total: number of runs.
    """

    def __init__(self, *, total: int) -> None:
        self._total = total
        self._runs: dict[str, RunState] = {}
        self._shown: dict[str, str] = {}
        self._told: dict[str, float] = {}
        self._started: dict[str, float] = {}
        self._live: Live | None = None

    def __enter__(self) -> Display:
        self._live = Live(self._lines) if sys.stderr.isatty() else None
        if self._live is not None:
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)

    def show(self, runs: Mapping[str, RunState]) -> None:
        """Print what changed since the last call."""
        now = time.time()
        self._runs = {key: self._timed(run, now) for key, run in runs.items()}
        for run in self._runs.values():
            if not run.unsettled and self._shown.get(run.key) != run.state:
                self._shown[run.key] = run.state
                self._line(run)
        if self._live is None:
            self._tell_stages([run for run in self._runs.values() if run.state == RUNNING])

    def _timed(self, run: RunState, now: float) -> RunState:
        """A run that ended while this looked on took so long as that, tests and merges included."""
        if run.state == RUNNING and run.started:
            self._started[run.key] = run.started
        elif run.key in self._started and run.key not in self._shown and not run.unsettled:
            return replace(run, seconds=now - self._started[run.key], whole=True)
        before = self._runs.get(run.key)
        if before is None or before.state != run.state:
            return run
        return replace(run, seconds=before.seconds, whole=before.whole)

    def _lines(self, width: int) -> list[tuple[str, str]]:
        """(text, style): how many runs there are and how long they take, then a line a run at work."""
        now = time.time()
        running = [run for run in self._runs.values() if run.state == RUNNING]
        settled = [run for run in self._runs.values() if not run.unsettled]
        full = round(BAR * (len(settled) + sum(run.done for run in running)) / max(1, self._total))
        bar = "━" * full + "─" * (BAR - full)
        if not running:
            doing = "writing the last records …" if len(settled) == self._total else "starting: loading torch …"
            return [(f"{len(settled)}/{self._total} runs {bar} {doing}", "")]
        lines = [(f"{len(settled)}/{self._total} runs {bar} {time_left(self._runs, now=now)}", "")]
        finished = [run for run in settled if run.state == FINISHED]
        names = {run.key: f"{run.variant} on {run.benchmark}, seed {run.seed}" for run in running[:MOST_LINES]}
        room = min(max(map(len, names.values())), width // 2)
        for run in running[:MOST_LINES]:
            left = run_left(run, finished, now=now)
            name = names[run.key] if len(names[run.key]) <= room else names[run.key][: room - 1] + "…"
            stage = run.stage + (f", {clock(left)} left" if left is not None else "")
            lines.append((f"  {name:<{room}}  {stage}", "dim" if not run.done else ""))
        if len(running) > MOST_LINES:
            lines.append((f"  and {len(running) - MOST_LINES} more at work", "dim"))
        return lines

    def _tell_stages(self, running: Sequence[RunState]) -> None:
        now = time.monotonic()
        for run in running:
            if run.stage and now - self._told.setdefault(run.key, now) >= LINE_SECONDS:
                self._told[run.key] = now
                text = f"{run.variant} on {run.benchmark}, seed {run.seed}: {run.stage}"
                print(text, file=sys.stderr, flush=True)

    def _line(self, run: RunState) -> None:
        took = f" ({clock(run.seconds)})" if run.seconds else ""
        why = f": {run.message}" if run.message and run.state != FINISHED else ""
        place = f"[{len(self._shown)}/{self._total}]"
        text = f"{place} {run.variant} on {run.benchmark}, seed {run.seed}: {run.state}{took}{why}"
        if self._live is not None:
            style = None if run.state == FINISHED else "red"
            self._live.console.print(text, markup=False, highlight=False, style=style)
        else:
            print(text, file=sys.stderr, flush=True)
