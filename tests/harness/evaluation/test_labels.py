"""Scores of labels, against torchmetrics and scikit's definitions written out by torch."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from harness.evaluation.conventions import LABEL_METRICS, higher_is_better
from harness.evaluation.evaluate import evaluate_split
from harness.evaluation.scorer import LabelScorer, SplitScorer, calibration_error
from harness.system.errors import UsageError


def _drawn(images: int, classes: int, *, seed: int, sharpness: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(images, classes, generator=generator)
    labels = torch.where(
        torch.rand(images, generator=generator) < 0.7,
        logits.argmax(dim=1),
        torch.randint(0, classes, (images,), generator=generator),
    )
    return logits, labels


def _scored(logits: torch.Tensor, labels: torch.Tensor, *, order: list[int] | None = None) -> LabelScorer:
    scorer = LabelScorer(LABEL_METRICS, task="classification", num_classes=logits.shape[1])
    probabilities = logits.softmax(dim=1).numpy()
    for index in order or range(len(logits)):
        target = np.array([[int(labels[index])]], dtype=np.uint8)
        scorer.insert(f"class/{index}", scorer.measure(probabilities[index, :, None, None], target))
    return scorer


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("sharpness", [0.3, 2.0])
def test_scores_of_a_split_are_those_of_torchmetrics(classes: int, sharpness: float) -> None:
    for seed in range(5):
        logits, labels = _drawn(200, classes, seed=seed, sharpness=sharpness)
        summary = _scored(logits, labels).summary()
        accuracy = multiclass_accuracy(logits, labels, num_classes=classes, average="micro")
        error = multiclass_calibration_error(logits.softmax(dim=1), labels, num_classes=classes, n_bins=15, norm="l1")
        assert summary["accuracy"] == pytest.approx(float(accuracy), abs=1e-6)
        assert summary["ece"] == pytest.approx(float(error), abs=1e-5)
        assert summary["nll"] == pytest.approx(float(cross_entropy(logits, labels)), rel=1e-5)


def test_an_images_scores_are_those_of_a_split_of_it_alone() -> None:
    logits, labels = _drawn(20, 4, seed=1, sharpness=2.0)
    every = _scored(logits, labels).images()
    for index in range(20):
        alone = _scored(logits[index : index + 1], labels[index : index + 1]).summary()
        assert every[f"class/{index}"] == pytest.approx(alone)


def test_order_and_parts_change_nothing() -> None:
    logits, labels = _drawn(60, 3, seed=2, sharpness=1.0)
    whole = _scored(logits, labels).summary()
    assert _scored(logits, labels, order=random.Random(0).sample(range(60), 60)).summary() == whole
    first, second = _scored(logits, labels, order=[*range(20)]), _scored(logits, labels, order=[*range(20, 60)])
    first.merge(second)
    assert first.summary() == whole


def test_a_hopeless_and_a_certain_prediction_have_finite_scores() -> None:
    scorer = LabelScorer(LABEL_METRICS, task="classification", num_classes=2)
    certain = np.array([1.0, 0.0], dtype=np.float32)[:, None, None]
    right = scorer.measure(certain, np.zeros((1, 1), np.uint8)).values
    wrong = scorer.measure(certain, np.ones((1, 1), np.uint8)).values
    assert right == {"accuracy": 1.0, "nll": 0.0, "ece": 0.0}
    assert wrong == {"accuracy": 0.0, "nll": pytest.approx(87.336, abs=1e-2), "ece": 1.0}


def test_a_confidence_of_one_is_in_the_last_bin_and_a_bound_in_the_bin_above() -> None:
    assert calibration_error([(1.0, False), (0.97, True)]) == pytest.approx(abs(-1.0 + 0.03) / 2)
    assert calibration_error([(1 / 3, True), (0.35, False)], bins=3) == pytest.approx(abs(2 / 3 - 0.35) / 2)


@pytest.mark.parametrize(
    ("scores", "label", "why"),
    [
        ([0.5, 0.5, 0.0], 0, "cannot score"),
        ([0.5, 0.6], 0, "sum to 1"),
        ([1.5, -0.5], 0, "at least 0"),
        ([float("nan"), 0.5], 0, "finite"),
        ([0.5, 0.5], 2, "class 2"),
    ],
)
def test_an_invalid_distribution_over_the_classes_is_refused(scores: list[float], label: int, why: str) -> None:
    scorer = LabelScorer(LABEL_METRICS, task="classification", num_classes=2)
    with pytest.raises(ValueError, match=why):
        scorer.measure(np.array(scores)[:, None, None], np.full((1, 1), label, np.uint8))


def test_metrics_of_masks_and_of_labels_are_kept_apart() -> None:
    with pytest.raises(UsageError, match="unknown metric 'iou'"):
        LabelScorer(["iou"], task="classification")
    with pytest.raises(UsageError, match="unknown metric 'ece'"):
        SplitScorer(["ece"])
    assert [metric for metric in LABEL_METRICS if not higher_is_better(metric)] == ["nll", "ece"]


def test_a_split_is_evaluated_as_one_of_masks_is() -> None:
    logits, labels = _drawn(10, 3, seed=4, sharpness=1.0)
    items = [(f"{n}", logits[n], np.full((1, 1), int(labels[n]), np.uint8)) for n in range(10)]
    scorer = LabelScorer(LABEL_METRICS, task="classification", num_classes=3)
    scores = evaluate_split(lambda x: x.softmax(dim=1)[..., None, None], items, scorer, batch_size=4)
    assert scores.summary() == _scored(logits, labels).summary()
