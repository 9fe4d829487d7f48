"""A comparison made up for the tests of the report; the numbers mean nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.archive.masks import KeptMask, encoded_masks
from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.comparison.names import PAPER_METRICS
from tests.harness.report.sample import record

METHODS = (
    *("full", "decoder", "bitfit", "ssf", "adapter", "adaptformer", "vpt", "lst", "samadapter", "lora", "samed"),
    *("convlora", "naslora", "naspclora"),
)
BENCHMARKS = tuple(PAPER_METRICS)
OPERATIONS = 8
STEMS = ("a", "b", "c", "d", "e", "f")


def write_comparison(
    root: Path,
    *,
    methods: Sequence[str] = METHODS,
    benchmarks: Sequence[str] = BENCHMARKS,
    seeds: int = 3,
    epochs: int = 20,
    blocks: int = 12,
    side: int = 64,
    labels: dict[str, str] | None = None,
) -> list[Record]:
    """Finished runs with histories, α, merges, per-image scores and kept masks of ``side`` pixels; none where that is 0."""
    store = RecordStore(root)
    written = []
    for place, method in enumerate(methods):
        for benchmark in benchmarks:
            for seed in range(seeds):
                generator = np.random.default_rng([place, seed, len(benchmark)])
                metrics = PAPER_METRICS[benchmark]
                value = round(0.5 + 0.02 * place + 0.01 * float(generator.standard_normal()), 4)
                made = _record(
                    value, method, benchmark, metrics, generator=generator, seed=seed, epochs=epochs, blocks=blocks,
                    variant=(labels or {}).get(method, method), place=place,
                )  # fmt: skip
                masks = encoded_masks([_mask(stem, side, generator) for stem in STEMS if side])
                store.write(made, _images(value, metrics, generator), masks)
                written.append(made)
    return written


def _record(
    value: float, method: str, benchmark: str, metrics: Sequence[str], *, generator: np.random.Generator, seed: int,
    epochs: int, blocks: int, variant: str, place: int,
) -> Record:  # fmt: skip
    searches = method in ("naslora", "naspclora")
    scored = dict.fromkeys(metrics, value)
    history: list[dict[str, Any]] = [
        {"epoch": epoch, "loss": 1 / epoch, "val": {metrics[0]: value * epoch / epochs}, "lr": 1e-3, "seconds": 1.0}
        for epoch in range(1, epochs + 1)
    ]
    shares = [np.exp(0.05 * epoch * generator.standard_normal((blocks, OPERATIONS))) for epoch in range(epochs)]
    return record(
        value, method=method, variant=variant, benchmark=benchmark, seed=seed, history=history, selected_epoch=epochs,
        scores={name: {"test": scored, "val": scored} for name in ("best", "last", "merged-exact")},
        config={"stagewise": True, "search_start_epoch": 2, "operations": "all", "style": "darts"} if searches else None,
        parameters={"encoder": place * 1000, "decoder": 5000, "trainable": 5000 + place * 1000, "total": 90_000},
        architecture=[
            {f"blocks.{block}.qkv": list(map(float, weights / weights.sum())) for block, weights in enumerate(epoch)}
            for epoch in shares
        ] if searches else [],
        budget={"weight_updates": 40.0, "alpha_updates": 20.0, "share_cap": 0.9} if searches else {"weight_updates": 60.0},
        merge={"exact": {"mode": "exact", "folded": ["a"], "left": {}, "relative_deviation": 1e-6}},
    )  # fmt: skip


def _images(value: float, metrics: Sequence[str], generator: np.random.Generator) -> str:
    """Per-image scores whose mean is the run's."""
    spread = generator.normal(0, 0.05, len(STEMS))
    scores = value + spread - spread.mean()
    rows = [
        f"best,test,{stem}," + ",".join([f"{score:.6f}"] * len(metrics))
        for stem, score in zip(STEMS, scores, strict=True)
    ]
    return "\n".join(["variant,split,stem," + ",".join(metrics), *rows]) + "\n"


def _mask(stem: str, side: int, generator: np.random.Generator) -> KeptMask:
    rows, columns = np.indices((side, side)) / side
    centre = 0.5 + 0.1 * generator.standard_normal(2)
    truth = (rows - 0.5) ** 2 + (columns - 0.5) ** 2 < 0.1
    predicted = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < 0.1
    return KeptMask(split="test", stem=stem, predicted=predicted.astype(np.uint8), truth=truth.astype(np.uint8))
