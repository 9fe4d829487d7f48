"""SAM-Adapter (2304.09148): before block i, x ← x + up(GELU(down_i(F_pe + F_hfc))), one up-projection for all blocks.

F_pe is a linear map of the patch embedding (before positions), F_hfc a patch-wise convolution of the image's high
frequencies. These are the absolute value of the image after its Fourier spectrum lost the central square with the fraction
``ratio`` of the area (after EVP, 2303.10883). Deviations: up starts at zero, so that the adapted model
starts as the pretrained one (ours); the other layers start Kaiming-uniform with zero biases. Prefix tokens of a timm
ViT belong to no patch and get no prompt.

The released code (tianrun-chen/SAM-Adapter-PyTorch) names the axes of its embedding (N, H, W, C) as if they were
(N, C, H, W) and reshapes its memory to (N, C, HW). So channel c of token t comes from another token
(``patch_embedding: released``; `scrambled`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.methods.base import Count, Method, PlacedConfig
from harness.methods.parts.layers import kaiming_uniform, linear, started_linear
from harness.methods.parts.placement import BackboneShape, MethodError
from harness.methods.parts.sites import Adaptable, block_sites


@dataclass(frozen=True, kw_only=True)
class SAMAdapterConfig(PlacedConfig):
    """SAM-Adapter (2304.09148): before each block a prompt made of the patch embedding and of the image's high frequencies.

    Args:
        scale: the prompt's hidden width is dim / scale, 32 (code).
        ratio: the central square of the spectrum with this fraction of its area is removed, 0.25 (paper).
        patch_embedding: ``intended`` tunes each token's own embedding; ``released`` scrambles it first, see
            `harness.methods.samadapter`.
    """

    scale: Count = 32
    ratio: float = 0.25
    patch_embedding: Literal["released", "intended"] = "intended"
    quirks: ClassVar = {"patch_embedding": "samadapter_embedding"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.ratio < 1:
            raise MethodError(f"ratio={self.ratio}: the removed fraction of the spectrum must be in [0, 1)")

    def width(self, shape: BackboneShape) -> int:
        shape.require_one_width("samadapter", "makes the prompts of all blocks from one embedding of the patches")
        return max(1, shape.dim // self.scale)

    def encoder_parameters(self, shape: BackboneShape) -> int:
        width = self.width(shape)
        shared = (shape.dim * width + width) + (3 * shape.patch**2 * width + width) + (width * shape.dim + shape.dim)
        return shared + len(self.placed(shape)) * (width * width + width)


def high_frequencies(images: Tensor, *, ratio: float) -> Tensor:
    """The high-frequency component of images (B, C, H, W), not negative, the same shape, float32.

    Args:
        images: any range.
        ratio: area of the removed central square as a fraction of the spectrum's; its side is √ratio of theirs.
    """
    spectrum = torch.fft.fftshift(torch.fft.fft2(images.float()), dim=(-2, -1))
    height, width = images.shape[-2:]
    half_height, half_width = int(height * ratio**0.5) // 2, int(width * ratio**0.5) // 2
    keep = torch.ones(height, width, device=images.device)
    keep[height // 2 - half_height : height // 2 + half_height, width // 2 - half_width : width // 2 + half_width] = 0
    return torch.fft.ifft2(torch.fft.ifftshift(spectrum * keep, dim=(-2, -1))).real.abs()


def scrambled(tokens: Tensor) -> Tensor:
    """What the released code takes for the embedding: tokens (B, …, D) read from memory as (B, D, tokens), as (B, …, D)."""
    return tokens.reshape(len(tokens), tokens.shape[-1], -1).transpose(1, 2).reshape(tokens.shape)


class TunedPatchEmbed(nn.Module):
    """The backbone's patch embedding, which also keeps F_pe + F_hfc of the images that pass through it.

    Args:
        base: the patch embedding, frozen: images to (B, h, w, D) or (B, N, D).
        tune: linear layer D -> hidden.
        frequencies: convolution 3 -> hidden, patch by patch.
        ratio: see `high_frequencies`.
        scramble: tune the embedding as released, see `scrambled`.
    """

    def __init__(
        self, base: nn.Module, *, tune: nn.Linear, frequencies: nn.Conv2d, ratio: float, scramble: bool
    ) -> None:
        super().__init__()
        self.scramble = scramble
        self.base = base
        self.tune = tune
        self.frequencies = frequencies
        self.ratio = ratio
        self.condition = torch.empty(0)
        """F_pe + F_hfc of the latest forward pass, tokens in the layout of the base."""

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.base(images)
        with torch.autocast(images.device.type, enabled=False):
            fine = high_frequencies(images, ratio=self.ratio)
        details = self.frequencies(fine).permute(0, 2, 3, 1).reshape(*tokens.shape[:-1], -1)
        self.condition = self.tune(scrambled(tokens) if self.scramble else tokens) + details
        return tokens


class PromptedBlock(nn.Module):
    """block(x + up(GELU(down(condition)))).

    Args:
        block: the backbone's own, frozen.
        down: this block's linear layer hidden -> hidden.
        up: linear layer hidden -> D, shared by all blocks.
        embedding: where the condition comes from; stays the encoder's own module.
        prefix_tokens: leading tokens without a prompt.
    """

    def __init__(
        self, block: nn.Module, *, down: nn.Linear, up: nn.Linear, embedding: TunedPatchEmbed, prefix_tokens: int
    ) -> None:
        super().__init__()
        self.block = block
        self.down = down
        self.prefix_tokens = prefix_tokens
        self._shared = (up, embedding)  # in a tuple, so that they are not registered in every block

    def forward(self, tokens: Tensor) -> Tensor:
        up, embedding = self._shared
        prompt = up(F.gelu(self.down(embedding.condition)))
        if self.prefix_tokens:
            prompt = F.pad(prompt, (0, 0, self.prefix_tokens, 0))
        return self.block(tokens + prompt)


class SAMAdapter(Method):
    """SAM-Adapter; see the module."""

    name = "samadapter"
    config_class = SAMAdapterConfig
    config: SAMAdapterConfig

    def _insert(self, segmenter: Adaptable) -> None:
        encoder = segmenter.encoder
        shape = encoder.shape
        targets = block_sites(encoder, self.config.blocks)
        base = encoder.get_submodule("patch_embed")
        device = next(base.parameters()).device
        width = self.config.width(shape)
        embedding = TunedPatchEmbed(
            base,
            tune=started_linear(shape.dim, width, self.generator),
            frequencies=self._patchwise(width, shape.patch),
            ratio=self.config.ratio,
            scramble=self.config.patch_embedding == "released",
        )
        encoder.register_module("patch_embed", embedding.to(device))
        up = linear(torch.zeros(shape.dim, width)).to(device)
        encoder.register_module("prompt_up", up)
        for target in targets:
            down = started_linear(width, width, self.generator).to(device)
            prompted = PromptedBlock(
                target.block, down=down, up=up, embedding=embedding, prefix_tokens=shape.prefix_tokens
            )
            encoder.blocks[target.index] = prompted

    def _patchwise(self, width: int, patch: int) -> nn.Conv2d:
        layer = nn.utils.skip_init(nn.Conv2d, 3, width, kernel_size=patch, stride=patch)
        fan_in = 3 * patch**2
        layer.weight = nn.Parameter(kaiming_uniform((width, 3, patch, patch), fan_in=fan_in, generator=self.generator))
        nn.init.zeros_(layer.bias)
        return layer
