"""Permutation tests of paired differences, and Holm's correction (1979).

A p-value that the sample could not reach, whatever the data, is not given: `Test.p` is None and `Test.text` says so.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
