"""Names of the metrics, and the conventions of scoring that change numbers (docs/metrics.md). Importing them loads no metric's code."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

E_MEASURES = ("e_mean", "e_max", "e_adaptive")
SALIENCY = ("s_measure", *E_MEASURES, "weighted_f", "mae")
MEAN_OVERLAP = ("dice_mean", "iou_mean")
"""Means over all thresholds, as in PraNet's evaluation."""
OVERLAP = ("iou", "dice", "jaccard")
CLASSES = ("miou", "accuracy")
METRICS = (*SALIENCY, *MEAN_OVERLAP, *OVERLAP, "ber", *CLASSES)
"""Metrics of masks."""
LABEL_METRICS = ("accuracy", "nll", "ece")
"""Metrics of images with one label each."""
OF_TASK = {
    "binary": (*SALIENCY, *MEAN_OVERLAP, *OVERLAP, "ber"),
    "multiclass": CLASSES,
    "classification": LABEL_METRICS,
}
"""What a test and ``sam-peft data score`` compute."""


def higher_is_better(metric: str) -> bool:
    """False for errors: MAE and BER, NLL and ECE."""
    return metric not in ("mae", "ber", "nll", "ece")


def improves(metric: str, value: float, best: float | None) -> bool:
    """Whether ``value`` beats the ``best`` so far; ties keep the earlier one, and a value that is not a number never wins."""
    if best is None or math.isnan(best):
        return True
    return value > best if higher_is_better(metric) else value < best


@dataclass(frozen=True, kw_only=True)
class Conventions:
    """How predictions meet ground truth.

    Args:
        resolution: ``native`` resizes the prediction to the mask's own size; ``input`` scores at the network's input
            size, the mask nearest-resized to it (as AutoGluon released).
        min_max: min-max normalise each probability map before the saliency metrics (released by AutoGluon and
            PySODMetrics).
        weighted_f_beta2: β² of the weighted F-measure: 1.0 standard, 0.3 as AutoGluon, SAM-Adapter and InfoSAM
            released.
        overlap: IoU, Dice, Jaccard and BER as mean over images (``per-image``) or from areas summed over the split
            (``accumulated``). Multi-class mIoU and accuracy are always accumulated.
        threshold: a pixel is foreground where its probability is above this, for IoU, Dice, Jaccard.
        ber_threshold: binarisation for BER; 125/255 as released.
        empty: value of IoU, Dice and Jaccard where both mask and prediction are empty: 1.0 or 0.0.

    Raises:
        ValueError: a number is out of its range, or is not a number.
    """

    resolution: Literal["native", "input"] = "native"
    min_max: bool = True
    weighted_f_beta2: float = 1.0
    overlap: Literal["per-image", "accumulated"] = "per-image"
    threshold: float = 0.5
    ber_threshold: float = 125 / 255
    empty: float = 1.0

    def __post_init__(self) -> None:
        for name in ("threshold", "ber_threshold", "empty"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name):g} must be in [0, 1]")
        if not 0 < self.weighted_f_beta2 < math.inf:
            raise ValueError(f"weighted_f_beta2={self.weighted_f_beta2:g} must be above 0 and finite")
