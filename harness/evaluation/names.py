"""Names of the metrics, apart from their code, so that listing them imports nothing."""

from __future__ import annotations

E_MEASURES = ("e_mean", "e_max", "e_adaptive")
SALIENCY = ("s_measure", *E_MEASURES, "weighted_f", "mae")
OVERLAP = ("iou", "dice", "jaccard")
CLASSES = ("miou", "accuracy")
METRICS = (*SALIENCY, *OVERLAP, "ber", *CLASSES)
"""Of masks."""
LABELS = ("accuracy", "nll", "ece")
"""Of images with one label each."""


def higher_is_better(metric: str) -> bool:
    """False for errors: MAE and BER, NLL and ECE."""
    return metric not in ("mae", "ber", "nll", "ece")
