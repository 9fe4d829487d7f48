"""Jobs that ended without a word: how each is settled from the queue, accounting, the job's log and what its worker left."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.dispatch.attempts import Holder, Lease, attempts, state_folder
from harness.dispatch.queue import Account, Task
from harness.dispatch.run_states import survey
from harness.dispatch.slurm import reconcile as module
from harness.dispatch.slurm.client import Slurm
from harness.dispatch.slurm.reconcile import reconcile
from harness.dispatch.sweeps import job_log, read_chunk
from tests.harness.dispatch.helpers import make_job, submitted

TOO_LARGE = "slurmstepd: error: StepId=4.0 exceeded memory limit (387254272 > 314572800), being killed\n"


class Cluster(Slurm):
    def __init__(self, *, queue=(), accounts=None, named=None):
        self.user = "me"
        self.queue, self.accounts, self.named = list(queue), accounts, named or {}

    def cluster(self):
        return "gpu"

    def tasks(self, names):
        wanted = set(names)
        return {task.job: task for task in self.queue if task.name in wanted}

    def history(self, jobs):
        return self.accounts

    def ids_by_name(self, names):
        return {name: job for name, job in self.named.items() if name in set(names)}


def started(results, job, *, task="7_0", lives=False):
    here = Holder.here(job=task)
    return Lease.acquire(state_folder(results, job.run.key), holder=here if lives else replace(here, ticks=1))


def said(state):
    """What accounting says of the job; None where it is off."""
    return [Account(job="7_0", state=state, seconds=1.0, gpus=0)] if state else None


def test_a_job_that_waits_or_runs_is_left_alone(tmp_path):
    chunk = submitted(tmp_path, [make_job(tmp_path, seed=seed) for seed in range(2)])
    waiting = Task(job="7_1", state="PENDING", name=chunk.name)
    assert reconcile(tmp_path, Cluster(queue=[waiting])) == {"7_1": waiting}
    assert not read_chunk(chunk.path).closed


def test_a_chunk_whose_runs_have_records_is_done(tmp_path):
    job = make_job(tmp_path)
    chunk = submitted(tmp_path, [job])
    RecordStore(tmp_path).write(Record(run=job.run, key=job.run.key, code="OK"))
    reconcile(tmp_path, Cluster())
    assert (read_chunk(chunk.path).closed, read_chunk(chunk.path).ends) == ("done", {})


def test_a_chunk_whose_results_folder_was_moved_is_over_with_its_jobs(tmp_path):
    before, after = tmp_path / "before", tmp_path / "after"
    job = make_job(before)
    chunk = submitted(before, [job])
    before.rename(after)
    place = after / chunk.path.relative_to(before)
    running = Task(job="7_0", state="RUNNING", name=chunk.name)
    reconcile(after, Cluster(queue=[running]))
    assert not read_chunk(place).closed
    reconcile(after, Cluster())
    assert (read_chunk(place).closed, RecordStore(after).read(job.run.key)) == ("moved", None)


@pytest.mark.parametrize(
    ("state", "logged", "limit", "end", "code"),
    [
        ("TIMEOUT", "", 5, "TIMEOUT", ""),
        ("", "", 5, "lost", ""),
        ("", TOO_LARGE, 5, "OOM", "OOM"),
        ("PREEMPTED", TOO_LARGE, 5, "PREEMPTED", ""),  # accounting is believed before the log
        ("NODE_FAIL", "", 1, "NODE_FAIL", "ERROR"),  # at the bound
    ],
)
def test_a_start_that_died_ends_as_accounting_says_or_its_log(tmp_path, state, logged, limit, end, code):
    job = make_job(tmp_path)
    chunk = submitted(tmp_path, [job], limit=limit)
    started(tmp_path, job)
    log = job_log(chunk.path.parent, "7_0")
    log.parent.mkdir(exist_ok=True)
    log.write_text(logged)
    reconcile(tmp_path, Cluster(accounts=said(state)))
    (start,) = attempts(state_folder(tmp_path, job.run.key))
    assert start.end == end
    assert code or start.detail == f"job 7_0 ended as {state or 'unknown'}"
    assert (read_chunk(chunk.path).closed, read_chunk(chunk.path).ends) == ("done", {})
    record = RecordStore(tmp_path).read(job.run.key)
    assert (record.code if record else "") == code
    assert record is None or record.environment["snapshot"] == "abc"


def test_a_worker_that_lives_though_its_job_is_gone_is_looked_at_again_later(tmp_path):
    job = make_job(tmp_path)
    chunk = submitted(tmp_path, [job])
    started(tmp_path, job, lives=True)
    reconcile(tmp_path, Cluster())
    assert not read_chunk(chunk.path).closed
    assert attempts(state_folder(tmp_path, job.run.key))[0].end == ""


@pytest.mark.parametrize(("accounts", "controller"), [("CANCELLED", ""), ("", "CANCELLED"), ("RUNNING", "CANCELLED")])
@pytest.mark.parametrize("begun", ["interrupted", "killed", ""])
def test_a_job_that_somebody_cancelled_stays_cancelled(tmp_path, accounts, controller, begun):
    """A worker hears SIGTERM first, and says that it was interrupted. Accounting may be off, or late."""
    job = make_job(tmp_path)
    chunk = submitted(tmp_path, [job], limit=1)
    if begun:
        started(tmp_path, job).release(begun, "asked to stop")
    queue = [Task(job="7_0", state=controller, name=chunk.name)] if controller else []
    tasks = reconcile(tmp_path, Cluster(queue=queue, accounts=said(accounts)))
    assert (read_chunk(chunk.path).closed, read_chunk(chunk.path).ends) == ("done", {job.run.key: "CANCELLED"})
    assert survey(tmp_path, tasks=tasks).runs[job.run.key].state == "cancelled"
    assert RecordStore(tmp_path).read(job.run.key) is None


@pytest.mark.parametrize(
    ("state", "end", "recorded"),
    [
        ("CANCELLED", "CANCELLED", ""),
        ("TIMEOUT", "TIMEOUT", ""),
        ("", "lost", ""),
        ("FAILED", "lost", ""),  # one bad node may be the reason: whoever waits submits it again, so often as it may be
        ("OUT_OF_MEMORY", "OOM", "OOM"),
    ],
)
def test_of_a_job_whose_worker_never_began_the_chunk_keeps_the_end(tmp_path, state, end, recorded):
    job = make_job(tmp_path)
    chunk = submitted(tmp_path, [job])
    started(tmp_path, job, task="6_0")  # of an earlier submission, dead
    reconcile(tmp_path, Cluster(accounts=said(state)))
    closed = read_chunk(chunk.path)
    assert (closed.closed, closed.ends) == ("done", {job.run.key: end})
    record = RecordStore(tmp_path).read(job.run.key)
    assert (record.code if record else "") == recorded
    assert attempts(state_folder(tmp_path, job.run.key))[0].end == ""
    if record:
        assert f"job 7_0 ended as {state} before its worker began; see {chunk.path.parent}" in record.message


@pytest.mark.parametrize("boot", [Holder.here().boot, "another"])
def test_a_run_that_somebody_else_may_be_training_is_not_given_up_for_a_job(tmp_path, boot):
    """As on a workstation that shares the folder; its record would be refused once there is one."""
    job = make_job(tmp_path)
    chunk = submitted(tmp_path, [job])
    Lease.acquire(state_folder(tmp_path, job.run.key), holder=replace(Holder.here(), boot=boot))
    reconcile(tmp_path, Cluster(accounts=said("OUT_OF_MEMORY")))
    assert RecordStore(tmp_path).read(job.run.key) is None
    assert read_chunk(chunk.path).ends == {job.run.key: "OOM"}
    assert survey(tmp_path, tasks={}).runs[job.run.key].state == "running"


@pytest.mark.parametrize(("user", "cluster"), [("me", "gpu"), ("", ""), ("you", "gpu"), ("me", "another")])
def test_only_ones_own_sweep_on_this_cluster_is_settled(tmp_path, user, cluster):
    chunk = submitted(tmp_path, [make_job(tmp_path)], user=user, cluster=cluster)
    reconcile(tmp_path, Cluster())
    assert bool(read_chunk(chunk.path).closed) == (user != "you" and cluster != "another")


def test_an_intent_without_an_answer_is_found_by_its_name_or_abandoned_once_the_answer_had_its_time(
    tmp_path, monkeypatch
):
    naps: list[float] = []
    monkeypatch.setattr(module.time, "sleep", naps.append)
    chunk = submitted(tmp_path, [make_job(tmp_path)], answer="")
    monkeypatch.setattr(module.time, "time", lambda: chunk.created + 1.0)
    running = Task(job="9_0", state="RUNNING", name=chunk.name)
    reconcile(tmp_path, Cluster(queue=[running], named={chunk.name: "9"}))
    assert (read_chunk(chunk.path).job, read_chunk(chunk.path).closed) == ("9", "")
    assert naps == [pytest.approx(module.ANSWER_S - 1.0)]
    chunk.path.with_name("chunk.000.job.json").unlink()
    reconcile(tmp_path, Cluster())
    assert read_chunk(chunk.path).closed == "abandoned"


@pytest.mark.parametrize(
    ("states", "active"),
    [
        ("PENDING RUNNING COMPLETING CONFIGURING REQUEUED REQUEUE_HOLD SPECIAL_EXIT STOPPED SUSPENDED", True),
        ("RESV_DEL_HOLD POWER_UP_NODE EXPEDITING UPDATE_DB A_WORD_OF_A_LATER_SLURM", True),
        ("COMPLETED CANCELLED FAILED TIMEOUT DEADLINE OUT_OF_MEMORY NODE_FAIL BOOT_FAIL PREEMPTED", False),
        ("REVOKED LAUNCH_FAILED RECONFIG_FAIL", False),
    ],
)
def test_something_may_come_of_a_job_unless_its_state_says_that_it_ended(states, active):
    assert {state: Task(job="7_0", state=state).active for state in states.split()} == dict.fromkeys(
        states.split(), active
    )
