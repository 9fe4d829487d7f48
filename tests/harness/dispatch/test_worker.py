"""A worker of a cluster's job: what it runs, when it asks to be queued again, and the last word when its step has ended."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.dispatch import worker
from harness.dispatch.attempts import Holder, state_folder
from harness.dispatch.supervise import Meeting, StopSignals, WorkerContext
from harness.dispatch.sweeps import job_log
from tests.harness.dispatch import standin
from tests.harness.dispatch.helpers import make_job
from tests.harness.dispatch.one_task import account, ends, record_of, started, submitted


@pytest.fixture
def supervised(monkeypatch):
    """Starts of runs end as the list says, in turn; keeps what each was told."""

    def install(*outcomes, signals=()):
        told, left = [], iter(outcomes)

        def supervise(job, *, context, stop, meeting):
            told.append((job.run.seed, context, meeting))
            stop.received += signals
            return next(left)

        monkeypatch.setattr(worker, "supervise", supervise)
        return told

    return install


@pytest.mark.parametrize(("makes_room", "again"), [(True, True), (False, False), (None, False)])
def test_a_task_that_is_told_to_make_room_asks_for_another_turn(
    tmp_path, cluster, monkeypatch, supervised, makes_room, again
):
    """Preempted with GraceTime: SLURM takes an exit of its own for a failure, or counts it towards a bound of its own."""
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    cluster.makes_room = makes_room
    supervised("interrupted", signals=(signal.SIGTERM,))
    chunk, sweep = submitted(tmp_path, jobs=[make_job(tmp_path)])
    assert worker.one_of_array(chunk, sweep, stop=StopSignals()) == 1
    assert cluster.requeued == (["7_0"] if again else [])


@pytest.mark.parametrize(
    ("outcome", "signals", "status", "again"),
    [
        ("finished", (), 0, False),
        ("elsewhere", (), 0, False),
        ("failed", (), 1, False),
        ("interrupted", (signal.SIGUSR2,), 1, True),  # warned of the time limit
        ("interrupted", (signal.SIGTERM,), 1, False),  # cancelled or preempted: the cluster does what it does
        ("finished", (signal.SIGUSR2,), 0, False),
    ],
)
def test_a_task_runs_its_own_job_and_asks_for_another_turn_when_time_is_up(
    tmp_path, cluster, monkeypatch, supervised, capsys, outcome, signals, status, again
):
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    jobs = [make_job(tmp_path, seed=seed) for seed in range(3)]
    told = supervised(outcome, signals=signals)
    chunk, sweep = submitted(tmp_path, jobs=jobs, before=2, limit=5, lease_seconds=30, signal_seconds=60)
    assert worker.one_of_array(chunk, sweep, stop=StopSignals()) == status
    assert cluster.requeued == (["7_1"] if again else [])
    ((seed, context, meeting),) = told
    assert (seed, meeting) == (1, None)
    said = capsys.readouterr().out
    assert f": {jobs[1].run.key} (lora, kvasir, seed 1)\n" in said
    assert said.endswith(f"7_1: {outcome}\n")
    assert context == WorkerContext(
        holder=Holder.here(job="7_1"), limit=5, before=2, gpus=2, lease_s=30.0, patience_s=30.0,
        environment=sweep.environment, accounting=cluster,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("detail", "signals", "waited"),
    [
        ("exit status 1: OSError: [Errno 116] Stale file handle: 'a.png'", [], worker.AWAY_WAIT_S),
        ("exit status 1: OSError: [Errno 116] Stale file handle: 'a.png'", [signal.SIGTERM], 0.0),
        ("exit status 1: ValueError: a bug", [], 0.0),
    ],
)
def test_a_start_that_died_of_the_file_server_waits_for_it(tmp_path, monkeypatch, detail, signals, waited):
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: now.append(now.pop() + seconds))
    monkeypatch.setattr(worker, "time", clock)
    started(tmp_path).release("killed", detail)
    folder = state_folder(tmp_path, make_job(tmp_path).run.key)
    worker._wait_for_files(folder, stop=StopSignals(received=signals))
    assert now == [waited]


def test_a_child_that_crashed_is_started_again_until_it_is_given_up_or_asked_to_stop(tmp_path, cluster, supervised):
    chunk, sweep = submitted(tmp_path)
    told = supervised("crashed", "crashed", "failed")
    assert worker.one_of_array(chunk, sweep, stop=StopSignals()) == 1
    assert len(told) == 3
    told = supervised("crashed", "finished", signals=(signal.SIGTERM,))
    assert worker.one_of_array(chunk, sweep, stop=StopSignals()) == 1
    assert len(told) == 1


@pytest.mark.parametrize(
    ("accounts", "end", "detail"),
    [
        (None, "PREEMPTED", "7_0 was queued again"),
        ([account("RUNNING")], "PREEMPTED", "7_0 was queued again"),
        ([account("NODE_FAIL"), account("RUNNING"), account("TIMEOUT", job="7_1")], "NODE_FAIL", "7_0 was NODE_FAIL"),
    ],
)
def test_the_cluster_says_how_an_earlier_start_of_the_task_ended(tmp_path, cluster, supervised, accounts, end, detail):
    cluster.accounts = accounts
    chunk, sweep = submitted(tmp_path)
    started(tmp_path)
    supervised("finished")
    worker.one_of_array(chunk, sweep, stop=StopSignals())
    assert ends(tmp_path) == [(end, detail)]


def test_only_the_latest_of_several_starts_is_explained(tmp_path, cluster, supervised):
    chunk, sweep = submitted(tmp_path)
    started(tmp_path).release("interrupted")
    started(tmp_path)
    supervised("finished")
    worker.one_of_array(chunk, sweep, stop=StopSignals())
    assert ends(tmp_path) == [("interrupted", ""), ("PREEMPTED", "7_0 was queued again")]


@pytest.mark.parametrize("holder", [Holder.here(job="7_0"), replace(Holder.here(job="6_0"), ticks=1)])
def test_a_start_that_lives_or_is_another_jobs_is_left_alone(tmp_path, cluster, supervised, holder):
    chunk, sweep = submitted(tmp_path)
    started(tmp_path, holder=holder)
    supervised("finished")
    worker.one_of_array(chunk, sweep, stop=StopSignals())
    assert ends(tmp_path) == [("", "")]


def test_the_first_of_several_processes_leads_and_the_others_follow(tmp_path, cluster, supervised, monkeypatch):
    for name, value in {"SLURM_NTASKS": "2", "SLURM_RESTART_COUNT": "3"}.items():
        monkeypatch.setenv(name, value)
    chunk, sweep = submitted(tmp_path)
    told = supervised("finished")
    worker.one_of_array(chunk, sweep, stop=StopSignals())
    ((_, _, meeting),) = told
    assert meeting.path == chunk.path.parent / "logs" / "meeting.7_0.3.json", "where only its user writes"
    assert meeting.size == 2
    monkeypatch.setenv("SLURM_PROCID", "1")
    meeting.call_off()
    assert worker.one_of_array(chunk, sweep, stop=StopSignals()) == 0
    assert len(told) == 1


def test_who_follows_waits_for_the_first_as_long_as_it_may_and_takes_its_place(tmp_path, cluster, monkeypatch):
    now = [0.0]

    def sleep(seconds):
        now[0] += seconds

    monkeypatch.setattr(worker, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: now[0]))
    meeting = Meeting(tmp_path / "meeting.json", size=2)
    here = WorkerContext(holder=Holder.here(), limit=1)
    given: dict[str, Any] = {"rank": 1, "context": here}
    assert worker.follow(make_job(tmp_path), meeting, stop=StopSignals(), **given) == 1
    assert now[0] == pytest.approx(worker.MEETING_WAIT_S, abs=1.0)
    assert worker.follow(make_job(tmp_path), meeting, stop=StopSignals(received=[15]), **given) == 1
    assert now[0] == pytest.approx(worker.MEETING_WAIT_S, abs=1.0)
    meeting.path.write_text(json.dumps({"MASTER_ADDR": "a", "MASTER_PORT": "7"}))
    environment: dict[str, str] = {"SLURM_LOCALID": "5"}
    monkeypatch.setattr(
        worker, "os", SimpleNamespace(environ=environment, waitstatus_to_exitcode=lambda status: status)
    )
    forked: list[str] = []

    def fork_child(job, *, log, **_):
        forked.append(log.name)
        return 42

    monkeypatch.setattr(worker, "fork_child", fork_child)
    monkeypatch.setattr(
        worker, "watch", lambda child, *, lease, **_: (-9 if (child, lease) == (42, None) else 0, False)
    )
    job = make_job(tmp_path)
    assert worker.follow(job, meeting, stop=StopSignals(), **given) == 9
    RecordStore(tmp_path).write(Record(run=job.run, key=job.run.key, code="OOM"))
    assert worker.follow(job, meeting, stop=StopSignals(), **given) == 0, "it was ended, as the run has its record"
    assert forked.pop() == "meeting.rank1.log"
    RecordStore(tmp_path).path(job.run.key).unlink()
    assert forked == ["meeting.rank1.log"]
    begun = now[0]
    assert worker.follow(make_job(tmp_path), meeting, stop=StopSignals(received=[15]), **given) == 9
    assert now[0] - begun == worker.REQUEUE_WAIT_S, "the requeue ends this process, not its own exit"
    assert {name: environment[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")} == {
        "RANK": "1", "LOCAL_RANK": "5", "WORLD_SIZE": "2", "MASTER_PORT": "7",
    }  # fmt: skip


def test_a_worker_here_goes_through_all_runs_and_comes_back_to_those_that_others_held(
    tmp_path, cluster, supervised, monkeypatch
):
    naps: list[float] = []
    monkeypatch.setattr(worker, "time", SimpleNamespace(sleep=naps.append))
    monkeypatch.setitem(sys.modules, "harness.experiment.experiment", standin)
    jobs = [make_job(tmp_path, seed=seed) for seed in range(3)]
    chunk, sweep = submitted(tmp_path, jobs=jobs, signal_seconds=8)
    told = supervised("elsewhere", "finished", "elsewhere", "elsewhere", "elsewhere", "failed", "finished")
    assert worker.drain(chunk, sweep, stop=StopSignals()) == 0
    assert [seed for seed, *_ in told] == [0, 1, 2, 0, 2, 0, 2]
    assert naps == [1.0]  # only where nothing was to do
    assert told[0][1].holder == Holder.here()
    assert (told[0][1].accounting, told[0][1].patience_s) == (None, 5.0)
    told = supervised("interrupted", signals=(signal.SIGTERM,))
    assert worker.drain(chunk, sweep, stop=StopSignals()) == 0
    assert len(told) == 1


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
