"""One attempt at a run, from its lease to its end, with experiments of milliseconds in a child of this process."""

from __future__ import annotations

import errno
import faulthandler
import multiprocessing
import os
import signal
import socket
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.dispatch import supervise as module
from harness.dispatch.attempts import Attempt, Holder, Lease, Lost, attempts, log_path, state_folder
from harness.dispatch.supervise import STARTED, StopSignals, exceeded_memory, last_words, log_line, supervise
from harness.dispatch.sweeps import record_fingerprint
from harness.system.errors import out_of_memory
from harness.training.outcome import Interrupted
from tests.harness.dispatch import standin
from tests.harness.dispatch.helpers import assigned, make_job, record_of, starts


@pytest.fixture
def experiment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a function in place of the experiment; without one, the stand-in that counts."""

    def install(run: Callable[..., Any] = standin.run_experiment) -> None:
        monkeypatch.setitem(sys.modules, "harness.experiment.experiment", SimpleNamespace(run_experiment=run))

    monkeypatch.setattr(module, "_TICK_S", 0.001)
    install()
    return install


@pytest.fixture
def stopping() -> StopSignals:
    """A request to stop, in a process that remembers further ones, as a worker does."""
    stop = StopSignals()
    stop.install()
    stop.append(signal.SIGTERM)
    return stop


def started(job, *, stop: StopSignals | None = None, **changes) -> str:
    return supervise(assigned(job, **changes), stop=StopSignals() if stop is None else stop)


def last(job) -> Attempt:
    return attempts(state_folder(Path(job.results), job.run.key))[-1]


def log_of(job) -> str:
    return log_path(state_folder(Path(job.results), job.run.key), last(job).number).read_text()


def written(job, code: str = "OK", **changes) -> Record:
    record = Record(run=job.run, key=job.run.key, code=code, **changes)  # type: ignore[arg-type]
    RecordStore(Path(job.results)).write(record)
    return record


def test_a_run_that_finishes_has_a_record_that_knows_its_attempts(tmp_path, experiment):
    job = make_job(tmp_path)
    assert started(job, snapshot="/snapshots/abc", gpus=2) == "finished"
    record = record_of(tmp_path, job.run.key)
    assert (record.attempts, record.environment) == (1, {"snapshot": "abc"})
    assert (last(job).end, last(job).detail, last(job).gpus) == ("finished", "OK", 2)
    assert started(job) == "finished"
    assert starts(tmp_path, job.run.key) == [0]


def test_a_run_that_fails_by_its_record_has_failed(tmp_path, experiment):
    job = make_job(tmp_path, failure="torch-oom", fail_at=99)
    assert started(job) == "failed"
    assert (last(job).end, last(job).detail) == ("failed", "OOM")


def test_only_the_failure_that_is_to_be_replaced_is_restarted(tmp_path, experiment):
    job = make_job(tmp_path)
    failure = written(job, "OOM", finished="2026-01-01T00:00:00Z")
    assert started(job, replaces="another") == "finished"  # another process settled it since
    assert starts(tmp_path, job.run.key) == []
    assert started(job, replaces=record_fingerprint(failure)) == "finished"
    assert record_of(tmp_path, job.run.key).code == "OK"


def test_a_record_that_was_written_while_a_dead_holder_was_waited_for_is_not_retrained(
    tmp_path, experiment, monkeypatch
):
    job = make_job(tmp_path)
    acquire = Lease.acquire

    def slowly(folder: Path, **options) -> Lease:
        written(job)
        return acquire(folder, **options)

    monkeypatch.setattr(Lease, "acquire", slowly)
    assert started(job) == "finished"
    assert starts(tmp_path, job.run.key) == []
    assert last(job).end == "finished"


def test_a_run_that_another_process_holds_is_elsewhere(tmp_path, experiment):
    job = make_job(tmp_path)
    Lease.acquire(state_folder(tmp_path, job.run.key), holder=Holder.here())
    assert started(job) == "elsewhere"
    assert starts(tmp_path, job.run.key) == []


def overtaken(lease: Lease) -> None:
    """In place of a heartbeat."""
    raise Lost("another process has it")


def test_a_child_whose_lease_is_lost_is_ended_at_once_and_writes_nothing_more(tmp_path, experiment, monkeypatch):
    children = []
    fork = module.fork_child

    def noted(*arguments, **options) -> int:
        children.append(fork(*arguments, **options))
        return children[-1]

    monkeypatch.setattr(module, "fork_child", noted)
    monkeypatch.setattr(Lease, "beat", overtaken)
    job = make_job(tmp_path, steps=30, until=str(tmp_path / "never"))
    assert started(job, lease_s=0.06) == "elsewhere"
    assert not Path(f"/proc/{children[0]}").exists()  # nor is it a zombie
    assert last(job).end == ""  # the new holder writes how it ended


def ends(how: Callable[[], None]) -> Callable[..., None]:
    return lambda job, **_: how()


def signalled(number: int) -> Callable[..., None]:
    return ends(lambda: os.kill(os.getpid(), number))


def breaks() -> None:
    raise RuntimeError("a bug in the experiment")


ECC = "CUDA error: uncorrectable ECC error encountered"


def loses_its_files() -> None:
    raise OSError(errno.ESTALE, "Stale file handle")


def loses_its_gpu() -> None:
    raise RuntimeError(f"{ECC}\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1")


NO_ROOM = "libtorch_cpu.so: failed to map segment from shared object"


def finds_no_room() -> None:
    try:
        raise ImportError(NO_ROOM)
    except ImportError as error:  # as numpy does
        raise ImportError("you should not try to import numpy from\n        its source directory") from error


def aborts() -> None:
    faulthandler.disable()  # pytest's would print the stack as if the tests had crashed
    print("  what():  std::bad_alloc", flush=True)
    os.kill(os.getpid(), signal.SIGABRT)


@pytest.mark.parametrize(
    ("run", "kills", "end", "detail"),
    [
        (ends(loses_its_files), (0, 0), "killed", f"exit status 74: OSError: [Errno {errno.ESTALE}] Stale file handle"),
        (signalled(signal.SIGKILL), (3, 4), "OOM", "killed by the out-of-memory killer"),
        (signalled(signal.SIGKILL), (3, 3), "killed", "signal SIGKILL"),
        (signalled(signal.SIGXCPU), (3, 4), "killed", "signal SIGXCPU"),  # another process ran out of memory
        (ends(breaks), (3, 4), "killed", "exit status 1: RuntimeError: a bug in the experiment"),
        (ends(lambda: os._exit(9)), (0, 0), "killed", "exit status 9"),
        (ends(loses_its_gpu), (0, 0), "killed", f"exit status 1 on {socket.gethostname()}: RuntimeError: {ECC}"),
        (ends(finds_no_room), (0, 0), "OOM", f"ImportError: {NO_ROOM}"),
        (ends(aborts), (0, 0), "OOM", "what():  std::bad_alloc"),
    ],
)
def test_how_a_child_died_is_written_with_its_attempt(tmp_path, experiment, monkeypatch, run, kills, end, detail):
    counts = iter(kills)
    monkeypatch.setattr(module, "oom_kills", lambda: next(counts))
    experiment(run)
    job = make_job(tmp_path)
    crash = "gpu-failed" if ECC in detail else "files-away" if "74" in detail else "crashed"
    assert started(job) == ("failed" if end == "OOM" else crash)
    assert (last(job).end, last(job).detail) == (end, detail)


@pytest.mark.parametrize(("counters", "kills"), [("nr_free_pages 5\noom_kill 7\nswap_ra 1\n", 7), ("oom 3\n", 0)])
def test_kills_for_memory_are_those_that_the_kernel_counts(monkeypatch, counters: str, kills: int) -> None:
    monkeypatch.setattr(Path, "read_text", lambda path, encoding: counters * (path == Path("/proc/vmstat")))
    assert module.oom_kills() == kills


@pytest.mark.parametrize(
    ("ends", "limit", "code"),
    [(("killed",) * 3, 5, "ERROR"), (("OOM",), 5, "OOM"), (("interrupted",) * 2, 2, "TIMEOUT")],
)
def test_a_run_to_give_up_gets_its_record_without_another_attempt_and_a_later_command_tries_anew(
    tmp_path, experiment, ends, limit, code
):
    """Its last attempt has ended, and nobody has written the record yet."""
    job, other = (make_job(tmp_path, seed=seed) for seed in range(2))
    for each in (job, other):
        for end in ends:
            Lease.acquire(state_folder(tmp_path, each.run.key), holder=Holder.here()).release(end, "a bug")
    assert started(job, limit=limit) == "failed"
    assert starts(tmp_path, job.run.key) == []
    record = record_of(tmp_path, job.run.key)
    assert (record.code, record.attempts) == (code, len(ends))
    assert started(other, before=len(ends), limit=9) == "finished"


def test_a_run_that_stops_on_request_is_interrupted(tmp_path, experiment, stopping):
    def stops(job, *, stop, **_) -> None:
        assert stop.requested  # the request came before the fork
        raise Interrupted("stopped at step 3")

    experiment(stops)
    job = make_job(tmp_path)
    assert started(job, stop=stopping) == "interrupted"
    assert (last(job).end, last(job).detail) == ("interrupted", "asked to stop")
    assert log_of(job) == "stopped at step 3\n"


def test_a_run_that_does_not_stop_in_time_is_interrupted_unless_its_record_was_written(
    tmp_path, experiment, stopping, monkeypatch
):
    def deaf(job, **_) -> None:
        while True:
            signal.pause()

    def kill(process: int, number: int) -> None:
        if number == signal.SIGKILL and late:
            written(late[0])
        os.kill(process, number)

    experiment(deaf)
    monkeypatch.setattr(module, "os", SimpleNamespace(**{**vars(os), "kill": kill}))
    late: list[Any] = []
    assert started(make_job(tmp_path), stop=stopping, patience_s=0.0) == "interrupted"
    assert last(make_job(tmp_path)).detail == "asked to stop, and killed because it did not stop in time"
    late.append(make_job(tmp_path, seed=1))
    assert started(late[0], stop=stopping, patience_s=0.0) == "finished"
    assert last(late[0]).end == "finished"


def test_all_output_of_a_child_is_in_its_log_and_nothing_of_ours(tmp_path, experiment, monkeypatch):
    def prints(job, *, progress, **_) -> None:
        progress({"stage": "merging", "mode": "exact"})
        print("printed")
        print("printed too", file=sys.stderr)
        os.write(1, b"written below python\n")
        os.write(2, b"written there too\n")

    experiment(prints)
    ours = [tmp_path / "out", tmp_path / "err"]
    for name, path in zip(("stdout", "stderr"), ours, strict=True):
        monkeypatch.setattr(sys, name, path.open("w"))
    print("ours")
    print("ours too", file=sys.stderr)
    job = make_job(tmp_path)
    started(job)
    for stream in (sys.stdout, sys.stderr):
        stream.close()
    assert [path.read_text() for path in ours] == ["ours\n", "ours too\n"]
    assert log_of(job) == "merging (exact)\nprinted\nprinted too\nwritten below python\nwritten there too\n"


def stopped_while_importing(results: Path) -> None:
    """Supervise a run that gets a request to stop before its experiment is imported."""
    stop = StopSignals()
    stop.install()

    class Experiment(types.ModuleType):
        def __getattr__(self, name: str):
            if name != "run_experiment":  # the import machinery's own questions
                raise AttributeError(name)
            os.kill(os.getppid(), signal.SIGTERM)
            while not stop:  # the supervisor passes it on
                time.sleep(0.01)
            return until_stopped

    def until_stopped(job, *, progress, stop, complete):
        while not stop.requested:
            time.sleep(0.01)
        raise Interrupted("stopped")

    sys.modules["harness.experiment.experiment"] = Experiment("harness.experiment.experiment")
    assert supervise(assigned(make_job(results), limit=1, patience_s=10), stop=stop) == "interrupted"


def test_a_request_to_stop_before_the_experiment_is_imported_stops_the_run(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=stopped_while_importing, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 0
    (attempt,) = attempts(state_folder(tmp_path, make_job(tmp_path).run.key))
    assert (attempt.end, attempt.detail) == ("interrupted", "asked to stop")


def test_a_record_counts_all_attempts_up_to_now(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.dispatch.attempts.time.time", lambda: 1000.0)
    job = make_job(tmp_path)
    own = assigned(job, code={"commit": "c"}, snapshot="/snapshots/abc")
    Lease.acquire(own.folder, holder=Holder.here(), gpus=2).release("interrupted")
    Lease.acquire(own.folder, holder=Holder.here(), gpus=2)
    monkeypatch.setattr("harness.dispatch.attempts.time.time", lambda: 1000.0 + 1800.0)
    made = Record(run=job.run, key=job.run.key, code="OK", cost={"epochs": 3}, environment={"torch": "2"})
    record = own.complete(made)
    assert record.attempts == 2
    assert record.cost == {"epochs": 3, "gpu_hours": 1.0}
    assert record.environment == {"torch": "2", "commit": "c", "snapshot": "abc"}


EPOCH = {
    "stage": "training",
    "kind": "epoch",
    "epoch": 1,
    "epochs": 2,
    "loss": 0.25,
    "rate": 0.00012345,
    "seconds": 1.23,
}


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ({"stage": "training", "kind": "step", "epoch": 1, "loss": 0.5}, ""),
        ({"stage": "test", "model": "best", "split": "test", "images": 8}, "testing best on test, 8 images"),
        ({"stage": "merging", "mode": "exact"}, "merging (exact)"),
        ({"stage": "training", "kind": "note", "text": "continues in epoch 2"}, "continues in epoch 2"),
        (EPOCH, "epoch 1/2: loss 0.2500, rate 0.000123, 1.2 s"),
        ({**EPOCH, "metrics": {"dice": 0.5}}, "epoch 1/2: loss 0.2500, validation dice 0.5000, rate 0.000123, 1.2 s"),
    ],
)
def test_stages_epochs_and_notes_are_lines_and_single_updates_none(content: dict, line: str) -> None:
    assert log_line(content) == line


def attempt(number, end):
    return Attempt(number=number, holder=Holder.here(), started=100.0, seen=100.0, end=end)


@pytest.mark.parametrize(
    "line",
    [
        "slurmstepd: error: StepId=4.0 exceeded memory limit (387254272 > 314572800), being killed",
        "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks have been OOM Killed.",
        "srun: error: node1: task 0: Out Of Memory",
    ],
)
def test_slurms_lines_about_exhausted_memory_are_found_for_the_last_attempt_alone(tmp_path, line):
    log = tmp_path / "log"
    log.write_text(f"{STARTED}\ntraining\n{line}\n")
    assert exceeded_memory(log)
    log.write_text(f"{STARTED}\n{line}\n{STARTED}\nsrun: error: node1: task 0: Killed\n")
    assert not exceeded_memory(log)
    assert not exceeded_memory(tmp_path / "absent")
    assert last_words(tmp_path / "absent") == ""


@pytest.mark.parametrize(
    ("ends", "options", "verdict"),
    [
        (["OOM"], {}, "OOM"),
        (["killed"] * 2, {}, None),
        (["killed"] * 3, {}, "killed"),
        (["interrupted"] * 9, {}, None),
        (["interrupted"] * 10, {}, "interrupted"),
        (["killed", "killed", ""], {}, None),
        (["killed"] * 4, {"before": 3, "limit": 13}, None),
        ([], {}, None),
    ],
)
def test_a_run_is_given_up_for_memory_at_once_and_for_crashes_or_attempts_at_the_bound(
    tmp_path, ends, options, verdict
):
    past = [attempt(number, end) for number, end in enumerate(ends, start=1)]
    reason = assigned(make_job(tmp_path), **{"limit": 10, **options}).verdict(past)
    assert (reason and reason[0]) == verdict


def test_a_success_that_came_while_a_run_was_given_up_stands(tmp_path):
    job = make_job(tmp_path)
    success = written(job)
    Lease.acquire(state_folder(tmp_path, job.run.key), holder=Holder.here()).release("lost")
    assert assigned(job, limit=1).give_up() == success
    assert RecordStore(tmp_path).read(job.run.key) == success


@pytest.mark.parametrize(
    ("last", "memory"),
    [
        ("MemoryError", True),
        ("MemoryError: no room", True),
        ("ValueError: a MemoryError elsewhere", False),
        ("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("RuntimeError: CUDA error: CUBLAS_STATUS_EXECUTION_FAILED", False),
        ("", False),
    ],
)
def test_a_traceback_that_ends_in_a_memory_error_is_out_of_memory(last, memory, tmp_path):
    log = tmp_path / "attempt.1.log"
    log.write_text(f"Traceback (most recent call last):\n    return f.read()\n{last}\n")
    assert out_of_memory(last_words(log)) is memory
