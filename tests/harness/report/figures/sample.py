"""A results folder made up for the tests of figures; the numbers mean nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.archive.archive import Archive
from harness.archive.measured import EvidenceStore
from harness.report.figures.material import Material, materials
from tests.harness.report.html.sample import write_comparison
from tests.harness.report.sample import evidence

METHODS = ("decoder", "lora", "naslora")
METRICS = {"kvasir": "s_measure", "leaf": "iou", "sbu": "ber"}


def write_results(root: Path, *, seeds: int = 2, label: str = "naslora", epochs: int = 4) -> None:
    """Three methods on three benchmarks with histories, α, merges and evidence, without masks."""
    shape = {"epochs": epochs, "blocks": 2, "side": 0, "seeds": seeds}
    for record in write_comparison(root, methods=METHODS, benchmarks=list(METRICS), labels={"naslora": label}, **shape):
        place = METHODS.index(record.run.method)
        merge = {"exact": [1e-7] * 4} if place else {}
        EvidenceStore(root).write(evidence(record.key, shift=place - record.run.seed / 10, merge=merge))


def material_of(root: Path, **options: Any) -> Material:
    """The only sheet of a results folder."""
    (material,) = materials(Archive(root), **options)
    return material
