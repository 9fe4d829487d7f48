"""``sites=decoder``: low-rank modules in SAM's mask decoder, which is frozen, against HF peft on segment_anything's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor

from harness.methods.parts.placement import MethodError
from harness.models.build import build_segmenter
from harness.models.catalog import backbone_shape, trained_in_decoder
from harness.models.original_sam import plain_sam, sam_state_dict
from harness.registry import METHODS, method_config_class
from tests.methods.compared import attached, require_alike
from tests.methods.test_additive_baselines import perturb

SIDE = 64
EMBEDDING = torch.randn(2, 256, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_masks_and_gradients_equal_those_of_segment_anythings_decoder_under_peft(name: str) -> None:
    segmenter, method = attached(name, sites="decoder", rank=3, alpha=6.0)
    theirs = plain_sam("tiny", image_size=SIDE)
    theirs.load_state_dict(sam_state_dict(build_segmenter("tiny", task="binary", image_size=SIDE)))
    targets = [site.replace("mask_decoder.hypernetwork", "output_hypernetworks_mlps.0") for site in method.adapters()]
    targets = [target.removeprefix("mask_decoder.") for target in targets]
    peft = LoraConfig(r=3, lora_alpha=6, target_modules=targets, use_dora=name == "dora")
    decoder = inject_adapter_in_model(peft, theirs.mask_decoder)
    perturb(segmenter)
    pairs: list[tuple[Tensor, Tensor]] = []
    for (site, adapter), target in zip(method.adapters().items(), targets, strict=True):
        twin: Any = decoder.get_submodule(target)
        pairs += [(adapter.down, twin.lora_A["default"].weight), (adapter.up, twin.lora_B["default"].weight)]
        if name == "dora":
            layer: Any = segmenter.get_submodule(site)
            magnitude = layer.magnitudes[site.rpartition(".")[2]]
            pairs.append((magnitude, twin.lora_magnitude_vector["default"].weight))
    with torch.no_grad():
        for ours, other in pairs:
            other.copy_(ours)
    segmenter.mask_decoder.double(), theirs.mask_decoder.double()
    dim = segmenter.prompt_encoder.no_mask_embed.weight.shape[1]
    embedding = EMBEDDING[:, :dim]
    sparse, dense = theirs.prompt_encoder(points=None, boxes=None, masks=None)
    outputs = (
        segmenter.decode(embedding).masks,
        torch.cat(
            [
                theirs.mask_decoder(
                    image_embeddings=image, image_pe=theirs.prompt_encoder.get_dense_pe().double(),
                    sparse_prompt_embeddings=sparse.double(), dense_prompt_embeddings=dense, multimask_output=False,
                )[0]
                for image in embedding.split(1)
            ]
        ),
    )  # fmt: skip
    require_alike(*outputs, pairs, tolerance=1e-12, of_gradients=1e-12)


@pytest.mark.parametrize("sites", ["decoder", "qkv,decoder"])
def test_a_merge_is_a_plain_sam(sites: str) -> None:
    segmenter, method = attached("lora", sites=sites)
    perturb(segmenter)
    images = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    report = method.merge("exact", held_out=[images])
    assert report.relative_deviation is not None
    assert report.relative_deviation < 1e-5
    assert not report.left
    assert "mask_decoder.transformer.layers.0.self_attn.q_proj" in report.folded
    plain_sam("tiny", image_size=SIDE).load_state_dict(sam_state_dict(segmenter), strict=True)
    plain = build_segmenter("tiny", task="binary", image_size=SIDE)
    before, after = (model.get_submodule("mask_decoder").state_dict() for model in (plain, segmenter))
    changed = {key for key, tensor in after.items() if not torch.equal(tensor, before[key])}
    assert changed == {f"{site.removeprefix('mask_decoder.')}.weight" for site in report.folded if "decoder" in site}


@pytest.mark.parametrize("backbone", ["vit_b", "tiny_timm"])
@pytest.mark.parametrize("name", ["lora", "dora", "samed"])
@pytest.mark.parametrize("head", [{"task": "binary"}, {"task": "multiclass", "num_classes": 3, "mask_tokens": 4}])
def test_counts_are_exact_without_building(backbone: str, name: str, head: dict[str, Any]) -> None:
    config = method_config_class(name)(sites="decoder")
    with torch.device("meta"):
        segmenter = build_segmenter(backbone, **head)
    METHODS.get(name)(config).attach(segmenter)
    trained = {key: p.numel() for key, p in segmenter.named_parameters() if p.requires_grad}
    assert not any(key.startswith("encoder.") for key in trained)
    assert sum(trained.values()) == trained_in_decoder(config, backbone, **head)
    new = {key for key in trained if ".adapters." not in key and ".magnitudes." not in key}
    neck = {key for key in new if key.startswith("neck.")}
    assert new - neck == (
        set() if head["task"] == "binary" else {"head.weight", "head.bias", "mask_decoder.mask_tokens"}
    )
    assert bool(neck) == (not backbone_shape(backbone).neck_dim)


@pytest.mark.parametrize(("name", "options"), [("naslora", {}), ("naspclora", {}), ("convlora", {})])
def test_methods_with_cells_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(MethodError, match=r"^sites='q,decoder': a cell needs a map"):
        method_config_class(name)(sites="q,decoder", **options)


def test_another_decoder_is_refused() -> None:
    segmenter = build_segmenter("tiny_timm", task="binary", image_size=SIDE, decoder="linear")
    with pytest.raises(MethodError, match=r"^sites=decoder: only SAM's mask decoder"):
        METHODS.get("lora")(method_config_class("lora")(sites="decoder")).attach(segmenter)
