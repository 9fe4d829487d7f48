"""How a start ended, and when a run is given up."""

from __future__ import annotations

import pytest

from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.dispatch.attempts import Attempt, Holder
from harness.dispatch.endings import STARTED, exceeded_memory, give_up, gpu_hours, last_words, reason_to_give_up
from harness.system.errors import out_of_memory
from tests.harness.dispatch.helpers import make_job


def start(number, end, *, seconds=0.0, gpus=0):
    return Attempt(
        number=number, holder=Holder.here(), token="t", started=100.0, seen=100.0 + seconds, gpus=gpus, end=end
    )


@pytest.mark.parametrize(
    "line",
    [
        "slurmstepd: error: StepId=4.0 exceeded memory limit (387254272 > 314572800), being killed",
        "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks have been OOM Killed.",
        "srun: error: node1: task 0: Out Of Memory",
    ],
)
def test_slurms_ways_to_say_that_memory_ran_out_are_known_of_the_last_start(tmp_path, line):
    log = tmp_path / "log"
    log.write_text(f"{STARTED}\ntraining\n{line}\n")
    assert exceeded_memory(log)
    log.write_text(f"{STARTED}\n{line}\n{STARTED}\nsrun: error: node1: task 0: Killed\n")
    assert not exceeded_memory(log)
    assert not exceeded_memory(tmp_path / "absent")


@pytest.mark.parametrize(
    ("ends", "options", "verdict"),
    [
        (["OOM"], {}, "OOM"),
        (["killed"] * 2, {}, None),
        (["killed"] * 3, {}, "killed"),
        (["interrupted"] * 9, {}, None),
        (["interrupted"] * 10, {}, "interrupted"),
        (["CANCELLED"] * 10, {}, None),
        (["killed", "killed", ""], {}, None),
        (["killed"] * 4, {"before": 3, "limit": 13}, None),
        ([], {}, None),
    ],
)
def test_a_run_is_given_up_for_memory_at_once_and_for_crashes_or_starts_at_the_bound(ends, options, verdict):
    starts = [start(number, end) for number, end in enumerate(ends, start=1)]
    reason = reason_to_give_up(starts, **{"limit": 10, **options})
    assert (reason and reason[0]) == verdict


@pytest.mark.parametrize(("end", "code"), [("interrupted", "TIMEOUT"), ("OOM", "OOM"), ("killed", "ERROR")])
def test_a_run_that_is_given_up_gets_a_record_with_its_reason_and_hours(tmp_path, end, code):
    job = make_job(tmp_path)
    starts = [start(1, "killed", seconds=1800, gpus=2), start(2, end, seconds=900, gpus=2)]
    record = give_up(job, end=end, detail="why", starts=starts, environment={"snapshot": "abc"})
    assert RecordStore(tmp_path).read(job.run.key) == record
    assert (record.code, record.message, record.attempts, record.environment) == (code, "why", 2, {"snapshot": "abc"})
    assert record.cost["gpu_hours"] == gpu_hours(starts) == 1.5


def test_a_success_that_came_while_a_run_was_given_up_stands(tmp_path):
    job = make_job(tmp_path)
    success = Record(run=job.run, key=job.run.key, code="OK")
    RecordStore(tmp_path).write(success)
    assert give_up(job, end="lost", detail="", starts=[], environment={}) == success
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
def test_a_traceback_that_ends_in_a_memory_error_says_that_memory_was_short(last, memory, tmp_path):
    log = tmp_path / "attempt.1.log"
    log.write_text(f"Traceback (most recent call last):\n    return f.read()\n{last}\n")
    assert out_of_memory(last_words(log)) is memory
