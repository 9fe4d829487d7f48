"""A worker of a cluster's job: what it runs, and when it asks to be queued again."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from harness.dispatch import worker
from harness.dispatch.attempts import Holder
from harness.dispatch.supervise import Meeting, StopSignals, WorkerContext
from tests.harness.dispatch import standin
from tests.harness.dispatch.helpers import make_job
from tests.harness.dispatch.one_task import account, ends, started, submitted


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
    assert worker.follow(make_job(tmp_path), meeting, stop=StopSignals(), **given) == 9
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
