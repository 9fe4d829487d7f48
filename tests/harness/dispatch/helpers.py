"""Jobs of the stand-in experiment, and a snapshot that has it in the experiment's place."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.archive.schema import Record, Run
from harness.archive.store import RecordStore
from harness.dispatch import snapshot
from harness.dispatch.attempts import Holder
from harness.dispatch.frozen_start import digest
from harness.dispatch.sweeps import AttemptLimits, Sweep, create_chunk, create_sweep
from harness.planning.job import Job

STANDIN = Path(__file__).with_name("standin.py")


def make_job(results: Path, *, method: str = "lora", benchmark: str = "kvasir", seed: int = 0, **rules) -> Job:
    run = Run(
        method=method, method_config={}, variant=method, benchmark=benchmark, backbone="tiny", checkpoint="",
        protocol="stand-in", protocol_hash="0" * 8, rules=rules, seed=seed, manifest="", split_rule="",
    )  # fmt: skip
    return Job(run=run, dataset_root="", checkpoint="", results=str(results))


def submitted(results, jobs, *, executor="slurm", answer="7", before=0, limit=5, shape=None, **changes):
    """A sweep of one chunk on disk, as an executor leaves it; `changes` are fields of the sweep, or else its settings."""
    fields: dict[str, Any] = {"id": "20260101-000000-abcd", "command": "run", "created": 0.0}
    fields |= {"snapshot": "/snapshots/abc", "submitter": Holder.here()}
    fields |= {name: changes.pop(name) for name in [*fields] if name in changes}
    folder = create_sweep(results, Sweep(executor=executor, settings=changes, **fields))
    limits = {job.run.key: AttemptLimits(before=before, limit=limit) for job in jobs}
    chunk = create_chunk(folder, number=0, jobs=jobs, shape=shape or {}, limits=limits)
    return chunk.answered(answer) if answer else chunk


def with_standin(take):
    """`snapshot.take`, and in the copy the stand-in in place of the experiment."""

    def take_with_standin(folder: Path, *, extra=()) -> Path:
        frozen = take(folder, extra=extra)
        temporary = frozen.with_name(f".{frozen.name}-standin.{os.getpid()}")
        shutil.copytree(frozen, temporary)
        shutil.copy(STANDIN, temporary / "harness" / "experiment" / "experiment.py")
        contents = {
            str(path.relative_to(temporary)): path.read_bytes() for path in temporary.rglob("*") if path.is_file()
        }
        target = frozen.with_name(digest(contents))
        try:
            temporary.rename(target)
        except OSError:
            shutil.rmtree(temporary)  # it is there already
        return target

    return take_with_standin


def use_standin(monkeypatch) -> None:
    """Workers run the stand-in instead of training."""
    monkeypatch.setattr(snapshot, "take", with_standin(snapshot.take))


def starts(results: Path, key: str) -> list[int]:
    """The step at which each start of the stand-in began."""
    path = results / "state" / key / "starts.log"
    return [int(line.split()[0]) for line in path.read_text().splitlines()] if path.exists() else []


def record_of(results: Path, key: str) -> Record:
    """The record that a run must have."""
    record = RecordStore(results).read(key)
    assert record is not None
    return record


def gone():
    """A process of this machine that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return replace(Holder.here(), pid=process.pid, ticks=12345)
