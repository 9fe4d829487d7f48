from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch

from harness.evaluation import evaluate as module
from harness.evaluation.conventions import METRICS, Conventions
from harness.evaluation.evaluate import Stopped, evaluate_split
from harness.evaluation.scorer import SplitScorer
from harness.models.device import to_host
from tests.harness.evaluation.pairs import random_pairs
from tests.rehearsal.device import pretended


def items(count=13):
    made = []
    for name, prediction, mask in random_pairs(count, seed=9):
        image = torch.nn.functional.interpolate(torch.from_numpy(prediction[None, None] / 255).float(), (32, 32))[0]
        made.append((name, image.expand(3, 32, 32), mask))
    return made


def first_channel(images):
    assert not torch.is_grad_enabled()
    return images[:, :1] if len(images) > 1 else images[:, 0]  # masks may have an axis of one channel, or none


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_scores_equal_those_of_images_scored_one_by_one(workers, batch_size):
    expected = SplitScorer(METRICS)
    for name, image, mask in items():
        expected.insert(name, expected.measure(image[0].numpy(), mask))
    scores = evaluate_split(first_channel, items(), SplitScorer(METRICS), batch_size=batch_size, workers=workers)
    assert scores.images() == expected.images()
    assert scores.summary() == expected.summary()


@pytest.mark.parametrize("resolution", ["native", "input"])
def test_a_gpu_sends_labels_of_one_byte_a_pixel_that_score_as_class_scores_do(resolution: Any, monkeypatch) -> None:
    generator, sent = np.random.default_rng(4), list[torch.Tensor]()
    masks = [generator.integers(0, 3, size).astype(np.uint8) for size in ((40, 24), (32, 32), (17, 50))]
    coarse = [torch.from_numpy(generator.random((3, 4, 4), dtype=np.float32)) for _ in masks]
    images = [torch.nn.functional.interpolate(each[None], size=(32, 32), mode="bilinear")[0] for each in coarse]
    batch = [(str(number), image, mask) for number, (image, mask) in enumerate(zip(images, masks, strict=True))]
    shown: dict[str, list[Any]] = {name: [] for name, _, _ in batch}

    def scored(predict: Any) -> SplitScorer:
        rules = Conventions(resolution=resolution)
        scorer = SplitScorer(["miou", "accuracy"], task="multiclass", num_classes=3, conventions=rules)
        return evaluate_split(predict, batch, scorer, batch_size=2, seen=lambda stem, seen: shown[stem].append(seen))

    monkeypatch.setattr(module, "to_host", lambda tensor: sent.append(tensor) or to_host(tensor))  # type: ignore[func-returns-value]
    expected = scored(lambda images: images)
    assert sent.pop().dtype == torch.float32
    sent.clear()
    with pretended():
        assert scored(lambda images: images.to("cuda")).images() == expected.images()
        assert {tensor.dtype for tensor in sent} == {torch.uint8}
        with pytest.raises(ValueError, match=r"image '0'.*labels must be integers"):
            scored(lambda images: images.to("cuda") * torch.nan)
    for scores, labels, *_ in shown.values():
        np.testing.assert_array_equal(scores.argmax(axis=0), labels)


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
