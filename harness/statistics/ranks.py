"""Methods ranked over benchmarks: Friedman and Nemenyi (Demsar 2006), probability of improvement (Agarwal et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from harness.statistics.intervals import Interval
from harness.statistics.permutation import ALPHA, Test

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


RESAMPLES = 1_000
"""Of seeds, for the tables of a page."""


def average_ranks(scores: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """Mean rank of each method over blocks, 1 is best (highest score), ties share the mean of their ranks.

    Args:
        scores: one row a benchmark, one column a method, higher is better.
    """
    import numpy as np
    from scipy import stats

    return np.asarray(stats.rankdata(-np.asarray(scores, dtype=float), axis=1).mean(axis=0))


def friedman(scores: Sequence[Sequence[float]]) -> Test:
    """Whether methods rank differently over benchmarks (χ² approximation, corrected for ties).

    Args:
        scores: one row a benchmark, one column a method (at least three), higher is better.
    """
    import numpy as np
    from scipy import stats

    table = np.asarray(scores, dtype=float)
    blocks, methods = table.shape
    smallest = float(stats.chi2.sf(blocks * (methods - 1), methods - 1))  # of complete agreement
    if methods < 3:
        raise ValueError("Friedman's test compares at least three methods; use sign_flip for two")
    if smallest > ALPHA:
        return Test(p=None, statistic=math.nan, n=blocks, smallest=smallest)
    if (table == table[:, :1]).all():
        return Test(p=1.0, statistic=0.0, n=blocks, smallest=smallest)
    statistic, p = stats.friedmanchisquare(*table.T)
    return Test(p=float(p), statistic=float(statistic), n=blocks, smallest=smallest)


def nemenyi_critical_difference(*, methods: int, blocks: int) -> float:
    """Average ranks further apart than this differ at `ALPHA`."""
    return _nemenyi_quantile(methods) * math.sqrt(methods * (methods + 1) / (6 * blocks))


@lru_cache(maxsize=256)
def _nemenyi_quantile(methods: int) -> float:
    from scipy import stats

    return float(stats.studentized_range.ppf(1 - ALPHA, methods, math.inf)) / math.sqrt(2)


def probability_of_improvement(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> Interval:
    """P(a run of ``first`` beats a run of ``second``), ties half, averaged over benchmarks; seeds resampled within each, and
    the middle 95 % of what they give.

    Args:
        first, second: one sequence of scores (one a seed, higher is better) a benchmark; see `_Redrawn`.
    """
    import numpy as np

    def probability(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
        left, right = a[..., :, None], b[..., None, :]
        return np.asarray(((left > right) + 0.5 * (left == right)).mean(axis=(-2, -1)))

    pairs = [(np.asarray(a, dtype=float), np.asarray(b, dtype=float)) for a, b in zip(first, second, strict=True)]
    generator = np.random.default_rng(0)
    redrawn = [_Redrawn(RESAMPLES, generator) for _ in pairs]
    drawn = np.mean([probability(draw(a), draw(b)) for draw, (a, b) in zip(redrawn, pairs, strict=True)], axis=0)
    low, high = np.quantile(drawn, [0.025, 0.975])
    estimate = float(np.mean([probability(a, b) for a, b in pairs]))
    return Interval(estimate=estimate, low=float(low), high=float(high), n=min(len(a) for a, _ in pairs))


class _Redrawn:
    """The runs of one benchmark, drawn again with replacement: the same seeds for all methods with as many runs, as these
    are paired."""

    def __init__(self, resamples: int, generator: np.random.Generator) -> None:
        self._resamples, self._generator = resamples, generator
        self._places: dict[int, NDArray[np.int64]] = {}

    def __call__(self, runs: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
        """(resamples, runs)"""
        import numpy as np

        count = len(runs)
        if count not in self._places:
            self._places[count] = self._generator.integers(count, size=(self._resamples, count))
        return np.asarray(runs, dtype=float)[self._places[count]]


def rank_stability(
    scores: Mapping[str, Sequence[Sequence[float]]], *, resamples: int = RESAMPLES
) -> dict[str, dict[int, float]]:
    """How often each method has each place (1 is best) by its mean rank when the seeds are drawn again.

    Args:
        scores: method -> one sequence of scores (one a seed, higher is better) a benchmark; see `_Redrawn`.

    Methods that tie share the better place.
    """
    import numpy as np
    from scipy import stats

    names = sorted(scores)
    generator = np.random.default_rng(0)
    redrawn = [_Redrawn(resamples, generator) for _ in scores[names[0]]]
    means = [[draw(runs).mean(axis=1) for draw, runs in zip(redrawn, scores[name], strict=True)] for name in names]
    table = np.array(means).transpose(2, 0, 1)  # resamples, methods, benchmarks
    order = stats.rankdata(stats.rankdata(-table, axis=1).mean(axis=2), axis=1, method="min").astype(int)
    shares = {}
    for index, name in enumerate(names):
        places, counts = np.unique(order[:, index], return_counts=True)
        shares[name] = {int(place): float(count) / resamples for place, count in zip(places, counts, strict=True)}
    return shares


def stratified_interval(runs: Sequence[Sequence[float]], statistic: Callable[[Sequence[float]], float]) -> Interval:
    """``statistic`` of all runs together, with the middle 95 % of its resamples: seeds are drawn again within each benchmark.

    As rliable does (Agarwal et al. 2021): too narrow for a confidence interval where seeds are few.

    Args:
        runs: one sequence of scores (one a seed, higher is better) a benchmark.
    """
    import numpy as np

    generator = np.random.default_rng(0)
    drawn = np.concatenate([_Redrawn(RESAMPLES, generator)(scores) for scores in runs], axis=1)
    values = [statistic(list(row)) for row in drawn]
    low, high = np.quantile(values, [0.025, 0.975])
    estimate = statistic([value for scores in runs for value in scores])
    return Interval(estimate=estimate, low=float(low), high=float(high), n=min(len(scores) for scores in runs))
