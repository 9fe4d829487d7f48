"""Closed forms against modules, on the meta device, and messages for unknown names."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from segment_anything import sam_model_registry

from harness.models.build import build_segmenter
from harness.models.catalog import (
    backbone,
    backbone_shape,
    decoder_parameters,
    encoder_parameters,
    resolve_backbone,
    total_parameters,
)
from harness.models.decoders import LABELLING, Task
from harness.models.known import IMAGENET
from harness.models.original_sam import plain_sam
from harness.system.errors import UsageError

KNOWN_TIMM = ["timm/vit_tiny_patch16_224", "timm/vit_small_patch14_dinov2", "timm/vit_base_patch14_reg4_dinov2"]


@pytest.mark.parametrize(("name", "published"), [("vit_b", 93_735_472), ("vit_l", 312_342_832), ("vit_h", 641_090_608)])
def test_totals_equal_segment_anything(name: str, published: int) -> None:
    with torch.device("meta"):
        sam = sam_model_registry[name]()
    assert sum(p.numel() for p in sam.parameters()) == published
    assert total_parameters(name, task="binary") == published


UNDER_SAMS_DECODER = [
    "tiny", "vit_b", "vit_h", "tiny_timm", *KNOWN_TIMM, "timm/deit3_small_patch16_224", "tiny_dinov3",
    "timm/vit_base_patch16_clip_224", "tiny_sam2", "timm/vit_large_patch16_dinov3",
]  # fmt: skip
SEGMENTING: tuple[Task, ...] = ("binary", "multiclass")
DECODED = [
    *((name, "sam", task) for name in UNDER_SAMS_DECODER for task in SEGMENTING),
    *(
        ("timm/vit_small_patch14_dinov2", decoder, task)
        for decoder in ("linear", "mask-transformer")
        for task in SEGMENTING
    ),
    ("tiny_timm", "mask2former", "binary"),
    ("timm/vit_small_patch14_dinov2", "mask2former", "multiclass"),
    *(("tiny_timm", decoder, "classification") for decoder in LABELLING),
]


@pytest.mark.parametrize(("name", "decoder", "task"), DECODED)
def test_counts_equal_those_of_the_modules(name: str, decoder: str, task: Task) -> None:
    if decoder == "mask2former":
        pytest.importorskip("transformers")
    patch = backbone_shape(name).patch
    given: dict[str, Any] = {"task": task, "num_classes": 2 if task == "binary" else 12, "decoder": decoder}
    given |= {"mask_tokens": 10} if decoder == "sam" else {}
    with torch.device("meta"):
        segmenter = build_segmenter(name, image_size=16 * patch, **given)
    trained = sum(p.numel() for _, p in segmenter.decoder_parameters())
    assert trained == decoder_parameters(name, **given)
    assert sum(p.numel() for p in segmenter.encoder.parameters()) == encoder_parameters(name, image_size=16 * patch)
    assert sum(p.numel() for p in segmenter.parameters()) == total_parameters(name, image_size=16 * patch, **given)


@pytest.mark.parametrize("name", ["vit_b", "vit_h", "mobile_sam", "sam2_hiera_large"])
def test_sams_normalisation_is_that_of_segment_anything(name: str) -> None:
    sam = plain_sam("tiny")
    for own, theirs in zip(backbone(name).pixels, (sam.pixel_mean, sam.pixel_std), strict=True):
        assert [255 * value for value in own] == pytest.approx(theirs.flatten().tolist(), abs=1e-3)


def test_models_of_timm_bring_their_own() -> None:
    assert backbone("timm/vit_base_patch16_clip_224").pixels[0] == (0.48145466, 0.4578275, 0.40821073)
    assert backbone("timm/vit_base_patch14_dinov2").pixels == IMAGENET


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("vit_bb", "did you mean 'vit_b'"),
        ("resnet50", "choose from"),
        ("timm/vit_smal_patch16_224", "did you mean 'vit_small_patch16_224'"),
        ("timm/resnet50", r"not a plain ViT: it lacks .* \(it is a ResNet\)"),
        ("timm/vit_base_patch16_siglip_224", "their own pooling"),
        ("timm/vit_base_r50_s16_224", "lacks patches by one convolution"),
        ("timm/vit_giant_patch14_dinov2", r"an MLP of two linear layers \(it has GluMlp\)"),
        ("timm/vit_small_patch16_dinov3_qkvb", "one linear layer for q, k and v"),
        ("timm/eva02_tiny_patch14_224", "rotary positions alone"),
        ("vit_t", "MobileSAM is mobile_sam"),
    ],
)
def test_unknown_backbones_name_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(UsageError, match=hint) as caught:
        backbone_shape(name)
    assert "\n" not in str(caught.value)


def test_an_unfit_image_size_names_those_that_fit() -> None:
    with pytest.raises(UsageError, match="use its own 518, or 252 or 266"):
        backbone_shape("timm/vit_small_patch14_dinov2", 256)
    assert backbone_shape("VIT-B", 512).image_size == 512
    assert resolve_backbone("VIT-B") == "vit_b"


def test_the_catalogue_imports_no_torch() -> None:
    code = (
        "import sys; from harness.models.catalog import total_parameters;"
        "from harness.models.published import fingerprint;"
        "total_parameters('vit_h', task='binary'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_what_a_backbone_does_not_use_is_not_imported() -> None:
    """timm and the matching of several classes take as long to import as a tenth of torch."""
    program = (
        "import sys, harness.experiment.experiment; from harness.models.build import build_segmenter;"
        "from harness.experiment.number_code import number_code; from harness.registry import BENCHMARKS, METHODS;"
        "build_segmenter('tiny', task='binary'); lora = METHODS.get('lora');"
        "number_code(lora, lora.config_class, BENCHMARKS.get('kvasir'));"
        "print(sorted({'timm', 'transformers', 'scipy.optimize', 'scipy.stats', 'matplotlib'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
