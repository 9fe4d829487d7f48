"""The last word of a task's job script, when its step has ended: what it settles, and when it asks to be queued again."""

from __future__ import annotations

import signal

import pytest

from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.dispatch import worker
from harness.dispatch.sweeps import job_log
from tests.harness.dispatch.helpers import make_job
from tests.harness.dispatch.one_task import ends, record_of, started, submitted

WARNED_TOO_EARLY = 128 + signal.SIGUSR2
TOO_LARGE = "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks have been OOM Killed.\n"


def test_a_step_that_was_killed_whole_is_settled_and_queued_again(tmp_path, cluster):
    chunk, sweep = submitted(tmp_path)
    started(tmp_path)
    assert worker.after(chunk, sweep, status=137) == 137
    assert ends(tmp_path) == [("killed", "its step ended with status 137")]
    assert cluster.requeued == ["7_0"]
    assert record_of(tmp_path) is None


def test_a_step_that_ended_well_or_left_a_record_has_nothing_more_to_say(tmp_path, cluster):
    chunk, sweep = submitted(tmp_path)
    started(tmp_path)
    assert worker.after(chunk, sweep, status=0) == 0
    job = make_job(tmp_path)
    RecordStore(tmp_path).write(Record(run=job.run, key=job.run.key, code="OK"))
    assert worker.after(chunk, sweep, status=1) == 1
    assert ends(tmp_path) == [("", "")]
    assert cluster.requeued == []


def test_out_of_memory_is_read_from_the_jobs_log_where_accounting_is_off(tmp_path, cluster):
    chunk, sweep = submitted(tmp_path)
    started(tmp_path)
    log = job_log(chunk.path.parent, "7_0")
    log.parent.mkdir()
    log.write_text(TOO_LARGE)
    assert worker.after(chunk, sweep, status=137) == 137
    record = record_of(tmp_path)
    assert (record.code, record.message) == ("OOM", "killed for exceeding its memory limit")
    assert record.environment["snapshot"] == "abc"
    assert cluster.requeued == []


def test_a_run_that_is_given_up_is_not_queued_again(tmp_path, cluster):
    chunk, sweep = submitted(tmp_path)
    for _ in range(2):
        started(tmp_path).release("killed", "signal SIGKILL")
    started(tmp_path)
    worker.after(chunk, sweep, status=137)
    assert record_of(tmp_path).message == "its process died 3 times: its step ended with status 137"
    assert cluster.requeued == []


@pytest.mark.parametrize(("before", "again"), [(0, True), (1, True), (2, False)])
def test_a_run_on_several_gpus_whose_leader_died_is_queued_again_until_it_is_given_up(
    tmp_path, cluster, monkeypatch, before, again
):
    """Its processes end together: the leader's child cannot be started again without the others'."""
    chunk, sweep = submitted(tmp_path)
    for _ in range(before + 1):
        started(tmp_path).release("killed", "signal SIGSEGV")
    assert worker.after(chunk, sweep, status=1) == 1
    assert cluster.requeued == (["7_0"] if again else [])
    assert len(ends(tmp_path)) == before + 1
    monkeypatch.setenv("SLURM_RESTART_COUNT", "5")  # as where workers do not even begin any more
    worker.after(chunk, sweep, status=1)
    assert cluster.requeued == (["7_0"] if again else [])


def test_a_start_of_another_job_that_was_killed_queues_nothing_again(tmp_path, cluster):
    chunk, sweep = submitted(tmp_path)
    started(tmp_path, task="6_0").release("killed", "signal SIGSEGV")
    worker.after(chunk, sweep, status=1)
    assert cluster.requeued == []


@pytest.mark.parametrize("begun", ["not at all", "by another job", "and its end was told"])
@pytest.mark.parametrize(
    ("status", "restarts", "again"),
    [
        (WARNED_TOO_EARLY, "", True),
        (WARNED_TOO_EARLY, "2", True),
        (WARNED_TOO_EARLY, "3", False),  # three of attempts 3 to 5 belong to this submission
        (137, "", False),
    ],
)
def test_a_warning_that_came_before_the_worker_began_queues_again_as_often_as_a_run_may_start(
    tmp_path, cluster, monkeypatch, begun, status, restarts, again
):
    if restarts:
        monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
    chunk, sweep = submitted(tmp_path, before=2, limit=5)
    if begun == "by another job":
        started(tmp_path, task="6_0")
    if begun == "and its end was told":
        started(tmp_path).release("interrupted", "asked to stop")
    before = ends(tmp_path)
    assert worker.after(chunk, sweep, status=status) == status
    assert cluster.requeued == (["7_0"] if again else [])
    assert ends(tmp_path) == before
