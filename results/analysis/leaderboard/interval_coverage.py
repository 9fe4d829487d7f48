"""How often the leaderboard's intervals hold all true differences at once, at the sizes of its plan.

    python results/analysis/leaderboard/interval_coverage.py

writes ``interval_coverage.csv`` with this file; the same code gives the same figures. Four seeds a row; of each seed validation (90
images) chooses one of three runs, and 500 test images score it. The truth of a row is the expected score of what is chosen so, over other
seeds and other images. The intervals are those of `harness.statistics.family` and `max_t`, for the mean over two benchmarks unless said
otherwise.

A run's quality is its row's mean, plus the effect of its rate, plus a normal deviation with its row's SD. These SDs are log-normal: over
rows of the first edition the logarithm of the observed SD has itself an SD of 0.9, of which 0.64 is due to having three runs. A bad run
loses 2 to 20 points. An image's score adds a part of its row (the same under every seed) and a part of its run, with the SDs of the first
edition's records.
"""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.comparison.leaderboard import PRIORS
from harness.statistics import family, max_t

Floats = NDArray[np.float64]

DRAWS, FEW, SIMULATIONS = 2000, 20, 2000
SEEDS, RATES, IMAGES, VAL_IMAGES = 4, 3, 500, 90


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """SDs in points: of runs (median over rows), of a row's part of an image's score, and of a run's part of it."""

    run: float
    row_image: float
    run_image: float


KVASIR = Benchmark(run=1.0, row_image=4.4, run_image=11.0)
ISIC = Benchmark(run=0.3, row_image=2.1, run_image=6.0)


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One world.

    Args:
        rows: the baseline included; the last is the decoder alone, which has one run a seed.
        spread: SD of the logarithm of the rows' SDs.
        bad: share of bad runs.
        shifted: whether rows differ in truth, and in what a rate costs: nothing, 1.5 points beside the best, or 2 and 1 below it.
    """

    what: str
    rows: int = 12
    benchmarks: Sequence[Benchmark] = (KVASIR, ISIC)
    spread: float = 0.65
    bad: float = 0.06
    shifted: bool = True


SCENARIOS = (
    Scenario(what="equal spreads, no bad runs, no difference", spread=0.0, bad=0.0, shifted=False),
    Scenario(what="unequal spreads, no bad runs, no difference", bad=0.0, shifted=False),
    Scenario(what="unequal spreads, 6 % bad runs, no difference", shifted=False),
    Scenario(what="unequal spreads, 6 % bad runs, differences"),
    Scenario(what="the same, 19 rows", rows=19),
    Scenario(what="the same, Kvasir-SEG alone", benchmarks=(KVASIR,)),
    Scenario(what="the same, ISIC 2017 alone", benchmarks=(ISIC,)),
    Scenario(what="the same, spreads as unequal as observed SDs", spread=0.9),
    Scenario(
        what="the same, runs spread twice as much", benchmarks=(Benchmark(run=2.0, row_image=4.4, run_image=11.0), ISIC)
    ),
)
COSTS = np.array([[0.0, 0.0, 0.0], [1.5, 0.0, 1.5], [2.0, 1.0, 0.0]])
"""Kind of row -> points that each rate loses."""


def chosen_quality(
    generator: np.random.Generator, sd: Floats, costs: Floats, *, bad: float, val_noise: float
) -> Floats:
    """(…, SEEDS) quality of the runs that validation chooses; ``sd`` (…), ``costs`` (…, RATES)."""
    shape = (*sd.shape, SEEDS, RATES)
    quality = sd[..., None, None] * generator.standard_normal(shape) - costs[..., None, :]
    quality -= (generator.random(shape) < bad) * generator.uniform(2, 20, shape)
    seen = quality + val_noise * generator.standard_normal(shape)
    return np.take_along_axis(quality, seen.argmax(axis=-1)[..., None], axis=-1)[..., 0]


def expected_quality(scenario: Scenario, benchmark: Benchmark) -> tuple[Floats, Floats]:
    """SDs, and the mean quality of what is chosen by kind of row and SD: (G,) and (3, G)."""
    generator = np.random.default_rng(1)
    sds = benchmark.run * np.exp(np.linspace(-4, 4, 41))
    noise = benchmark.run_image / math.sqrt(VAL_IMAGES)
    grid = np.broadcast_to(sds, (10_000, len(sds)))
    means = [
        chosen_quality(
            generator, grid, np.broadcast_to(costs, (*grid.shape, RATES)), bad=scenario.bad, val_noise=noise
        ).mean(axis=(0, 2))
        for costs in COSTS
    ]
    return sds, np.array(means)


def scores(
    generator: np.random.Generator, scenario: Scenario, benchmark: Benchmark, expected: tuple[Floats, Floats]
) -> Iterator[Floats]:
    """(rows, SEEDS, IMAGES) scores of one draw after the other, minus what is true of each row."""
    while True:
        sd = benchmark.run * np.exp(scenario.spread * generator.standard_normal(scenario.rows))
        kinds = generator.integers(0, len(COSTS) if scenario.shifted else 1, scenario.rows)
        noise = benchmark.run_image / math.sqrt(VAL_IMAGES)
        quality = chosen_quality(generator, sd, COSTS[kinds], bad=scenario.bad, val_noise=noise)
        quality -= np.array([np.interp(s, expected[0], expected[1][k]) for s, k in zip(sd, kinds, strict=True)])[
            :, None
        ]
        quality[-1] = sd[-1] * generator.standard_normal(SEEDS)
        of_row = benchmark.row_image * generator.standard_normal((scenario.rows, 1, IMAGES))
        of_run = benchmark.run_image * generator.standard_normal((scenario.rows, SEEDS, IMAGES))
        yield quality[..., None] + of_row + of_run


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A line a draw: whether the intervals hold all truths, and the half-width of each row's interval in points."""

    held: NDArray[np.bool_]
    half_widths: Floats


