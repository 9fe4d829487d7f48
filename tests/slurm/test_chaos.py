"""A sweep that three commands submit at once, while everything happens to it that a cluster knows: nothing is lost, and the numbers are
those of undisturbed runs."""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from collections.abc import Callable
from functools import partial

from tests.harness.dispatch import standin
from tests.harness.dispatch.helpers import make_job
from tests.slurm.conftest import occupy, records
from tests.slurm.test_sweeps import array_tasks, submitter, write_profile

RUNS = 24
STEPS = {"steps": 60, "step_s": 0.1, "save_every": 5}


def test_a_sweep_survives_everything_that_a_cluster_does(cluster, tmp_path):
    results, profile = tmp_path / "results", write_profile(tmp_path, max_attempts=40, signal_seconds=10)
    chance, count = random.Random(0), RUNS
    submit(results, profile, count=count, times=3)
    assert len(array_tasks(cluster, "PENDING", "RUNNING")) >= RUNS
    for event in chance.sample([*EVENTS], len(EVENTS)):
        if len(records(results)) > count - RUNS // 2:  # every event finds runs at work, on a fast machine too
            count += RUNS
            submit(results, profile, count=count, times=1)
        wait_for_work(cluster, results, profile, count)
        EVENTS[event](cluster, chance)
    deadline = time.monotonic() + 600
    while len(records(results)) < count:
        assert time.monotonic() < deadline, (len(records(results)), count, cluster.call("squeue"))
        wait_for_work(cluster, results, profile, count)
        time.sleep(2.0)
    jobs = [make_job(results, seed=seed, **STEPS) for seed in range(count)]  # type: ignore[arg-type]
    written = records(results)
    assert written.keys() == {job.run.key for job in jobs}
    for job in jobs:
        here = make_job(tmp_path / "here", seed=job.run.seed, **STEPS | {"step_s": 0.0})  # type: ignore[arg-type]
        standin.run_experiment(here)
        (undisturbed,) = [r for r in records(tmp_path / "here").values() if r["run"]["seed"] == job.run.seed]
        assert written[job.run.key]["code"] == "OK", written[job.run.key]["message"]
        assert written[job.run.key]["scores"] == undisturbed["scores"]
        finishes = results / "state" / job.run.key / "finishes.log"
        assert len(finishes.read_text().splitlines()) == 1  # trained to its end once


def submit(results, profile, *, count, times):
    submitters = [submitter(results, profile, count=count, **STEPS) for _ in range(times)]
    for process in submitters:
        _, error = process.communicate(timeout=200)
        assert process.returncode == 0, error


def wait_for_work(cluster, results, profile, count):
    """Until a task runs; the same command resubmits what the cluster ended."""
    for patience in itertools.count():
        running = running_tasks(cluster)
        if running or len(records(results)) == count:
            time.sleep(1.0)
            return
        if patience % 10 == 9:
            cluster.call("scontrol", "update", f"nodename={node(cluster)}", "state=resume", check=False)
            submit(results, profile, count=count, times=1)
        time.sleep(1.0)


def running_tasks(cluster):
    return cluster.call("squeue", "-h", "--array", "-t", "RUNNING", "-p", "normal", "-o", "%F_%K").split()


def a_task(cluster, chance):
    tasks = running_tasks(cluster)
    return chance.choice(tasks) if tasks else ""


def node(cluster):
    return cluster.call("sinfo", "-h", "-N", "-o", "%N").split()[0]


def to_a_task(cluster, chance, *, command):
    if task := a_task(cluster, chance):
        cluster.call(*command, task, check=False, timeout_s=240.0)  # scancel retries while a task changes its state


def kill(cluster, chance, *, number, stepd):
    """A process of a job, or the daemon of its step."""
    from processes import command_line_of

    found = [
        pid
        for pid in cluster._strays()
        if command_line_of(pid)[:1] and ("slurmstepd" in command_line_of(pid)[0]) == stepd
    ]
    if found:
        pid = chance.choice(found)
        try:
            os.kill(pid, number)
            if number == signal.SIGSTOP:
                time.sleep(3.0)
                os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            pass


def to_the_node(cluster, chance, *, state):
    name = node(cluster)
    cluster.call("scontrol", "update", f"nodename={name}", f"state={state}", "reason=test", check=False)
    time.sleep(4.0)
    cluster.call("scontrol", "update", f"nodename={name}", "state=resume", check=False)


def suspend(cluster, chance):
    if task := a_task(cluster, chance):
        cluster.call("scontrol", "suspend", task, check=False)
        time.sleep(4.0)
        cluster.call("scontrol", "resume", task, check=False)


def hold(cluster, chance):
    tasks = [f"{line}" for line in cluster.call("squeue", "-h", "--array", "-t", "PENDING", "-o", "%F_%K").split()]
    for task in tasks[:3]:
        cluster.call("scontrol", "hold", task, check=False)
    time.sleep(3.0)
    for task in tasks[:3]:
        cluster.call("scontrol", "release", task, check=False)


def preempt(cluster, chance):
    occupy(cluster, seconds=2)
    time.sleep(3.0)


EVENTS: dict[str, Callable[..., None]] = {
    "scancel": partial(to_a_task, command=["scancel"]),
    "SIGTERM": partial(to_a_task, command=["scancel", "--signal=TERM"]),
    "USR2": partial(to_a_task, command=["scancel", "--signal=USR2"]),
    "kill of slurmstepd": partial(kill, number=signal.SIGKILL, stepd=True),
    "kill of a job": partial(kill, number=signal.SIGKILL, stepd=False),
    "SIGSTOP": partial(kill, number=signal.SIGSTOP, stepd=False),
    "drain": partial(to_the_node, state="drain"),
    "down": partial(to_the_node, state="down"),
    "preempt": preempt,
    "requeue": partial(to_a_task, command=["scontrol", "requeue"]),
    "suspend": suspend,
    "hold": hold,
}
