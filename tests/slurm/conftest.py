"""The one-node cluster of slurm/testcluster, where it is up (``make test-slurm``); each test leaves its queue empty."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.dispatch.attempts import attempts, state_folder

REPOSITORY = Path(__file__).parents[2]

sys.path.append(str(REPOSITORY / "slurm" / "testcluster"))
import cluster as testcluster  # noqa: E402

REFERENCE = ("--protocol", "demo", "--methods", "lora", "--datasets", "kvasir", "--set", "epochs=24")
"""A real run of about 15 seconds: long enough to be interrupted, always with the same numbers."""


CLUSTER = ("--cluster", "testcluster", "--yes")
"""The demo protocol asks whether it is meant for a cluster."""


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.slurm)
            item.add_marker(pytest.mark.timeout(900))  # generous: the machine may be busy


@pytest.fixture(scope="session")
def running_cluster():
    folder = os.environ.get("HARNESS_TEST_CLUSTER")
    if not folder:
        pytest.skip(
            "no test cluster: run make test-slurm, or start one with slurm/testcluster/up and export what it prints"
        )
    cluster = testcluster.TestCluster(Path(folder))
    if not cluster.conf.is_file():
        pytest.skip(f"HARNESS_TEST_CLUSTER={folder} holds no test cluster; start it with slurm/testcluster/up {folder}")
    cluster.up()
    os.environ["SLURM_CONF"] = str(cluster.conf)
    os.environ["OMP_NUM_THREADS"] = "1"  # the same on both sides of every comparison
    return cluster


@pytest.fixture
def cluster(running_cluster):
    yield running_cluster
    running_cluster.up()
    running_cluster.call("scancel", "--me")
    running_cluster.wait_for(lambda: not running_cluster.call("squeue", "-h").strip(), "an empty queue")


@pytest.fixture(scope="session")
def reference(running_cluster, tmp_path_factory):
    """The record of the reference run, made here without SLURM."""
    results = tmp_path_factory.mktemp("reference")
    harness_run(results, *REFERENCE, check=True)
    return only_record(results)


def harness_run(results, *arguments, check=False, timeout=600):
    """``python -m harness.run`` in a process of its own."""
    command = [sys.executable, "-m", "harness.run", "--results", str(results), *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=timeout, check=False)
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def submit(results, *arguments, **options):
    """Submit to the test cluster and return at once."""
    return harness_run(results, *arguments, *CLUSTER, check=True, **options)


def occupy(cluster, *, seconds):
    """Take the whole node with a job that preempts every other; returns its id."""
    where = ("--partition=urgent", "--cpus-per-task=4", "--output=/dev/null")
    said = cluster.call("sbatch", "--parsable", *where, f"--wrap=sleep {seconds}")
    return said.strip()


def records(results):
    return {path.stem: json.loads(path.read_text()) for path in sorted((results / "records").glob("*.json"))}


def only_record(results):
    (record,) = records(results).values()
    return record


def numbers(record):
    """What two runs of one key must share bit for bit."""
    history = [{key: entry[key] for key in ("epoch", "loss", "lr", "val")} for entry in record["history"]]
    return {"code": record["code"], "scores": record["scores"], "epoch": record["selected_epoch"], "history": history}


def job_id(results: Path) -> str:
    (path,) = results.glob("sweeps/*/sweep.json")
    return json.loads(path.read_text())["arrays"][0]["job"]


def attempts_of(results, key):
    return attempts(state_folder(results, key))


def started(results):
    """Whether some run below ``results`` trains and has taken a step."""
    for path in (results / "state").glob("*/progress.json"):
        content = json.loads(path.read_text())
        if content["stage"].startswith("training") and content["done"] > 0:
            return True
    return False
