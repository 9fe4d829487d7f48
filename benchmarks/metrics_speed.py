"""The four saliency metrics of one image against PySODMetrics computing the same four.

``python -m benchmarks.metrics_speed [--size 1024] [--rounds 9] [--masks DIR]`` prints the table of docs/metrics.md.
Both get the same uint8 prediction and mask, and take turns. One core: CPU time of one image. All cores: wall time of several
images, scored by threads beside each other as `harness.evaluation.evaluate.evaluate_split` does; PySODMetrics keeps its
results in one object, so it goes through them one by one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import py_sod_metrics as sod
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from benchmarks.saving import add_json, save
from harness.costing.device import used_by_others
from harness.datasets.reading.decoding import read_binary
from harness.datasets.reading.pairing import image_files
from harness.evaluation.conventions import SALIENCY
from harness.evaluation.resize import resize_nearest
from harness.evaluation.scorer import SplitScorer

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]
Masks = Iterator[tuple[str, NDArray[np.uint8]]]


def drawn_masks(size: int) -> Masks:
    """Names and masks, from the commonest in data sets, one object, to the dearest: foreground in every part of the image."""
    y, x = np.mgrid[:size, :size] / size
    yield "one small object", (y - 0.3) ** 2 + (x - 0.2) ** 2 < 0.04**2
    yield "one object", ((y - 0.5) / 0.2) ** 2 + ((x - 0.6) / 0.25) ** 2 < 1
    yield "one object that fills the image", ((y - 0.5) / 0.48) ** 2 + ((x - 0.55) / 0.42) ** 2 < 1
    corners = [(0.1, 0.1, 0.06), (0.9, 0.9, 0.06), (0.9, 0.1, 0.06), (0.5, 0.7, 0.1)]
    yield "objects in all corners", np.any([(y - a) ** 2 + (x - b) ** 2 < r**2 for a, b, r in corners], axis=0)


def prediction_for(mask: NDArray[np.bool_], *, seed: int) -> NDArray[np.uint8]:
    """Soft edges and noise everywhere, so that no pixel can be skipped for being zero."""
    noise = np.random.default_rng(seed).normal(0, 0.03, mask.shape)
    soft = gaussian_filter(mask.astype(np.float64), mask.shape[0] / 170)
    return (np.clip(soft + noise, 0.01, 0.99) * 255).astype(np.uint8)


def by_pysodmetrics(prediction: NDArray[np.uint8], mask: NDArray[np.uint8]) -> dict[str, float]:
    metrics = sod.MAE(), sod.Smeasure(), sod.Emeasure(), sod.WeightedFmeasure()
    for metric in metrics:
        metric.step(prediction, mask * np.uint8(255))
    error, structure, alignment, weighted = (metric.get_results() for metric in metrics)
    curve = alignment["em"]["curve"]
    return {
        "mae": error["mae"],
        "s_measure": structure["sm"],
        "e_mean": curve.mean(),
        "e_max": curve.max(),
        "e_adaptive": alignment["em"]["adp"],
        "weighted_f": weighted["wfm"],
    }


def by_us(prediction: NDArray[np.uint8], mask: NDArray[np.uint8]) -> dict[str, float]:
    return SplitScorer(SALIENCY).measure(prediction / 255, mask).values


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Median times of one image in seconds, median ratios of the rounds, largest difference of a value."""

    theirs: float
    ours: float
    ratio: float
    ratio_all_cores: float
    difference: float


def compare(pairs: Sequence[Pair], *, rounds: int, cores: int) -> Comparison:
    differences = [
        abs(value - by_us(*pair)[metric]) for pair in pairs for metric, value in by_pysodmetrics(*pair).items()
    ]
    several = list(pairs) * (-(-2 * cores // len(pairs)))  # every core has two images at least
    theirs, ours, theirs_wall, ours_wall = [], [], [], []
    with ThreadPoolExecutor(cores) as pool:
        for _ in range(rounds):
            theirs.append(timed(by_pysodmetrics, pairs, clock=time.process_time))
            ours.append(timed(by_us, pairs, clock=time.process_time))
            theirs_wall.append(timed(by_pysodmetrics, several, clock=time.perf_counter))
            ours_wall.append(timed(by_us, several, clock=time.perf_counter, run=pool.map))
    return Comparison(
        theirs=statistics.median(theirs) / len(pairs),
        ours=statistics.median(ours) / len(pairs),
        ratio=statistics.median(a / b for a, b in zip(theirs, ours, strict=True)),
        ratio_all_cores=statistics.median(a / b for a, b in zip(theirs_wall, ours_wall, strict=True)),
        difference=max(differences),
    )


def timed(
    score: Callable[..., object],
    pairs: Sequence[Pair],
    *,
    clock: Callable[[], float],
    run: Callable[..., Iterable[object]] = map,
) -> float:
    predictions, masks = zip(*pairs, strict=True)
    begun = clock()
    list(run(score, predictions, masks))
    return clock() - begun


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--masks", type=Path, help="also measure on the masks of this folder, at the same size")
    parser.add_argument("--count", type=int, default=24, help="how many of them")
    add_json(parser)
    options = parser.parse_args(argv)
    size = (options.size, options.size)
    subjects = {name: [mask.astype(np.uint8)] for name, mask in drawn_masks(options.size)}
    if options.masks:
        files = image_files(options.masks)[: options.count]
        subjects[f"{len(files)} real masks"] = [resize_nearest(read_binary(file), size) for file in files]
    cores = len(os.sched_getaffinity(0))
    print(f"{options.size}², median of {options.rounds} rounds in turn\n")
    print(f"| masks | PySODMetrics, ms | ours, ms | times faster, one core | {cores} cores | largest difference |")
    print("|---|---|---|---|---|---|")
    rows = {}
    for name, masks in subjects.items():
        pairs = [(prediction_for(mask > 0, seed=seed), mask) for seed, mask in enumerate(masks)]
        comparison = compare(pairs, rounds=options.rounds if len(pairs) == 1 else 3, cores=cores)
        print(
            f"| {name} | {comparison.theirs * 1000:.0f} | {comparison.ours * 1000:.1f} | {comparison.ratio:.1f} "
            f"| {comparison.ratio_all_cores:.1f} | {comparison.difference:.0e} |",
            flush=True,
        )
        rows[name] = asdict(comparison)
    save(options.json, options=options, measured={"shared": used_by_others(torch.device("cpu")), "masks": rows})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
