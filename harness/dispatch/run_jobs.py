"""`run_jobs` runs a plan on a cluster or on this machine: in this process (`InlineExecutor`), or in worker processes that end with the
command (`LocalExecutor`). It is all that the run verb calls of `harness.dispatch`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from harness.dispatch.endings import last_words
from harness.dispatch.run_states import (
    FINISHED,
    INTERRUPTED,
    RUNNING,
    RunState,
    ShowStates,
    clock,
    run_left,
    survey,
    time_left,
)
from harness.dispatch.slurm.executor import SlurmExecutor
from harness.dispatch.snapshot import WORKER, freeze
from harness.dispatch.supervise import Start, StopSignals, supervise
from harness.dispatch.sweeps import Sweep, create_sweep, fingerprint_at, read_sweeps, writing
from harness.dispatch.target import Target
from harness.planning.plan import Plan
from harness.planning.request import Job
from harness.system.errors import UsageError, did_you_mean
from harness.system.machine import cores, set_threads, thread_variables
from harness.system.streams import Live, say, stages
from harness.system.text import counted, first_of

POLL_S = 0.5
STOP_PATIENCE_S = 60.0
LOCAL_ATTEMPTS = 10


class InlineExecutor:
    """One run after the other in this process, for debugging: a breakpoint works, ``--debug`` shows an exception's traceback."""

    def __init__(self, results: Path) -> None:
        self.results = results.absolute()

    def describe(self) -> str:
        return "inline: runs go one after the other in this process (debugging; --executor local uses worker processes)"

    def submit(self, jobs: Sequence[Job], *, command: str = "") -> dict[str, str]:
        with writing(self.results):
            self.sweep = create_sweep(self.results, jobs, executor="inline", command=command, allowed=sys.maxsize >> 1)
        return {}

    def wait(self, *, on_change: ShowStates) -> Mapping[str, RunState]:
        if "torch" not in sys.modules:
            set_threads(cores())
        stop = StopSignals()
        # Remembered from here on: raised while a library is imported, KeyboardInterrupt may be swallowed there.
        before = signal.signal(signal.SIGINT, lambda number, frame: stop.received.append(number))
        try:
            for line in range(len(self.sweep.runs)):
                supervise(Start.of(self.sweep, line), stop=stop, here="here")
                on_change(_states(self.sweep))
                if stop:
                    raise KeyboardInterrupt
        finally:
            signal.signal(signal.SIGINT, before)
            self.sweep = replace(self.sweep, ended="done").save()
        return _states(self.sweep)


def _states(sweep: Sweep) -> Mapping[str, RunState]:
    """Of the runs of a sweep on this machine."""
    return survey(sweep.results, keys=[run.key for run in sweep.runs], of_sweep=sweep.id).runs


class LocalExecutor:
    """Worker processes that share one queue and end when this process does. ``where``: how many workers, and what each has."""

    def __init__(self, results: Path, where: Target) -> None:
        self.results = results.absolute()
        self.where = where
        self._processes: list[subprocess.Popen[bytes]] = []

    def describe(self) -> str:
        devices = f"GPU {', '.join(self.where.devices)}" if self.where.devices else "CPU"
        threads = counted(self.where.threads, "thread")
        return (
            f"local: {self.where.workers} worker processes here ({devices}, {threads} each); --workers N changes that"
        )

    def submit(self, jobs: Sequence[Job], *, command: str = "") -> dict[str, str]:
        settings = {"workers": self.where.workers, "devices": list(self.where.devices)}
        with writing(self.results):
            frozen, jobs = freeze(self.results, jobs)
            self.sweep = create_sweep(
                self.results,
                jobs,
                executor="local",
                allowed=LOCAL_ATTEMPTS,
                command=command,
                snapshot=str(frozen),
                settings=settings,
            )
        with _ctrl_c_waits():
            self._processes = [self._start(number) for number in range(min(self.where.workers, len(jobs)))]
        return {}

    def wait(self, *, on_change: ShowStates) -> Mapping[str, RunState]:
        while any(process.poll() is None for process in self._processes):
            on_change(_states(self.sweep))
            time.sleep(POLL_S)
        self.sweep = replace(self.sweep, ended="done").save()
        runs = _states(self.sweep)
        on_change(runs)
        left = [run for run in self.sweep.runs if runs[run.key].state == INTERRUPTED]
        failed = [number for number, process in enumerate(self._processes) if process.returncode]
        if failed and left:  # another start would end so too
            log, code = self._log(failed[0]), self._processes[failed[0]].returncode
            reason = last_words(log).removeprefix("error: ") or f"a worker ended with status {code} and said nothing"
            begun = any(runs[run.key].attempts > run.before for run in left)
            raise UsageError(
                f"{counted(len(left), 'run')} could not {'end' if begun else 'begin'}: {reason};"
                f" fix that, then repeat the command (log: {log})"
            )
        return runs

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        """A worker with its GPU, by the name that was given for it, and its share of the cores."""
        devices = self.where.devices
        device = devices[number % len(devices)] if devices else ""
        variables = {"CUDA_VISIBLE_DEVICES": device, **thread_variables(self.where.threads)}
        command = [sys.executable, "-u", str(Path(self.sweep.snapshot) / WORKER), str(self.sweep.folder)]
        with self._log(number).open("wb") as log:
            return subprocess.Popen(
                command, env={**os.environ, **variables}, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )

    def _log(self, number: int) -> Path:
        """What a worker said, but for its runs, which have logs of their own."""
        return self.sweep.logs / f"worker.{number}.log"

    def stop(self) -> None:
        """Ask the workers to write checkpoints and end; kill those that do not."""
        say("stopping: workers write their checkpoints (the same command continues; Ctrl-C again kills)")
        for process in self._processes:
            process.terminate()
        deadline = time.monotonic() + STOP_PATIENCE_S
        try:
            with stages() as report:
                while time.monotonic() < deadline and (left := sum(p.poll() is None for p in self._processes)):
                    report(f"waiting for {counted(left, 'worker')} to end")
                    time.sleep(0.1)
        finally:
            for process in self._processes:
                process.kill()