def simulate(scenario: Scenario, *, draws: int, simulations: int = SIMULATIONS, seed: int = 0) -> dict[str, Outcome]:
    """Outcome by how spreads are estimated, from the same draws."""
    generator = np.random.default_rng(seed)
    worlds = [scores(generator, scenario, each, expected_quality(scenario, each)) for each in scenario.benchmarks]
    held: dict[str, list[bool]] = {name: [] for name in PRIORS}
    halves: dict[str, list[Floats]] = {name: [] for name in PRIORS}
    for _ in range(draws):
        images = [next(world) for world in worlds]
        truth = generator.normal(0, 3, scenario.rows - 1) if scenario.shifted else np.zeros(scenario.rows - 1)
        for table in images:
            table[1:] += truth[:, None, None]
        for name, prior in PRIORS.items():
            families = [family(table.mean(axis=2), table, prior=prior) for table in images]
            half = max_t(families, simulations=simulations)
            estimate = np.mean([each.means for each in families], axis=0)
            held[name].append(bool((np.abs(estimate - truth) <= half).all()))
            halves[name].append(half)
    return {name: Outcome(held=np.array(held[name]), half_widths=np.array(halves[name])) for name in PRIORS}


def lines(scenario: Scenario, *, draws: int = DRAWS) -> Iterator[dict[str, str]]:
    """The lines of ``interval_coverage.csv`` on a scenario. The last columns are of the first `FEW` draws, for a test."""
    for name, outcome in simulate(scenario, draws=draws).items():
        yield {
            "scenario": scenario.what, "rows": str(scenario.rows), "spread": name, "draws": str(draws),
            "coverage": f"{outcome.held.mean():.4f}", "half_width": f"{np.median(outcome.half_widths):.2f}",
            "held_of_first": str(outcome.held[:FEW].sum()), "half_width_of_first": f"{np.median(outcome.half_widths[:FEW]):.2f}",
        }  # fmt: skip


def main() -> None:
    writer = None
    with Path(__file__).with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        for line in (line for scenario in SCENARIOS for line in lines(scenario)):
            writer = writer or csv.DictWriter(file, list(line), lineterminator="\n")
            if not file.tell():
                writer.writeheader()
            writer.writerow(line)
            print(*line.values(), sep="  ", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
