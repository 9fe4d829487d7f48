"""One start of a run, from its lease to its end, with experiments of milliseconds in a child of this process."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.dispatch import supervise as module
from harness.dispatch.attempts import Attempt, Holder, Lease, Lost, attempts, log_path, state_folder
from harness.dispatch.supervise import Start, StopSignals, supervise
from harness.dispatch.sweeps import fingerprint
from harness.training.outcome import Interrupted
from tests.harness.dispatch import standin
from tests.harness.dispatch.helpers import make_job, record_of, starts

ASKING = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)


@pytest.fixture
def experiment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a function in the experiment's place; without one, the stand-in that counts."""

    def install(run: Callable[..., Any] = standin.run_experiment) -> None:
        monkeypatch.setitem(sys.modules, "harness.experiment.experiment", SimpleNamespace(run_experiment=run))

    monkeypatch.setattr(module, "_TICK_S", 0.001)
    install()
    return install


@pytest.fixture
def asked() -> Iterator[StopSignals]:
    """A request to stop, in a process that remembers further ones, as a worker does."""
    before = {number: signal.getsignal(number) for number in ASKING}
    stop = StopSignals()
    stop.install()
    stop.received.append(signal.SIGTERM)
    yield stop
    for number, handler in before.items():
        signal.signal(number, handler)


def started(job, *, stop: StopSignals | None = None, **changes) -> str:
    start = Start(**{"job": job, "holder": Holder.here(), "limit": 5, **changes})
    return supervise(start, stop=StopSignals() if stop is None else stop)


def last(job) -> Attempt:
    return attempts(state_folder(Path(job.results), job.run.key))[-1]


def log_of(job) -> str:
    return log_path(state_folder(Path(job.results), job.run.key), last(job).number).read_text()


def written(job, code: str = "OK", **changes) -> Record:
    record = Record(run=job.run, key=job.run.key, code=code, **changes)  # type: ignore[arg-type]
    RecordStore(Path(job.results)).write(record)
    return record


def test_a_run_that_finishes_has_a_record_that_knows_its_starts(tmp_path, experiment):
    job = make_job(tmp_path)
    assert started(job, environment={"snapshot": "abc"}, gpus=2) == "finished"
    record = record_of(tmp_path, job.run.key)
    assert (record.attempts, record.environment) == (1, {"snapshot": "abc"})
    assert (last(job).end, last(job).detail, last(job).gpus) == ("finished", "OK", 2)
    assert started(job) == "finished"
    assert starts(tmp_path, job.run.key) == [0]


def test_a_run_that_fails_by_its_record_has_failed(tmp_path, experiment):
    job = make_job(tmp_path, failure="torch-oom", fail_at=99)
    assert started(job) == "failed"
    assert (last(job).end, last(job).detail) == ("failed", "OOM")


def test_only_the_failure_that_is_to_be_replaced_is_run_again(tmp_path, experiment):
    job = make_job(tmp_path)
    failure = written(job, "OOM", finished="2026-01-01T00:00:00Z")
    assert started(job, replaces="another") == "finished"  # somebody settled it since
    assert starts(tmp_path, job.run.key) == []
    assert started(job, replaces=fingerprint(failure)) == "finished"
    assert record_of(tmp_path, job.run.key).code == "OK"