@contextmanager
def _ctrl_c_waits() -> Iterator[None]:
    """Ctrl-C is answered when the block is over, and processes that begin in it never get it: it reaches the whole group, and
    workers get it from us instead, so that they can write a checkpoint.

    Blocked, since that is inherited; and remembered, since a mask is one thread's and the signal may come to another of ours.
    """
    came: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
        if came:
            signal.raise_signal(signal.SIGINT)


LINE_SECONDS = 30.0
"""Without a terminal, a running run says where it is at most this often."""
MOST_LINES = 8
"""Runs at work that have a line on a terminal."""
BAR = 16


class Display:
    """Shows states as they change; use as a context manager."""

    def __init__(self, *, total: int) -> None:
        self._total = total
        self._runs: dict[str, RunState] = {}
        self._shown: dict[str, str] = {}
        self._said: dict[str, float] = {}
        self._live = Live(self._lines) if sys.stderr.isatty() else None

    def __enter__(self) -> Display:
        if self._live is not None:
            self._live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.__exit__(*error)

    def show(self, runs: Mapping[str, RunState]) -> None:
        """Print what changed since the last call."""
        self._runs, now = dict(runs), time.monotonic()
        for run in self._runs.values():
            if not run.unsettled and self._shown.get(run.key) != run.state:
                self._shown[run.key] = run.state
                self._line(run)
            elif self._live is None and run.stage and now - self._said.setdefault(run.key, now) >= LINE_SECONDS:
                self._said[run.key] = now
                print(f"{run.words}: {run.stage}", file=sys.stderr, flush=True)

    def _lines(self, width: int) -> list[tuple[str, str]]:
        """(text, style): how many runs there are and how long they take, then a line a run at work."""
        now = time.time()
        running = [run for run in self._runs.values() if run.state == RUNNING]
        settled = [run for run in self._runs.values() if not run.unsettled]
        full = round(BAR * (len(settled) + sum(run.done for run in running)) / max(1, self._total))
        doing = time_left(self._runs.values(), now=now)
        if not running:
            doing = "writing the last records …" if len(settled) == self._total else "starting: loading torch …"
        lines = [(f"{len(settled)}/{self._total} runs {'━' * full}{'─' * (BAR - full)} {doing}", "")]
        finished = [run for run in settled if run.state == FINISHED]
        for run in running[:MOST_LINES]:
            left = run_left(run, finished, now=now)
            name = run.words if len(run.words) <= width // 2 else run.words[: width // 2 - 1] + "…"
            stage = run.stage + (f", {clock(left)} left" if left is not None else "")
            lines.append((f"  {name}  {stage}", "dim" if not run.done else ""))
        return lines + (
            [(f"  and {len(running) - MOST_LINES} more at work", "dim")] if len(running) > MOST_LINES else []
        )

    def _line(self, run: RunState) -> None:
        took = f" ({clock(run.seconds)})" if run.seconds else ""
        why = f": {run.message}" if run.message and run.state != FINISHED else ""
        text = f"[{len(self._shown)}/{self._total}] {run.words}: {run.state}{took}{why}"
        if self._live is not None:
            style = None if run.state == FINISHED else "red"
            self._live.console.print(text, markup=False, highlight=False, style=style)
        else:
            print(text, file=sys.stderr, flush=True)


