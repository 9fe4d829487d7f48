"""`run_jobs` runs a plan on a cluster or on this machine, and shows the state of its runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from harness.dispatch.attempts import Holder
from harness.dispatch.run_states import FINISHED, INTERRUPTED, RUNNING, RunState, ShowStates, clock, survey, time_left
from harness.dispatch.slurm import SlurmExecutor
from harness.dispatch.supervise import Assignment, StopSignals, last_words, supervise
from harness.dispatch.sweeps import AGAIN, PYTHON_OPTIONS, WORKER, create_sweep
from harness.dispatch.target import Target
from harness.planning.plan import Plan
from harness.planning.request import Job
from harness.system.errors import UsageError, did_you_mean, writing_to
from harness.system.machine import thread_variables
from harness.system.progress import spinner
from harness.system.streams import say
from harness.system.text import counted, first_of

POLL_S = 0.5
STOP_PATIENCE_S = 60.0
LOCAL_ATTEMPTS = 10


class LocalExecutor:
    """Runs that end with this process: in worker processes that share one queue. Where ``target`` is inline they run one after the other
    in this process, for debugging: breakpoints work, and ``--debug`` shows an exception's traceback."""

    def __init__(self, results: Path, target: Target) -> None:
        self.results = results.absolute()
        self.target = target
        self._processes: list[subprocess.Popen[bytes]] = []

    def submit(self, jobs: Sequence[Job], *, command: str = "", later: int = 0) -> dict[str, str]:
        is_inline = self.target.executor == "inline"
        settings = {"workers": self.target.workers, "devices": list(self.target.devices)}
        with writing_to(f"{self.results}", then=AGAIN):  # inline, a debugger may start a run any number of times
            self.sweep = create_sweep(
                self.results,
                jobs,
                executor=self.target.executor,
                allowed=sys.maxsize >> 1 if is_inline else LOCAL_ATTEMPTS,
                command=command,
                later=later,
                frozen=not is_inline,
                settings=settings,
            )
        for number in range(0 if is_inline else min(self.target.workers, len(jobs))):
            self._processes.append(self._start(number))
        return {}

    def states(self) -> Mapping[str, RunState]:
        return survey(self.results, keys=[run.key for run in self.sweep.runs], of_sweep=self.sweep.id).runs

    def wait(self, *, on_change: ShowStates) -> Mapping[str, RunState]:
        if self.target.executor == "inline":
            self._work_here(on_change)
        while any(process.poll() is None for process in self._processes):
            on_change(self.states())
            time.sleep(POLL_S)
        self.sweep = replace(self.sweep, ended="done").save()
        runs = self.states()
        on_change(runs)
        left = [run for run in runs.values() if run.state == INTERRUPTED]
        failed = [number for number, process in enumerate(self._processes) if process.returncode]
        if failed and left:  # the next attempt would end the same way
            log, code = self._log(failed[0]), self._processes[failed[0]].returncode
            reason = last_words(log).removeprefix("error: ") or f"a worker ended with status {code} and no message"
            raise UsageError(
                f"{counted(len(left), 'run')} could not finish: {reason}; fix that, then repeat the command (log: {log})"
            )
        return runs

    def _work_here(self, on_change: ShowStates) -> None:
        stop, gpus, holder = StopSignals(), int(bool(self.target.devices)), Holder.here()
        # A KeyboardInterrupt that is raised while a library is imported may be swallowed there, so Ctrl-C is remembered instead.
        before = signal.signal(signal.SIGINT, lambda number, frame: stop.append(number))
        try:
            for line in range(len(self.sweep.runs)):
                supervise(Assignment(sweep=self.sweep, line=line, holder=holder, gpus=gpus), stop=stop, in_child=False)
                on_change(self.states())
                if stop:
                    raise KeyboardInterrupt
        finally:
            signal.signal(signal.SIGINT, before)

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        """Start a worker with its GPU and its share of the cores. It has a process group of its own, so that Ctrl-C does not reach it:
        `stop` ends it, and it writes a checkpoint."""
        devices = self.target.devices
        device = devices[number % len(devices)] if devices else ""
        variables = {"CUDA_VISIBLE_DEVICES": device, **thread_variables(self.target.threads)}
        command = [sys.executable, PYTHON_OPTIONS, str(Path(self.sweep.snapshot) / WORKER), str(self.sweep.folder)]
        with self._log(number).open("wb") as log:
            return subprocess.Popen(
                command, env={**os.environ, **variables}, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                process_group=0,
            )  # fmt: skip

    def _log(self, number: int) -> Path:
        """The log of a worker's output; its runs have logs of their own."""
        return self.sweep.logs / f"worker.{number}.log"

    def stop(self) -> None:
        """Ask the workers to write checkpoints and end; kill those that do not."""
        say("stopping: workers write their checkpoints (repeat the command to continue; Ctrl-C again kills them)")
        for process in self._processes:
            process.terminate()
        deadline = time.monotonic() + STOP_PATIENCE_S
        try:
            while time.monotonic() < deadline and any(process.poll() is None for process in self._processes):
                time.sleep(0.1)
        finally:
            for process in self._processes:
                process.kill()


