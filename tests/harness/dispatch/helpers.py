"""Jobs of the stand-in experiment, and a snapshot that has it in the experiment's place."""

from __future__ import annotations

import shutil
from pathlib import Path

from harness.dispatch import snapshot
from harness.dispatch.job import Job
from harness.records.schema import Run

STANDIN = Path(__file__).with_name("standin.py")


def make_job(results: Path, *, method: str = "lora", benchmark: str = "kvasir", seed: int = 0, **rules) -> Job:
    run = Run(
        method=method,
        method_config={},
        variant=method,
        benchmark=benchmark,
        backbone="vit_t",
        checkpoint="",
        protocol="stand-in",
        protocol_hash="0" * 8,
        rules=rules,
        seed=seed,
        manifest="",
        split_rule="",
    )
    return Job(run=run, dataset_root="", checkpoint="", results=str(results))


def use_standin(monkeypatch) -> None:
    """Workers run the stand-in: snapshots hold it in place of the experiment."""
    take = snapshot.take

    def take_with_standin(folder: Path, *, extra=()) -> Path:
        frozen = take(folder, extra=extra)
        target = frozen.with_name(frozen.name + "-standin")
        if not target.is_dir():
            shutil.copytree(frozen, target)
            shutil.copy(STANDIN, target / "harness" / "dispatch" / "experiment.py")
        return target

    monkeypatch.setattr(snapshot, "take", take_with_standin)


def starts(results: Path, key: str) -> list[int]:
    """The step at which each start of the stand-in began."""
    path = results / "state" / key / "starts.log"
    return [int(line.split()[0]) for line in path.read_text().splitlines()] if path.exists() else []
