"""The status verb: fast, without torch, and right about every state."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from harness.archive.schema import Record, seconds_of
from harness.archive.store import RecordStore
from harness.cli import status
from harness.dispatch.attempts import Holder, Lease, log_path, state_folder
from harness.dispatch.run_states import QueuedTask, RunState, clock, survey, time_left
from tests.harness.dispatch.helpers import make_job, submitted


def sweep(results, jobs, **changes):
    return submitted(results, jobs, **{"submitter": replace(Holder.here(), ticks=1), **changes})


def finish(results, job, code="OK", message="", **changes):
    changes = {"cost": {"wall_time_s": 60.0}, **changes}
    RecordStore(results).write(Record(run=job.run, key=job.run.key, code=code, message=message, **changes))


def states(results, jobs, queue=None):
    runs = survey(results, queue=queue).runs
    return [runs[job.run.key].state for job in jobs]


def test_unbegun_and_interrupted_runs_differ_and_keys_of_finished_runs_are_printed(tmp_path):
    jobs = [make_job(tmp_path, seed=seed) for seed in range(3)]
    done, begun, _ = jobs
    sweep(tmp_path, jobs, executor="local")
    finish(tmp_path, done, finished="2026-01-01T00:00:00+00:00")
    Lease.acquire(state_folder(tmp_path, begun.run.key), holder=Holder.here()).release("interrupted", "by a signal")
    said = status.overview(survey(tmp_path))
    assert "1/3, 1 interrupted, 1 not begun" in said
    assert f"  {done.run.key}  lora on kvasir, seed 0" in said
    assert "not begun" in status.failures(survey(tmp_path))


def test_runs_after_trials_are_counted_until_they_are_submitted(tmp_path):
    jobs = [make_job(tmp_path, seed=seed) for seed in range(3)]
    sweep(tmp_path, jobs[:1], executor="local", command="run --tune", later=2)
    assert "2 runs more follow once these trials have ended" in status.overview(survey(tmp_path))
    sweep(tmp_path, jobs[1:], executor="local", command="run --tune")
    assert "follow" not in status.overview(survey(tmp_path))


def test_a_resubmitted_failure_is_queued_until_it_ends(tmp_path):
    job = make_job(tmp_path)
    finish(tmp_path, job, "OOM", finished="2026-01-01T00:00:00")
    made = sweep(tmp_path, [job])
    tasks = {(made.names[0], 0): QueuedTask(job="7_0", state="PENDING")}
    assert states(tmp_path, [job], tasks) == ["queued"]
    finish(tmp_path, job, "OOM", finished="2026-01-01T00:10:00", attempts=2)
    assert states(tmp_path, [job], tasks) == ["OOM"]


def test_the_table_the_failures_and_the_log_are_printed(tmp_path, says):
    jobs = [make_job(tmp_path, benchmark=benchmark, seed=seed) for benchmark in ("kvasir", "leaf") for seed in range(2)]
    sweep(tmp_path, jobs, executor="local")
    for job in jobs[:3]:
        finish(tmp_path, job)
    finish(tmp_path, jobs[3], "DIVERGED", "loss is not finite at step 7", attempts=1)
    Lease.acquire(state_folder(tmp_path, jobs[3].run.key), holder=Holder.here()).release("failed")
    log_path(state_folder(tmp_path, jobs[3].run.key), 1).write_text("step 7: nan\n")
    lines = says(status.main, "--results", tmp_path).splitlines()
    assert lines[3].split() == ["kvasir", "leaf"]
    assert lines[4].split() == ["lora", "2/2", "1/2,", "1", "DIVERGED"]
    assert "4 runs: 3 finished, 1 diverged (DIVERGED)" in lines
    (failed,) = [line for line in lines if line.startswith("1 failed: sam-peft status --failed says why")]
    assert failed.endswith("the same command restarts them, on a cluster with --retry")
    assert "loss is not finite at step 7" in says(status.main, "--results", tmp_path, "--failed")
    lines = says(status.main, "--results", tmp_path, "--json").splitlines()
    assert {json.loads(line)["state"] for line in lines} == {"OK", "DIVERGED"}


def test_a_log_is_found_by_the_beginning_of_a_key_or_the_words_of_a_run(tmp_path, says):
    job = make_job(tmp_path)
    sweep(tmp_path, [job], executor="local")
    Lease.acquire(state_folder(tmp_path, job.run.key), holder=Holder.here()).release("killed", "signal SIGKILL")
    log_path(state_folder(tmp_path, job.run.key), 1).write_text("hello from the run\n")
    words = ["--results", tmp_path, "--logs"]
    assert "hello from the run" in says(status.main, *words, job.run.key[:6])
    assert job.run.key in says(status.main, *words, job.run.method, job.run.benchmark, job.run.seed)
    assert "has the key 'zzz'" in says(status.main, *words, "zzz", code=2)
    assert "does not exist" in says(status.main, "--results", tmp_path / "nowhere", code=2)


def run_state(**changes):
    fields = {name: name for name in ("key", "method", "label", "benchmark", "backbone", "protocol")}
    return RunState(**{**fields, "seed": 0, "state": "OK", **changes})


RUNNING = {"state": "running"}


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ([{"seconds": 100.0}] * 4 + [{**RUNNING, "done": 0.2}] * 2 + [{"state": "queued"}], "2:10 left"),
        ([{"seconds": 100.0}, {"state": "queued"}], ""),
        ([{"seconds": 100.0}], ""),
        ([RUNNING], ""),
        # as those on its benchmark took, if any
        ([{"seconds": 10.0}, {"benchmark": "large", "seconds": 100.0}, {**RUNNING, "benchmark": "large"}], "1:40 left"),
        ([{"seconds": 10.0}, {"benchmark": "large", "seconds": 100.0}, {**RUNNING, "benchmark": "new"}], "0:55 left"),
        # before one has finished, at the pace of those that have validated
        (
            [{**RUNNING, "done": 0.5, "pace": 60.0}, RUNNING, {"state": "queued"}],
            "1:15 left, estimated from 1 run at work",
        ),
        # a run without seconds does not count
        ([{"seconds": 60.0}, {}, RUNNING], "1:00 left, estimated from 1 finished run"),
    ],
)
def test_the_time_left_comes_from_finished_runs(runs, said):
    left = time_left([run_state(**changes) for changes in runs])
    assert (left.startswith(said), bool(left)) == (True, bool(said))
    assert [clock(value) for value in (0.0, 83.0, 3723.0)] == ["0:00", "1:23", "1:02:03"]


def test_seconds_of_a_record_with_stages_are_those_of_the_whole_run():
    trained = {"wall_time_s": 100.0, "train_time_s": 80.0}
    assert seconds_of(trained) == (100.0, False)
    # training and validation of an earlier start are in the first alone
    stages = {"start": 2.0, "loading": 3.0, "training": 50.0, "validating": 9.0, "testing": 20.0, "merging": 4.0}
    assert seconds_of({**trained, **{f"stage_{name}_s": value for name, value in stages.items()}}) == (129.0, True)
    assert seconds_of({}) == (0.0, False)
