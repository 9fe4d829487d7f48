"""Scores of a split: per image and over all, independent of the order in which images arrive.

IoU, Dice, Jaccard, BER, mIoU and accuracy follow from counts of pixels by true and predicted class. Counts are integers, so sums over
images are exact in any order. Images with one label each have accuracy, negative log-likelihood and expected calibration error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.datasets.base import IGNORE
from harness.evaluation.conventions import (
    CLASSES,
    E_MEASURES,
    LABEL_METRICS,
    MEAN_OVERLAP,
    METRICS,
    OVERLAP,
    SALIENCY,
    Conventions,
)
from harness.evaluation.resize import resize_bilinear, resize_nearest
from harness.evaluation.saliency import Mask, e_adaptive, e_curve, mae, mean_overlaps, s_measure, saliency_map
from harness.evaluation.weighted_f import weighted_f
from harness.models.decoders import Task
from harness.system.errors import UsageError, did_you_mean

Counts = NDArray[np.int64]
"""(C, C) pixels by true class and by predicted class; ignored pixels are not counted."""


def counts_of_foreground(predicted: Mask, foreground: Mask, valid: Mask | None = None) -> Counts:
    """Counts (2, 2) of a binary prediction (H, W)."""
    total = predicted.size
    if valid is not None:
        predicted, foreground, total = predicted & valid, foreground & valid, int(np.count_nonzero(valid))
    hits = int(np.count_nonzero(predicted & foreground))
    alarms, positives = int(np.count_nonzero(predicted)), int(np.count_nonzero(foreground))
    return np.array([[total - alarms - positives + hits, alarms - hits], [positives - hits, hits]], dtype=np.int64)


def counts_of_classes(
    predicted: NDArray[np.integer], true: NDArray[np.integer], *, num_classes: int, valid: Mask | None = None
) -> Counts:
    """Counts of class indices (H, W) below ``num_classes`` where they are ``valid``."""
    pairs = true.astype(np.intp) * num_classes + predicted.astype(np.intp, copy=False)
    if valid is not None:
        pairs = pairs[valid]
    return np.bincount(pairs.ravel(), minlength=num_classes**2).reshape(num_classes, num_classes)


def overlaps(counts: Counts, *, empty: float) -> tuple[float, float]:
    """Intersection over union, also called Jaccard index, and Dice, 2 |A ∩ B| / (|A| + |B|); ``empty`` where both mask and prediction are
    empty."""
    (_, false_alarms), (misses, hits) = counts.tolist()
    errors = false_alarms + misses
    return (hits / (hits + errors), 2 * hits / (2 * hits + errors)) if hits + errors else (empty, empty)


def ber(counts: Counts) -> float:
    """Balanced error rate in [0, 1]: the mean of the error rates inside and outside the shadow.

    A class that is not in the mask has no error rate and drops out of the mean.
    """
    (rejections, false_alarms), (misses, hits) = counts.tolist()
    of_classes = (misses, hits), (false_alarms, rejections)
    rates = [wrong / (wrong + right) for wrong, right in of_classes if wrong + right]
    return sum(rates) / len(rates)


def miou(counts: Counts) -> float:
    """Mean of hits / union over the classes in mask or prediction, background included."""
    hits = np.diagonal(counts)
    union = counts.sum(axis=0) + counts.sum(axis=1) - hits
    seen = union > 0
    return float(np.mean(hits[seen] / union[seen]))


def accuracy(counts: Counts) -> float:
    """Share of pixels with the right class."""
    return int(np.trace(counts)) / int(counts.sum())


class ImageScore(NamedTuple):
    """The contribution of one image.

    Args:
        values: metric -> value of this image.
        counts: pixels at ``threshold``, None where no metric needs them.
        ber_counts: the same at ``ber_threshold``.
        e_curve: (256,) E-measure by threshold, None where no E-measure is asked for.
        ignored: whether its mask ignores every pixel, so that the split leaves the image out.
        predicted: for an image with a label, the probability of the predicted class, and whether that is the label.
    """

    values: dict[str, float]
    counts: Counts | None = None
    ber_counts: Counts | None = None
    e_curve: NDArray[np.float64] | None = None
    ignored: bool = False
    predicted: tuple[float, bool] | None = None


class SplitScorer:
    """Scores predictions of a split against its masks.

    `measure` is pure and may run in any thread; `insert` keeps what it returned.

    Args:
        metrics: names among ``known``.
        task: ``binary`` or ``multiclass``; only accuracy and mIoU apply to multi-class masks. For labels see `LabelScorer`.
        num_classes: classes of the mask, background included.
        conventions: how predictions meet ground truth.

    Raises:
        UsageError: an unknown metric, or one that does not apply to the task.
    """

    known: ClassVar[Sequence[str]] = METRICS
    """All metrics of the task."""

    def __init__(
        self,
        metrics: Sequence[str],
        *,
        task: Task = "binary",
        num_classes: int = 2,
        conventions: Conventions | None = None,
    ) -> None:
        for metric in metrics:
            if metric not in self.known:
                raise UsageError(f"unknown metric {metric!r}{did_you_mean(metric, self.known)}")
            if task == "multiclass" and metric not in CLASSES:
                raise UsageError(f"metric {metric!r} is for binary masks; multi-class masks have {', '.join(CLASSES)}")
        self.metrics = tuple(dict.fromkeys(metrics))
        self.task = task
        self.num_classes = num_classes
        self.conventions = conventions or Conventions()
        self._scores: dict[str, ImageScore] = {}

    def __len__(self) -> int:
        return len(self._scores)

    def insert(self, stem: str, score: ImageScore) -> None:
        """Keep the score of one image. Raises ValueError: a stem that is in the split already."""
        if stem in self._scores:
            raise ValueError(f"image {stem!r} was scored already")
        self._scores[stem] = score

    def merge(self, other: SplitScorer) -> None:
        """Take over the images of another scorer of the same metrics and conventions: of another process, or of a part of a split.
        Raises ValueError: an image is in both."""
        for stem, score in other._scores.items():
            self.insert(stem, score)

    def measure(self, scores: NDArray, mask: NDArray[np.uint8]) -> ImageScore:
        """Score one image without keeping it.

        Args:
            scores: binary: (H, W) probabilities; multi-class: (C, H, W) scores or (H, W) integer labels.
            mask: (H', W') class indices at the mask's own size, 255 = ignore.

        Raises:
            ValueError: shapes or values that cannot be scored.
        """
        self._check_scores(scores := np.asarray(scores))
        scores, mask = self._aligned(scores, np.asarray(mask))
        valid = None
        if int(mask.max(initial=0)) >= self.num_classes:  # most masks have no ignored pixel and pass at once
            valid = mask != IGNORE
            if not valid.any():
                return ImageScore(values={}, ignored=True)
            if (top := int(mask.max(initial=0, where=valid))) >= self.num_classes:
                raise ValueError(f"the mask has class {top}, but there are {self.num_classes} classes")
        if self.task == "multiclass":
            return self._measure_classes(scores, mask, valid)
        return self._measure_binary(scores, mask == 1, valid)

    def _aligned(self, scores: NDArray, mask: NDArray[np.uint8]) -> tuple[NDArray, NDArray[np.uint8]]:
        """Scores and mask at one size, as the conventions say."""
        dimensions = (2, 3) if self.task == "multiclass" else (2,)
        if scores.ndim not in dimensions or mask.ndim != 2 or mask.dtype != np.uint8:
            raise ValueError(f"cannot score {scores.dtype} {scores.shape} against a mask {mask.dtype} {mask.shape}")
        if scores.shape[-2:] == mask.shape:
            return scores, mask
        if self.conventions.resolution == "input":
            return scores, resize_nearest(mask, scores.shape[-2:])
        if np.issubdtype(scores.dtype, np.integer):
            return resize_nearest(scores, mask.shape), mask
        return resize_bilinear(scores, mask.shape), mask

    def _check_scores(self, scores: NDArray) -> None:
        """Raises ValueError where values are not scores; before resizing, which would spread a nan or hide a logit. The range of labels
        is checked where they count."""
        classes = self.num_classes
        if self.task == "binary":
            if scores.size and not (scores.min() >= 0.0 and scores.max() <= 1.0):  # also catches nan
                raise ValueError("probabilities must be finite and within [0, 1]")
        elif scores.ndim == 3:
            if len(scores) != classes or not np.isfinite(scores).all():
                raise ValueError(f"scores must be finite and of {classes} classes, not {scores.shape}")
        elif not np.issubdtype(scores.dtype, np.integer):
            raise ValueError(f"labels must be integers from 0 to {classes - 1}")

    def _measure_classes(self, scores: NDArray, mask: NDArray[np.uint8], valid: Mask | None) -> ImageScore:
        if scores.ndim == 3:
            scores = scores.argmax(axis=0)
        counted = scores if valid is None else scores[valid]
        if not 0 <= counted.min(initial=0) <= counted.max(initial=0) < self.num_classes:
            raise ValueError(f"labels must be integers from 0 to {self.num_classes - 1}")
        counts = counts_of_classes(scores, mask, num_classes=self.num_classes, valid=valid)
        values = self._of_counts(counts, None)
        return ImageScore({name: values[name] for name in self.metrics}, counts)

    def _measure_binary(self, scores: NDArray, foreground: Mask, valid: Mask | None) -> ImageScore:
        probability = scores.astype(np.float64, copy=False)
        metrics, rules = set(self.metrics), self.conventions
        counts = ber_counts = None
        if metrics & {*OVERLAP, *CLASSES}:
            counts = counts_of_foreground(probability > rules.threshold, foreground, valid)
        if "ber" in metrics:
            ber_counts = counts_of_foreground(probability > rules.ber_threshold, foreground, valid)
        values = self._of_counts(counts, ber_counts)
        curve = None
        if metrics & {*SALIENCY, *MEAN_OVERLAP}:
            image = saliency_map(probability, foreground, valid, min_max=rules.min_max)
            if "s_measure" in metrics:
                values["s_measure"] = s_measure(image)
            if metrics & set(E_MEASURES):
                curve = e_curve(image)
                values.update(e_mean=float(curve.mean()), e_max=float(curve.max()), e_adaptive=e_adaptive(image))
            if metrics & set(MEAN_OVERLAP):
                values["dice_mean"], values["iou_mean"] = mean_overlaps(image)
            if "weighted_f" in metrics:
                values["weighted_f"] = weighted_f(image, beta2=rules.weighted_f_beta2)
            if "mae" in metrics:
                values["mae"] = mae(image)
        return ImageScore({name: values[name] for name in self.metrics}, counts, ber_counts, curve)

    def _of_counts(self, counts: Counts | None, ber_counts: Counts | None) -> dict[str, float]:
        """Every metric that follows from the given counts."""
        values: dict[str, float] = {}
        if counts is not None:
            values = {"miou": miou(counts), "accuracy": accuracy(counts)}
            if self.task == "binary":
                iou, dice = overlaps(counts, empty=self.conventions.empty)
                values |= {"iou": iou, "jaccard": iou, "dice": dice}
        if ber_counts is not None:
            values["ber"] = ber(ber_counts)
        return values

    def images(self) -> dict[str, dict[str, float]]:
        """stem -> metric -> value, in the order of the stems; without images whose every pixel is ignored."""
        return {stem: dict(score.values) for stem, score in self._counted()}

    def ignored(self) -> list[str]:
        """Images that the split leaves out since every pixel of their masks is ignored."""
        return sorted(stem for stem, score in self._scores.items() if score.ignored)

    def _counted(self) -> list[tuple[str, ImageScore]]:
        return [(stem, self._scores[stem]) for stem in sorted(self._scores) if not self._scores[stem].ignored]

    def is_blank(self) -> bool:
        """Whether every prediction is background alone, and some mask is not."""
        counts = _sum([score.counts for _, score in self._counted()])
        return counts is not None and not counts[:, 1:].any() and bool(counts[1:].any())

    def foreground(self) -> float | None:
        """Mean share of foreground that was predicted over that of the masks; None for several classes, or where no mask has any."""
        counts = [score.counts for _, score in self._counted() if score.counts is not None]
        if self.task != "binary" or not counts:
            return None
        predicted = sum(int(each[:, 1].sum()) / int(each.sum()) for each in counts)
        true = sum(int(each[1].sum()) / int(each.sum()) for each in counts)
        return predicted / true if true else None

    def summary(self) -> dict[str, float]:
        """metric -> value of the split.

        The mean over images whose mask has a pixel that counts, except: the maximum of the E-measure is that of the mean
        curve (one threshold for the split); mIoU and accuracy, and with ``overlap: accumulated`` IoU, Dice, Jaccard and
        BER, come from counts summed over the split.

        Raises:
            ValueError: no image was scored.
            UsageError: every pixel of every mask is ignored.
        """
        if not self._scores:
            raise ValueError("no image was scored")
        if not (scores := [score for _, score in self._counted()]):
            raise UsageError("every pixel of every mask is ignored (255), so none is scored; give masks with classes")
        # fsum is exact, so the order of images cannot show.
        result = {name: math.fsum(score.values[name] for score in scores) / len(scores) for name in self.metrics}
        if "e_max" in result:
            curves = np.stack([score.e_curve for score in scores if score.e_curve is not None])
            result["e_max"] = max(math.fsum(column) / len(scores) for column in curves.T)
        totals = self._of_counts(_sum([score.counts for score in scores]), _sum([score.ber_counts for score in scores]))
        of_totals = {*CLASSES, *((*OVERLAP, "ber") if self.conventions.overlap == "accumulated" else ())}
        return result | {name: value for name, value in totals.items() if name in of_totals and name in result}


def _sum(counts: Sequence[Counts | None]) -> Counts | None:
    known = [each for each in counts if each is not None]
    return np.sum(known, axis=0) if known else None


BINS = 15
"""Bins of equal width, as in Guo et al. (1706.04599)."""
LEAST_PROBABILITY = float(np.finfo(np.float32).tiny)
"""Smallest probability in a score: a float32 of 0 must not give an infinite NLL, so that is at most 87.34 nats."""


class LabelScorer(SplitScorer):
    """`SplitScorer` for a task ``classification``: a prediction is (C, 1, 1) probabilities, a target (1, 1) a class index.

    An image's own ``ece`` is that of a split of this image alone, |correct − confidence|. The split's is computed over all images
    (`summary`), not their mean.
    """

    known = LABEL_METRICS

    def measure(self, scores: NDArray, mask: NDArray[np.uint8]) -> ImageScore:
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
        return ImageScore({name: values[name] for name in self.metrics}, predicted=(confidence, correct))

    def summary(self) -> dict[str, float]:
        """The mean over images, and `calibration_error` of the split."""
        result = super().summary()
        if "ece" in result:
            result["ece"] = calibration_error([score.predicted for score in self._scores.values() if score.predicted])
        return result


def calibration_error(predicted: Sequence[tuple[float, bool]], *, bins: int = BINS) -> float:
    """ECE (1706.04599): Σ over bins of confidence, (its images / all) · |their accuracy − their mean confidence|.

    A bin holds its lower bound and not its upper one, except the last, which holds 1.

    Args:
        predicted: the confidence of each image, and whether its prediction is correct.
    """
    gaps: dict[int, list[float]] = {}
    for confidence, correct in predicted:
        gaps.setdefault(min(int(confidence * bins), bins - 1), []).append(correct - confidence)
    # fsum is exact, so the order of images cannot show.
    return math.fsum(abs(math.fsum(gap)) for gap in gaps.values()) / len(predicted)
