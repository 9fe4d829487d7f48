"""Intervals of a difference over seeds and images, or over splits: how often each holds the truth, and how wide it is.

``python benchmarks/intervals.py`` takes the variance components of NAS-LoRA − LoRA on Kvasir-SEG from the committed records
(six draws), simulates tables of so many seeds × 100 images with them, and writes ``results/benchmarks/intervals.json``, which
docs/details/statistics.md shows. The same code and records give the same figures.

``conservative`` counts the interaction of seeds and images three times (as the bootstrap of both does, Owen 2007);
``unbiased`` once (`harness.statistics.crossed`); ``pooled`` takes the spread of runs from all rows
(`harness.statistics.with_pooled_runs`), once where their SDs are equal and once where they differ by a factor of four.

Of MobileSAM's benchmarks whose every draw splits the images anew it takes the components and the very test splits, and simulates
what `harness.statistics.of_folds` and `harness.statistics.of_splits` make of them, alone and in a mean. The simulation knows no
effect of the images to train on that two draws share beside what is in the spread of runs.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import statistics as stats
from harness.comparison.draws import Draws, with_reruns
from harness.comparison.grids import grids
from harness.comparison.question import Question
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


@dataclass(frozen=True, kw_only=True)
class Folds:
    """One benchmark whose every draw splits the images anew: the test images of each draw and the components of a difference.

    Args:
        tested: draw -> image -> its group, itself where images are independent.
        test_share: images tested over images trained on.
        runs, groups, left: SDs in points: of draws, of groups of images, of an image in one draw beside both.
    """

    tested: list[dict[str, str]]
    test_share: float
    runs: float
    groups: float
    left: float

    def simulated(self, generator: np.random.Generator) -> tuple[stats.Estimate, stats.Estimate | None]:
        """Nadeau and Bengio's estimate of a difference whose truth is 0, and that of runs and shared images."""
        effects: dict[str, float] = {}
        scores: dict[int, dict[str, float]] = {}
        for draw, groups in enumerate(self.tested):
            run, left = generator.normal(0, self.runs), generator.normal(0, self.left, len(groups))
            for name in groups.values():
                if name not in effects:
                    effects[name] = generator.normal(0, self.groups)
            scores[draw] = {
                image: run + effects[group] + rest for (image, group), rest in zip(groups.items(), left, strict=True)
            }
        means = [float(np.mean(list(images.values()))) for images in scores.values()]
        clusters = {image: group for groups in self.tested for image, group in groups.items()}
        return stats.of_folds(means, test_share=self.test_share), stats.of_splits(scores, clusters=clusters)


def measured_folds() -> dict[str, Folds]:
    """By title, of NAS-LoRA − LoRA on MobileSAM at 256 px; what is estimated below zero is zero."""
    folds = {}
    for case in Question(ROOT / "results").clean:
        images, estimate = case.images_by_draw, case.over_splits
        if images is None or estimate is None or estimate.seeds is None:
            continue
        tested = [{image: images.clusters.get(image, image) for image in scores} for scores in images.scores.values()]
        sizes = [Counter(groups.values()) for groups in tested]
        own = float(np.mean([_overlap(groups, groups) for groups in sizes]))
        both = [_overlap(first, second) for first, second in combinations(sizes, 2)]
        (shared,) = estimate.rest
        groups = shared.variance / float(np.mean(both))
        within = [np.var(list(scores.values()), ddof=1) for scores in images.scores.values()]
        left = max(0.0, float(np.mean(within)) - groups)
        runs = estimate.seeds.variance * estimate.n - groups * (own - float(np.mean(both))) - left / len(tested[0])
        first = case.difference.first
        folds[case.column.benchmark_title] = Folds(
            tested=tested, test_share=first.test_share, runs=max(0.0, runs) ** 0.5, groups=groups**0.5, left=left**0.5
        )
    return folds


def _overlap(first: Counter[str], second: Counter[str]) -> float:
    """Σ wᵢ vᵢ over the groups of images that two draws test, w and v their shares of each draw's images."""
    return sum(first[name] * second[name] for name in first) / first.total() / second.total()


def simulate_folds(folds: dict[str, Folds], *, simulations: int) -> dict[str, dict[str, dict[str, float]]]:
    """Benchmark, and ``mean`` of all -> interval -> how often it holds the truth, and its median half-width."""
    generator = np.random.default_rng(0)
    intervals: dict[str, dict[str, list[stats.Interval]]] = {}
    for _ in range(simulations):
        both = {title: of.simulated(generator) for title, of in folds.items()}
        kinds = zip(("folds", "splits"), zip(*both.values(), strict=True), strict=True)
        for kind, estimates in kinds:
            known = [estimate for estimate in estimates if estimate is not None]
            named = dict(zip(both, estimates, strict=True)) | {"mean": stats.average_of(known)}
            for title, estimate in named.items():
                if estimate is not None and (interval := estimate.interval()):
                    intervals.setdefault(title, {}).setdefault(kind, []).append(interval)
    return {
        title: {
            kind: {
                "coverage": round(float(np.mean([each.low <= 0 <= each.high for each in made])), 3),
                "half": round(float(np.median([each.half for each in made])), 2),
            }
            for kind, made in kinds.items()
        }
        for title, kinds in intervals.items()
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
    folds = measured_folds()
    of_folds = {
        "components": {title: {"draws": len(of.tested), "runs": round(of.runs, 2), "images": round(of.groups, 2),
                         "left": round(of.left, 2)} for title, of in folds.items()},
        "intervals": simulate_folds(folds, simulations=simulations),
    }  # fmt: skip
    content = {**setup, "simulations": simulations, "seeds": by_seeds, "folds": of_folds}
    OUT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(OUT.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