RETRY_CLASSES = ("oom", "timeout", "preempted", "diverged", "blank", "no_data", "error")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a plan.

    Args:
        submitted: True where runs go on without this process; then there is no table to print yet.
        failed: key -> reason code or state of runs that have no success.
    """

    submitted: bool
    failed: dict[str, str]


def make_executor(where: Target, *, results: Path, request: str = "") -> InlineExecutor | LocalExecutor | SlurmExecutor:
    """The executor of a target; one on a cluster distinguishes sweeps by ``request``. Raises UsageError: no SLURM here."""
    if where.profile is not None:
        return SlurmExecutor(results, where.profile, request=request)
    return InlineExecutor(results) if where.executor == "inline" else LocalExecutor(results, where)


def to_start(planned: Plan, where: Target, *, results: Path, retry: str | None) -> list[Job]:
    """What `run_jobs` starts or finds at work: all that is not finished, on a cluster without what failed and neither ``retry`` nor a
    submission before this one restarts."""
    again = _to_retry(planned, retry, everything=where.profile is None)
    if planned.failed and where.profile is not None:
        again |= {
            run.key
            for sweep in read_sweeps(results, {})
            if sweep.executor == "slurm" and not sweep.ended
            for run in sweep.runs
            if run.replaces and run.key in planned.failed and run.replaces == fingerprint_at(results, run.key)
        }
    return [job for job in planned.pending if job.run.key not in planned.failed or job.run.key in again]


def not_again(planned: Plan, begun: Iterable[Job]) -> dict[str, str]:
    """Key -> reason code of failed runs that are not ``begun``, which is said."""
    keys = {job.run.key for job in begun}
    left_out = {key: code for key, code in planned.failed.items() if key not in keys}
    if left_out:
        classes = ",".join(sorted({code.lower() for code in left_out.values()}))
        many = f"{len(left_out)} runs failed before and are" if len(left_out) > 1 else "1 run failed before and is"
        say(f"{many} not restarted; --retry {classes} does that")
    return left_out


def run_jobs(
    planned: Plan,
    where: Target,
    *,
    results: Path,
    command: str = "",
    wait: bool = False,
    retry: str | None = None,
    cancel: bool = False,
) -> Outcome:
    """Run what is not finished, or cancel it; prints where runs go and how they fare. ``command``: the command line, which a sweep
    keeps.

    On this machine, runs that failed before are restarted; on a cluster only those that ``retry`` names, because a
    queue is dear. Runs that were interrupted always continue.

    Raises:
        UsageError: the cluster refuses (partition, time limit, quota …), or the folder cannot be written.
    """
    chosen = make_executor(where, results=results, request=planned.request)
    if cancel:
        return _cancel(planned, chosen, command)
    pending = to_start(planned, where, results=results, retry=retry)
    left_out = not_again(planned, pending)
    if not pending:
        return Outcome(submitted=False, failed=left_out)
    say(chosen.describe())
    with stages() as report:
        report("freezing the code and handing over the runs")
        elsewhere = chosen.submit(pending, command=command)
    if elsewhere:
        say(f"not resubmitted: {first_of([f'{key} {who}' for key, who in elsewhere.items()])}")
    if isinstance(chosen, SlurmExecutor):
        print(chosen.submitted or "nothing to submit: every run is finished, queued or running")
        print(f"watch:  sam-peft status --results {results} --watch")
        print("cancel: the same command with --cancel (without --wait, --retry, --budget)")
        if not wait:
            return Outcome(submitted=True, failed=left_out)
    try:
        with Display(total=len(pending)) as display:
            states = chosen.wait(on_change=display.show)
    except KeyboardInterrupt as interrupt:
        if isinstance(chosen, SlurmExecutor):
            words = f"only this command; its runs stay with the cluster: sam-peft status --results {results} --watch"
            raise KeyboardInterrupt(words) from interrupt
        if isinstance(chosen, LocalExecutor):
            chosen.stop()
        raise KeyboardInterrupt(_what_was_interrupted(chosen.sweep)) from interrupt
    if stopped := [state.words for state in states.values() if state.state == INTERRUPTED]:
        say(f"{len(stopped)} interrupted: {first_of(stopped)}; repeat the command to continue")
    failed = {key: state.state for key, state in states.items() if state.state != "OK"}
    return Outcome(submitted=False, failed={**left_out, **failed})


def _what_was_interrupted(sweep: Sweep) -> str:
    """The line after Ctrl-C: which runs were interrupted, and how they go on."""
    left = [run for run in _states(sweep).values() if run.unsettled or run.state == INTERRUPTED]
    begun = [run.words for run in left if run.attempts]
    words = [f"{len(begun)} at work: {first_of(begun)}"] if begun else []
    words += [f"{len(left) - len(begun)} not begun"] if len(left) > len(begun) else []
    return "; ".join([*(words or ["every run had ended"]), "repeat the command to continue"])


def _cancel(planned: Plan, executor: object, command: str) -> Outcome:
    if not isinstance(executor, SlurmExecutor):
        raise UsageError("--cancel needs --cluster NAME; a local run is stopped with Ctrl-C")
    cancelled = executor.cancel([job.run.key for job in planned.jobs], command=command)
    nothing = "nothing to cancel: no job that this command submitted is queued or running"
    print(f"cancelled {counted(len(cancelled), 'job')}" if cancelled else nothing)
    return Outcome(submitted=True, failed={})


def _to_retry(planned: Plan, retry: str | None, *, everything: bool) -> set[str]:
    """Keys of failed runs that are to be restarted."""
    if retry is None:
        return set(planned.failed) if everything else set()
    classes = {word.strip().lower().replace("-", "_") for word in retry.split(",") if word.strip()}
    for word in classes - set(RETRY_CLASSES) - {"all"}:
        raise UsageError(f"--retry: unknown class {word!r}{did_you_mean(word, (*RETRY_CLASSES, 'all'))}")
    return {key for key, code in planned.failed.items() if "all" in classes or code.lower() in classes}
