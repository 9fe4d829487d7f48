"""A results folder made up for the tests of figures; the numbers mean nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from harness.archive.measured import EvidenceStore
from harness.archive.store import RecordStore
from tests.harness.report.sample import evidence, record

OPERATIONS = 8
METRICS = {"kvasir": "s_measure", "leaf": "iou", "sbu": "ber"}


def write_results(root: Path, *, seeds: int = 2, label: str = "naslora", epochs: int = 4) -> None:
    """Three methods on three benchmarks with histories, α and merges."""
    store = RecordStore(root)
    for place, (method, variant) in enumerate((("decoder", "decoder"), ("lora", "lora"), ("naslora", label))):
        for benchmark, metric in METRICS.items():
            for seed in range(seeds):
                one = _record(place, method, variant, benchmark, metric, seed=seed, epochs=epochs)
                store.write(one)
                merge = {"exact": [1e-7] * 4} if place else {}
                EvidenceStore(root).write(evidence(one.key, shift=place - seed / 10, merge=merge))


def _record(place: int, method: str, variant: str, benchmark: str, metric: str, *, seed: int, epochs: int) -> Any:
    generator = np.random.default_rng([place, seed, len(benchmark)])
    value = 0.5 + 0.1 * place + 0.02 * float(generator.standard_normal())
    history: list[dict[str, Any]] = [
        {"epoch": epoch, "loss": 1 / epoch, "val": {metric: value * epoch / epochs}, "lr": 1e-3, "seconds": 1.0}
        for epoch in range(1, epochs + 1)
    ]
    searches = method == "naslora"
    weights = [np.exp(0.2 * epoch * generator.standard_normal((2, OPERATIONS))) for epoch in range(epochs)]
    scores = {name: {"test": {metric: value}} for name in ("best", "merged-exact")}
    scores["best"]["val"] = history[-1]["val"]
    return record(
        value, method=method, variant=variant, benchmark=benchmark, seed=seed, scores=scores, history=history,
        selected_epoch=epochs,
        config={"stagewise": True, "search_start_epoch": 2, "operations": "all", "style": "darts"} if searches else None,
        parameters={"encoder": place * 1000, "decoder": 5000, "trainable": 5000 + place * 1000, "total": 90_000},
        architecture=[
            {f"blocks.{block}.qkv": list(map(float, one / one.sum())) for block, one in enumerate(epoch)}
            for epoch in weights
        ] if searches else [],
        budget={"weight_updates": 40.0, "alpha_updates": 20.0, "share_cap": 0.9} if searches else {},
        merge={"exact": {"mode": "exact", "folded": ["a"], "left": {}, "relative_deviation": 1e-6}},
    )  # fmt: skip
