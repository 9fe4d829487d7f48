"""The closed form of a training step's memory, against what was counted on a GPU's kernels."""

from __future__ import annotations

from typing import Any

import pytest

from harness.archive.schema import Run
from harness.methods.lora import LoRAConfig
from harness.models.catalog import backbone_shape
from harness.planning.work import activation_bytes, parameters, training_bytes
from tests.harness.report.sample import record


def made(*, rules: dict[str, Any] | None = None, **changes: Any) -> Run:
    size = {"image_size": 1024, "precision": "bf16", "batch_size": 4, "mask_tokens": 1}
    return record(rules={**size, **(rules or {})}, **changes).run


@pytest.mark.parametrize(("method", "gib", "in_all"), [("lora", 22.0, 24.4), ("full", 32.8, 42.3)])
def test_activations_are_those_that_a_gpus_kernels_keep(method: str, gib: float, in_all: float) -> None:
    """ViT-H at 1024 px, batch 4, bf16; less where they are recomputed, and where gradients stop early."""
    shape, run = backbone_shape("vit_h"), made(method=method, config={}, backbone="vit_h")
    kept = activation_bytes(run, shape)
    assert kept / 2**30 == pytest.approx(gib, rel=0.03)
    assert training_bytes(run) / 2**30 == pytest.approx(in_all, rel=0.03)
    recomputed = made(method=method, config={}, backbone="vit_h", rules={"activation_checkpointing": True})
    assert activation_bytes(recomputed, shape) < 0.2 * kept
    frozen = made(method="decoder", config={}, backbone="vit_h")
    assert activation_bytes(frozen, shape) < 0.06 * kept


@pytest.mark.parametrize(
    ("backbone", "rules", "kinds", "gib"),
    [
        ("vit_b", {}, {}, 5.5),
        ("vit_b", {}, {"global": "math", "window": "math"}, 24.1),
        ("vit_b", {"attention": "math"}, {}, 24.1),
        ("vit_b", {"fused_attention": False}, {"global": "widened"}, 24.1),
        ("vit_h", {}, {"window": "math"}, 28.1),
    ],
)
def test_a_score_matrix_takes_the_memory_that_was_counted(backbone: str, rules: dict, kinds: dict, gib: float) -> None:
    """Under LoRA at 1024 px, batch 4, bf16."""
    run = made(backbone=backbone, rules=rules)
    assert activation_bytes(run, backbone_shape(backbone), kinds) / 2**30 == pytest.approx(gib, rel=0.06)


def test_runs_that_train_a_weight_more_keep_it_its_gradient_and_moments() -> None:
    four, eight = (made(backbone="vit_b", config={"rank": rank}) for rank in (4, 8))
    shape = backbone_shape("vit_b")
    more = LoRAConfig(rank=8).encoder_parameters(shape) - LoRAConfig(rank=4).encoder_parameters(shape)
    assert training_bytes(eight) - training_bytes(four) == 4 * 4 * more > 0
    (encoder, trained, total), (wider, also, whole) = parameters(four), parameters(eight)
    assert wider - encoder == also - trained == whole - total == more


PLAIN = "timm/vit_base_patch16_224"


@pytest.mark.parametrize(
    ("method", "backbone", "rules", "activations", "in_all"),
    [
        ("lora", "vit_b", {}, 5_920_669_696, 6_339_447_488),
        ("decoder", "tiny", {"image_size": 128, "precision": "fp32", "batch_size": 1}, 1_802_240, 5_106_336),
        ("full", "tiny", {"image_size": 128, "activation_checkpointing": True}, 5_278_080, 12_146_464),
        ("full", "tiny_mobile_sam", {"image_size": 128}, 7_829_504, 12_899_376),
        ("lora", "tiny_sam2", {"image_size": 128, "precision": "fp32"}, 15_337_472, 18_870_692),
        ("lora", "tiny", {"image_size": 96, "attention": "bias"}, 3_443_328, 6_787_360),
        ("lora", PLAIN, {"image_size": 224, "decoder": "linear"}, 210_968_576, 555_957_280),
        ("lora", PLAIN, {"image_size": 224, "decoder": "mask-transformer"}, 276_372_992, 876_522_048),
        ("lora", PLAIN, {"image_size": 224, "decoder": "mask2former"}, 2_381_231_104, 3_089_537_072),
    ],
)
def test_the_closed_form_gives_the_bytes_that_it_gave(
    method: str, backbone: str, rules: dict[str, Any], activations: float, in_all: float
) -> None:
    run = made(method=method, config={}, backbone=backbone, rules=rules)
    assert (activation_bytes(run, backbone_shape(backbone)), training_bytes(run)) == (activations, in_all)
