"""Sweeps on the real cluster: equal to local runs, trained once, nothing lost and nothing doubled whoever dies when."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
import yaml

from harness.dispatch.run_jobs import make_executor
from harness.dispatch.sweeps import read_sweeps
from harness.dispatch.target import target_of
from harness.planning.data import write_sample
from harness.registry import SEGMENTED
from tests.harness.dispatch.helpers import make_job, starts, use_standin
from tests.slurm.conftest import REPOSITORY, harness_run, job_id, numbers, records, submit
from tests.values import wait_until

PROFILE = {"partition": "normal", "cpus": 1, "mem": "400M", "time": "30", "parallelism": 4, "max_array_size": 2000, "signal_seconds": 30,
           "lease_seconds": 10, "patience_seconds": 60}  # fmt: skip


def write_profile(folder, **changes):
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump({**PROFILE, **changes}))
    return path


def executor(results, folder, **changes):
    where = target_of("slurm", cluster=str(write_profile(folder, **changes)))
    return make_executor(where, results=results)


def wait_for(slurm, jobs):
    slurm.submit(jobs)
    return slurm.wait(on_change=lambda runs: None)


def submitter(results, profile, *, count, **rules):
    """A submission in a process group of its own, as a terminal would start it."""
    command = [sys.executable, "-m", "tests.slurm.submitter", str(results), str(profile), str(count)]
    command.append(json.dumps({"step_s": 0.01, **rules}))
    return subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def array_tasks(cluster, *states):
    """Every array task that the controller knows, by job name."""
    lines = cluster.call("squeue", "-h", "--array", "--states=all", "-o", "%j|%K|%T").splitlines()
    return [tuple(line.split("|")) for line in lines if not states or line.split("|")[2] in states]


def runs_submitted(cluster, results):
    """How often each run of a results folder has a job on the cluster, looked up by the job's name."""
    runs = {}
    for sweep in read_sweeps(results, {}):
        for line, array, task in sweep.slots():
            runs[sweep.names[array], task] = sweep.runs[line].key
    tasks = array_tasks(cluster, "PENDING", "RUNNING", "COMPLETING", "COMPLETED")
    return Counter(runs[name, int(index)] for name, index, _ in tasks if (name, int(index)) in runs)


def test_a_grid_equals_the_same_grid_run_here(cluster, tmp_path):
    grid = ["--protocol", "demo", "--set", "epochs=2", "--methods", "lora,naslora", "--seeds", "2"]
    grid += ["--datasets", "kvasir,leaf,isic2017"]
    on_cluster, here = tmp_path / "cluster", tmp_path / "here"
    said = submit(on_cluster, *grid)
    assert "12 runs submitted" in said.stdout
    assert "sam-peft status" in said.stdout
    wait_until(lambda: len(records(on_cluster)) == 12, "the grid to finish")
    harness_run(here, *grid, check=True)
    ours, theirs = records(on_cluster), records(here)
    assert ours.keys() == theirs.keys()
    for key, record in ours.items():
        assert numbers(record) == numbers(theirs[key])
        assert record["code"] == "OK"
        images = [(folder / "records" / f"{key}.images.csv").read_bytes() for folder in (on_cluster, here)]
        assert images[0] == images[1]
    resubmitted = submit(on_cluster, *grid)
    assert "submitted" not in resubmitted.stdout
    assert len(list(on_cluster.glob("sweeps/*-*"))) == 1


def test_memory_kills_are_recorded_as_oom_and_the_others_finish(cluster, tmp_path, monkeypatch):
    use_standin(monkeypatch)
    good = [make_job(tmp_path, seed=seed) for seed in range(3)]
    hungry = make_job(tmp_path, seed=10, failure="memory", always=True)
    torch_oom = make_job(tmp_path, seed=11, failure="torch-oom")
    slurm = executor(tmp_path, tmp_path, mem="250M")
    states = wait_for(slurm, [*good, hungry, torch_oom])
    assert {states[job.run.key].state for job in good} == {"OK"}
    assert states[hungry.run.key].state == "OOM"
    assert states[torch_oom.run.key].state == "OOM"
    assert "memory" in states[hungry.run.key].message
    assert len(starts(tmp_path, hungry.run.key)) == 1


IMPORT_SECONDS = 1.2
"""Processor time of ``import torch``, half more than where the bounds below were set (0.8). A host that gives its machines to others took
5 to 14 seconds for it, and as many times longer for a plan."""


def test_a_thousand_runs_are_one_array_planned_submitted_and_surveyed_quickly(cluster, tmp_path):
    profile = write_profile(tmp_path, extra={"hold": True})
    grid = ["--protocol", "demo", "--methods", "lora,naslora", "--datasets", "all", "--seeds", "56"]
    grid += ["--results", str(tmp_path / "runs")]
    for name in SEGMENTED:
        write_sample(name, tmp_path / "runs")
    slow = max(1.0, timed(sys.executable, "-c", "import torch").seconds / IMPORT_SECONDS)
    planned = timed(sys.executable, "-m", "harness.run", *grid, "--plan")
    assert planned.seconds < 4.5 * slow  # 2.0, and what a plan may spend on importing torch
    submitted = timed(sys.executable, "-m", "harness.run", *grid, "--yes", "--cluster", str(profile))
    assert "1008 runs submitted" in submitted.text
    assert submitted.wall_seconds < 30.0 * slow
    tasks = array_tasks(cluster, "PENDING")
    assert len({name for name, _, _ in tasks}) == 1
    assert len(tasks) == 1008
    status = timed(sys.executable, "-m", "harness", "status", "--results", str(tmp_path / "runs"))
    assert "1008 queued" in status.text
    assert status.seconds < 1.0 * slow
    print(
        f"1008 runs: plan {planned.seconds:.2f} s and status {status.seconds:.2f} s of processor time, "
        f"submission in {submitted.wall_seconds:.2f} s"
    )


