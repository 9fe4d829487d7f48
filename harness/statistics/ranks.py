"""Permutation tests of paired differences with Holm's correction (1979); methods ranked over benchmarks: Friedman and Nemenyi (Demsar
2006), probability of improvement (Agarwal et al. 2021); and whether two models rank the same methods alike: Kendall's τ by
benchmark, with resamples of seeds and images.

A p-value that the sample could not reach, whatever the data, is not given: `Test.p` is None and `Test.text` says so.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from harness.statistics.intervals import Interval

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


ALPHA = 0.05
EXACT_UP_TO = 16
"""Sign flips are enumerated up to this many pairs (65,536 sign patterns) and drawn beyond."""


@dataclass(frozen=True, kw_only=True)
class Test:
    """A p-value, or None where n is too small for any data to reach ``alpha``.

    Args:
        p: two-sided.
        statistic: the test's statistic.
        n: pairs or blocks.
        smallest: the smallest p that n can give.
    """

    p: float | None
    statistic: float
    n: int
    smallest: float

    @property
    def text(self) -> str:
        if self.p is None:
            return f"n too small (n = {self.n} cannot give p < {self.smallest:.2g})"
        return f"p = {self.p:.2g} (n = {self.n})"


def sign_flip(differences: Sequence[float], *, resamples: int = 100_000, alpha: float = ALPHA) -> Test:
    """Permutation test that paired differences are symmetric about 0: two-sided, exact up to `EXACT_UP_TO` pairs.

    Not scipy.stats.permutation_test: it takes sums that differ in the last bit for different where the mean is 0 (p below
    1 for differences that cancel), and needs three to thirty times as long. Elsewhere a test holds the two together.
    """
    import numpy as np

    values = np.asarray(differences, dtype=float)
    n = len(values)
    smallest = min(1.0, 2.0 ** (1 - n))
    observed = float(values.mean()) if n else 0.0
    if smallest > alpha:
        return Test(p=None, statistic=observed, n=n, smallest=smallest)
    slack = 1e-12 * float(np.abs(values).mean())  # sums in another order differ in the last bit and are still ties
    if n <= EXACT_UP_TO:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=n)))
        extreme = float((np.abs(signs @ values / n) >= abs(observed) - slack).mean())
        return Test(p=extreme, statistic=observed, n=n, smallest=smallest)
    generator = np.random.default_rng(0)
    hits = 0
    width = -(-n // 8)
    for start in range(0, resamples, 1000):  # 1000 at a time bounds the memory
        count = min(1000, resamples - start)
        bits = np.frombuffer(generator.bytes(count * width), dtype=np.uint8).reshape(count, width)
        flipped = np.unpackbits(bits, axis=1, count=n).astype(np.float64) @ values
        hits += int((np.abs(values.sum() - 2 * flipped) / n >= abs(observed) - slack).sum())
    return Test(p=(hits + 1) / (resamples + 1), statistic=observed, n=n, smallest=max(smallest, 1 / (resamples + 1)))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjusted p-values, in the order given."""
    ordered = sorted(p_values, key=lambda name: (p_values[name], name))
    adjusted: dict[str, float] = {}
    highest = 0.0
    for index, name in enumerate(ordered):
        highest = max(highest, min(1.0, (len(ordered) - index) * p_values[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}


RESAMPLES = 1_000
"""Of seeds, for the tables of a page."""


def average_ranks(scores: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """Mean rank of each method over blocks, 1 is best (highest score), ties share the mean of their ranks. ``scores``: one row
    a benchmark, one column a method, higher is better."""
    import numpy as np
    from scipy import stats

    return np.asarray(stats.rankdata(-np.asarray(scores, dtype=float), axis=1).mean(axis=0))


def friedman(scores: Sequence[Sequence[float]]) -> Test:
    """Whether methods rank differently over benchmarks (χ² approximation, corrected for ties). ``scores``: one row a benchmark,
    one column a method (at least three), higher is better."""
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
