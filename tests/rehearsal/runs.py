"""Whole runs on the pretended GPU, of every method on every family of models, and where each of them waits."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from harness.archive.schema import Record
from harness.experiment.experiment import run_experiment
from harness.planning.request import Job
from harness.registry import METHODS, add_own
from harness.training.outcome import StopRequest
from tests.datasets.test_labels import write_folders
from tests.harness.planned import job_of
from tests.rehearsal.device import pretended

SMALL: dict[str, Any] = {
    "epochs": 2, "epoch_images": 4, "batch_size": 2, "val_limit": 2, "test_limit": 2, "calibration_images": 2, "image_size": 64,
    "precision": "bf16",
}  # fmt: skip
"""Two epochs of two steps; two images to validate and to test, one batch."""
OPTIONS: dict[str, dict[str, Any]] = {
    "naslora": {"search_start_epoch": 1, "alternate": "both"},
    "naspclora": {"search_start_epoch": 1, "alternate": "both"},
}
SAVING = "harness/training/checkpoint.py"

Waits = Counter[tuple[str, str]]
"""(kind, file:line) -> how often."""


@dataclass(kw_only=True)
class Rehearsal:
    """A run that was rehearsed.

    Args:
        record: its result.
        step: what the thread that launches kernels waits for in the last step, when nothing is done for the first time.
        validation: likewise, in the last validation, of one batch; without what saving the best state waits for.
    """

    record: Record
    step: Waits = field(default_factory=Counter)
    validation: Waits = field(default_factory=Counter)


def small_job(results: Path, method: str, **changes: Any) -> Job:
    """A small run on generated images; ``changes`` as `job_of` takes them. The data set ``pets`` has a folder of images a class."""
    if changes.get("benchmarks") == ("pets",):
        changes["dataset_roots"] = {"pets": write_folders(results / "pets")}
        add_own("pets", ("cat", "dog"), labels=True)
    return job_of(results, method, OPTIONS.get(method, {}), samples=results / "samples", **{**SMALL, **changes})


def rehearse(job: Job, *, stop: StopRequest | None = None, stop_after: int = 0) -> Rehearsal:
    """Run it on the pretended GPU; ``stop`` is requested after that many steps."""
    seen: dict[str, Waits] = {}
    steps, before, stage = 0, Counter[tuple[str, str]](), ""
    with pretended() as gpu:

        def report(content: dict[str, Any]) -> None:
            nonlocal steps, before, stage
            now = Counter(gpu.waits)
            kind = content.get("kind", content["stage"])
            ended = "validation" if stage == "validation" else kind
            seen[ended] = now - before
            before, stage = now, kind
            steps += kind == "step"
            if stop is not None and steps == stop_after:
                stop.request()

        record = run_experiment(job, progress=report, stop=stop)
    validated = seen.get("validation", Counter())
    scored = Counter({line: count for line, count in validated.items() if SAVING not in line[1]})
    return Rehearsal(record=record, step=seen.get("step", Counter()), validation=scored)


def listed(waits: Waits) -> str:
    """The waits, the most frequent first, one a line."""
    return "\n".join(f"{count} x {kind} at {line}" for (kind, line), count in waits.most_common())


BUDGETS: dict[str, dict[str, dict[str, int]]] = yaml.safe_load(Path(__file__).with_name("budgets.yaml").read_text())
MERGED = {"merge": ["exact", "conv", "calibrated"]}
PLAIN = {"backbones": ("tiny_timm",)}

FAMILIES: dict[str, dict[str, Any]] = {
    "sam": MERGED,
    "sam fp16": {"precision": "fp16"},
    "mobile sam": {"backbones": ("tiny_mobile_sam",), **MERGED},
    "sam 2": {"backbones": ("tiny_sam2",), **MERGED},
    "timm": {**PLAIN, **MERGED},
    "box": {"prompt": "box"},
    "points": {"prompt": "points"},
    "classes": {"benchmarks": ("trans10k_v1",)},
    "linear": {**PLAIN, "decoder": "linear"},
    "mask-transformer": {**PLAIN, "decoder": "mask-transformer"},
    "mask2former": {**PLAIN, "decoder": "mask2former"},
    "labels": {**PLAIN, "benchmarks": ("pets",), "task": "classification", "decoder": "mean-pool"},
}
METHOD_NAMES = METHODS.names()
FIRST = dict.fromkeys(FAMILIES, ()) | {"sam": ("lora", "naslora")}
"""What runs at every change; the other methods of a family are slow."""
HIERARCHICAL = ("mobile sam", "sam 2")
REFUSED = {
    *(
        (family, method) for family in HIERARCHICAL for method in ("lst", "rein", "samadapter")
    ),  # they need blocks of one width
    *((family, "zeroshot") for family, changes in FAMILIES.items() if changes.get("backbones") == ("tiny_timm",)),
    ("classes", "zeroshot"),
    ("sam 2", "convpass"),  # attention changes width or map
}


def budget(phase: str, family: str, method: str) -> int:
    """Of the method, or of its family."""
    budgets = BUDGETS[phase][family]
    return budgets.get(method, budgets["others"])


def within_budget(results: Path, family: str, method: str) -> None:
    """The run ends well, and neither a step nor a validation waits more often than it may."""
    seen = rehearse(small_job(results, method, **FAMILIES[family]))
    assert seen.record.code == "OK", seen.record.message
    for phase, waits in (("step", seen.step), ("validation", seen.validation)):
        assert waits.total() <= budget(phase, family, method), f"waits of a {phase}:\n{listed(waits)}"
