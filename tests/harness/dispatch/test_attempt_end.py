"""How a start ended, and when a run is given up."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import Mock

import pytest

from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.dispatch.attempt_end import (
    end_from_state,
    exceeded_memory,
    give_up,
    gpu_hours,
    last_words,
    reason_to_give_up,
    settle,
)
from harness.dispatch.attempts import Attempt, Holder, Lease, state_folder
from harness.dispatch.queue import Account
from harness.dispatch.sweeps import AttemptLimits, PlannedRun
from harness.system.errors import UsageError, out_of_memory
from tests.harness.dispatch.helpers import make_job


def start(number, end, *, seconds=0.0, gpus=0, job=""):
    holder = replace(Holder.here(), job=job)
    return Attempt(number=number, holder=holder, token="t", started=100.0, seen=100.0 + seconds, gpus=gpus, end=end)


@pytest.mark.parametrize(
    ("state", "end"),
    [
        ("OUT_OF_MEMORY", "OOM"),
        ("TIMEOUT", "TIMEOUT"),
        ("NODE_FAIL", "NODE_FAIL"),
        ("CANCELLED by 0", "CANCELLED"),
        ("CANCELLED+", "CANCELLED"),
        ("PREEMPTED", "PREEMPTED"),
        ("FAILED", "lost"),
        ("", "lost"),
    ],
)
def test_slurms_words_are_ours(state, end):
    assert end_from_state(state) == end


@pytest.mark.parametrize(
    "line",
    [
        "slurmstepd: error: StepId=4.0 exceeded memory limit (387254272 > 314572800), being killed",
        "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks have been OOM Killed.",
        "srun: error: node1: task 0: Out Of Memory",
    ],
)
def test_slurms_ways_to_say_that_memory_ran_out_are_known(tmp_path, line):
    log = tmp_path / "log"
    log.write_text(f"training\n{line}\n")
    assert exceeded_memory(log)
    log.write_text("training\nsrun: error: node1: task 0: Killed\n")
    assert not exceeded_memory(log)


def ended(starts):
    verdict = reason_to_give_up(starts, limit=10)
    assert verdict is not None
    return verdict[0]


def test_a_run_is_given_up_for_memory_at_once_and_for_crashes_or_attempts_at_the_bound():
    assert ended([start(1, "OOM")]) == "OOM"
    assert reason_to_give_up([start(n, "killed") for n in (1, 2)], limit=10) is None
    assert ended([start(n, "killed") for n in (1, 2, 3)]) == "killed"
    assert reason_to_give_up([start(n, "PREEMPTED") for n in range(1, 10)], limit=10) is None
    assert ended([start(n, "PREEMPTED") for n in range(1, 11)]) == "PREEMPTED"
    assert reason_to_give_up([start(n, "CANCELLED") for n in range(1, 11)], limit=10) is None
    assert reason_to_give_up([start(1, "killed"), start(2, "killed"), start(3, "")], limit=10) is None
    assert reason_to_give_up([], limit=10) is None
    assert reason_to_give_up([start(n, "killed") for n in (1, 2, 3, 4)], limit=13, before=3) is None


@pytest.mark.parametrize(
    ("end", "code", "message"),
    [
        ("TIMEOUT", "TIMEOUT", "ended as TIMEOUT"),
        ("PREEMPTED", "PREEMPTED", "PREEMPTED"),
        ("NODE_FAIL", "ERROR", "NODE_FAIL: "),
    ],
)
def test_a_run_out_of_attempts_gets_a_record_with_its_reason(tmp_path, end, code, message):
    job = make_job(tmp_path)
    folder = state_folder(tmp_path, job.run.key)
    for _ in range(2):
        Lease.acquire(folder, holder=Holder.here()).release(end)
    planned = PlannedRun.of(job.run, limits=AttemptLimits(before=0, limit=2))
    record = settle(tmp_path, job.run, end=end, detail="", planned=planned, environment={"snapshot": "abc"})
    assert record is not None
    assert record == RecordStore(tmp_path).read(job.run.key)
    assert (record.code, record.attempts, record.environment["snapshot"]) == (code, 2, "abc")
    assert message in record.message


def test_a_success_that_came_while_a_run_was_given_up_stands(tmp_path):
    job = make_job(tmp_path)
    success = Record(run=job.run, key=job.run.key, code="OK")

    class Slow(Accounting):
        def history(self, jobs):
            RecordStore(tmp_path).write(success, "variant,split,stem,iou\nbest,test,a,0.5\n")

    starts = [start(1, "lost", job="7_0")]
    outcome = give_up(tmp_path, job.run, end="lost", detail="", starts=starts, environment={}, accounting=Slow([]))
    assert outcome == success
    assert RecordStore(tmp_path).read(job.run.key) == success
    assert RecordStore(tmp_path).images_path(job.run.key).is_file()


class Accounting:
    def __init__(self, accounts):
        self.accounts = accounts

    def cluster(self):
        return "here"

    def history(self, jobs):
        return self.accounts


def test_gpu_hours_add_up_over_all_starts():
    starts = [start(1, "PREEMPTED", seconds=1800, gpus=2, job="7_0"), start(2, "", seconds=900, gpus=2, job="7_0")]
    assert gpu_hours(starts) == (1.5, "clock")
    assert gpu_hours(starts, accounting=Accounting(None)) == (1.5, "clock")
    accounts = [
        Account(job="7_0", state="PREEMPTED", seconds=1900, gpus=2),
        Account(job="7_0", state="RUNNING", seconds=1000, gpus=2),
        Account(job="7_1", state="RUNNING", seconds=5000, gpus=2),
    ]
    hours, source = gpu_hours(starts, accounting=Accounting(accounts))
    assert source == "sacct"
    assert hours == pytest.approx(2 * 2900 / 3600)
    here = [start(0, "lost", seconds=3600, gpus=1), *starts]
    assert gpu_hours(here, accounting=Accounting(accounts))[0] == pytest.approx(1 + 2 * 2900 / 3600)


def test_a_job_of_the_same_number_on_another_cluster_is_another_job():
    accounts = [Account(job="7_0", state="COMPLETED", seconds=36000, gpus=8)]
    there, here = (start(number, "", seconds=1800, gpus=2, job="7_0") for number in (1, 2))
    there = replace(there, holder=replace(there.holder, cluster="there"))
    here = replace(here, holder=replace(here.holder, cluster="Here"))
    assert gpu_hours([there], accounting=Accounting(accounts)) == (1.0, "clock")
    assert gpu_hours([there, here], accounting=Accounting(accounts)) == (81.0, "sacct+clock")
    away = Mock(Accounting(accounts), history=lambda jobs: accounts)
    away.cluster.side_effect = UsageError("scontrol: no answer")  # no record waits for a name
    assert gpu_hours([here], accounting=away) == (80.0, "sacct")


def test_what_accounting_does_not_know_of_a_start_is_taken_from_the_start():
    first, second = start(1, "PREEMPTED", seconds=1800, gpus=2, job="7_0"), start(2, "", seconds=900, gpus=2, job="8_0")
    without_gpus = [Account(job="7_0", state="PREEMPTED", seconds=3600, gpus=0)]
    assert gpu_hours([first], accounting=Accounting(without_gpus)) == (2.0, "sacct")
    assert gpu_hours([first, second], accounting=Accounting(without_gpus)) == (2.5, "sacct+clock")
    assert gpu_hours([first, second], accounting=Accounting([])) == (1.5, "clock")
    here = start(3, "", seconds=3600, gpus=1)
    assert gpu_hours([first, here], accounting=Accounting(without_gpus)) == (3.0, "sacct+clock")
    assert gpu_hours([here], accounting=Accounting(without_gpus)) == (1.0, "clock")


def test_a_run_that_is_given_up_has_the_hours_of_accounting_where_that_is_on(tmp_path):
    job = make_job(tmp_path)
    folder = state_folder(tmp_path, job.run.key)
    for _ in range(2):
        Lease.acquire(folder, holder=Holder.here(job="7_0"), gpus=1).release("PREEMPTED")
    accounts = [Account(job="7_0", state="PREEMPTED", seconds=1800, gpus=1) for _ in range(2)]
    planned = PlannedRun.of(job.run, limits=AttemptLimits(before=0, limit=2))
    for slurm, hours, source in ((Accounting(accounts), 1.0, "sacct"), (Accounting(None), 0.0, "clock")):
        record = settle(
            tmp_path, job.run, end="PREEMPTED", detail="", planned=planned, environment={}, accounting=slurm
        )
        assert record is not None
        assert record.cost["gpu_hours"] == pytest.approx(hours, abs=0.01)
        assert record.environment["gpu_hours_source"] == source


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
