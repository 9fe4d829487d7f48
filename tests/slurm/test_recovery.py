"""Real runs of the tiny SAM, ended by the cluster in every way it knows; the numbers are those of an undisturbed run, bit for bit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from harness.dispatch.run_jobs import make_executor
from harness.dispatch.target import target_of
from tests.harness.dispatch import standin
from tests.harness.dispatch.helpers import make_job, use_standin
from tests.slurm.conftest import (
    CLUSTER,
    REFERENCE,
    attempts_of,
    harness_run,
    job_id,
    numbers,
    occupy,
    only_record,
    records,
    started,
    submit,
)
from tests.values import wait_until


def finished(results):
    return bool(records(results))


@pytest.mark.parametrize("partition", ["normal", "grace"])
def test_a_preempted_run_is_requeued_and_ends_with_the_same_numbers(cluster, reference, tmp_path, partition):
    submit(tmp_path, *REFERENCE, "--set", f"cluster.partition={partition}")
    wait_until(lambda: started(tmp_path), "the run to train")
    occupy(cluster, seconds=2)
    wait_until(lambda: finished(tmp_path), "the preempted run to finish")
    record = only_record(tmp_path)
    assert numbers(record) == numbers(reference)
    assert record["attempts"] == 2
    states = [
        line.split("|")[1]
        for line in cluster.call(
            "sacct", "-X", "-n", "-P", "--duplicates", "-o", "JobID,State", "-j", job_id(tmp_path)
        ).splitlines()
    ]
    assert any(state.startswith(("PREEMPTED", "REQUEUED")) for state in states), states


def test_a_run_preempted_without_requeue_continues_by_the_same_command(cluster, reference, tmp_path):
    words = (*REFERENCE, "--yes", *CLUSTER, "--set", "cluster.partition=cancel", "--wait")
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(harness_run, tmp_path, *words)
        wait_until(lambda: started(tmp_path), "the run to train")
        occupy(cluster, seconds=2)
        waiting.result()
    if not finished(tmp_path):
        harness_run(tmp_path, *words, check=True)
    record = only_record(tmp_path)
    assert numbers(record) == numbers(reference)
    assert record["attempts"] == 2  # of one job that could still ask for another turn, or of two


def test_a_run_that_meets_its_time_limit_twice_continues(cluster, tmp_path, monkeypatch):
    """The limit itself, with the stand-in experiment, which starts at once: SLURM looks at limits every half minute only."""
    use_standin(monkeypatch)
    steps: dict[str, Any] = {"steps": 780, "step_s": 0.09, "save_every": 5}
    limits = {"time": "1", "signal_seconds": "50", "max_attempts": "40"}
    job = make_job(tmp_path, **steps)
    slurm = make_executor(target_of("slurm", cluster="testcluster", cluster_overrides=limits), results=tmp_path)
    slurm.submit([job])
    states = slurm.wait(on_change=lambda runs: None)
    assert states[job.run.key].state == "OK"
    ends = [start.end for start in attempts_of(tmp_path, job.run.key)]
    assert len(ends) >= 3
    assert set(ends[:-1]) == {"interrupted"}
    undisturbed = make_job(tmp_path / "here", **steps | {"step_s": 0.0})
    standin.run_experiment(undisturbed)
    (here,) = records(tmp_path / "here").values()
    assert only_record(tmp_path)["scores"] == here["scores"]