BAR = 16


@contextmanager
def display(*, total: int) -> Iterator[ShowStates]:
    """Returns a function that prints what changed since its last call: a line for each run that ended, and on a terminal one for all
    and one for each run at work. ``total``: how many runs there are."""
    shown: dict[str, str] = {}
    console = Console(stderr=True, highlight=False)
    # Redrawn by `show` alone: another thread could draw over a line that is printed meanwhile.
    live = Live(console=console, transient=True, auto_refresh=False, redirect_stdout=False)

    def show(runs: Mapping[str, RunState]) -> None:
        for run in runs.values():
            if run.unsettled or shown.get(run.key) == run.state:
                continue
            shown[run.key] = run.state
            took = f" ({clock(run.seconds)})" if run.seconds else ""
            why = f": {run.message}" if run.message and run.state != FINISHED else ""
            text = f"[{len(shown)}/{total}] {run.words}: {run.state}{took}{why}"
            console.print(text, markup=False, soft_wrap=True, style=None if run.state == FINISHED else "red")
        if console.is_terminal:
            live.update(Text("\n".join(at_work(runs, total=total)), no_wrap=True, overflow="ellipsis"), refresh=True)

    with live if console.is_terminal else nullcontext():
        yield show


def at_work(runs: Mapping[str, RunState], *, total: int) -> list[str]:
    """How many runs there are and how long they take, then a line for each run at work, which begins with its stage."""
    running = [run for run in runs.values() if run.state == RUNNING]
    settled = sum(not run.unsettled for run in runs.values())
    full = round(BAR * (settled + sum(run.done for run in running)) / max(1, total))
    begin = "loading torch …" if settled < total else ""
    doing = time_left(runs.values()) or (f"{len(running)} at work" if running else begin)
    bar = f"{'━' * full}{'─' * (BAR - full)}"
    return [f"{settled}/{total} runs {bar} {doing}", *(f"  {run.stage}  {run.words}" for run in running)]


RETRY_CLASSES = ("oom", "timeout", "diverged", "blank", "no_data", "error")


def make_executor(target: Target, *, results: Path, grid: str = "") -> LocalExecutor | SlurmExecutor:
    """The executor of a target; ``grid`` identifies its sweeps on a cluster. Raises UsageError: no SLURM here."""
    if target.profile is None:
        return LocalExecutor(results, target)
    return SlurmExecutor(results, target.profile, grid=grid)


def to_start(planned: Plan, target: Target, *, retry: str | None) -> list[Job]:
    """The runs that `run_jobs` starts: all unfinished ones; on a cluster without failed runs, unless ``retry`` names their class. Raises
    UsageError: ``retry`` names no class of failures."""
    classes = {word.strip().lower().replace("-", "_") for word in (retry or "").split(",") if word.strip()}
    for word in classes - {*RETRY_CLASSES, "all"}:
        raise UsageError(f"--retry: unknown class {word!r}{did_you_mean(word, (*RETRY_CLASSES, 'all'))}")
    every = "all" in classes or (retry is None and target.profile is None)
    left_out = {key for key, code in planned.failed.items() if not every and code.lower() not in classes}
    return [job for job in planned.pending if job.run.key not in left_out]


