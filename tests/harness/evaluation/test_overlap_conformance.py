"""IoU, Dice, BER, mIoU and accuracy against torchmetrics, to 1e-6."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.evaluation.conventions import Conventions
from harness.evaluation.scorer import SplitScorer
from tests.harness.evaluation.pairs import random_pairs

pytest.importorskip("torchmetrics", reason="torchmetrics is in the test extra: pip install -e .[test]")
classification = pytest.importorskip("torchmetrics.classification")
functional = pytest.importorskip("torchmetrics.functional.classification")

METRICS = ("iou", "jaccard", "dice", "ber")
TOLERANCE = 1e-6


def reference(prediction, mask, *, threshold=0.5, ber_threshold=125 / 255):
    """Values of one image; torchmetrics gives 0 where mask and prediction both are empty."""
    scores, truth = torch.as_tensor(prediction, dtype=torch.float64), torch.as_tensor(mask).int()
    overlap = functional.binary_jaccard_index(scores, truth, threshold, ignore_index=255)
    f1 = functional.binary_f1_score(scores, truth, threshold, ignore_index=255)
    recall = functional.binary_recall(scores, truth, ber_threshold, ignore_index=255)
    specificity = functional.binary_specificity(scores, truth, ber_threshold, ignore_index=255)
    present = [rate for rate, label in ((recall, 1), (specificity, 0)) if (mask == label).any()]
    return {
        "iou": overlap.item(),
        "jaccard": overlap.item(),
        "dice": f1.item(),
        "ber": 1 - sum(rate.item() for rate in present) / len(present),
    }


@pytest.mark.parametrize(("pairs", "ignored"), [(200, 0.0), (40, 0.3)])
def test_pairs_equal_torchmetrics_with_and_without_ignored_pixels(pairs, ignored):
    rng = np.random.default_rng(2)
    scorer = SplitScorer(METRICS, conventions=Conventions(empty=0.0))
    for name, prediction, mask in random_pairs(pairs, seed=pairs):
        mask[rng.random(mask.shape) < ignored] = 255
        expected, scores = reference(prediction / 255, mask), scorer.measure(prediction / 255, mask).values
        assert scores == {metric: pytest.approx(expected[metric], abs=TOLERANCE) for metric in METRICS}, name


def test_accumulated_overlap_equals_torchmetrics_over_the_split():
    scorer = SplitScorer(METRICS, conventions=Conventions(overlap="accumulated"))
    jaccard, f1 = classification.BinaryJaccardIndex(), classification.BinaryF1Score()
    for name, prediction, mask in random_pairs(30, seed=4):
        scorer.insert(name, scorer.measure(prediction / 255, mask))
        jaccard.update(torch.as_tensor(prediction / 255), torch.as_tensor(mask).int())
        f1.update(torch.as_tensor(prediction / 255), torch.as_tensor(mask).int())
    summary = scorer.summary()
    assert summary["iou"] == summary["jaccard"] == pytest.approx(jaccard.compute().item(), abs=TOLERANCE)
    assert summary["dice"] == pytest.approx(f1.compute().item(), abs=TOLERANCE)
    per_image = [values["iou"] for values in scorer.images().values()]
    assert summary["iou"] != pytest.approx(np.mean(per_image), abs=1e-2)


def test_accumulated_ber_is_that_of_all_pixels_as_one_image():
    pairs = [(prediction / 255, mask) for _, prediction, mask in random_pairs(12, seed=5)]
    scorer = SplitScorer(["ber"], conventions=Conventions(overlap="accumulated"))
    for index, (prediction, mask) in enumerate(pairs):
        scorer.insert(str(index), scorer.measure(prediction, mask))
    whole = [np.concatenate([pair[part].ravel() for pair in pairs])[None] for part in (0, 1)]
    assert scorer.summary()["ber"] == pytest.approx(reference(*whole)["ber"], abs=TOLERANCE)


@pytest.mark.parametrize("classes", [3, 12])
def test_multiclass_split_equals_torchmetrics(classes):
    """Classes that occur nowhere (class 2 and the last here) are left out of the mean, in both."""
    rng = np.random.default_rng(classes)
    scorer = SplitScorer(["miou", "accuracy"], task="multiclass", num_classes=classes)
    overlap = classification.MulticlassJaccardIndex(classes, ignore_index=255)
    right = classification.MulticlassAccuracy(classes, average="micro", ignore_index=255)
    for index in range(8):
        scores = rng.standard_normal((classes, 40, 30)).astype(np.float32)
        scores[classes - 1] = -9
        mask = rng.integers(0, classes - 1, (40, 30)).astype(np.uint8)
        mask[scores.argmax(axis=0) == 0] = 0
        mask[rng.random(mask.shape) < 0.2] = 255
        scorer.insert(str(index), scorer.measure(scores, mask))
        overlap.update(torch.as_tensor(scores).argmax(dim=0)[None], torch.as_tensor(mask)[None].int())
        right.update(torch.as_tensor(scores).argmax(dim=0)[None], torch.as_tensor(mask)[None].int())
    assert scorer.summary()["miou"] == pytest.approx(overlap.compute().item(), abs=TOLERANCE)
    assert scorer.summary()["accuracy"] == pytest.approx(right.compute().item(), abs=TOLERANCE)
