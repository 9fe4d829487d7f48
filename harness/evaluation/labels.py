"""Scores of a split whose images have one label each: accuracy, negative log-likelihood, expected calibration error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.evaluation.conventions import LABELS
from harness.evaluation.scorer import ImageScore, SplitScorer

BINS = 15
"""Of equal width, as Guo et al. (1706.04599)."""
LEAST_PROBABILITY = float(np.finfo(np.float32).tiny)
"""What a probability counts as at least: a single float of 0 must not be an infinite NLL, so it is at most 87.34 nats."""


@dataclass(frozen=True, kw_only=True)
class LabelScore(ImageScore):
    """What one image contributes.

    Args:
        confidence: probability of the predicted class.
        correct: whether that is the label.
    """

    confidence: float
    correct: bool


class LabelScorer(SplitScorer):
    """`SplitScorer` for a task ``classification``: a prediction is (C, 1, 1) probabilities, a target (1, 1) a class index.

    An image's own ``ece`` is that of a split of this image alone, |correct − confidence|; the split's is of all (`summary`), no mean
    over images.
    """

    known = LABELS

    def measure(self, scores: NDArray, mask: NDArray[np.uint8]) -> LabelScore:
        """Score one image without keeping it.

        Raises:
            ValueError: shapes, probabilities or a label that cannot be scored.
        """
        if scores.shape != (self.num_classes, 1, 1) or mask.shape != (1, 1):
            raise ValueError(f"cannot score {scores.shape} of {self.num_classes} classes against a label {mask.shape}")
        probability, label = scores[:, 0, 0].astype(np.float64), int(mask[0, 0])
        if not (np.isfinite(probability).all() and abs(probability.sum() - 1) < 1e-3 and probability.min() >= 0):
            raise ValueError("probabilities must be finite, at least 0, and sum to 1")
        if label >= self.num_classes:
            raise ValueError(f"the label is class {label}, but there are {self.num_classes} classes")
        probability = probability.clip(LEAST_PROBABILITY, 1.0)  # the softmax of single floats may round above 1
        predicted = int(probability.argmax())
        confidence, correct = float(probability[predicted]), predicted == label
        values = {
            "accuracy": float(correct),
            "nll": -math.log(probability[label]) or 0.0,  # not -0.0
            "ece": abs(correct - confidence),
        }
        return LabelScore(values={name: values[name] for name in self.metrics}, confidence=confidence, correct=correct)

    def summary(self) -> dict[str, float]:
        """The mean over images, and `calibration_error` of the split."""
        result = super().summary()
        if "ece" in result:
            scores = [score for score in self._scores.values() if isinstance(score, LabelScore)]
            result["ece"] = calibration_error(
                [score.confidence for score in scores], [score.correct for score in scores]
            )
        return result


def calibration_error(confidences: list[float], correct: list[bool], *, bins: int = BINS) -> float:
    """ECE (1706.04599): Σ over bins of confidence, (its images / all) · |their accuracy − their mean confidence|.

    A bin holds its lower bound and not its upper one, except the last, which holds 1.
    """
    places = [min(int(confidence * bins), bins - 1) for confidence in confidences]
    gaps: dict[int, list[float]] = {}
    for place, confidence, right in zip(places, confidences, correct, strict=True):
        gaps.setdefault(place, []).append(right - confidence)
    # fsum is exact, so the order of images cannot show.
    return math.fsum(abs(math.fsum(gap)) for gap in gaps.values()) / len(confidences)
