"""A cluster that stand-in clients make, and who submits to it."""

from __future__ import annotations

from harness.dispatch.place import place
from harness.dispatch.run_jobs import make_executor
from harness.dispatch.sweeps import read_chunks


def slurm(results, **overrides):
    return make_executor(
        place("slurm", cluster="testcluster", cluster_overrides={"patience_seconds": "1", **overrides}), results=results
    )


def as_user(name, results):
    executor = slurm(results)
    executor.slurm.user = name
    return executor


def queue(idle_cluster, results, *, of=lambda chunk: True):
    """Shows the tasks of submitted chunks as pending, to those who do not ask for their own alone."""
    rows = [
        f"{chunk.job}|{index}|PENDING|None|{chunk.name}"
        for chunk in read_chunks(results)
        if chunk.job and of(chunk)
        for index in range(len(chunk.runs))
    ]
    idle_cluster("squeue", "\n".join(['case "$*" in *--me*) exit;; esac', *(f"echo '{row}'" for row in rows)]))
