"""SSF (2210.08823): γ ⊙ y + β after every linear and norm of a block and after the patch projection, y being their
output.

Everything folds: into a linear or a convolution as W ← diag(γ) W, b ← γ ⊙ b + β, into a norm likewise. The released
code starts from noise, γ ~ N(1, 0.02²), β ~ N(0, 0.02²), so that the adapted model is not the pretrained one; ``init:
intended`` starts from the identity. Deviation (ours): the norm after the last block of a timm ViT, which SAM does not
have, is left as it is; the neck after it trains with the decoder. So is the projection parallel to attention in the first block of a
stage of SAM 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from harness.methods.base import MergeMode, Method, PlacedConfig
from harness.methods.parts.merging import MergeReport
from harness.methods.parts.placement import BackboneShape, MethodError
from harness.methods.parts.sites import Adaptable, block_sites

_SITES = ("norm1", "qkv", "proj", "norm2", "mlp_in", "mlp_out")
_NOISE = 0.02


@dataclass(frozen=True, kw_only=True)
class SSFConfig(PlacedConfig):
    """SSF (2210.08823): a scale and a shift for each channel after every linear and norm of a block.

    Args:
        init: ``intended`` starts from the identity; ``released`` from N(1, 0.02²) and N(0, 0.02²), as the code of the paper.
        outside: also after the patch projection.
    """

    init: Literal["released", "intended"] = "intended"
    quirks: ClassVar = {"init": "ssf_init"}
    outside: bool = True

    def encoder_parameters(self, shape: BackboneShape) -> int:
        unfit = "ssf folds into weight and bias, and this backbone has no bias at"
        if not shape.qkv_bias:
            raise MethodError(f"{unfit} q, k and v; take another method")
        if self.outside and not shape.patch_bias:
            raise MethodError(f"{unfit} its patch projection; take ssf[outside=false]")
        channels = sum(block.entering + 6 * block.dim + block.mlp_dim for block in self.placed(shape))
        projected = shape.stem[1].outputs if shape.stem else shape.embedded  # the last of the two that embed patches
        return 2 * (channels + (projected if self.outside else 0))

    def gradient_from(self, shape: BackboneShape) -> int | None:
        return 0 if self.outside else super().gradient_from(shape)


class ScaleShift(nn.Module):
    """γ ⊙ base(x) + β per channel.

    Args:
        base: a linear, a norm over the last axis, or a convolution (channels on axis 1), frozen.
        scale: γ at init, (channels,).
        shift: β at init, (channels,).
    """

    def __init__(self, base: nn.Module, *, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.base = base
        self.scale = nn.Parameter(scale)
        self.shift = nn.Parameter(shift)

    def forward(self, inputs: Tensor) -> Tensor:
        output = self.base(inputs)
        shift, scale = self.shift.to(output.dtype), self.scale.to(output.dtype)  # float32 would promote what follows
        if isinstance(affine_part(self.base), nn.Linear | nn.LayerNorm):
            return torch.addcmul(shift, output, scale)
        return torch.addcmul(shift[:, None, None], output, scale[:, None, None])

    @torch.no_grad()
    def folded(self) -> nn.Module:
        """The base with γ and β in its own weight and bias."""
        last = affine_part(self.base)
        last.weight.mul_(self.scale.view(-1, *[1] * (last.weight.dim() - 1)))
        last.bias.mul_(self.scale).add_(self.shift)
        return self.base


class SSF(Method):
    """SSF; see the module."""

    name = "ssf"
    config_class = SSFConfig
    config: SSFConfig
    merge_modes = ("exact",)

    def __init__(self, config: SSFConfig, *, seed: int = 0) -> None:
        super().__init__(config, seed=seed)
        self.identity_at_init = config.init == "intended"

    def _insert(self, segmenter: Adaptable) -> None:
        encoder = segmenter.encoder
        self.config.encoder_parameters(encoder.shape)  # refuses layers without a bias
        for target in block_sites(encoder, self.config.blocks):
            for site in _SITES:
                target.replace(site, self._scaled(target.get(site)))
        if self.config.outside:
            embedding, leaf = patch_projection(encoder)
            embedding.register_module(leaf, self._scaled(embedding.get_submodule(leaf)))

    def _scaled(self, base: nn.Module) -> ScaleShift:
        bias = affine_part(base).bias
        scale, shift = torch.ones(len(bias)), torch.zeros(len(bias))
        if self.config.init == "released":
            scale += _NOISE * torch.randn(len(bias), generator=self.generator)
            shift += _NOISE * torch.randn(len(bias), generator=self.generator)
        return ScaleShift(base, scale=scale.to(bias.device), shift=shift.to(bias.device))

    def _fold(self, mode: MergeMode, calibration: Sequence[Tensor]) -> MergeReport:
        targets = [(name, module) for name, module in self.segmenter.named_modules() if isinstance(module, ScaleShift)]
        for name, module in targets:
            parent, _, leaf = name.rpartition(".")
            self.segmenter.get_submodule(parent).register_module(leaf, module.folded())
        return MergeReport(folded=[name for name, _ in targets])


def affine_part(base: nn.Module) -> Any:
    """Where the last weight and bias of ``base`` are: the batch norm after a convolution of TinyViT, else the module."""
    return getattr(base, "bn", base)


def patch_projection(encoder: nn.Module) -> tuple[nn.Module, str]:
    """The owner and the name of the convolution from pixels to tokens in SAM and in timm, of the last one in TinyViT."""
    embedding = next(module for name, module in encoder.named_modules() if name.rpartition(".")[2] == "patch_embed")
    if isinstance(getattr(embedding, "proj", None), nn.Conv2d):
        return embedding, "proj"
    layers = embedding.get_submodule("seq")
    return layers, str(len(list(layers.children())) - 1)
