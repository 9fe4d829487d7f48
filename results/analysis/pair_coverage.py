"""How often the intervals of the tables hold the truth.

``python results/analysis/pair_coverage.py`` prints it; the same code gives the same figures. Truth is 0; seeds, images and their
interaction are drawn; every interval is that of `harness.statistics`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness import statistics as stats

Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]


def normal(generator: np.random.Generator, n: int) -> NDArray[np.float64]:
    return generator.normal(size=n)


def heavy(generator: np.random.Generator, n: int) -> NDArray[np.float64]:
    """Student's t with 3 degrees of freedom, scaled to SD 1."""
    return np.asarray(generator.standard_t(3, size=n) / np.sqrt(3))


def collapsing(generator: np.random.Generator, n: int) -> NDArray[np.float64]:
    """SD 1, but one run in ten falls 20 SDs below the others (a run that diverged without a reason code); mean 0."""
    return np.asarray(generator.normal(size=n) - 20 * (generator.random(n) < 0.1) + 2)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row: how scores are made.

    Args:
        seeds: runs.
        seed_sd, image_sd, noise: SDs of seeds, of images (or of clusters of ``cluster`` images), of their interaction.
        draw: distribution of the seeds.
        cluster: images that share their deviation; 1 where they are independent.
        aware: whether the interval knows the clusters.
    """

    what: str
    seeds: int
    seed_sd: float = 1.0
    image_sd: float = 5.0
    noise: float = 2.0
    draw: Draw = normal
    cluster: int = 1
    aware: bool = True
    images: int = 100


CASES = tuple(
    Case(what=what, seeds=seeds, **more)
    for what, more in (
        ("normal seeds and images", {}),
        ("seeds spread more than images", {"seed_sd": 3.0, "image_sd": 2.0}),
        ("strong interaction of the two", {"seed_sd": 0.3, "noise": 15.0}),
        ("heavy-tailed seeds (t, 3 df)", {"seed_sd": 3.0, "image_sd": 2.0, "draw": heavy}),
        ("one run in ten collapses", {"draw": collapsing, "image_sd": 2.0}),
        ("20 sequences of 5 frames, known", {"cluster": 5}),
        ("20 sequences of 5 frames, not known", {"cluster": 5, "aware": False}),
    )
    for seeds in (2, 3, 5, 10)
)


def coverage(case: Case, *, simulations: int) -> float:
    """Share of 95 % intervals that hold the truth."""
    generator = np.random.default_rng(0)
    clusters = np.arange(case.images) // case.cluster if case.aware else None
    held = 0
    for _ in range(simulations):
        groups = generator.normal(0, case.image_sd, -(-case.images // case.cluster))
        image = np.repeat(groups, case.cluster)[: case.images]
        seed = case.seed_sd * case.draw(generator, case.seeds)
        table = seed[:, None] + image[None, :] + generator.normal(0, case.noise, (case.seeds, case.images))
        estimate = stats.crossed(table, clusters=clusters)
        interval = None if estimate is None else estimate.interval()
        held += interval is not None and interval[0] <= 0 <= interval[1]
    return held / simulations


def main(simulations: int = 4000) -> None:
    counts = sorted({case.seeds for case in CASES})
    print("| truth within the 95 % interval, n = | " + " | ".join(map(str, counts)) + " |")
    print("|---|" + "---:|" * len(counts))
    for what in dict.fromkeys(case.what for case in CASES):
        row = [coverage(case, simulations=simulations) for case in CASES if case.what == what]
        print(f"| {what} | " + " | ".join(f"{100 * value:.0f} %" for value in row) + " |")


if __name__ == "__main__":
    main()
