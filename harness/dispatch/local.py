"""Runs on this machine: in this process (`InlineExecutor`), or in worker processes that end with the command (`LocalExecutor`)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.dispatch.attempt_end import last_words
from harness.dispatch.attempts import Held, Holder, Lease, beating, state_folder
from harness.dispatch.executor import Executor, ShowStates, Submission
from harness.dispatch.place import Place
from harness.dispatch.run_states import INTERRUPTED, ProgressFile, RunState, survey
from harness.dispatch.snapshot import freeze, worker_arguments
from harness.dispatch.supervise import WorkerContext, completion
from harness.dispatch.sweeps import Chunk, PlannedRun, attempt_limits, begin_sweep, create_chunk, settled, writing
from harness.system.errors import UsageError
from harness.system.files import create_anew, own_folder
from harness.system.machine import cores, set_threads, thread_variables
from harness.system.streams import say, stages

if TYPE_CHECKING:
    from harness.planning.job import Job

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
                on_change(survey(self.results, keys=_keys(self._jobs)).runs)

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
    """Worker processes that share one queue and end when this process does.

    Args:
        where: how many workers, and what each has.
    """

    name: ClassVar[str] = "local"

    def __init__(self, *, results: Path, where: Place) -> None:
        super().__init__(results=results)
        self.devices, self.workers, self.threads = where.devices, where.workers, where.threads
        self._processes: list[subprocess.Popen[bytes]] = []
        self._chunk: Chunk | None = None

    def describe(self) -> str:
        where = (
            f"GPU {', '.join(self.devices)}"
            if self.devices
            else f"CPU, {self.threads} thread{'s' if self.threads != 1 else ''} each"
        )
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
            runs = survey(self.results, keys=submission.keys).runs
            if on_change is not None:
                on_change(runs)
            if ended:
                break
            time.sleep(POLL_S)
        self._chunk.close("done")
        runs = survey(self.results, keys=submission.keys).runs
        self._require_begun(self._chunk, runs)
        return runs

    def _require_begun(self, chunk: Chunk, runs: Mapping[str, RunState]) -> None:
        """Say why a worker ended before it began a run: another start would end so too.

        Raises:
            UsageError: some runs were not begun, because a worker failed.
        """
        failed = [index for index, process in enumerate(self._processes) if process.returncode]
        left = [
            run for run in chunk.runs if runs[run.key].state == INTERRUPTED and runs[run.key].attempts <= run.before
        ]
        if failed and left:
            log, code = _log(chunk, failed[0]), self._processes[failed[0]].returncode
            reason = last_words(log).removeprefix("error: ") or f"a worker ended with status {code} and said nothing"
            many = f"{len(left)} runs" if len(left) > 1 else "1 run"
            raise UsageError(
                f"{many} could not begin: {reason}; mend that, then give the same command again (log: {log})"
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
                    tell(f"waiting for {left} worker{'s' if left > 1 else ''} to end")
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
