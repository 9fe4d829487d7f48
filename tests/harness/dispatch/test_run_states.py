"""The state of one run by the files in its folders: words, shares, numbers, and which source counts."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest

from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.dispatch import run_states
from harness.dispatch.attempts import Holder, Lease, log_path, state_folder
from harness.dispatch.run_states import ProgressFile, QueuedTask, survey
from tests.harness.dispatch.helpers import make_job, submitted

HERE = Holder.here()
GONE = replace(HERE, ticks=1)
FAR = replace(HERE, host="node3", boot="another", job="7_0")
PENDING = QueuedTask(job="7_0", state="PENDING", reason="Priority")


def sweep_of(results, run, **changes):
    return submitted(results, [run], **{"submitter": GONE, **changes})


def started(results, job, holder=HERE):
    return Lease.acquire(state_folder(results, job.run.key), holder=holder)


def state(results, job, sweep, task: QueuedTask | str | None = None):
    """``task``: what the queue has of it; ``"unknown"`` where the queue is."""
    queue = None if task == "unknown" else {(sweep.names[0], 0): task} if isinstance(task, QueuedTask) else {}
    run = survey(results, queue=queue).runs[job.run.key]
    return run.state, run.message


def test_only_the_runs_that_are_wanted_are_surveyed(tmp_path):
    jobs = [make_job(tmp_path, seed=seed) for seed in range(3)]
    sweep_of(tmp_path, jobs[0])
    for job in jobs[1:]:
        RecordStore(tmp_path).write(Record(run=job.run, key=job.run.key, code="OK"))
    keys = [job.run.key for job in jobs]
    assert set(survey(tmp_path).runs) == set(keys)
    for wanted in ([], keys[:1], keys[1:2]):
        assert list(survey(tmp_path, keys=wanted).runs) == wanted


@pytest.mark.parametrize(("code", "done"), [("OK", 1.0), ("OOM", 0.0)])
@pytest.mark.parametrize("of_sweep", [True, False])
def test_the_state_of_a_run_with_a_record_is_that_of_the_record(tmp_path, code, done, of_sweep):
    job = make_job(tmp_path)
    sweep = sweep_of(tmp_path, job) if of_sweep else None
    cost = {"wall_time_s": 60.0}
    record = Record(run=job.run, key=job.run.key, code=code, message="why", attempts=3, cost=cost, finished="x")
    RecordStore(tmp_path).write(record)
    run = survey(tmp_path).runs[job.run.key]
    assert (run.state, run.message, run.attempts, run.seconds, run.done) == (code, "why", 3, 60.0, done)
    expected = log_path(state_folder(tmp_path, job.run.key), 3) if sweep else None
    assert (run.log, run.sweep, run.task) == (expected, *((sweep.id, "7_0") if sweep else ("", "")))
    assert not run.unsettled


@pytest.mark.parametrize(
    ("executor", "job", "submitter", "ended", "task", "expected"),
    [
        ("local", "", HERE, "", "unknown", ("waiting", "")),
        ("local", "", GONE, "", "unknown", ("interrupted", "not started")),
        ("local", "", HERE, "done", "unknown", ("interrupted", "not started")),
        ("slurm", "", HERE, "", None, ("waiting", "being submitted")),
        ("slurm", "", GONE, "", None, ("interrupted", "not started")),
        ("slurm", "", GONE, "", PENDING, ("queued", "Priority")),
        ("slurm", "7", HERE, "", "unknown", ("queued", "the cluster was not queried")),
        ("slurm", "7", HERE, "", None, ("interrupted", "job 7_0 ended before the worker began; see its log")),
        ("slurm", "7", HERE, "", PENDING, ("queued", "Priority")),
        ("slurm", "7", HERE, "", replace(PENDING, state="CONFIGURING"), ("queued", "configuring")),
        ("slurm", "7", HERE, "", replace(PENDING, state="COMPLETING"), ("queued", "its job is ending")),
        (
            "slurm",
            "7",
            HERE,
            "cancelled",
            replace(PENDING, state="COMPLETING"),
            ("interrupted", "cancelled on request"),
        ),
        ("slurm", "7", HERE, "cancelled", None, ("interrupted", "cancelled on request")),
    ],
)
def test_a_run_that_never_began_waits_or_has_a_reason(tmp_path, executor, job, submitter, ended, task, expected):
    run = make_job(tmp_path)
    sweep = sweep_of(tmp_path, run, executor=executor, job=job, submitter=submitter, ended=ended)
    assert state(tmp_path, run, sweep, task) == expected


def test_what_another_login_node_did_not_submit_within_an_hour_is_not_under_way(tmp_path, monkeypatch):
    job = make_job(tmp_path)
    sweep = sweep_of(tmp_path, job, job="", submitter=FAR)
    assert state(tmp_path, job, sweep) == ("waiting", "being submitted")
    monkeypatch.setattr(run_states.time, "time", lambda: sweep.created + 3601)
    assert state(tmp_path, job, sweep) == ("interrupted", "not started")


def test_a_sweep_of_another_machine_or_before_a_reboot_waits_while_it_shows_life(tmp_path, monkeypatch):
    first, second = (make_job(tmp_path, seed=seed) for seed in (0, 1))
    sweep = submitted(tmp_path, [first, second], executor="local", job="", submitter=FAR)
    monkeypatch.setattr(run_states.time, "time", lambda: sweep.created + 3500)
    assert state(tmp_path, second, sweep) == ("waiting", "")
    seen = started(tmp_path, first, holder=FAR).attempt.seen
    os.utime(state_folder(tmp_path, first.run.key) / "attempt.1.json", (seen, seen))
    for later, expected in ((3500, ("waiting", "")), (3601, ("interrupted", "not started"))):
        monkeypatch.setattr(run_states.time, "time", lambda later=later: max(seen, sweep.created) + later)
        assert state(tmp_path, second, sweep) == expected
    assert state(tmp_path, first, sweep)[0] == "interrupted"


def test_a_job_that_our_queue_does_not_show_runs_while_its_heart_beats(tmp_path):
    """That of another cluster over the same folder, or of a user whose jobs are hidden from us."""
    job = make_job(tmp_path)
    sweep = sweep_of(tmp_path, job)  # 7_0 here, and over
    started(tmp_path, job, holder=replace(FAR, job="812_3"))
    assert state(tmp_path, job, sweep) == ("running", "on node3")
    own = tmp_path / "own"
    Lease.acquire(state_folder(own, job.run.key), holder=FAR)
    other = make_job(own)
    assert state(own, other, sweep_of(own, other))[0] == "interrupted"


def test_an_attempt_elsewhere_lives_by_the_clusters_word_and_else_by_its_last_heartbeat(tmp_path, monkeypatch):
    job = make_job(tmp_path)
    sweep = sweep_of(tmp_path, job)
    skewed = started(tmp_path, job, holder=FAR)
    path = state_folder(tmp_path, job.run.key) / "attempt.1.json"
    path.write_text(json.dumps(asdict(replace(skewed.attempt, started=5.0, seen=9.0))))  # its host's clock is wrong
    seen = path.stat().st_mtime
    for later, task, expected in (
        (89.0, "unknown", "running"),
        (91.0, replace(PENDING, state="SUSPENDED"), "suspended"),
        (91.0, "unknown", "queued"),  # the cluster was not queried
        (91.0, replace(PENDING, state="RUNNING"), "running"),
        (1.0, PENDING, "queued"),
        (1.0, None, "interrupted"),  # gone from the cluster
    ):
        monkeypatch.setattr(run_states.time, "time", lambda later=later: seen + later)
        assert state(tmp_path, job, sweep, task)[0] == expected, (later, task)


@pytest.mark.parametrize(("lease", "expected"), [(600, "running"), (60.0, "queued"), ("soon", "queued")])
def test_a_heartbeat_may_be_as_old_as_the_profiles_lease(tmp_path, monkeypatch, lease, expected):
    job = make_job(tmp_path)
    sweep = sweep_of(tmp_path, job, settings={"lease_seconds": lease})
    seen = started(tmp_path, job, holder=FAR).attempt.seen
    monkeypatch.setattr(run_states.time, "time", lambda: seen + 91.0)
    assert state(tmp_path, job, sweep, "unknown")[0] == expected


def test_a_suspended_run_is_suspended_although_its_process_is_there(tmp_path):
    job = make_job(tmp_path)
    sweep = sweep_of(tmp_path, job)
    started(tmp_path, job, holder=replace(HERE, job="7_0"))
    assert state(tmp_path, job, sweep, replace(PENDING, state="SUSPENDED"))[0] == "suspended"
    assert state(tmp_path, job, sweep, replace(PENDING, state="RUNNING"))[0] == "running"


def test_an_interrupted_run_has_its_reason_as_far_as_it_is_known(tmp_path):
    job = make_job(tmp_path)
    sweep = sweep_of(tmp_path, job, executor="local")
    for end, detail, said in (("killed", "signal SIGKILL", "signal SIGKILL"), ("lost", "", "lost")):
        started(tmp_path, job).release(end, detail)
        assert state(tmp_path, job, sweep) == ("interrupted", said)
    started(tmp_path, job, holder=GONE)
    assert state(tmp_path, job, sweep) == ("interrupted", "its process is gone")


@pytest.mark.parametrize(("error", "said"), [(PermissionError(13, "not yours"), "not yours"), (OSError("odd"), "odd")])
def test_a_run_whose_folder_cannot_be_read_is_named_and_the_others_are_shown(tmp_path, monkeypatch, error, said):
    def refused(folder):
        raise error

    job = make_job(tmp_path)
    sweep_of(tmp_path, job, executor="local")
    monkeypatch.setattr(run_states, "attempts", refused)
    seen = survey(tmp_path)
    assert seen.problems == {state_folder(tmp_path, job.run.key): said}
    assert seen.runs[job.run.key].state == "interrupted"


EPOCH = {"epoch": 3, "epochs": 4, "step": 5, "steps": 10}


@pytest.mark.parametrize(
    ("reported", "done", "stage"),
    [
        ([{"stage": "training", **EPOCH}], 0.625, "training epoch 3/4"),
        ([{"stage": "training", **EPOCH, "loss": 0.25}], 0.625, "training epoch 3/4, loss 0.250"),
        ([{"stage": "training", **EPOCH, "loss": float("nan")}], 0.625, "training epoch 3/4, loss nan"),
        ([{"stage": "validation", **EPOCH, "epoch": 4, "step": 10}], 1.0, "validating epoch 4/4"),
        ([{"stage": "training", **EPOCH}, {"stage": "test", "model": "best", "split": "test"}], 1.0, "testing best"),
        ([{"stage": "merging", "mode": "exact"}], 1.0, "merging (exact)"),
        ([{"stage": "reading data"}], 0.0, "reading data"),
    ],
)
def test_a_run_at_work_has_a_stage_in_words_and_its_share_of_epochs(tmp_path, reported, done, stage):
    job = make_job(tmp_path)
    sweep_of(tmp_path, job, executor="local")
    since = started(tmp_path, job).attempt.started
    progress = ProgressFile(state_folder(tmp_path, job.run.key))
    for content in reported:
        progress(content)
    path = state_folder(tmp_path, job.run.key) / "progress.json"
    written = json.loads(path.read_text())
    for at, expected in ((written["at"], (done, stage)), (since, (done, stage)), (since - 1.0, (0.0, "starting"))):
        path.write_text(json.dumps({**written, "at": at}))  # the last is of the attempt before
        run = survey(tmp_path).runs[job.run.key]
        assert (run.done, run.stage) == expected


def test_progress_is_written_at_each_stage_and_every_two_seconds(tmp_path, monkeypatch):
    now, path = [100.0], tmp_path / "progress.json"
    monkeypatch.setattr(run_states, "time", SimpleNamespace(monotonic=lambda: now[0], time=lambda: 5000.0 + now[0]))
    report = ProgressFile(tmp_path)

    def written(*, after: float, **content) -> tuple[float, float]:
        now[0] += after
        report({"stage": "training", "epoch": 1, "epochs": 1, "steps": 10, **content})
        content = json.loads(path.read_text())
        return content["done"], content["at"]

    assert written(after=0.0, step=1) == (0.1, 5100.0)
    assert written(after=1.9, step=2) == (0.1, 5100.0)
    assert written(after=0.2, step=3) == (0.3, 5102.1)
    report({"stage": "validation", "model": "", "split": "val", "images": 4})  # as scoring does
    content = json.loads(path.read_text())
    assert content["stage"] == "validating epoch 1/1"
    assert content["pace"] == pytest.approx(2.1 / 0.2)  # two tenths in 2.1 seconds
    ProgressFile(path)({"stage": "training"})  # a folder that takes no file ends no run
