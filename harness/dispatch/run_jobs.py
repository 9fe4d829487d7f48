"""`run_jobs` runs a plan on a cluster or on this machine: in this process (`InlineExecutor`), or in worker processes that end with the
command (`LocalExecutor`). It is all that the run verb calls of `harness.dispatch`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from harness.archive.store import RecordStore
from harness.dispatch.attempt_end import last_words
from harness.dispatch.attempts import Held, Holder, Lease, beating, state_folder
from harness.dispatch.executor import Executor, ShowStates, Submission
from harness.dispatch.place import Place
from harness.dispatch.run_states import (
    FINISHED,
    INTERRUPTED,
    RUNNING,
    ProgressFile,
    RunState,
    clock,
    run_left,
    survey,
    time_left,
)
from harness.dispatch.slurm.executor import SlurmExecutor
from harness.dispatch.snapshot import freeze, worker_arguments
from harness.dispatch.supervise import WorkerContext, completion
from harness.dispatch.sweeps import (
    Chunk,
    PlannedRun,
    attempt_limits,
    begin_sweep,
    create_chunk,
    fingerprint_at,
    read_chunks,
    read_sweep,
    settled,
    writing,
)
from harness.planning.job import Job
from harness.planning.plan import Plan
from harness.system.errors import UsageError, did_you_mean
from harness.system.files import create_anew, own_folder
from harness.system.machine import cores, set_threads, thread_variables
from harness.system.streams import Live, say, stages
from harness.system.text import counted, first_of

POLL_S = 0.5
STOP_PATIENCE_S = 60.0
LOCAL_ATTEMPTS = 10


class InlineExecutor(Executor):
    """One run after the other in this process, for debugging: a breakpoint works, ``--debug`` shows an exception's traceback."""

    name: ClassVar[str] = "inline"

    def __init__(self, *, results: Path) -> None:
        super().__init__(results=results)
        self._jobs: list[Job] = []

    def describe(self) -> str:
        return "inline: runs go one after the other in this process (debugging; --executor local uses worker processes)"

    def submit(self, jobs: Sequence[Job], *, command: str = "") -> Submission:
        self._jobs = list(jobs)
        with writing(self.results):
            sweep, folder = begin_sweep(self.results, executor=self.name, command=command)
            self._chunk = create_chunk(
                folder,
                number=0,
                jobs=jobs,
                shape={},
                limits=attempt_limits(self.results, _keys(jobs), allowed=LOCAL_ATTEMPTS),
            )
        return Submission(sweep=sweep.id, keys=_keys(jobs), elsewhere={}, job_ids=(str(os.getpid()),))

    def wait(self, submission: Submission, *, on_change: ShowStates | None = None) -> Mapping[str, RunState]:
        if "torch" not in sys.modules:
            set_threads(cores())
        from harness.experiment.experiment import run_experiment
        from harness.training.outcome import Interrupted, StopRequest

        def look() -> None:
            if on_change is not None:
                on_change(survey(self.results, keys=_keys(self._jobs), of_sweep=self._chunk.sweep).runs)

        for job, planned in zip(self._jobs, self._chunk.runs, strict=True):
            if self._settled(planned):
                continue
            folder = state_folder(self.results, job.run.key)
            context = WorkerContext(holder=Holder.here(), limit=sys.maxsize)
            stop = StopRequest()
            try:
                lease = Lease.acquire(folder, holder=context.holder)
            except Held:
                continue
            if self._settled(planned):  # by another command, while we waited for a dead holder
                lease.release("finished")
                continue
            with beating(lease), _ask_first(stop):
                try:
                    record = run_experiment(
                        job,
                        progress=ProgressFile(folder, written=look),
                        stop=stop,
                        complete=completion(folder, context),
                    )
                    lease.release("finished" if record.code == "OK" else "failed", record.code)
                except Interrupted as interrupted:
                    lease.release("interrupted", str(interrupted))
                    raise KeyboardInterrupt(str(interrupted)) from interrupted
                except BaseException as error:
                    with suppress(OSError):  # on a full disk there is no room for that either
                        lease.release("killed", f"{type(error).__name__}: {error}")
                    raise
            look()
            if stop.requested:  # while it was tested, which is not stopped half-way
                raise KeyboardInterrupt("stopped after a finished run; the same command goes on with the others")
        self._chunk.close("done")
        return survey(self.results, keys=_keys(self._jobs)).runs

    def _settled(self, planned: PlannedRun) -> bool:
        return settled(self.results, planned.key, replaces=planned.replaces) is not None


