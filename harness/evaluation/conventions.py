"""Names of the metrics, and the conventions of scoring that change numbers (docs/metrics.md). Importing them loads no metric's code."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from harness.system.errors import UsageError
from harness.system.files import checked_name

E_MEASURES = ("e_mean", "e_max", "e_adaptive")
SALIENCY = ("s_measure", *E_MEASURES, "weighted_f", "mae")
OVERLAP = ("iou", "dice", "jaccard")
CLASSES = ("miou", "accuracy")
METRICS = (*SALIENCY, *OVERLAP, "ber", *CLASSES)
"""Metrics of masks."""
LABELS = ("accuracy", "nll", "ece")
"""Metrics of images with one label each."""
OF_TASK = {"binary": (*SALIENCY, *OVERLAP, "ber"), "multiclass": CLASSES, "classification": LABELS}
"""What a test and ``sam-peft data score`` compute."""


@dataclass(frozen=True, kw_only=True)
class OwnMetric:
    """A metric of binary masks from a plug-in; its score of a split is the mean over images.

    Args:
        measure: of probabilities (H, W) in [0, 1], foreground (H, W) bool and the pixels that count (H, W) bool, None where all do.
        higher_is_better: False for an error.
    """

    measure: Callable[[Any, Any, Any], float]
    higher_is_better: bool = True


OWN: dict[str, OwnMetric] = {}
"""Metrics of plug-ins; every run on binary masks is scored by them."""


def add_metric(name: str, measure: Callable[[Any, Any, Any], float], *, higher_is_better: bool = True) -> None:
    """Register a plug-in's metric; see `OwnMetric`. Raises UsageError: the name is taken or not valid."""
    if name in (*METRICS, *LABELS):
        raise UsageError(f"the metric {name!r} is built in; give yours another name")
    OWN[checked_name(name, what="the metric's name")] = OwnMetric(measure=measure, higher_is_better=higher_is_better)


def higher_is_better(metric: str) -> bool:
    """False for errors: MAE and BER, NLL and ECE, and those of plug-ins."""
    if metric in OWN:
        return OWN[metric].higher_is_better
    return metric not in ("mae", "ber", "nll", "ece")


Resolution = Literal["native", "input"]
Overlap = Literal["per-image", "accumulated"]


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
        empty: score of IoU, Dice and Jaccard where both mask and prediction are empty: 1.0 or 0.0.

    Raises:
        ValueError: a number out of its range, or none.
    """

    resolution: Resolution = "native"
    min_max: bool = True
    weighted_f_beta2: float = 1.0
    overlap: Overlap = "per-image"
    threshold: float = 0.5
    ber_threshold: float = 125 / 255
    empty: float = 1.0

    def __post_init__(self) -> None:
        for name in ("threshold", "ber_threshold", "empty"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name):g} must be in [0, 1]")
        if not 0 < self.weighted_f_beta2 < math.inf:
            raise ValueError(f"weighted_f_beta2={self.weighted_f_beta2:g} must be above 0 and finite")
