"""Jobs of the stand-in experiment, and a snapshot that has it in the experiment's place."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from harness.archive.schema import Record, Run
from harness.archive.store import RecordStore
from harness.dispatch import snapshot
from harness.dispatch.frozen_start import digest
from harness.planning.job import Job

STANDIN = Path(__file__).with_name("standin.py")


def make_job(results: Path, *, method: str = "lora", benchmark: str = "kvasir", seed: int = 0, **rules) -> Job:
    run = Run(
        method=method,
        method_config={},
        variant=method,
        benchmark=benchmark,
        backbone="tiny",
        checkpoint="",
        protocol="stand-in",
        protocol_hash="0" * 8,
        rules=rules,
        seed=seed,
        manifest="",
        split_rule="",
    )
    return Job(run=run, dataset_root="", checkpoint="", results=str(results))


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
