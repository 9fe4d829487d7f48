"""Other implementations of the same step: HF transformers' SAM encoder with peft's LoRA, and AutoGluon's Conv-LoRA on it.

Their encoders hold our weights; the mask decoder after them is the reference's (`benchmarks.reference`), so that a
difference is the encoder's. transformers and peft are of the extra ``test``. AutoGluon's Conv-LoRA is executed anew as its
structure has it: on transformers' encoder with fused attention, each ``qkv`` with a linear layer down, the routed
experts on the maps of its windows, and a linear layer up.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from segment_anything.modeling.image_encoder import ImageEncoderViT
from torch import Tensor, nn

from benchmarks.reference import PlainLoRA, PlainSegmenter
from harness.methods.base import Method
from harness.methods.parts.lowrank import LowRank
from harness.models.published import hf_name

ATTENTIONS = ("sdpa", "eager")


class PeerEncoder(nn.Module):
    """transformers' vision encoder in the place of segment_anything's.

    Args:
        encoder: whose shape and weights it takes.
        attention: ``sdpa`` or ``eager``.

    Shape: images (B, 3, S, S) to embeddings (B, 256, S/16, S/16).
    """

    def __init__(self, encoder: ImageEncoderViT, *, attention: str) -> None:
        from transformers import SamVisionConfig, SamVisionModel

        super().__init__()
        blocks: Any = encoder.blocks
        windows = [block.window_size for block in blocks]
        projection, first = encoder.patch_embed.proj, blocks[0]
        config = SamVisionConfig(
            hidden_size=projection.out_channels, output_channels=encoder.neck[0].out_channels,
            num_hidden_layers=len(blocks), num_attention_heads=first.attn.num_heads, image_size=encoder.img_size,
            patch_size=projection.kernel_size[0], mlp_dim=first.mlp.lin1.out_features, window_size=max(windows),
            global_attn_indexes=[place for place, window in enumerate(windows) if window == 0],
            layer_norm_eps=first.norm1.eps,
        )  # fmt: skip
        self.model: Any = SamVisionModel._from_config(config, attn_implementation=attention).requires_grad_(False)
        renamed = {hf_name(f"image_encoder.{name}"): value for name, value in encoder.state_dict().items()}
        self.model.load_state_dict(renamed)

    def forward(self, images: Tensor) -> Tensor:
        embeddings: Tensor = self.model(pixel_values=images).last_hidden_state
        return embeddings


def hf_plain(plain: PlainSegmenter, *, attention: str) -> PlainSegmenter:
    """The plain model with transformers' encoder, of the same weights."""
    return _with(plain, _frozen_encoder(plain, attention=attention))


def hf_lora(plain: PlainSegmenter, method: Method, *, attention: str) -> PlainSegmenter:
    """The plain LoRA model with transformers' encoder and peft's LoRA, of the same weights."""
    from peft import LoraConfig, inject_adapter_in_model

    encoder, adapters = _frozen_encoder(plain, attention=attention), _adapters(method)
    lora = LoraConfig(r=len(next(iter(adapters.values())).down), target_modules=["qkv"], lora_dropout=0.0)
    inject_adapter_in_model(lora, encoder.model)
    for place, adapter in adapters.items():
        layer = encoder.model.vision_encoder.layers[place].attn.qkv
        layer.scaling["default"] = adapter.scale
        layer.lora_A.default.weight.data.copy_(adapter.down)
        layer.lora_B.default.weight.data.copy_(adapter.up)
    return _with(plain, encoder)


def autogluon_conv_lora(plain: PlainSegmenter, method: Method) -> PlainSegmenter:
    """The plain model with transformers' encoder and, at each ``qkv``, the parts of Conv-LoRA one by one."""
    encoder = _frozen_encoder(plain, attention="sdpa")
    for place, adapter in _adapters(method).items():
        attention = encoder.model.vision_encoder.layers[place].attn
        attention.qkv = PlainLoRA(attention.qkv, adapter)
    return _with(plain, encoder)


def _frozen_encoder(plain: PlainSegmenter, *, attention: str) -> PeerEncoder:
    """transformers' encoder with the weights below the reference's adapters, frozen."""
    encoder: Any = copy.deepcopy(plain.sam.image_encoder)
    for block in encoder.blocks:
        if isinstance(block.attn.qkv, PlainLoRA):
            block.attn.qkv = block.attn.qkv.base
    return PeerEncoder(encoder, attention=attention)


def _adapters(method: Method) -> dict[int, LowRank]:
    """Block -> its adapter."""
    return {int(site.split(".")[1]): adapter for site, adapter in method.adapters().items()}  # type: ignore[attr-defined]


def _with(plain: PlainSegmenter, encoder: PeerEncoder) -> PlainSegmenter:
    reference: Any = plain.sam
    old, reference.image_encoder = reference.image_encoder, None  # the copy needs the decoder alone
    sam = copy.deepcopy(reference)
    reference.image_encoder, sam.image_encoder = old, encoder
    return PlainSegmenter(sam).train()


def matmul_rate(device: torch.device, dtype: torch.dtype, *, clock: Any, size: int = 2048, rounds: int = 5) -> float:
    """FLOP a second of the best of several square matrix products: what a step can reach at most."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(rounds + 1):
        begun = clock()
        torch.mm(left, right)
        best = max(best, 2 * size**3 / max(clock() - begun, 1e-9))
    return best
