"""Three intervals of a difference over seeds and images: how often each holds the truth, and how wide it is.

``python benchmarks/intervals.py`` takes the variance components of NAS-LoRA − LoRA on Kvasir-SEG from the committed records
(six draws), simulates tables of so many seeds × 100 images with them, and writes ``results/benchmarks/intervals.json``, which
docs/details/statistics.md shows. The same code and records give the same figures.

``conservative`` counts the interaction of seeds and images three times (as the bootstrap of both does, Owen 2007);
``unbiased`` once (`harness.statistics.crossed`); ``pooled`` takes the spread of runs from all rows
(`harness.statistics.with_pooled_runs`), once where their SDs are equal and once where they differ by a factor of four.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import statistics as stats
from harness.comparison.draws import Draws, with_reruns
from harness.comparison.grids import grids
from harness.studies import load_study

ROOT = Path(__file__).parents[1]
OUT = ROOT / "results" / "benchmarks" / "intervals.json"
ROWS = 7


@dataclass(frozen=True, kw_only=True)
class Components:
    """SDs in points of a difference of two rows: of seeds, of images, of their interaction."""

    seeds: float
    images: float
    interaction: float


def measured() -> Components:
    """The components of NAS-LoRA − LoRA on Kvasir-SEG; one that is estimated below zero is zero."""
    archive = Draws(ROOT / "results", again=ROOT / "results" / "again" / "avx512")
    (grid,) = grids(archive.records, archive, study=with_reruns(load_study("small-methods")))
    first, second = grid.row("NAS-LoRA"), grid.row("LoRA")
    assert first is not None
    assert second is not None
    difference = grid.difference(first, second, grid.first_columns["kvasir"])
    assert difference is not None
    assert difference.by_image is not None
    assert difference.estimate.seeds is not None
    seeds, images = difference.estimate.n, len(difference.by_image)
    of_images, _ = difference.estimate.rest
    both = of_images.variance * of_images.narrows
    return Components(
        seeds=max(0.0, seeds * (difference.estimate.seeds.variance - both)) ** 0.5,
        images=max(0.0, images * (of_images.variance - both)) ** 0.5,
        interaction=(both * seeds * images) ** 0.5,
    )


def table(generator: np.random.Generator, c: Components, *, seeds: int, images: int) -> NDArray[np.float64]:
    """(seeds, images) differences whose truth is 0."""
    return np.asarray(
        generator.normal(0, c.seeds, (seeds, 1))
        + generator.normal(0, c.images, (1, images))
        + generator.normal(0, c.interaction, (seeds, images))
    )


def conservative(estimate: stats.Estimate) -> stats.Estimate:
    """``estimate`` with the interaction added once more instead of taken back."""
    images, both = estimate.rest
    held = images.variance * images.narrows
    share = both.df / ((both.df + 1) + (estimate.n - 1) + images.df)  # (R - 1)(C - 1) / RC
    return replace(estimate, rest=(images, replace(both, variance=held * share)))


def simulate(
    c: Components, *, seeds: int, images: int, spreads: NDArray[np.float64], simulations: int
) -> dict[str, dict[str, float]]:
    """Interval -> share of tables that it holds the truth of, and its median half-width.

    Args:
        spreads: (rows,) SDs of single runs, as shares of that of the two rows compared.
    """
    generator = np.random.default_rng(0)
    held: dict[str, list[bool]] = {}
    widths: dict[str, list[float]] = {}
    run_sd = ((c.seeds**2 + c.interaction**2 / images) / 2) ** 0.5
    names = [str(image) for image in range(images)]
    for _ in range(simulations):
        values = table(generator, c, seeds=seeds, images=images)
        estimate = stats.crossed({seed: dict(zip(names, row, strict=True)) for seed, row in enumerate(values)})
        assert estimate is not None
        rows = generator.normal(0, run_sd, (len(spreads), seeds)) * spreads[:, None]
        pooled = stats.with_pooled_runs(estimate, [list(row) for row in rows])
        for name, kind in (("conservative", conservative(estimate)), ("unbiased", estimate), ("pooled", pooled)):
            interval = kind.interval()
            assert interval is not None
            held.setdefault(name, []).append(interval.low <= 0 <= interval.high)
            widths.setdefault(name, []).append(interval.half)
    return {
        name: {"coverage": round(float(np.mean(held[name])), 3), "half": round(float(np.median(widths[name])), 2)}
        for name in held
    }


def main(simulations: int = 2000) -> None:
    c, images = measured(), 100
    equal, unequal = np.ones(ROWS), np.geomspace(0.5, 2.0, ROWS)
    by_seeds = {
        str(seeds): {
            **simulate(c, seeds=seeds, images=images, spreads=equal, simulations=simulations),
            "pooled, unequal rows": simulate(c, seeds=seeds, images=images, spreads=unequal, simulations=simulations)[
                "pooled"
            ],
        }
        for seeds in (3, 6, 12)
    }
    setup = {"components": {name: round(sd, 3) for name, sd in asdict(c).items()}, "images": images, "rows": ROWS}
    OUT.write_text(
        json.dumps({**setup, "simulations": simulations, "seeds": by_seeds}, indent=1) + "\n", encoding="utf-8"
    )
    print(OUT.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