class LocalExecutor(Executor):
    """Worker processes that share one queue and end when this process does. ``where``: how many workers, and what each has."""

    name: ClassVar[str] = "local"

    def __init__(self, *, results: Path, where: Place) -> None:
        super().__init__(results=results)
        self.devices, self.workers, self.threads = where.devices, where.workers, where.threads
        self._processes: list[subprocess.Popen[bytes]] = []
        self._chunk: Chunk | None = None

    def describe(self) -> str:
        where = f"GPU {', '.join(self.devices)}" if self.devices else f"CPU, {counted(self.threads, 'thread')} each"
        return f"local: {self.workers} worker processes here ({where}); --workers N changes that"

    def submit(self, jobs: Sequence[Job], *, command: str = "") -> Submission:
        with writing(self.results):
            frozen, jobs = freeze(self.results / "snapshots", jobs)
            settings = {"workers": self.workers, "threads": self.threads}
            sweep, folder = begin_sweep(
                self.results, executor=self.name, command=command, frozen=frozen, settings=settings
            )
            limits = attempt_limits(self.results, _keys(jobs), allowed=LOCAL_ATTEMPTS)
            shape = {"gpus": 1 if self.devices else 0}
            self._chunk = create_chunk(folder, number=0, jobs=jobs, shape=shape, limits=limits)
            own_folder(folder / "logs")
        with _ctrl_c_waits():
            for index in range(min(self.workers, len(jobs))):
                self._processes.append(self._start(self._chunk, frozen, index))
        ids = tuple(str(process.pid) for process in self._processes)
        return Submission(sweep=sweep.id, keys=_keys(jobs), elsewhere={}, job_ids=ids)

    def wait(self, submission: Submission, *, on_change: ShowStates | None = None) -> Mapping[str, RunState]:
        assert self._chunk is not None
        while True:
            ended = all(process.poll() is not None for process in self._processes)
            runs = survey(self.results, keys=submission.keys, of_sweep=submission.sweep).runs
            if on_change is not None:
                on_change(runs)
            if ended:
                break
            time.sleep(POLL_S)
        self._chunk.close("done")
        runs = survey(self.results, keys=submission.keys, of_sweep=submission.sweep).runs
        self._require_worked(self._chunk, runs)
        return runs

    def _require_worked(self, chunk: Chunk, runs: Mapping[str, RunState]) -> None:
        """Say why a worker failed where runs are left: another start would end so too. Raises UsageError: there are such."""
        failed = [index for index, process in enumerate(self._processes) if process.returncode]
        left = [run for run in chunk.runs if runs[run.key].state == INTERRUPTED]
        if failed and left:
            log, code = _log(chunk, failed[0]), self._processes[failed[0]].returncode
            reason = last_words(log).removeprefix("error: ") or f"a worker ended with status {code} and said nothing"
            begun = any(runs[run.key].attempts > run.before for run in left)
            raise UsageError(
                f"{counted(len(left), 'run')} could not {'end' if begun else 'begin'}: {reason};"
                f" mend that, then give the same command again (log: {log})"
            )

    def _start(self, chunk: Chunk, frozen: Path, index: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, *worker_arguments(chunk, frozen)]
        with open(create_anew(_log(chunk, index)), "wb") as log:
            return subprocess.Popen(
                command,
                env={**os.environ, **self._variables(index)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _variables(self, index: int) -> dict[str, str]:
        """Environment of a worker: its GPU by the name that was given for it."""
        if self.devices:
            return {"CUDA_VISIBLE_DEVICES": self.devices[index % len(self.devices)]}
        return {"CUDA_VISIBLE_DEVICES": "", **thread_variables(self.threads)}

    def stop(self) -> None:
        """Ask the workers to write checkpoints and end; kill those that do not."""
        say("stopping: workers write their checkpoints (the same command continues; Ctrl-C again kills)")
        for process in self._processes:
            process.terminate()
        deadline = time.monotonic() + STOP_PATIENCE_S
        try:
            with stages() as tell:
                while time.monotonic() < deadline and (
                    left := sum(process.poll() is None for process in self._processes)
                ):
                    tell(f"waiting for {counted(left, 'worker')} to end")
                    time.sleep(0.1)
        finally:
            for process in self._processes:
                process.kill()


@contextmanager
def _ctrl_c_waits() -> Iterator[None]:
    """Ctrl-C is answered when the block is over, and processes that begin in it never get it: it reaches the whole group, and
    workers are told by us instead, so that they can write a checkpoint.

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


@contextmanager
def _ask_first(stop: Any) -> Iterator[None]:
    """The first Ctrl-C asks for a checkpoint, the second ends at once."""

    def ask(number: int, frame: object) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.request()

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _log(chunk: Chunk, index: int) -> Path:
    """What a worker said, but for its runs, which have logs of their own."""
    return chunk.path.parent / "logs" / f"worker.{index}.log"


def _keys(jobs: Sequence[Job]) -> tuple[str, ...]:
    return tuple(job.run.key for job in jobs)


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
        self._told: dict[str, float] = {}
        self._started: dict[str, float] = {}
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
        room = min(max(len(run.words) for run in running[:MOST_LINES]), width // 2)
        for run in running[:MOST_LINES]:
            left = run_left(run, finished, now=now)
            name = run.words if len(run.words) <= room else run.words[: room - 1] + "…"
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
                print(f"{run.words}: {run.stage}", file=sys.stderr, flush=True)

    def _line(self, run: RunState) -> None:
        took = f" ({clock(run.seconds)})" if run.seconds else ""
        why = f": {run.message}" if run.message and run.state != FINISHED else ""
        text = f"[{len(self._shown)}/{self._total}] {run.words}: {run.state}{took}{why}"
        if self._live is not None:
            style = None if run.state == FINISHED else "red"
            self._live.console.print(text, markup=False, highlight=False, style=style)
        else:
            print(text, file=sys.stderr, flush=True)


RETRY_CLASSES = ("oom", "timeout", "preempted", "node_fail", "diverged", "blank", "no_data", "error")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a plan.

    Args:
        submitted: True where runs go on without this process; then there is no table to print yet.
        failed: key -> reason code or state of runs that have no success.
    """

    submitted: bool
    failed: dict[str, str]


def make_executor(where: Place, *, results: Path, request: str = "") -> Executor:
    """The executor of a place; one on a cluster tells sweeps apart by ``request``. Raises UsageError: no sbatch here."""
    if where.profile is not None:
        return SlurmExecutor(results=results, profile=where.profile, request=request)
    if where.executor == "inline":
        return InlineExecutor(results=results)
    return LocalExecutor(results=results, where=where)


def to_start(planned: Plan, where: Place, *, results: Path, retry: str | None) -> list[Job]:
    """What `run_jobs` starts or finds at work: all that is not finished, on a cluster without what failed and neither ``retry`` nor a
    submission before this one starts again."""
    again = _to_retry(planned, results, retry, everything=where.profile is None)
    if planned.failed and where.profile is not None:
        again |= {
            run.key
            for chunk in read_chunks(results, open_only=True)
            if read_sweep(chunk.path.parent).executor == SlurmExecutor.name  # a local one that was stopped stays open
            for run in chunk.runs
            if run.key in planned.failed and run.replaces == fingerprint_at(results, run.key)
        }
    return [job for job in planned.pending if job.run.key not in planned.failed or job.run.key in again]


def not_again(planned: Plan, begun: Iterable[Job]) -> dict[str, str]:
    """Key -> reason code of failed runs that are not ``begun``, which is said."""
    keys = {job.run.key for job in begun}
    left_out = {key: code for key, code in planned.failed.items() if key not in keys}
    if left_out:
        classes = ",".join(sorted({code.lower() for code in left_out.values()}))
        many = f"{len(left_out)} runs failed before and are" if len(left_out) > 1 else "1 run failed before and is"
        say(f"{many} not started again; --retry {classes} does that")
    return left_out


def run_jobs(
    planned: Plan,
    where: Place,
    *,
    results: Path,
    command: str = "",
    wait: bool = False,
    retry: str | None = None,
    cancel: bool = False,
) -> Outcome:
    """Run what is not finished, or cancel it; prints where runs go and how they fare. ``command``: the command line, which a sweep
    keeps.

    On this machine, runs that failed before are started again; on a cluster only those that ``retry`` names, because a
    queue is dear. Runs that were interrupted always continue.

    Raises:
        UsageError: what `make_executor` and `Executor.submit` raise.
    """
    chosen = make_executor(where, results=results, request=planned.request)
    if cancel:
        return _cancel(planned, chosen, command)
    pending = to_start(planned, where, results=results, retry=retry)
    left_out = not_again(planned, pending)
    if not pending:
        return Outcome(submitted=False, failed=left_out)
    say(chosen.describe())
    with stages() as tell:
        tell("freezing the code and handing over the runs")
        submission = chosen.submit(pending, command=command)
    for key, who in list(submission.elsewhere.items())[:3]:
        say(f"not submitted again: {key} {who}")
    if len(submission.elsewhere) > 3:
        say(f"not submitted again: {len(submission.elsewhere) - 3} more")
    if chosen.detached:
        _say_next(submission, results)
        if not wait:
            return Outcome(submitted=True, failed=left_out)
    try:
        with Display(total=len(pending)) as display:
            states = chosen.wait(submission, on_change=display.show)
    except KeyboardInterrupt as interrupt:
        if isinstance(chosen, LocalExecutor):
            chosen.stop()
        if interrupt.args:
            raise
        raise KeyboardInterrupt(_what_was_interrupted(chosen, submission, results)) from interrupt
    if stopped := [state.words for state in states.values() if state.state == INTERRUPTED]:
        say(f"{len(stopped)} interrupted: {first_of(stopped)}; run the same command again to go on")
    failed = {key: state.state for key, state in states.items() if state.state != "OK"}
    return Outcome(submitted=False, failed={**left_out, **failed})


def _say_next(submission: Submission, results: Path) -> None:
    if submission.keys:
        jobs = ", ".join(submission.job_ids)
        print(f"sweep {submission.sweep}: {len(submission.keys)} runs submitted (jobs {jobs})")
    elif not submission.ending:
        print("nothing to submit: every run is finished, queued or running")
    if submission.ending:
        print(f"{counted(len(submission.ending), 'run')} still ending: give the command again in a moment")
    print(f"watch:  sam-peft status --results {results} --watch")
    print("cancel: the same command with --cancel (without --wait, --retry, --budget)")


def _what_was_interrupted(executor: Executor, submission: Submission, results: Path) -> str:
    """The line after Ctrl-C: which runs were interrupted, and how they go on."""
    if executor.detached:
        return f"only this command; its runs stay with the cluster: sam-peft status --results {results} --watch"
    runs = survey(results, keys=submission.keys).runs.values()
    left = [run for run in runs if run.unsettled or run.state == INTERRUPTED]
    begun = [run.words for run in left if run.attempts]
    words = [f"{len(begun)} at work: {first_of(begun)}"] if begun else []
    words += [f"{len(left) - len(begun)} not begun"] if len(left) > len(begun) else []
    return "; ".join([*(words or ["every run had ended"]), "run the same command again to go on"])


def _cancel(planned: Plan, executor: Executor, command: str) -> Outcome:
    if not isinstance(executor, SlurmExecutor):
        raise UsageError("--cancel needs --cluster NAME; a local run is stopped with Ctrl-C")
    cancelled = executor.cancel([job.run.key for job in planned.jobs], command=command)
    nothing = "nothing to cancel: no job that this command submitted is queued or running"
    print(f"cancelled {len(cancelled)} jobs" if cancelled else nothing)
    return Outcome(submitted=True, failed={})


def _to_retry(planned: Plan, results: Path, retry: str | None, *, everything: bool) -> set[str]:
    """Keys of failed runs that are to be started again."""
    if retry is None:
        return set(planned.failed) if everything else set()
    classes = {word.strip().lower().replace("-", "_") for word in retry.split(",") if word.strip()}
    for word in classes - set(RETRY_CLASSES) - {"all"}:
        raise UsageError(f"--retry: unknown class {word!r}{did_you_mean(word, (*RETRY_CLASSES, 'all'))}")
    store = RecordStore(results)
    chosen = set()
    for key, code in planned.failed.items():
        record = store.summary(key)
        node_failed = record is not None and record.message.startswith("NODE_FAIL")
        if "all" in classes or ("node_fail" if node_failed else code.lower()) in classes:
            chosen.add(key)
    return chosen
