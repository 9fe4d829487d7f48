"""Mask2Former on a plain ViT: transformers' own modules, their counts, and what becomes of their predictions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from harness.models import decoders
from harness.models.build import build_segmenter
from harness.models.catalog import backbone
from harness.models.segmenter import QuerySegmenter, SegmenterOutput, probabilities
from harness.protocols.card import Protocol
from harness.training.losses import OfEveryLayer, build_loss
from tests.harness.models.images import random_images

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def segmenter() -> QuerySegmenter:
    built = build_segmenter("tiny_timm", task="multiclass", num_classes=4, decoder="mask2former", image_size=64)
    assert isinstance(built, QuerySegmenter)
    return built


def test_what_it_says_is_what_transformers_modules_say_of_the_pyramid(segmenter: QuerySegmenter) -> None:
    inner: Any = segmenter.eval().decoder.model
    with torch.no_grad():
        output = segmenter(random_images())
        maps = inner.model.pixel_level_module.encoder.pyramid(segmenter.encode(random_images()))
        pixels = inner.model.pixel_level_module.decoder(maps)
        said = inner.model.transformer_module(
            multi_scale_features=pixels.multi_scale_features,
            mask_features=pixels.mask_features,
            output_hidden_states=True,
        )
        classes = inner.class_predictor(said.intermediate_hidden_states[-1].transpose(0, 1))
    assert [tuple(level.shape[1:]) for level in maps] == [(16, 16, 16), (32, 8, 8), (64, 4, 4), (64, 2, 2)]
    torch.testing.assert_close(output.masks, said.masks_queries_logits[-1], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(output.classes, classes, atol=1e-6, rtol=1e-5)
    assert output.masks.shape == (2, 100, 16, 16)
    assert output.classes.shape == (2, 100, 5)


def test_every_layer_is_learnt_from_in_training_and_the_last_alone_is_used_otherwise(segmenter: QuerySegmenter):
    with torch.no_grad():
        assert len(segmenter.train()(random_images()).auxiliary) == 9
        assert segmenter.eval()(random_images()).auxiliary == ()


def test_several_classes_are_scored_as_transformers_post_processing_does(segmenter: QuerySegmenter) -> None:
    from transformers import Mask2FormerImageProcessor

    with torch.no_grad():
        output = segmenter.eval()(random_images())
    said = SimpleNamespace(class_queries_logits=output.classes, masks_queries_logits=output.masks)
    maps: Any = Mask2FormerImageProcessor().post_process_semantic_segmentation(said)  # at 384 px
    ours = probabilities(output, (384, 384)).argmax(dim=1)
    assert (torch.stack(maps) == ours).float().mean() > 0.9999  # ties by rounding


def test_of_background_and_foreground_the_probability_is_the_foregrounds_share() -> None:
    masks = torch.tensor([[[[2.0]], [[-1.0]]]])
    classes = torch.tensor([[[0.0, 1.0, 3.0], [2.0, 0.0, -1.0]]])
    chance = probabilities(SegmenterOutput(masks, classes, foreground=True), (1, 1))
    weights, seen = classes.softmax(-1)[0], masks.sigmoid()[0, :, 0, 0]
    back, front = (float((weights[:, place] * seen).sum()) for place in (0, 1))
    assert chance.shape == (1, 1, 1)
    assert float(chance) == pytest.approx(front / (back + front), rel=1e-6)


def test_operations_are_those_that_torch_counts(segmenter: QuerySegmenter) -> None:
    counted = []
    for run in (segmenter.eval(), segmenter.encode):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            run(random_images()[:1])
        counted.append(counter.get_total_flops())
    shape, own = backbone("tiny_timm").shape, backbone("tiny_timm").decoder
    sizes = {"width": own.dim, "mlp": own.mlp_dim, "heads": own.heads}
    operations = decoders.mask2former_flops(dim=shape.dim, tokens=(64 // shape.patch) ** 2, **sizes)
    assert operations == pytest.approx(counted[0] - counted[1], rel=2e-3)


def test_one_seed_gives_one_decoder_and_leaves_torchs_generator_alone() -> None:
    states = []
    for burn in (0, 3):
        torch.rand(burn)
        before = torch.get_rng_state()
        built = build_segmenter("tiny_timm", task="binary", decoder="mask2former", image_size=64, head_seed=4)
        assert torch.equal(torch.get_rng_state(), before)
        states.append(built.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_the_loss_is_the_sum_over_the_layers_and_reaches_every_parameter(segmenter: QuerySegmenter) -> None:
    loss = build_loss(Protocol(name="x", decoder="mask2former"), task="multiclass", num_classes=4)
    assert isinstance(loss, OfEveryLayer)
    target = torch.zeros(2, 64, 64, dtype=torch.uint8)
    target[:, 20:40, 10:50], target[:, :5] = 3, 255
    output = segmenter.train()(random_images())
    total = loss(output, target)
    each = [loss.loss(layer, target) for layer in (output._replace(auxiliary=()), *output.auxiliary)]
    torch.testing.assert_close(total, torch.stack(each).sum())
    total.backward()
    assert not [name for name, p in segmenter.named_parameters() if p.grad is None]
    segmenter.zero_grad()
