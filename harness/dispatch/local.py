"""Runs on this machine: in this process (`InlineExecutor`), or in worker processes that end with the command (`LocalExecutor`)."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar

from harness.dispatch import snapshot
from harness.dispatch.attempts import BEATS_PER_LEASE, Held, Holder, Lease, Lost, state_folder
from harness.dispatch.executors import LOCAL_ATTEMPTS, Executor, ShowStates, Submission, attempt_limits
from harness.dispatch.supervise import Circumstances, ProgressFile, completion
from harness.dispatch.survey import RunState, survey
from harness.dispatch.sweeps import Chunk, Sweep, create_chunk, create_sweep, new_id
from harness.errors import UsageError, os_reason
from harness.streams import say

if TYPE_CHECKING:
    from harness.dispatch.job import Job

POLL_S = 0.5
STOP_PATIENCE_S = 60.0
MAX_LOCAL_WORKERS = 4


class InlineExecutor(Executor):
    """One run after the other in this process, for debugging: a breakpoint works, an exception shows its traceback."""

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
        from harness.dispatch.job import execute
        from harness.training.outcome import Interrupted, StopRequest

        def look() -> None:
            if on_change is not None:
                on_change(survey(self.results, keys=_keys(self._jobs)).runs)

        for job in self._jobs:
            folder = state_folder(self.results, job.run.key)
            circumstances = Circumstances(holder=Holder.here(), limit=sys.maxsize)
            stop = StopRequest()
            try:
                lease = Lease.acquire(folder, holder=circumstances.holder)
            except Held:
                continue
            with beating(lease), _ask_first(stop):
                try:
                    record = execute(
                        job,
                        progress=ProgressFile(folder, written=look),
                        stop=stop,
                        complete=completion(folder, circumstances),
                    )
                    lease.release("finished" if record.code == "OK" else "failed", record.code)
                except Interrupted as interrupted:
                    lease.release("interrupted", str(interrupted))
                    raise KeyboardInterrupt(str(interrupted)) from interrupted
                except BaseException as error:
                    lease.release("killed", f"{type(error).__name__}: {error}")
                    raise
            look()
            if stop.requested:  # while it was tested, which is not stopped half-way
                raise KeyboardInterrupt("stopped after a finished run; the same command goes on with the others")
        self._chunk.close("done")
        return survey(self.results, keys=_keys(self._jobs)).runs


class LocalExecutor(Executor):
    """Worker processes through submitit's local executor; they share one queue and end when this process does.

    Args:
        workers: how many; None for one a GPU, or one a core (at most four) on a machine without.
    """

    name: ClassVar[str] = "local"

    def __init__(self, *, results: Path, workers: int | None = None) -> None:
        super().__init__(results=results)
        if workers is not None and workers < 1:
            raise UsageError(f"--workers {workers} must be at least 1")
        self.devices = visible_gpus()
        cores = len(os.sched_getaffinity(0))
        self.workers = workers or (len(self.devices) or min(MAX_LOCAL_WORKERS, cores))
        self.threads = max(1, cores // self.workers)
        self._processes: list[Any] = []
        self._chunk: Chunk | None = None

    def describe(self) -> str:
        where = f"GPU {', '.join(self.devices)}" if self.devices else f"CPU, {self.threads} threads each"
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
            (folder / "logs").mkdir()
        for index in range(min(self.workers, len(jobs))):
            self._processes.append(self._start(self._chunk, frozen, index))
        ids = tuple(str(process.job_id) for process in self._processes)
        return Submission(sweep=sweep.id, keys=_keys(jobs), elsewhere={}, job_ids=ids)

    def wait(self, submission: Submission, *, on_change: ShowStates | None = None) -> Mapping[str, RunState]:
        assert self._chunk is not None
        try:
            while True:
                ended = all(process.done() for process in self._processes)
                runs = survey(self.results, keys=submission.keys).runs
                if on_change is not None:
                    on_change(runs)
                if ended:
                    break
                time.sleep(POLL_S)
        except KeyboardInterrupt:
            self._stop()
            raise
        self._chunk.close("done")
        return survey(self.results, keys=submission.keys).runs

    def _start(self, chunk: Chunk, frozen: Path, index: int) -> Any:
        from submitit import LocalExecutor as SubmititLocal

        class WorkerProcess(SubmititLocal):
            """submitit's executor with our worker as command: the chunk on disk takes the place of a pickle."""

            def begin(self, command: str) -> Any:
                return self._submit_command(command)

        process = WorkerProcess(folder=chunk.path.parent / "logs")
        # submitit's default limit is minutes; a local worker has none
        process.update_parameters(timeout_min=60 * 24 * 365, stderr_to_stdout=True)
        variables = self._variables(index)
        # Ctrl-C reaches the whole process group; workers are told by us instead, so that they can write a checkpoint.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            return process.begin(worker_command(chunk, frozen, python=shlex.quote(sys.executable), variables=variables))
        finally:
            signal.signal(signal.SIGINT, before)

    def _variables(self, index: int) -> dict[str, str]:
        """Environment of a worker: its GPU by the name that was given for it (submitit takes whole numbers only)."""
        if self.devices:
            return {"CUDA_VISIBLE_DEVICES": self.devices[index % len(self.devices)]}
        return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(self.threads))}

    def _stop(self) -> None:
        """Ask the workers to write checkpoints and end; kill those that do not."""
        say("stopping: workers write their checkpoints (the same command continues; Ctrl-C again kills)")
        for process in self._processes:
            if not process.done():
                process._process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_PATIENCE_S
        try:
            while time.monotonic() < deadline and not all(process.done() for process in self._processes):
                time.sleep(0.1)
        finally:
            for process in self._processes:
                if not process.done():
                    process._process.kill()


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them, without importing torch.

    An index, a UUID (``GPU-…``) or a slice of one (``MIG-…``). Like CUDA, what is none of these, such as -1, ends the
    list.
    """
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        words = [word.strip() for word in os.environ["CUDA_VISIBLE_DEVICES"].split(",")]
        return list(takewhile(re.compile(r"\d+$|GPU-|MIG-").match, words))
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    lines = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")] if listed.returncode == 0 else []
    return [str(index) for index in range(len(lines))]


def worker_command(chunk: Chunk, frozen: Path, *, python: str, variables: Mapping[str, str]) -> str:
    """The command that works on ``chunk`` with the frozen code, whatever the working directory."""
    settings = " ".join(
        shlex.quote(f"{name}={value}") for name, value in {**variables, "PYTHONPATH": str(frozen)}.items()
    )
    program = f"{python} -u -m harness.dispatch.worker {shlex.quote(str(chunk.path))}"
    return f"env -C {shlex.quote(str(frozen))} {settings} {program}"


def freeze(folder: Path, jobs: Sequence[Job]) -> tuple[Path, list[Job]]:
    """A snapshot of the code, and the jobs with their plug-ins taken from it."""
    from dataclasses import replace

    plugins = list(dict.fromkeys(plugin for job in jobs for plugin in job.plugins))
    frozen = snapshot.take(folder, extra=[Path(plugin) for plugin in plugins])
    moved = {plugin: str(frozen / snapshot.plugin_path(index, Path(plugin))) for index, plugin in enumerate(plugins)}
    return frozen, [replace(job, plugins=tuple(moved[plugin] for plugin in job.plugins)) for job in jobs]


def begin_sweep(
    results: Path,
    *,
    executor: str,
    command: str,
    frozen: Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> tuple[Sweep, Path]:
    """Write down who submits what with which code."""
    sweep = Sweep(
        id=new_id(),
        executor=executor,
        command=command,
        created=time.time(),
        submitter=Holder.here(),
        snapshot=str(frozen or ""),
        code=snapshot.code_version() if frozen else {},
        settings=dict(settings or {}),
    )
    return sweep, create_sweep(results, sweep)


@contextmanager
def writing(results: Path) -> Iterator[None]:
    """Turn a full disk or a folder without permission into one line."""
    try:
        yield
    except OSError as error:
        where = error.filename or results
        raise UsageError(f"cannot write {where}: {os_reason(error)}; nothing was submitted by this step") from error


class beating:
    """Keep a lease alive from a thread, for work that cannot stop for it."""

    def __init__(self, lease: Lease, *, lease_s: float = 90.0) -> None:
        self._lease = lease
        self._interval = lease_s / BEATS_PER_LEASE
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Lease:
        self._thread.start()
        return self._lease

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(self._interval):
            try:
                self._lease.beat()
            except Lost:
                traceback.print_exc()
                os._exit(1)  # somebody else works on it now; nothing may be written any more
            except OSError as error:
                print(f"heartbeat: {error}", file=sys.stderr)


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


def _keys(jobs: Sequence[Job]) -> tuple[str, ...]:
    return tuple(job.run.key for job in jobs)
