"""Statistics of comparisons: small n, paired by seed and image, every random draw from a seeded generator.

A p-value that the sample could not reach, whatever the data, is not given: `Test.p` is None and `Test.text` says so.
References: Holm 1979; Demsar 2006 (Friedman, Nemenyi); Agarwal et al. 2021 (probability of improvement); Saravanan et
al. 2020 (hierarchical bootstrap), Owen 2007 (of crossed factors), Hesterberg 2015 (of small samples), Howe 1974 (sums of
squared half-widths).
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ALPHA = 0.05
EXACT_UP_TO = 16
"""Sign flips are enumerated up to this many pairs (65,536 sign patterns) and drawn beyond."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its interval."""

    estimate: float
    low: float
    high: float
    n: int


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


def sd(values: Sequence[float]) -> float | None:
    """SD with ddof = 1; None for fewer than two values."""
    if len(values) < 2:
        return None
    mean = math.fsum(values) / len(values)  # statistics.stdev computes in fractions, a hundred times slower
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


@lru_cache(maxsize=4096)
def t_quantile(n: int, *, confidence: float = 0.95) -> float:
    """Half-width of a t interval of n values in units of SD / √n."""
    from scipy import stats

    return float(stats.t.ppf(0.5 + confidence / 2, n - 1))


def t_interval(values: Sequence[float], *, confidence: float = 0.95) -> Interval | None:
    """Student's interval of the mean; None for fewer than two values."""
    spread = sd(values)
    if spread is None:
        return None
    mean = statistics.fmean(values)
    half = t_quantile(len(values), confidence=confidence) * spread / math.sqrt(len(values))
    return Interval(estimate=mean, low=mean - half, high=mean + half, n=len(values))


Scores = Mapping[int, Mapping[str, float]]
"""seed -> image stem -> score"""


def paired(first: Scores, second: Scores) -> dict[int, dict[str, float]]:
    """first − second, image by image, for seeds that both have.

    Raises:
        ValueError: the two scored different images under one seed; such a difference is not paired.
    """
    differences = {}
    for seed in sorted(first.keys() & second.keys()):
        _same_images(first[seed], second[seed])
        differences[seed] = {stem: first[seed][stem] - second[seed][stem] for stem in sorted(first[seed])}
    return differences


def _same_images(first: Mapping[str, float], second: Mapping[str, float]) -> None:
    if first.keys() != second.keys():
        stray = sorted(first.keys() ^ second.keys())[0]
        raise ValueError(f"not the same images ({stray} is only on one side)")


def hierarchical_bootstrap(
    scores: Scores, *, seed: int = 0, resamples: int = 10_000, confidence: float = 0.95
) -> Interval | None:
    """Interval of the mean over seeds and images: each resample draws seeds, then one set of images for all of them.

    Seeds and images are crossed, since every seed scores the same test images: redrawing images for each seed anew would
    shrink with more seeds what only more images can settle (Owen 2007). A bootstrap of n values is too narrow by
    √((n - 1) / n) and by the normal quantile in place of Student's (Hesterberg 2015), so the deviations of seeds and of
    images are each stretched by both; ±z · SD of the resampled means then adds up the squares of Student's half-widths over
    seeds and over images (Howe 1974). It is wider than need be where seeds and images interact: each level sees the
    interaction too.

    Args:
        scores: single scores, or differences from `paired`; the same images under every seed.
        seed: of the generator.

    Raises:
        ValueError: two seeds scored different images.

    None for fewer than two seeds or two images: one alone shows nothing of the spread.
    """
    import numpy as np

    keys = sorted(scores)
    for key in keys[1:]:
        _same_images(scores[keys[0]], scores[key])
    if len(keys) < 2 or len(scores[keys[0]]) < 2:
        return None
    table = np.array([[scores[key][stem] for stem in sorted(scores[key])] for key in keys])
    seeds, images = table.shape
    estimate = float(table.mean())
    normal = statistics.NormalDist().inv_cdf(0.5 + confidence / 2)
    for axis, n in ((1, seeds), (0, images)):
        stretch = t_quantile(n, confidence=confidence) / normal * math.sqrt(n / (n - 1))
        table = table + (stretch - 1) * (table.mean(axis=axis, keepdims=True) - table.mean())
    generator = np.random.default_rng(seed)
    means = []
    for start in range(0, resamples, 200):  # 200 at a time bounds the memory
        count = min(200, resamples - start)
        rows = generator.multinomial(seeds, [1 / seeds] * seeds, size=count) / seeds @ table
        drawn = generator.integers(images, size=(count, images), dtype=np.int32)
        means.append(np.take_along_axis(rows, drawn, axis=1).mean(axis=1))
    half = normal * float(np.concatenate(means).std())
    return Interval(estimate=estimate, low=estimate - half, high=estimate + half, n=seeds)


def sign_flip(differences: Sequence[float], *, seed: int = 0, resamples: int = 100_000, alpha: float = ALPHA) -> Test:
    """Permutation test that paired differences are symmetric about 0: two-sided, exact up to `EXACT_UP_TO` pairs."""
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
    generator = np.random.default_rng(seed)
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


