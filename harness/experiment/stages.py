"""Where the time of one run goes: seconds by stage, for its record."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")

STAGES = ("start", "loading", "training", "validating", "testing", "merging", "other")


class Stages:
    """A stopwatch whose stages exclude each other: one inside another is not counted twice. ``started``: seconds by ``clock`` when
    the process began."""

    def __init__(self, *, started: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()
        self._now = "other"
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._seconds["start"] = max(0.0, self._last - started) if started is not None else 0.0
        self._passes = 0.0

    @contextlib.contextmanager
    def during(self, stage: str) -> Iterator[None]:
        """Count what happens inside to ``stage``."""
        before = self._enter(stage)
        try:
            yield
        finally:
            self._enter(before)

    def timed(self, predict: Callable[P, T]) -> Callable[P, T]:
        """``predict``, whose seconds count as passes of the network besides those of its stage."""

        def measured(*given: P.args, **named: P.kwargs) -> T:
            begun = self._clock()
            try:
                return predict(*given, **named)
            finally:
                self._passes += self._clock() - begun

        return measured

    def cost(self, trained: Mapping[str, float]) -> dict[str, float]:
        """``stage_NAME_s`` of every stage, and ``passes_s``: of updates, images waited for left out, and of scored images.
        Of this start of the run alone.

        Args:
            trained: the cost of training; of a run that went on, its updates are no more than this start's training.
        """
        self._enter(self._now)
        waited = trained.get("data_wait_s", 0.0) * trained.get("steps", 0.0)
        updates = min(max(0.0, trained.get("train_time_s", 0.0) - waited), self._seconds["training"])
        by_stage = {f"stage_{name}_s": seconds for name, seconds in self._seconds.items()}
        return {**by_stage, "passes_s": updates + self._passes}

    def _enter(self, stage: str) -> str:
        now = self._clock()
        self._seconds[self._now] += now - self._last
        before, self._now, self._last = self._now, stage, now
        return before


def process_started() -> float | None:
    """When this process began, by `time.monotonic`; None where the system does not tell."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        age = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0]) - int(fields[19]) / os.sysconf(
            "SC_CLK_TCK"
        )
    except (OSError, ValueError, IndexError):
        return None
    return time.monotonic() - max(0.0, age)
