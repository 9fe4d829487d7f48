"""Waiting for a run's process: heartbeats, signals passed on, and an end to patience, by a clock of our own."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from harness.dispatch import supervise as module
from harness.dispatch.attempts import Holder
from harness.dispatch.supervise import INTERRUPTED_STATUS, StopSignals, watch

HARD_LIMIT_S = 20.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Every look at the clock is a second after the last one; the list holds what was seen."""
    seen: list[float] = []
    end = time.monotonic() + HARD_LIMIT_S

    def monotonic() -> float:
        assert time.monotonic() < end, "the child was watched for ever"
        seen.append(float(len(seen)))
        return seen[-1]

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=monotonic, sleep=time.sleep))
    monkeypatch.setattr(module, "_TICK_S", 0.002)
    return seen


@pytest.fixture
def child() -> Iterator[Callable[[Callable[[], None]], int]]:
    """Forks a process that does what is given, with USR2 blocked until it waits for it; none is left running."""
    begun: list[int] = []

    def begin(work: Callable[[], None]) -> int:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
        child = os.fork()
        if not child:
            try:
                work()
            finally:
                os._exit(1)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        begun.append(child)
        return child

    yield begin
    for pid in begun:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def stops_on_request() -> None:
    signal.sigwait({signal.SIGUSR2})
    os._exit(INTERRUPTED_STATUS)


def deaf() -> None:
    while True:
        signal.pause()


class Heart:
    """In place of a lease: each beat calls the next of `deeds`."""

    def __init__(self, clock: list[float], *deeds: Callable[[], None]) -> None:
        self.beats: list[float] = []
        self._clock = clock
        self._deeds = iter(deeds)

    def beat(self) -> None:
        self.beats.append(self._clock[-1])
        next(self._deeds, lambda: None)()


def fails(error: Exception) -> Callable[[], None]:
    def deed() -> None:
        raise error

    return deed


def watched(child: int, *, heart: Heart | None = None, stop: StopSignals | None = None, **changes) -> tuple[int, bool]:
    sweep = SimpleNamespace(**{"executor": "slurm", "lease_s": 90.0, "patience_s": 60.0, **changes})
    stop = StopSignals() if stop is None else stop
    lease = heart or Heart([0.0])  # a child may take long to stop
    status, overdue = watch(child, lease=lease, sweep=sweep, stop=stop)  # type: ignore[arg-type]
    return os.waitstatus_to_exitcode(status), overdue


def killed(process: int) -> None:
    """Killed and seen to be: the death of a process takes a moment, in which the watch would look once more."""
    os.kill(process, signal.SIGKILL)
    if hasattr(os, "waitid"):
        os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)


def test_the_lease_beats_six_times_while_it_lasts_and_a_full_disk_ends_nothing(child, clock):
    pid = child(deaf)
    nothing, full = (lambda: None), fails(OSError(28, "No space left on device"))
    heart = Heart(clock, nothing, full, nothing, lambda: killed(pid))
    assert watched(pid, heart=heart, lease_s=60.0) == (-signal.SIGKILL, False)
    gaps = [after - before for before, after in itertools.pairwise([0.0, *heart.beats])]
    assert gaps == [11.0] * 4  # the first look after ten seconds


def test_a_request_to_stop_reaches_the_child(child, clock):
    stop = StopSignals([signal.SIGTERM])
    assert watched(child(stops_on_request), stop=stop, patience_s=math.inf) == (INTERRUPTED_STATUS, False)


@pytest.fixture
def sent(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float]]:
    """The signals that were sent, each with when."""
    kill, noted = os.kill, []

    def send(process: int, number: int) -> None:
        noted.append((number, clock[-1]))
        kill(process, number)

    monkeypatch.setattr(module, "os", SimpleNamespace(**{**vars(os), "kill": send}))
    return noted


def test_a_child_that_does_not_stop_in_time_is_killed_and_a_second_request_gives_it_no_more(child, clock, sent):
    stop = StopSignals([signal.SIGTERM])
    repeated = Heart(clock, lambda: stop.append(signal.SIGTERM))
    assert watched(child(deaf), heart=repeated, stop=stop, lease_s=120.0, patience_s=50.0) == (-signal.SIGKILL, True)
    assert sent == [(signal.SIGUSR2, 1.0), (signal.SIGUSR2, 22.0), (signal.SIGKILL, 52.0)]


def test_the_end_of_the_submitter_is_a_request_to_stop(child, clock):
    here, stop = Holder.here(), StopSignals()
    local: Any = {"executor": "local", "submitter": replace(here, ticks=1)}
    assert watched(child(stops_on_request), stop=stop, **local, patience_s=math.inf) == (INTERRUPTED_STATUS, False)
    assert stop == [signal.SIGTERM]
    for submitter in (here, replace(here, host="elsewhere")):
        pid = child(deaf)
        heart = Heart(clock, partial(os.kill, pid, signal.SIGKILL))
        stop = StopSignals()
        clock.clear()
        assert watched(pid, heart=heart, stop=stop, executor="local", submitter=submitter) == (-signal.SIGKILL, False)
        assert not stop


@pytest.mark.parametrize(("ignored", "heard"), [("", "TERM USR2 INT HUP"), ("HUP", "TERM USR2 INT")])
def test_requests_to_stop_are_remembered_and_nohup_is_left_alone(ignored, heard):
    program = (
        "import os, signal, sys\n"
        "from harness.dispatch.supervise import StopSignals\n"
        "ignored, heard = (words.split() for words in sys.argv[1:])\n"
        "for word in ('TERM', 'USR2', 'INT', 'HUP'):\n"
        "    signal.signal(getattr(signal, f'SIG{word}'), signal.SIG_IGN if word in ignored else signal.SIG_DFL)\n"
        "stop = StopSignals()\n"
        "assert not stop\n"
        "stop.install()\n"
        "for word in ('TERM', 'USR2', 'INT', 'HUP'):\n"
        "    os.kill(os.getpid(), getattr(signal, f'SIG{word}'))\n"
        "assert stop\n"
        "assert stop == [getattr(signal, f'SIG{word}') for word in heard], stop\n"
    )
    subprocess.run([sys.executable, "-c", program, ignored, heard], check=True)
