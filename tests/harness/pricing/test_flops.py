"""The closed form of work and memory, against counters and against what was counted on a GPU's kernels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from harness.archive.schema import Record
from harness.costing.instruments import flop_counter
from harness.methods.parts.placement import BackboneShape
from harness.models.attention_choice import apply_choice
from harness.models.build import build_segmenter
from harness.models.catalog import backbone_shape
from harness.planning.data import ImageCounts
from harness.planning.work import decoder_flops, encoder_flops, forward_flops, run_flops, step_flops
from harness.registry import METHODS, method_config
from tests.harness.report.sample import record

RULES = {"image_size": 128, "precision": "fp32", "batch_size": 4, "epochs": 10, "select_every": 1, "merge": []}
IMAGES = ImageCounts(train=100, val=10, test=20)


def without_positions(backbone: str) -> BackboneShape:
    """Its shape with heads that are not widened, as operation counters see a CPU compute it."""
    shape = backbone_shape(backbone)
    return replace(shape, relative_positions="" if shape.relative_positions == "axes" else shape.relative_positions)


def made(**changes: Any) -> Record:
    rules = {**RULES, **changes.pop("rules", {})}
    return record(rules=rules, **changes)


def test_every_merged_model_is_tested_once_more() -> None:
    shape = backbone_shape("tiny")
    none, two = (made(rules={"merge": modes}).run for modes in ([], ["exact", "calibrated"]))
    more = run_flops(two, IMAGES) - run_flops(none, IMAGES)
    assert more == pytest.approx(2 * IMAGES.test * forward_flops(two, shape))


def test_a_mixture_is_tested_once_more_as_the_operation_that_it_chose() -> None:
    once, twice = (
        run_flops(made(method="naslora", config={"operations": names}).run, IMAGES)
        - run_flops(made(method="naslora", config={"operations": names}).run, IMAGES._replace(test=0))
        for names in ("skip_connect", "skip_connect,sep_conv_3x3")
    )
    assert twice == pytest.approx(1.5 * once)


def test_augmented_images_pass_a_frozen_encoder_in_every_epoch() -> None:
    shape = backbone_shape("tiny")
    rules = {"cache_embeddings": True, "flip": 0.5, "augment": []}
    kept, augmented = (
        run_flops(run, IMAGES) / (forward_flops(run, shape) - decoder_flops(shape, image_size=128))
        for run in (made(method="decoder", rules={**rules, "augment": names}).run for names in ([], ["rotate"]))
    )
    assert augmented - kept == pytest.approx((10 - 2) * IMAGES.train)


def test_a_frozen_encoder_encodes_no_more_images_than_training_sees() -> None:
    shape = backbone_shape("tiny")
    head = decoder_flops(shape, image_size=128)
    five, six = (
        made(method="decoder", rules={"cache_embeddings": True, "flip": 0.5, "epoch_images": count}).run
        for count in (5, 6)
    )
    more = run_flops(six, IMAGES) - run_flops(five, IMAGES)
    assert more == pytest.approx(10 * (forward_flops(five, shape) - head + 3 * head))


@pytest.mark.parametrize("method", ["lora", "decoder", "full"])
def test_gradient_that_stops_early_costs_less(method: str) -> None:
    shape = without_positions("vit_b")
    run = made(method=method, rules={"image_size": 1024}).run
    ratio = step_flops(run, shape) / forward_flops(run, shape)
    low, high = {"lora": (2.1, 2.4), "decoder": (1.0, 1.1), "full": (2.9, 3.2)}[method]
    assert low <= ratio <= high
    if method == "lora":
        half = made(config={"blocks": "last-half"}, rules={"image_size": 1024}).run
        assert 0.7 < step_flops(half, shape) / step_flops(run, shape) < 0.8


@pytest.mark.parametrize("name", ["tiny", "tiny_sam2", "tiny_sam3"])
def test_closed_form_flops_of_sams_decoders_are_those_of_their_layers_that_read_the_image(name: str) -> None:
    segmenter = build_segmenter(name, task="binary", fused_attention=False).eval()
    with torch.no_grad():
        encoded = segmenter.encode(torch.zeros(1, 3, 128, 128))
        with FlopCounterMode(display=False) as counter:
            segmenter.decode(encoded)
    of_image = (
        "token_to_image.k_proj", "token_to_image.v_proj", "image_to_token.q_proj", "image_to_token.out_proj",
        "output_upscaling.0", "output_upscaling.3", "conv_s0", "conv_s1",
    )  # fmt: skip
    counted = (sum(counts.values()) for part, counts in counter.get_flop_counts().items() if part.endswith(of_image))
    assert decoder_flops(backbone_shape(name), image_size=128) == sum(counted)


@pytest.mark.parametrize("decoder", ["mask-transformer", "mask2former"])
def test_closed_form_flops_of_other_decoders_are_those_that_are_counted(decoder: Any) -> None:
    """What is left out: class tokens and deformable sampling."""
    if decoder == "mask2former":
        pytest.importorskip("transformers")
    name = "timm/vit_small_patch14_dinov2"
    segmenter = build_segmenter(name, task="binary", decoder=decoder, image_size=196, fused_attention=False).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        segmenter.decode(torch.zeros(1, 384, 14, 14))
    ours = decoder_flops(backbone_shape(name, 196), image_size=196, decoder=decoder)
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_a_decoder_changes_the_price_of_a_run() -> None:
    shape = backbone_shape("timm/vit_base_patch16_224", 224)
    runs = {
        name: made(backbone="timm/vit_base_patch16_224", rules={"image_size": 224, "decoder": name}).run
        for name in ("sam", "linear", "mask-transformer", "mask2former")
    }
    work = {name: forward_flops(run, shape) for name, run in runs.items()}
    encoder = sum(encoder_flops(shape, image_size=224, decoder="linear"))
    assert work["linear"] == encoder < work["sam"] < work["mask2former"]
    assert work["mask-transformer"] - work["linear"] == pytest.approx(2 * 196 * 26 * 768**2 + 2 * 4 * 196**2 * 768)


@pytest.mark.parametrize(
    "method", ["naslora", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lora", "full"))]
)
@pytest.mark.parametrize("backbone", ["vit_b", pytest.param("vit_h", marks=pytest.mark.slow)])
def test_a_step_needs_what_its_kernels_count(backbone: str, method: str) -> None:
    """Per image at 1024 px, with the heads that relative positions widen, on tensors without values."""
    with torch.device("meta"):
        segmenter = build_segmenter(backbone, task="binary", image_size=1024, head_seed=0)
        METHODS.get(method)(method_config(method, {}), seed=0).attach(segmenter)
    apply_choice(segmenter, {"global": "widened", "window": "widened"})

    def without_values(x: Any) -> Any:
        made = torch.empty(x.shape, dtype=x.dtype)
        return nn.Parameter(made, x.requires_grad) if isinstance(x, nn.Parameter) else made

    with FakeTensorMode(), flop_counter() as counter:
        for part in segmenter.modules():
            for kept in (part._parameters, part._buffers):
                kept.update({name: without_values(x) for name, x in kept.items() if x is not None})
        segmenter.train()(torch.empty(1, 3, 1024, 1024)).masks.sum().backward()
    run = made(method=method, config={}, backbone=backbone, rules={"image_size": 1024}).run
    assert step_flops(run, backbone_shape(backbone)) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_methods_with_gradients_of_whole_weights_cost_more() -> None:
    shape = without_positions("vit_b")
    names = ("lora", "hira", "peft/oft", "peft/loha")
    runs = {name: made(method=name, config={}, rules={"image_size": 1024}).run for name in names}
    flops = {name: step_flops(run, shape) for name, run in runs.items()}
    assert flops["lora"] == flops["peft/oft"] < 0.96 * flops["hira"] < 0.96 * flops["peft/loha"]