def test_a_record_that_was_written_while_a_dead_holder_was_waited_for_is_not_trained_again(
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


def test_a_record_that_the_last_allowed_start_wrote_while_it_was_watched_stays(tmp_path, experiment):
    job = make_job(tmp_path)
    other = Holder(host="elsewhere", boot="b", namespace="n", pid=1, ticks=1)  # no process to ask: its lease is watched
    lease = Lease.acquire(state_folder(tmp_path, job.run.key), holder=other)

    def finish() -> None:
        written(job)
        lease.release("finished", "OK")

    timer = threading.Timer(0.1, finish)
    timer.start()
    assert started(job, limit=1, lease_s=5) == "finished"
    timer.join()
    assert record_of(tmp_path, job.run.key).code == "OK"
    assert starts(tmp_path, job.run.key) == []


def test_a_run_that_somebody_holds_is_elsewhere(tmp_path, experiment):
    job = make_job(tmp_path)
    Lease.acquire(state_folder(tmp_path, job.run.key), holder=Holder.here())
    assert started(job) == "elsewhere"
    assert starts(tmp_path, job.run.key) == []


def test_a_child_whose_lease_is_lost_is_ended_at_once_and_says_nothing_more(tmp_path, experiment, monkeypatch):
    children = []
    fork = module.fork_child

    def noted(*arguments, **options) -> int:
        children.append(fork(*arguments, **options))
        return children[-1]

    def overtaken(lease: Lease) -> None:
        raise Lost("somebody else has it")

    monkeypatch.setattr(module, "fork_child", noted)
    monkeypatch.setattr(Lease, "beat", overtaken)
    job = make_job(tmp_path, steps=30, until=str(tmp_path / "never"))
    assert started(job, lease_s=0.06) == "elsewhere"
    assert not Path(f"/proc/{children[0]}").exists()  # nor is it a zombie
    assert last(job).end == ""  # the others say how it ended


def ends(how: Callable[[], None]) -> Callable[..., None]:
    return lambda job, **_: how()


def signalled(number: int) -> Callable[..., None]:
    return ends(lambda: os.kill(os.getpid(), number))


def breaks() -> None:
    raise RuntimeError("a bug in the experiment")


NO_ROOM = "libtorch_cpu.so: failed to map segment from shared object"


def finds_no_room() -> None:
    try:
        raise ImportError(NO_ROOM)
    except ImportError as error:  # as numpy does
        raise ImportError("you should not try to import numpy from\n        its source directory") from error


def aborts() -> None:
    print("  what():  std::bad_alloc", flush=True)
    os.kill(os.getpid(), signal.SIGABRT)


@pytest.mark.parametrize(
    ("run", "kills", "end", "detail"),
    [
        (signalled(signal.SIGKILL), (3, 4), "OOM", "killed by the out-of-memory killer"),
        (signalled(signal.SIGKILL), (3, 3), "killed", "signal SIGKILL"),
        (signalled(signal.SIGXCPU), (3, 4), "killed", "signal SIGXCPU"),  # another process ran out of memory
        (ends(breaks), (3, 4), "killed", "exit status 1: RuntimeError: a bug in the experiment"),
        (ends(lambda: os._exit(9)), (0, 0), "killed", "exit status 9"),
        (ends(finds_no_room), (0, 0), "OOM", f"ImportError: {NO_ROOM}"),  # was called an error of ours
        (ends(aborts), (0, 0), "OOM", "what():  std::bad_alloc"),
    ],
)
def test_how_a_child_died_is_told(tmp_path, experiment, monkeypatch, run, kills, end, detail):
    counts = iter(kills)
    monkeypatch.setattr(module, "oom_kills", lambda: next(counts))
    experiment(run)
    job = make_job(tmp_path)
    assert started(job) == ("failed" if end == "OOM" else "crashed")
    assert (last(job).end, last(job).detail) == (end, detail)


def test_a_run_whose_child_always_dies_is_given_up_with_a_record(tmp_path, experiment):
    experiment(ends(breaks))
    job = make_job(tmp_path)
    assert [started(job, environment={"snapshot": "abc"}) for _ in range(3)] == ["crashed", "crashed", "failed"]
    record = record_of(tmp_path, job.run.key)
    assert (record.code, record.attempts, record.environment["snapshot"]) == ("ERROR", 3, "abc")
    assert record.message == "its process died 3 times: exit status 1: RuntimeError: a bug in the experiment"


def test_crashes_before_this_submission_do_not_count(tmp_path, experiment):
    experiment(ends(breaks))
    job = make_job(tmp_path)
    assert [started(job, before=2) for _ in range(3)] == ["crashed"] * 3


@pytest.mark.parametrize("ends", [("killed",) * 3, ("OOM",)])
def test_a_run_that_another_worker_is_giving_up_is_not_started_once_more(tmp_path, experiment, ends):
    job = make_job(tmp_path)
    for end in ends:
        Lease.acquire(state_folder(tmp_path, job.run.key), holder=Holder.here()).release(end, "a bug")
    # the other worker has said how the last start ended, and has not written the record yet
    assert started(job) == "failed"
    assert starts(tmp_path, job.run.key) == []
    assert record_of(tmp_path, job.run.key).attempts == len(ends)
    again = make_job(tmp_path, seed=1)
    for end in ends:
        Lease.acquire(state_folder(tmp_path, again.run.key), holder=Holder.here()).release(end, "a bug")
    assert started(again, before=len(ends), limit=9) == "finished"  # a later command tries anew


def test_a_run_at_its_bound_is_given_up_without_another_start(tmp_path, experiment):
    job = make_job(tmp_path)
    for _ in range(2):
        Lease.acquire(state_folder(tmp_path, job.run.key), holder=Holder.here()).release("interrupted")
    assert started(job, limit=2) == "failed"
    assert starts(tmp_path, job.run.key) == []
    record = record_of(tmp_path, job.run.key)
    assert (record.code, record.attempts) == ("TIMEOUT", 2)


def test_a_run_that_stops_when_asked_is_interrupted(tmp_path, experiment, asked):
    def stops(job, *, stop, **_) -> None:
        assert stop.requested  # the request came before the fork
        raise Interrupted("stopped at step 3")

    experiment(stops)
    job = make_job(tmp_path)
    assert started(job, stop=asked) == "interrupted"
    assert (last(job).end, last(job).detail) == ("interrupted", "requested to stop")
    assert log_of(job) == "stopped at step 3\n"


def test_a_run_that_does_not_stop_in_time_is_interrupted_unless_its_record_was_written(
    tmp_path, experiment, asked, monkeypatch
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
    assert started(make_job(tmp_path), stop=asked, patience_s=0.0) == "interrupted"
    assert last(make_job(tmp_path)).detail == "requested to stop, and killed because it did not in time"
    late.append(make_job(tmp_path, seed=1))
    assert started(late[0], stop=asked, patience_s=0.0) == "finished"
    assert last(late[0]).end == "finished"


def test_all_that_a_child_says_is_in_its_log_and_nothing_of_ours(tmp_path, experiment, monkeypatch):
    def talks(job, *, progress, **_) -> None:
        progress({"stage": "merging (exact)"})
        print("printed")
        print("printed too", file=sys.stderr)
        os.write(1, b"written below python\n")
        os.write(2, b"written there too\n")

    experiment(talks)
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
