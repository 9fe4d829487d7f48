"""Jobs of the stand-in experiment, and frozen code that has it in place of the experiment."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from harness.archive.schema import Record, Run
from harness.archive.store import RecordStore
from harness.dispatch import sweeps
from harness.dispatch.attempts import Holder
from harness.dispatch.supervise import Assignment
from harness.dispatch.sweeps import JobArray, PlannedRun, Sweep, create_sweep, names_of_run
from harness.planning.request import Job

STANDIN = Path(__file__).with_name("standin.py")


def make_job(results: Path, *, method: str = "lora", benchmark: str = "kvasir", seed: int = 0, **rules) -> Job:
    run = Run(
        method=method, method_config={}, label=method, benchmark=benchmark, backbone="tiny", checkpoint="",
        protocol="stand-in", protocol_hash="0" * 8, rules=rules, seed=seed, manifest="", split_rule="",
    )  # fmt: skip
    return Job(run=run, dataset_root="", checkpoint="", results=str(results))


def submitted(
    results: Path, jobs: list[Job], *, executor: str = "slurm", job: str = "7", allowed: int = 5, **fields: Any
) -> Sweep:
    """A sweep of one array on disk, as an executor leaves it; ``fields`` are the sweep's."""
    array = JobArray(first=0, runs=len(jobs), gpus=2, job=job)
    fields = {
        "command": "run",
        "snapshot": "/snapshots/abc",
        "arrays": (array,) if executor == "slurm" else (),
        **fields,
    }
    submitter = fields.pop("submitter", None)
    sweep = create_sweep(results, jobs, executor=executor, allowed=allowed, **fields)
    return replace(sweep, submitter=submitter).save() if submitter else sweep


class _Unsaved(Sweep):
    """A sweep of one run that is not on disk."""

    lease_s = 90.0
    patience_s = 60.0


def assigned(job: Job, *, lease_s=90.0, patience_s=60.0, gpus=0, snapshot="", code=None, **planned) -> Assignment:
    """The job, which this process is to attempt; ``planned`` are fields of `PlannedRun`."""
    folder, here = Path(job.results) / "sweeps" / "unsaved", Holder.here()
    sweep = _Unsaved(
        executor="slurm", command="", created=0.0, submitter=here, folder=folder, snapshot=snapshot, code=code or {}
    )
    line = PlannedRun(**{**names_of_run(job.run), "limit": 5, "job": asdict(job), **planned})
    sweep.__dict__.update(runs=(line,), lease_s=lease_s, patience_s=patience_s)
    return Assignment(sweep=sweep, line=0, holder=here, gpus=gpus)


def with_standin(contents):
    """`sweeps.contents_of_command`, with the stand-in in place of the experiment."""
    return lambda plugins=(): {**contents(plugins), "harness/experiment/experiment.py": STANDIN.read_bytes()}


def use_standin(monkeypatch) -> None:
    """Workers run the stand-in instead of training."""
    monkeypatch.setattr(sweeps, "contents_of_command", with_standin(sweeps.contents_of_command))


def starts(results: Path, key: str) -> list[int]:
    """The step at which each start of the stand-in began."""
    path = results / "state" / key / "starts.log"
    return [int(line.split()[0]) for line in path.read_text().splitlines()] if path.exists() else []


def record_of(results: Path, key: str) -> Record:
    """The record that a run must have."""
    record = RecordStore(results).read(key)
    assert record is not None
    return record


def gone() -> Holder:
    """A process of this machine that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return replace(Holder.here(), pid=process.pid, ticks=12345)
