"""The state of one run, from what lies in its folders: words, shares, numbers, and whom to believe."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest

from harness.archive import cache, schema
from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.dispatch import run_states
from harness.dispatch.attempts import Holder, Lease, log_path, state_folder
from harness.dispatch.queue import Task
from harness.dispatch.run_states import share_of_epochs, survey
from tests.harness.dispatch.helpers import make_job, submitted

HERE = Holder.here()
GONE = replace(HERE, ticks=1)
FAR = replace(HERE, host="node3", boot="another", job="7_0")


def chunk(results, job, **changes):
    return submitted(results, [job], **{"submitter": GONE, **changes})


def started(results, job, holder=HERE):
    return Lease.acquire(state_folder(results, job.run.key), holder=holder)


def state(results, job, **asked):
    run = survey(results, **asked).runs[job.run.key]
    return run.state, run.message


def test_of_several_runs_those_that_are_asked_for_are_told(tmp_path):
    jobs = [make_job(tmp_path, seed=seed) for seed in range(3)]
    chunk(tmp_path, jobs[0])
    for job in jobs[1:]:
        RecordStore(tmp_path).write(Record(run=job.run, key=job.run.key, code="OK"))
    keys = [job.run.key for job in jobs]
    assert set(survey(tmp_path).runs) == set(keys)
    for wanted in ([], keys[:1], keys[1:2]):
        assert list(survey(tmp_path, keys=wanted).runs) == wanted


@pytest.mark.parametrize(("code", "done"), [("OK", 1.0), ("OOM", 0.0)])
@pytest.mark.parametrize("of_sweep", [True, False])
def test_a_record_says_how_a_run_ended(tmp_path, code, done, of_sweep):
    job = make_job(tmp_path)
    if of_sweep:
        chunk(tmp_path, job)
    record = Record(
        run=job.run, key=job.run.key, code=code, message="why", attempts=3, cost={"wall_time_s": 60.0}, finished="x"
    )
    RecordStore(tmp_path).write(record)
    run = survey(tmp_path).runs[job.run.key]
    assert (run.state, run.message, run.attempts, run.seconds, run.done) == (code, "why", 3, 60.0, done)
    assert (run.method, run.benchmark, run.seed) == ("lora", "kvasir", 0)
    expected = log_path(state_folder(tmp_path, job.run.key), 3) if of_sweep else None
    assert (run.log, run.sweep, run.task) == (expected, *(("20260101-000000-abcd", "7_0") if of_sweep else ("", "")))
    assert not run.unsettled


def test_records_that_were_read_before_are_told_without_hashing_their_rules_again(tmp_path, monkeypatch):
    """A hash for each of 25,000 records takes as long as all the rest of `status`."""
    keys: list[str] = []
    for bound in ("SMALLEST", "_SETTLED_NS"):  # few records are remembered too, and those of this second
        monkeypatch.setattr(cache, bound, 0)
    for seed in range(3):
        run = make_job(tmp_path, seed=seed).run
        RecordStore(tmp_path).write(Record(run=run, key=run.key, code="OK"))
        keys.append(run.key)
    assert set(survey(tmp_path).runs) == set(keys)
    monkeypatch.setattr(schema, "content_hash", lambda _: pytest.fail("hashed again"))
    assert set(survey(tmp_path).runs) == set(keys)


def test_a_start_says_when_it_began_how_long_it_lasts_and_where_its_log_is(tmp_path, monkeypatch):
    job = make_job(tmp_path)
    chunk(tmp_path, job, executor="local", answer="")
    run = survey(tmp_path).runs[job.run.key]
    assert (run.state, run.message, run.started, run.seconds, run.log) == ("interrupted", "not started", 0.0, 0.0, None)
    monkeypatch.setattr("harness.dispatch.attempts.time.time", lambda: 1000.0)
    lease = started(tmp_path, job)
    monkeypatch.setattr("harness.dispatch.attempts.time.time", lambda: 1090.0)
    lease.beat()
    run = survey(tmp_path).runs[job.run.key]
    assert (run.state, run.message, run.started, run.attempts) == ("running", f"on {HERE.host}", 1000.0, 1)
    assert run.seconds == pytest.approx(90.0)
    assert run.log == log_path(state_folder(tmp_path, job.run.key), 1)
    assert run.task == ""
    assert run.unsettled


PENDING = Task(job="7_0", state="PENDING", reason="Priority")


@pytest.mark.parametrize(
    ("executor", "answer", "submitter", "closed", "tasks", "expected"),
    [
        ("local", "", HERE, "", None, ("waiting", "")),
        ("local", "", HERE, "done", None, ("interrupted", "not started")),
        ("local", "", GONE, "", None, ("interrupted", "not started")),
        ("local", "", HERE, "cancelled", None, ("cancelled", "on request")),
        ("slurm", "", HERE, "", None, ("waiting", "being submitted")),
        ("slurm", "", HERE, "abandoned", None, ("interrupted", "never submitted")),
        ("slurm", "", GONE, "", None, ("interrupted", "never submitted")),
        ("slurm", "7", HERE, "", None, ("queued", "the cluster was not asked")),
        ("slurm", "7", HERE, "done", None, ("lost", "job 7_0 ended before the worker began; see its log")),
        ("slurm", "7", HERE, "", {}, ("lost", "job 7_0 ended before the worker began; see its log")),
        ("slurm", "7", HERE, "", {"7_0": PENDING}, ("queued", "Priority")),
        ("slurm", "7", HERE, "", {"7_0": replace(PENDING, state="CONFIGURING")}, ("queued", "configuring")),
        ("slurm", "7", HERE, "cancelled", {}, ("cancelled", "on request")),
    ],
)
def test_a_run_that_never_began_waits_or_says_why_not(tmp_path, executor, answer, submitter, closed, tasks, expected):
    job = make_job(tmp_path)
    made = chunk(tmp_path, job, executor=executor, answer=answer, submitter=submitter)
    if closed:
        made.close(closed)
    assert state(tmp_path, job, tasks=tasks) == expected


def test_a_run_whose_job_ended_on_request_before_its_worker_began_is_cancelled(tmp_path):
    job = make_job(tmp_path)
    chunk(tmp_path, job).close("done", ends={job.run.key: "CANCELLED"})
    assert state(tmp_path, job, tasks={}) == ("cancelled", "on request")


def test_a_job_that_our_queue_does_not_show_runs_while_its_heart_beats(tmp_path):
    """That of another cluster over the same folder, or of a user whose jobs are hidden from us."""
    job = make_job(tmp_path)
    chunk(tmp_path, job)  # 7_0 here, and over
    started(tmp_path, job, holder=replace(FAR, job="812_3"))
    assert state(tmp_path, job, tasks={}) == ("running", "on node3")
    Lease.acquire(state_folder(tmp_path / "own", job.run.key), holder=FAR)
    chunk(tmp_path / "own", job)
    assert state(tmp_path / "own", job, tasks={})[0] == "interrupted"


@pytest.mark.parametrize("broken", ["sweep", "attempt"])
def test_what_cannot_be_read_of_a_run_is_a_problem_by_name_and_the_run_is_told(tmp_path, broken):
    job = make_job(tmp_path)
    sweep = chunk(tmp_path, job).path.parent / "sweep.json"
    attempt = state_folder(tmp_path, job.run.key) / "attempt.1.json"
    attempt.parent.mkdir(parents=True)
    unreadable = sweep if broken == "sweep" else attempt
    unreadable.write_text("{")
    told = survey(tmp_path, tasks={})
    assert list(told.problems) == [unreadable]
    assert job.run.key in told.runs


@pytest.mark.parametrize(("holder", "expected"), [("7_0", "cancelled"), ("6_0", "interrupted")])
def test_a_start_that_was_cancelled_counts_for_the_job_that_it_belonged_to(tmp_path, holder, expected):
    job = make_job(tmp_path)
    chunk(tmp_path, job)
    started(tmp_path, job, holder=replace(HERE, job=holder)).release("CANCELLED", "by somebody")
    assert state(tmp_path, job, tasks={}) == (expected, "by somebody")


def test_a_start_elsewhere_lives_by_the_clusters_word_and_else_by_its_last_heartbeat(tmp_path, monkeypatch):
    job = make_job(tmp_path)
    chunk(tmp_path, job)
    seen = started(tmp_path, job, holder=FAR).attempt.seen
    running, another = Task(job="7_0", state="RUNNING"), Task(job="7_1", state="RUNNING")
    for later, tasks, expected in (
        (89.0, None, "running"),
        (91.0, None, "queued"),  # nobody asked the cluster
        (91.0, {"7_0": running}, "running"),
        (1.0, {"7_0": PENDING}, "queued"),
        (1.0, {"7_1": another}, "interrupted"),  # gone from the cluster
    ):
        monkeypatch.setattr(run_states.time, "time", lambda later=later: seen + later)
        assert state(tmp_path, job, tasks=tasks)[0] == expected, (later, tasks)


def test_a_holder_that_is_there_and_shows_no_life_is_said_to_be_so(tmp_path, monkeypatch):
    """A stopped worker holds its run, which once was only said to run."""
    job = make_job(tmp_path)
    chunk(tmp_path, job)
    seen = started(tmp_path, job).attempt.seen
    run = survey(tmp_path).runs[job.run.key]
    assert (run.state, run.message) == ("running", f"on {HERE.host}")
    monkeypatch.setattr(run_states.time, "time", lambda: seen + 600)
    run = survey(tmp_path).runs[job.run.key]
    assert run.state == "running"
    assert f"without a heartbeat for 10 min: process {os.getpid()} is stopped" in run.message
    assert run.stage == run.message


@pytest.mark.parametrize(("lease", "expected"), [(600, "running"), (60.0, "queued"), ("soon", "queued")])
def test_a_heartbeat_may_be_as_old_as_the_profile_says(tmp_path, monkeypatch, lease, expected):
    job = make_job(tmp_path)
    chunk(tmp_path, job, lease_seconds=lease)
    seen = started(tmp_path, job, holder=FAR).attempt.seen
    monkeypatch.setattr(run_states.time, "time", lambda: seen + 91.0)
    assert state(tmp_path, job)[0] == expected


def test_what_became_of_a_job_says_nothing_of_a_start_that_belongs_to_another(tmp_path):
    job = make_job(tmp_path)
    chunk(tmp_path, job)
    started(tmp_path, job, holder=replace(FAR, job=""))  # on a workstation that shares the folder
    for word in ("FAILED", "PENDING"):
        assert state(tmp_path, job, tasks={"7_0": Task(job="7_0", state=word)})[0] == "running"


def test_a_run_of_a_chunk_that_is_settled_waits_for_nothing_though_the_cluster_was_not_asked(tmp_path):
    job = make_job(tmp_path)
    made = chunk(tmp_path, job)
    started(tmp_path, job, holder=FAR).release("interrupted", "asked to stop")
    assert state(tmp_path, job) == ("queued", "the cluster was not asked")
    made.close("done")
    assert state(tmp_path, job) == ("interrupted", "asked to stop")


def test_a_queue_of_another_cluster_says_nothing_of_a_run_that_is_open(tmp_path):
    job = make_job(tmp_path)
    made = chunk(tmp_path, job, cluster="big")
    assert state(tmp_path, job, tasks={}, cluster="small") == ("queued", "the cluster was not asked")
    assert state(tmp_path, job, tasks={}, cluster="big")[0] == "lost"
    made.close("done")
    assert state(tmp_path, job, tasks={}, cluster="small")[0] == "lost"


def test_of_an_interrupted_run_the_reason_is_told_as_far_as_it_is_known(tmp_path):
    job = make_job(tmp_path)
    chunk(tmp_path, job, executor="local", answer="")
    for end, detail, told in (("killed", "signal SIGKILL", "signal SIGKILL"), ("lost", "", "lost")):
        started(tmp_path, job).release(end, detail)
        assert state(tmp_path, job) == ("interrupted", told)
    started(tmp_path, job, holder=GONE)
    assert state(tmp_path, job) == ("interrupted", "its process is gone")


@pytest.mark.parametrize(
    ("told", "done", "stage"),
    [
        ({"stage": "training", "epoch": 3, "epochs": 4, "step": 5, "steps": 10}, 0.625, "training epoch 3/4"),
        ({"stage": "training", "epoch": 3, "epochs": 4, "loss": 0.25}, 0.5, "training epoch 3/4, loss 0.250"),
        ({"stage": "validation", "epoch": 4, "epochs": 4, "step": 1, "steps": 1}, 1.0, "validating epoch 4/4"),
        ({"stage": "test best", "epoch": 2, "epochs": 4}, 1.0, "testing best"),
        ({"stage": "merging (exact)"}, 1.0, "merging (exact)"),
        ({"stage": "reading data"}, 0.0, "reading data"),
    ],
)
def test_a_share_is_that_of_all_epochs_and_all_of_them_once_it_is_tested(tmp_path, told, done, stage):
    job = make_job(tmp_path)
    chunk(tmp_path, job, executor="local", answer="")
    since = started(tmp_path, job).attempt.started
    path = state_folder(tmp_path, job.run.key) / "progress.json"
    path.write_text(json.dumps({**told, "at": since, "begun": 0.125}))
    run = survey(tmp_path).runs[job.run.key]
    assert (run.done, run.begun, run.stage) == (done, 0.125, stage)
    path.write_text(json.dumps({**told, "at": since - 1.0, "begun": 0.125}))  # of the start before
    run = survey(tmp_path).runs[job.run.key]
    assert (run.done, run.begun, run.stage) == (0.0, 0.0, "starting")
    path.unlink()
    assert survey(tmp_path).runs[job.run.key].stage == "starting"


def test_a_share_stays_between_nothing_and_all():
    assert share_of_epochs(0, 4, 0, 10) == 0.0
    assert share_of_epochs(9, 4, 0, 10) == 1.0
    assert share_of_epochs(1, 0, 0, 0) == 0.0
    assert share_of_epochs(2, 2, 1, 4) == 0.625
