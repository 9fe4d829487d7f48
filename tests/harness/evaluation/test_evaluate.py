from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch

from harness.evaluation.conventions import METRICS
from harness.evaluation.evaluate import Stopped, evaluate_split
from harness.evaluation.scorer import SplitScorer
from tests.harness.evaluation.pairs import random_pairs


def items(count=13):
    made = []
    for name, prediction, mask in random_pairs(count, seed=9):
        image = torch.nn.functional.interpolate(torch.from_numpy(prediction[None, None] / 255).float(), (32, 32))[0]
        made.append((name, image.expand(3, 32, 32), mask))
    return made


def first_channel(images):
    assert not torch.is_grad_enabled()
    return images[:, 0]


def test_scores_equal_those_of_images_scored_one_by_one():
    expected = SplitScorer(METRICS)
    for name, image, mask in items():
        expected.insert(name, expected.measure(image[0].numpy(), mask))
    scores = evaluate_split(first_channel, items(), SplitScorer(METRICS), batch_size=4)
    assert scores.images() == expected.images()
    assert scores.summary() == expected.summary()


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_workers_and_batches_change_nothing(workers, batch_size):
    expected = evaluate_split(first_channel, items(), SplitScorer(METRICS)).summary()
    scorer = SplitScorer(METRICS)
    assert evaluate_split(first_channel, items(), scorer, batch_size=batch_size, workers=workers) is scorer
    assert scorer.summary() == expected


def test_multiclass_scores_are_argmaxed():
    mask = np.random.default_rng(0).integers(0, 3, (32, 32)).astype(np.uint8)
    image = torch.from_numpy(np.stack([mask == label for label in range(3)]).astype(np.float32))
    scorer = SplitScorer(["miou", "accuracy"], task="multiclass", num_classes=3)
    evaluate_split(lambda images: images, [("a", image, mask)], scorer)
    assert scorer.summary() == {"miou": 1.0, "accuracy": 1.0}


def test_a_prediction_that_is_not_finite_names_its_image():
    with pytest.raises(ValueError, match=r"image '0:soft .*finite"):
        evaluate_split(lambda images: images[:, 0] * torch.nan, items(), SplitScorer(["iou"]))


def test_what_waits_for_scoring_is_bounded():
    """A slow scorer holds the forward passes back, instead of letting predictions fill the memory."""
    ahead: list[Any] = []

    class Slow(SplitScorer):
        def measure(self, scores, mask):
            time.sleep(0.005)
            return super().measure(scores, mask)

    scorer = Slow(["iou"])

    def predict(images):
        ahead.append(len(ahead) + 1 - len(scorer))
        return images[:, 0]

    evaluate_split(predict, items(40), scorer, workers=2)
    assert len(scorer) == 40
    assert max(ahead) <= 2 * 2 + 1 + 1 + 1  # one batch is under way while the one before is read


def test_a_stop_is_heard_before_the_next_batch():
    batches: list[int] = []

    def predict(images):
        batches.append(len(images))
        return images[:, 0]

    scorer = SplitScorer(["iou"])
    with pytest.raises(Stopped):
        evaluate_split(predict, items(), scorer, batch_size=2, stop=lambda: len(batches) == 2)
    assert batches == [2, 2]
