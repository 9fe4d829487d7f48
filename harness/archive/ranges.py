"""What a score can be, by its metric. The metrics themselves are in `harness.evaluation`, which records do not import."""

from __future__ import annotations

E_MEASURES = ("e_mean", "e_max", "e_adaptive")
OVERLAP = ("iou", "dice", "jaccard")
LARGEST_NLL = 88.0
"""In nats: the logarithm of the smallest number that a single float holds in full, rounded up."""


def largest(metric: str) -> float:
    """The largest value of a metric; the smallest is 0. The E-measure is divided by pixels - 1, so that a perfect
    prediction of N pixels scores N / (N - 1): 1.1 is an image of eleven pixels."""
    return 1.1 if metric in E_MEASURES else LARGEST_NLL if metric == "nll" else 1.0