def average_ranks(scores: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """Mean rank of each method over blocks, 1 is best (highest score), ties share the mean of their ranks.

    Args:
        scores: one row a benchmark, one column a method, higher is better.
    """
    import numpy as np
    from scipy import stats

    return np.asarray(stats.rankdata(-np.asarray(scores, dtype=float), axis=1).mean(axis=0))


def friedman(scores: Sequence[Sequence[float]], *, alpha: float = ALPHA) -> Test:
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
    if smallest > alpha:
        return Test(p=None, statistic=math.nan, n=blocks, smallest=smallest)
    if (table == table[:, :1]).all():
        return Test(p=1.0, statistic=0.0, n=blocks, smallest=smallest)
    statistic, p = stats.friedmanchisquare(*table.T)
    return Test(p=float(p), statistic=float(statistic), n=blocks, smallest=smallest)


def nemenyi(scores: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """p of every pair of methods after Friedman's test (studentized range, infinite degrees of freedom), (k, k)."""
    import numpy as np
    from scipy import stats

    ranks = average_ranks(scores)
    blocks, methods = np.asarray(scores).shape
    gaps = np.abs(ranks[:, None] - ranks[None, :]) / math.sqrt(methods * (methods + 1) / (6 * blocks))
    p = stats.studentized_range.sf(gaps * math.sqrt(2), methods, np.inf)
    np.fill_diagonal(p, 1.0)
    return np.asarray(p)


def nemenyi_critical_difference(*, methods: int, blocks: int, alpha: float = ALPHA) -> float:
    """Average ranks further apart than this differ."""
    return _nemenyi_quantile(methods, alpha) * math.sqrt(methods * (methods + 1) / (6 * blocks))


@lru_cache(maxsize=256)
def _nemenyi_quantile(methods: int, alpha: float) -> float:
    from scipy import stats

    return float(stats.studentized_range.ppf(1 - alpha, methods, math.inf)) / math.sqrt(2)


def probability_of_improvement(
    first: Sequence[Sequence[float]],
    second: Sequence[Sequence[float]],
    *,
    seed: int = 0,
    resamples: int = 2_000,
    confidence: float = 0.95,
) -> Interval:
    """P(a run of ``first`` beats a run of ``second``), ties half, averaged over benchmarks; runs resampled within each.

    Args:
        first, second: one sequence of scores (one a seed, higher is better) a benchmark.
    """
    import numpy as np

    def probability(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
        left, right = a[..., :, None], b[..., None, :]
        return np.asarray(((left > right) + 0.5 * (left == right)).mean(axis=(-2, -1)))

    pairs = [(np.asarray(a, dtype=float), np.asarray(b, dtype=float)) for a, b in zip(first, second, strict=True)]
    generator = np.random.default_rng(seed)
    drawn = np.mean(
        [probability(_redrawn(a, resamples, generator), _redrawn(b, resamples, generator)) for a, b in pairs], axis=0
    )
    low, high = np.quantile(drawn, [0.5 - confidence / 2, 0.5 + confidence / 2])
    estimate = float(np.mean([probability(a, b) for a, b in pairs]))
    return Interval(estimate=estimate, low=float(low), high=float(high), n=min(len(a) for a, _ in pairs))


def _redrawn(runs: NDArray[np.float64], resamples: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """(resamples, runs), each row drawn with replacement."""
    return runs[generator.integers(len(runs), size=(resamples, len(runs)))]


def rank_stability(
    scores: Mapping[str, Sequence[Sequence[float]]], *, seed: int = 0, resamples: int = 2_000
) -> dict[str, dict[int, float]]:
    """How often each method has each place (1 is best) by its mean rank when the seeds are drawn again.

    Args:
        scores: method -> one sequence of scores (one a seed, higher is better) a benchmark.

    Methods that tie share the better place.
    """
    import numpy as np
    from scipy import stats

    names = sorted(scores)
    generator = np.random.default_rng(seed)
    means = [
        [_redrawn(np.asarray(runs, dtype=float), resamples, generator).mean(axis=1) for runs in scores[name]]
        for name in names
    ]
    table = np.array(means).transpose(2, 0, 1)  # resamples, methods, benchmarks
    order = stats.rankdata(stats.rankdata(-table, axis=1).mean(axis=2), axis=1, method="min").astype(int)
    found = {}
    for index, name in enumerate(names):
        places, counts = np.unique(order[:, index], return_counts=True)
        found[name] = {int(place): float(count) / resamples for place, count in zip(places, counts, strict=True)}
    return found


def seeds_needed(
    spread: float, distance: float, *, rest: float = 0.0, confidence: float = 0.95, at_most: int = 1000
) -> int | None:
    """The least n at which an interval of seeds with SD ``spread`` is no wider than ``distance`` on either side.

    Args:
        rest: the half-width that no seed narrows, that of the images.

    None beyond ``at_most``.
    """
    if distance <= rest:
        return None
    for n in range(2, at_most + 1):
        if math.hypot(t_quantile(n, confidence=confidence) * spread / math.sqrt(n), rest) <= distance:
            return n
    return None
