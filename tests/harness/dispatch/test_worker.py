"""A worker of a cluster's job: what it runs, when it requests to be requeued, and how it settles a step that ended."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest

from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.dispatch import worker
from harness.dispatch.attempts import Holder, Lease, attempts, state_folder
from harness.dispatch.supervise import STARTED, Assignment, StopSignals
from harness.dispatch.sweeps import JobArray
from tests.harness.dispatch import standin
from tests.harness.dispatch.helpers import make_job, submitted


@pytest.fixture
def task(monkeypatch):
    """We are a task of job 7."""

    def become(index, **more):
        names = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": str(index), **more}
        for name, value in names.items():
            monkeypatch.setenv(name, value)

    become(0)
    monkeypatch.setattr(worker, "ENDING_S", 0.0)
    monkeypatch.setattr(StopSignals, "install", lambda self: None)
    monkeypatch.setitem(sys.modules, "harness.experiment.experiment", standin)
    return become


@pytest.fixture
def supervised(monkeypatch):
    """Starts of runs end as the list says, in turn; keeps what each was."""

    def install(*outcomes, signals=()):
        seen, left = [], iter(outcomes)

        def supervise(assigned, *, stop):
            seen.append(assigned)
            stop += signals
            return next(left)

        monkeypatch.setattr(worker, "supervise", supervise)
        return seen

    return install


def requeues(sweep):
    return [path.name for path in sweep.logs.glob("*.again")]


def started(results, *, job="7_0", seed=0, holder=None):
    folder = state_folder(results, make_job(results, seed=seed).run.key)
    return Lease.acquire(folder, holder=holder or replace(Holder.here(job=job), ticks=1))


def ends(results, seed=0):
    return [
        (attempt.end, attempt.detail)
        for attempt in attempts(state_folder(results, make_job(results, seed=seed).run.key))
    ]


@pytest.mark.parametrize(
    ("outcome", "signals", "status", "requeued"),
    [
        ("finished", (), 0, False),
        ("elsewhere", (), 0, False),
        ("failed", (), worker.FAILED, False),
        ("interrupted", (signal.SIGUSR2,), 0, True),
        ("interrupted", (signal.SIGTERM,), 0, True),  # the job script knows whether all of the job is being ended
    ],
)
def test_a_task_runs_its_own_run_and_requests_a_requeue_when_it_has_to_stop(
    tmp_path, task, supervised, outcome, signals, status, requeued
):
    task(1)
    jobs = [make_job(tmp_path, seed=seed) for seed in range(3)]
    sweep = submitted(tmp_path, jobs, settings={"lease_seconds": 30, "signal_seconds": 60})
    seen = supervised(outcome, signals=signals)
    assert worker.main([str(sweep.folder), "--array", "0"]) == status
    assert requeues(sweep) == (["7_1.again"] if requeued else [])
    assert seen == [Assignment(sweep=sweep, line=1, holder=Holder.here(job="7_1"), gpus=2)]
    assert (seen[0].job, seen[0].sweep.lease_s, seen[0].sweep.patience_s) == (jobs[1], 30.0, 30.0)


def test_a_task_of_several_runs_goes_through_them_and_comes_back_to_those_that_are_left(tmp_path, task, supervised):
    jobs = [make_job(tmp_path, seed=seed) for seed in range(5)]
    sweep = submitted(tmp_path, jobs, arrays=(JobArray(first=0, runs=5, per_task=3, job="7"),))
    seen = supervised("finished", "interrupted", signals=(signal.SIGUSR2,))
    RecordStore(tmp_path).write(Record(run=jobs[0].run, key=jobs[0].run.key, code="OK"))
    assert worker.main([str(sweep.folder), "--array", "0"]) == 0
    assert [assigned.job for assigned in seen] == jobs[:1]  # a request to stop came after the first
    assert requeues(sweep) == ["7_0.again"]
    task(1)
    seen = supervised("finished", "finished")
    worker.main([str(sweep.folder), "--array", "0"])
    assert [assigned.job for assigned in seen] == jobs[3:]


def test_a_worker_here_goes_through_all_runs_and_comes_back_to_those_that_others_held(
    tmp_path, task, supervised, monkeypatch
):
    naps: list[float] = []
    monkeypatch.setattr(worker, "time", SimpleNamespace(sleep=naps.append, monotonic=lambda: 0.0))
    sweep = submitted(tmp_path, [make_job(tmp_path, seed=seed) for seed in range(3)], executor="local")
    seen = supervised("elsewhere", "finished", "elsewhere", "elsewhere", "elsewhere", "failed", "finished")
    assert worker.main([str(sweep.folder)]) == 0
    assert [assigned.job.run.seed for assigned in seen] == [0, 1, 2, 0, 2, 0, 2]
    assert naps == [1.0]  # only where nothing was to do
    seen = supervised("interrupted", signals=(signal.SIGTERM,))
    assert worker.main([str(sweep.folder)]) == 0
    assert len(seen) == 1


def test_a_child_that_crashed_is_restarted_until_it_is_given_up(tmp_path, task, supervised):
    sweep = submitted(tmp_path, [make_job(tmp_path)])
    started(tmp_path).release("killed", "exit status 1: ValueError: a bug")
    seen = supervised("crashed", "crashed", "failed")
    assert worker.main([str(sweep.folder), "--array", "0"]) == worker.FAILED
    assert len(seen) == 3


def test_a_run_whose_gpu_failed_is_requeued_and_not_restarted_on_the_same_node(tmp_path, task, supervised):
    jobs = [make_job(tmp_path, seed=seed) for seed in range(2)]
    sweep = submitted(tmp_path, jobs, arrays=(JobArray(first=0, runs=2, per_task=2, job="7"),))
    started(tmp_path).release("killed", "exit status 1 on node7: CUDA error: uncorrectable ECC error encountered")
    seen = supervised("gpu-failed")
    worker.main([str(sweep.folder), "--array", "0"])
    assert (len(seen), requeues(sweep)) == (1, ["7_0.again"])


@pytest.mark.parametrize(
    ("crash", "waited"), [("files-away", worker.AWAY_WAIT_S), ("crashed", 0.0), ("gpu-failed", 0.0)]
)
def test_an_attempt_that_died_of_the_file_server_waits_for_it(tmp_path, task, supervised, monkeypatch, crash, waited):
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: now.append(now.pop() + seconds))
    monkeypatch.setattr(worker, "time", clock)
    sweep = submitted(tmp_path, [make_job(tmp_path)])
    supervised(crash, "finished")
    worker.work([Assignment(sweep=sweep, line=0, holder=Holder.here())], stop=StopSignals())
    assert now == [waited]


@pytest.mark.parametrize(
    ("holder", "end"),
    [
        (None, ("lost", "7_0 was requeued")),
        (Holder.here(job="7_0"), ("", "")),
        (replace(Holder.here(job="6_0"), ticks=1), ("", "")),
    ],
)
def test_an_earlier_attempt_of_the_same_task_is_over_unless_it_lives(tmp_path, task, supervised, holder, end):
    sweep = submitted(tmp_path, [make_job(tmp_path)])
    started(tmp_path).release("interrupted")
    started(tmp_path, holder=holder)
    supervised("finished")
    worker.main([str(sweep.folder), "--array", "0"])
    assert ends(tmp_path) == [("interrupted", ""), end]


TOO_LARGE = "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks have been OOM Killed.\n"


def after(sweep, status):
    return worker.main([str(sweep.folder), "--array", "0", "--after", str(status)])


@pytest.mark.parametrize(
    ("holder", "recorded", "end", "requeued"),
    [
        (None, False, ("killed", "its step ended with status 137"), ["7_0.again"]),
        (Holder.here(job="8_0"), False, ("", ""), []),  # another task's
        (None, True, ("", ""), []),
    ],
)
def test_a_step_that_was_killed_whole_is_settled_and_requeued_unless_it_left_a_record(
    tmp_path, task, holder, recorded, end, requeued
):
    job = make_job(tmp_path)
    sweep = submitted(tmp_path, [job])
    started(tmp_path, holder=holder)
    if recorded:
        RecordStore(tmp_path).write(Record(run=job.run, key=job.run.key, code="OK"))
    assert after(sweep, 137) == 0
    assert (ends(tmp_path), requeues(sweep)) == ([end], requeued)


@pytest.mark.parametrize(
    ("killed", "log", "code", "message"),
    [
        (0, TOO_LARGE, "OOM", "killed for exceeding its memory limit"),
        (2, "", "ERROR", "its process died 3 times: its step ended with status 137"),
    ],
)
def test_a_run_that_is_given_up_has_a_record_and_is_not_requeued(tmp_path, task, killed, log, code, message):
    sweep = submitted(tmp_path, [make_job(tmp_path)])
    for _ in range(killed):
        started(tmp_path).release("killed", "signal SIGKILL")
    started(tmp_path)
    (sweep.logs / "7_0.out").write_text(f"{STARTED}\n{log}")
    after(sweep, 137)
    record = RecordStore(tmp_path).read(make_job(tmp_path).run.key)
    assert record is not None
    assert (record.code, record.message, record.environment["snapshot"]) == (code, message, "abc")
    assert requeues(sweep) == []


def test_what_keeps_a_worker_from_working_is_one_line(tmp_path, task, capsys):
    assert worker.main([str(tmp_path / "nowhere")]) == worker.STATUS
    assert capsys.readouterr().err.count("\n") == 1
    sweep = submitted(tmp_path, [make_job(tmp_path)])
    assert worker.main([str(sweep.folder), "--array", "3"]) == worker.STATUS
    assert os.environ["SLURM_ARRAY_TASK_ID"] == "0"


@pytest.mark.parametrize(("patience_s", "outcomes"), [(5.0, {"finished"}), (1.5, set())])
def test_a_run_that_another_process_holds_is_waited_for_as_long_as_patience_lasts(monkeypatch, patience_s, outcomes):
    clock, tries = [0.0], iter(["elsewhere", "elsewhere", "elsewhere", "finished"])
    monkeypatch.setattr(
        worker, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=lambda s: clock.append(clock.pop() + s))
    )
    monkeypatch.setattr(worker, "_persist", lambda assigned, *, stop: next(tries))
    assert worker.work([cast(Assignment, SimpleNamespace())], stop=StopSignals(), patience_s=patience_s) == outcomes