def test_an_interrupted_submission_loses_no_run_and_seldom_doubles_one(cluster, tmp_path):
    """Twenty random points, by Ctrl-C as from a terminal or by SIGKILL; then the same command once more. A crash between sbatch and its
    answer may cost slots of an array."""
    random_points = random.Random(5)
    profile = write_profile(tmp_path, max_array_size=2, extra={"hold": True})
    keys = {make_job(tmp_path, seed=seed, step_s=0.01).run.key for seed in range(5)}
    whole, from_sweep = undisturbed(tmp_path / "undisturbed", profile)
    cluster.call("scancel", "--me")
    interrupted, doubled, pace = 0, 0, 1.0
    for number in range(20):
        results = tmp_path / f"results{number}"
        process = submitter(results, profile, count=5)
        assert process.stdout.readline() == "ready\n"
        if number % 2:  # between the sweep and the last answer; the others are anywhere
            wait_for_sweep(results)
        time.sleep(random_points.uniform(0.0, pace * (from_sweep if number % 2 else whole)))
        os.killpg(process.pid, signal.SIGKILL if number % 4 == 3 else signal.SIGINT)
        output, error = process.communicate(timeout=30)
        if "submitted 5" in output:
            pace *= 0.8  # too late: the machine is quicker now than it was undisturbed
        else:
            interrupted += 1
        resubmitted = submitter(results, profile, count=5)
        _, error = resubmitted.communicate(timeout=60)
        assert resubmitted.returncode == 0, error
        submitted = runs_submitted(cluster, results)
        assert submitted.keys() == keys, (number, output, array_tasks(cluster))
        doubled += sum(count - 1 for count in submitted.values())
        cluster.call("scancel", "--me")
    assert interrupted >= 10
    assert doubled <= 4


def wait_for_sweep(results):
    """Until the sweep is on disk; looks often, since the whole submission takes a moment only."""
    deadline = time.monotonic() + 60.0
    while not list(results.glob("sweeps/*/sweep.json")):
        assert time.monotonic() < deadline, "no sweep was written"
        time.sleep(0.002)


def undisturbed(results, profile):
    """Seconds that a submission takes in all, and from its sweep on."""
    process = submitter(results, profile, count=5)
    assert process.stdout.readline() == "ready\n"
    begin = time.monotonic()
    wait_for_sweep(results)
    written = time.monotonic()
    assert process.stdout.readline().startswith("submitted 5")
    end = time.monotonic()
    process.communicate()
    return end - begin, end - written


def test_a_warning_that_comes_before_the_worker_listens_is_a_requeue_too(cluster, tmp_path, monkeypatch):
    use_standin(monkeypatch)
    job = make_job(tmp_path)
    once, slow_python = tmp_path / "once", tmp_path / "python"
    slow_start = f'[ "$SLURM_STEP_ID" ] && [ ! -e {once} ] && touch {once} && sleep 60'
    slow_python.write_text(f'#!/bin/sh\n{slow_start}\nexec {sys.executable} "$@"\n')
    slow_python.chmod(0o755)
    slurm = executor(tmp_path, tmp_path, python=str(slow_python))
    slurm.submit([job])
    wait_until(once.exists, "the job to start")
    cluster.call("scancel", "--signal=USR2", job_id(tmp_path))
    wait_until(lambda: records(tmp_path), "the run to finish")
    assert (
        cluster.call("sacct", "-X", "-n", "-P", "--duplicates", "-o", "State", "-j", job_id(tmp_path)).split()[0]
        == "REQUEUED"
    )
    assert starts(tmp_path, job.run.key) == [0]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("cluster.partition=nowhere", "sinfo"),
        ("cluster.time=30-00:00:00", "--set cluster."),
        ("cluster.mem=4000G", "--set cluster."),
        ("cluster.gres=gpu:9", "--set cluster."),
    ],
)
def test_a_rejected_option_is_one_clear_line_and_nothing_is_submitted(cluster, tmp_path, override, said):
    run = ("--protocol", "demo", "--methods", "lora", "--datasets", "kvasir")
    done = harness_run(tmp_path, *run, "--yes", "--cluster", "testcluster", "--set", override)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert said in line
    assert "nothing was submitted" in line
    assert "Traceback" not in done.stderr
    assert not runs_submitted(cluster, tmp_path)


def test_a_controller_that_dies_in_the_middle_of_a_submission_is_waited_for(cluster, tmp_path):
    """The last test here: afterwards the controller reuses forgotten job numbers, and accounting mixes them."""
    profile = write_profile(tmp_path, max_array_size=2, extra={"hold": True})
    results = tmp_path / "results"
    process = submitter(results, profile, count=12)
    assert process.stdout.readline() == "ready\n"
    wait_until(lambda: list(results.glob("sweeps/*/job-1.sh")), "the second array")
    cluster.stop("slurmctld", number=signal.SIGKILL)
    time.sleep(8.0)
    cluster.start("slurmctld")
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    # A controller that is killed forgets what it accepted in the seconds before; the same command finds that out.
    resubmitted = submitter(results, profile, count=12)
    _, error = resubmitted.communicate(timeout=120)
    assert resubmitted.returncode == 0, error
    assert runs_submitted(cluster, results).keys() == {
        make_job(results, seed=seed, step_s=0.01).run.key for seed in range(12)
    }


class timed:
    """A command's output, the processor time that it took (what others do on the machine does not count), and the time by
    the clock, which counts what it waited for."""

    def __init__(self, *command):
        before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=240)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.wall_seconds = time.monotonic() - begun
        self.seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        assert done.returncode == 0, done.stderr
        self.text = done.stdout