def not_restarted(planned: Plan, begun: Iterable[Job]) -> tuple[dict[str, str], str]:
    """key -> reason code of failed runs that are not ``begun``, and a line that counts them; empty without one."""
    keys = {job.run.key for job in begun}
    left_out = {key: code for key, code in planned.failed.items() if key not in keys}
    if not left_out:
        return {}, ""
    classes = ",".join(sorted({code.lower() for code in left_out.values()}))
    many = f"{len(left_out)} runs failed before and are" if len(left_out) > 1 else "1 run failed before and is"
    return left_out, f"{many} not restarted; --retry {classes} does that"


def run_jobs(
    planned: Plan,
    target: Target,
    *,
    results: Path,
    command: str = "",
    later: int = 0,
    wait: bool = False,
    retry: str | None = None,
    cancel: bool = False,
) -> dict[str, str] | None:
    """Execute the unfinished runs, or cancel them; prints where runs go and their state. A sweep keeps ``command``, the command line,
    and how many runs are to follow ``later``.

    On this machine failed runs are restarted; on a cluster only those that ``retry`` names. Interrupted runs always continue.

    Returns:
        Key -> reason code or state of the runs without success; None where runs go on without this process.

    Raises:
        UsageError: the cluster refuses (partition, time limit, quota …), or the folder cannot be written.
    """
    executor = make_executor(target, results=results, grid=planned.grid)
    if cancel:
        if isinstance(executor, LocalExecutor):
            raise UsageError("--cancel needs --cluster NAME; stop a local run with Ctrl-C")
        none = "nothing to cancel: no job that this command submitted is queued or running"
        print(f"cancelled {counted(len(cancelled), 'job')}" if (cancelled := executor.cancel()) else none)
        return None
    pending = to_start(planned, target, retry=retry)
    left_out, line = not_restarted(planned, pending)
    if line:
        say(line)
    if not pending:
        return left_out
    say(target.in_words)
    with spinner() as report:
        report("freezing the code and handing over the runs")
        elsewhere = executor.submit(pending, command=command, later=later)
    if elsewhere:
        say(f"not resubmitted: {first_of([f'{key} {who}' for key, who in elsewhere.items()])}")
    if isinstance(executor, SlurmExecutor):
        print(executor.submitted or "nothing to submit: every run is finished, queued or running")
        print(f"watch:  sam-peft status --results {results}")
        print("cancel: the same command with --cancel (without --wait, --retry)")
        if not wait:
            return None
    states = _waited(executor, total=len(pending))
    if line := _left_over(states):
        say(line)
    return {**left_out, **{key: state.state for key, state in states.items() if state.state != "OK"}}


def _waited(executor: LocalExecutor | SlurmExecutor, *, total: int) -> Mapping[str, RunState]:
    """The states of all runs once they have ended. Raises KeyboardInterrupt: Ctrl-C; its text says what happens to the runs."""
    try:
        with display(total=total) as show:
            return executor.wait(on_change=show)
    except KeyboardInterrupt as interrupt:
        if isinstance(executor, SlurmExecutor):
            raise KeyboardInterrupt("only this command stopped; its runs continue on the cluster") from interrupt
        if executor.target.executor == "local":
            executor.stop()
        raise KeyboardInterrupt(_left_over(executor.states()) or "every run had already ended") from interrupt


def _left_over(states: Mapping[str, RunState]) -> str:
    """Which runs have not ended, and how they go on; empty without one."""
    left = [run.words for run in states.values() if run.unsettled or run.state == INTERRUPTED]
    return f"{counted(len(left), 'run')} left: {first_of(left)}; repeat the command to continue" if left else ""
