"""Centred kernel alignment of two models by their Gram matrices over the same minibatches of images.

CKA = Σ HSIC(K, L) / √(Σ HSIC(K, K) · Σ HSIC(L, L)), sums over minibatches (Nguyen et al., 2010.15327, Eq. 2 and 3): the
ratio is taken after averaging, so that the value does not depend on how many minibatches there are. K = XXᵀ with zero
diagonal, X one image's features a row. HSIC is Song's unbiased estimator; it does not see a constant added to all rows of
X, so that K may be of centred features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what reads claims and figures need not wait for numpy
    import numpy as np
    from numpy.typing import NDArray

FEWEST = 4
"""Images a minibatch: the estimator divides by n − 3."""


def cka(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> float:
    """CKA of two models: at most 1, near 0 for independent features, and below 0 by chance.

    Args:
        first, second: by minibatch, the entries of K above the diagonal, row by row.

    Raises:
        ValueError: not the same minibatches, or a model whose features are the same for every image.
    """
    if [len(left) for left in first] != [len(left) for left in second] or not first:
        raise ValueError("not the same minibatches")
    pairs = [(_square(left), _square(right)) for left, right in zip(first, second, strict=True)]
    cross, of_first, of_second = (
        math.fsum(hsic(*chosen) for chosen in sides)
        for sides in (pairs, [(left, left) for left, _ in pairs], [(right, right) for _, right in pairs])
    )
    if of_first <= 0 or of_second <= 0:
        raise ValueError("features that do not vary from image to image")
    return cross / math.sqrt(of_first * of_second)


def hsic(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Unbiased HSIC of two n × n Gram matrices with zero diagonal, n ≥ `FEWEST` (Song et al. 2012, Eq. 5)."""
    n = len(first)
    if n < FEWEST:
        raise ValueError(f"{n} images in a minibatch; {FEWEST} are the fewest")
    rows, columns = first.sum(axis=0), second.sum(axis=0)
    total = (first * second).sum() + rows.sum() * columns.sum() / ((n - 1) * (n - 2)) - 2 * rows @ columns / (n - 2)
    return float(total / (n * (n - 3)))


def upper(gram: NDArray[np.float64]) -> list[float]:
    """The entries above the diagonal, row by row, with eight significant digits."""
    import numpy as np

    return [float(f"{value:.8g}") for value in gram[np.triu_indices(len(gram), k=1)]]


def _square(entries: Sequence[float]) -> NDArray[np.float64]:
    import numpy as np

    n = round((1 + math.sqrt(1 + 8 * len(entries))) / 2)
    gram = np.zeros((n, n))
    gram[np.triu_indices(n, k=1)] = entries
    return gram + gram.T
