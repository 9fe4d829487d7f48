"""Whether two models rank the same methods alike: Kendall's τ by benchmark, with resamples of seeds and images."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.statistics.intervals import Interval
from harness.statistics.ranks import RESAMPLES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST_ORDERS = 5_040
"""Orders of the methods that are all tried (7!); of more methods as many are drawn."""


@dataclass(frozen=True, kw_only=True)
class ModelScores:
    """Scores of all methods under both models on one benchmark, higher is better.

    Args:
        first, second: (methods, seeds, images), one array a model; one "image" where a score is no mean over images.
        clusters: (images,) number of each image's cluster; images of one cluster are drawn together.
        trials: of a ``second`` that was measured elsewhere, the same for every benchmark, as shares of so many trials (questions
            answered): then these are what is drawn again of it, for each method apart; 0 where it is drawn with the first.
    """

    first: NDArray[np.float64]
    second: NDArray[np.float64]
    clusters: NDArray[np.intp]
    trials: int = 0


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How two models agree.

    Args:
        by_benchmark: τ-b of the methods' mean scores on each benchmark.
        interval: of their mean: the middle 95 % of resamples of seeds and images; None for a single seed.
        p: share of the methods' orders that agree at least so well, the order as it is included; one-sided.
        methods: how many are ranked.
    """

    by_benchmark: tuple[float, ...]
    interval: Interval | None
    p: float
    methods: int

    @property
    def mean(self) -> float:
        return math.fsum(self.by_benchmark) / len(self.by_benchmark)

    @property
    def least_p(self) -> float:
        """What p is at full agreement: no fewer methods could tell it from chance."""
        return 1 / math.factorial(self.methods)


def agreement(benchmarks: Sequence[ModelScores]) -> Agreement:
    """Kendall's τ-b between the two models' scores of the methods, averaged over benchmarks.

    Seeds and images are drawn again together for all methods and both models, as they are paired: each resample draws
    seeds and (clusters of) images of a benchmark with replacement, as the pigeonhole bootstrap does (Owen 2007). Scores of
    elsewhere are drawn once a resample for all benchmarks; without their answers by question their methods are drawn apart, which
    is wider than paired.

    Raises:
        ValueError: fewer than two methods, or no benchmark.
    """
    import numpy as np

    if not benchmarks or len(benchmarks[0].first) < 2:
        raise ValueError("a ranking needs two methods and a benchmark")
    generator = np.random.default_rng(0)
    means = [(scores.first.mean(axis=(1, 2)), scores.second.mean(axis=(1, 2))) for scores in benchmarks]
    by_benchmark = tuple(float(_tau(first[None], second[None])[0]) for first, second in means)
    methods, seeds = len(means[0][0]), min(scores.first.shape[1] for scores in benchmarks)
    interval = None
    if seeds > 1:
        elsewhere, trials = means[0][1], benchmarks[0].trials
        again = generator.binomial(trials, elsewhere, size=(RESAMPLES, methods)) / trials if trials else None
        drawn = np.mean([_resampled(scores, generator, second=again) for scores in benchmarks], axis=0)
        low, high = np.quantile(drawn, [0.025, 0.975])
        interval = Interval(
            estimate=math.fsum(by_benchmark) / len(by_benchmark), low=float(low), high=float(high), n=seeds
        )
    if math.factorial(methods) <= MOST_ORDERS:
        orders = np.array(list(itertools.permutations(range(methods))))
    else:
        chosen = [generator.permutation(methods) for _ in range(MOST_ORDERS - 1)]
        orders = np.array([np.arange(methods), *chosen])
    chance = np.mean([_tau(np.broadcast_to(a, orders.shape), b[orders]) for a, b in means], axis=0)
    p = float((chance >= chance[0] - 1e-9).mean())
    return Agreement(by_benchmark=by_benchmark, interval=interval, p=p, methods=methods)


def _resampled(
    scores: ModelScores, generator: np.random.Generator, *, second: NDArray[np.float64] | None
) -> NDArray[np.float64]:
    """(`RESAMPLES`,) τ-b of redrawn seeds and clusters; ``second`` (`RESAMPLES`, methods) where that is drawn otherwise."""
    import numpy as np

    _, seeds, _ = scores.first.shape
    groups = int(scores.clusters.max()) + 1
    of_seed = generator.multinomial(seeds, [1 / seeds] * seeds, size=RESAMPLES) / seeds
    counts = generator.multinomial(groups, [1 / groups] * groups, size=RESAMPLES)
    of_image = counts[:, scores.clusters].astype(float)
    of_image /= of_image.sum(axis=1, keepdims=True)
    first, drawn = (
        np.einsum("rs,ri,msi->rm", of_seed, of_image, side, optimize=True) for side in (scores.first, scores.second)
    )
    return _tau(first, drawn if second is None else second)


def _tau(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """τ-b of each row of two (rows, methods) arrays, as `scipy.stats.kendalltau`; 0 where one side is all ties."""
    import numpy as np

    left, right = np.triu_indices(first.shape[1], k=1)
    a, b = np.sign(first[:, left] - first[:, right]), np.sign(second[:, left] - second[:, right])
    free = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return np.asarray((a * b).sum(axis=1) / np.where(free > 0, free, 1.0))
