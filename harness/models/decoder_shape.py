"""The numbers of SAM's mask decoder and of the prompt encoder beside it, and what they cost in parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Task = Literal["binary", "multiclass", "classification"]
"""Masks of one foreground, masks of several classes, or one label an image."""
SPARE_TOKENS = 3
"""SAM's mask tokens 1-3, for ambiguous prompts: they stay in the decoder as they are, so that token 0 sees what it
saw in pre-training."""


@dataclass(frozen=True, kw_only=True)
class DecoderShape:
    """Numbers of SAM's mask decoder and prompt encoder.

    Args:
        dim: width of tokens and of the image embedding.
        mlp_dim: hidden width of the two-way transformer's MLP.
        heads: attention heads of the two-way transformer.
        depth: its layers.
        mask_channels: channels of the prompt encoder's mask branch.
        finer_maps: SAM 2's: it reads two finer maps, scores whether there is an object, and stands for "no memory".
    """

    dim: int = 256
    mlp_dim: int = 2048
    heads: int = 8
    depth: int = 2
    mask_channels: int = 16
    finer_maps: bool = False

    @property
    def hypernetwork(self) -> int:
        """Parameters of one hypernetwork MLP, dim -> dim -> dim -> dim / 8."""
        return 2 * _linear(self.dim, self.dim) + _linear(self.dim, self.dim // 8)

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of the linear layers behind the masks: two-way transformer and one hypernetwork MLP."""
        dim, hidden = self.dim, self.mlp_dim
        narrow = [(dim, dim // 2)] * 3 + [(dim // 2, dim)]
        layer = [(dim, dim)] * 4 + 2 * narrow + [(dim, hidden), (hidden, dim)]
        return self.depth * layer + narrow + [(dim, dim), (dim, dim), (dim, dim // 8)]

    def trained(self, *, task: Task, num_classes: int, mask_tokens: int) -> int:
        """Parameters of decoder and head that every method trains: no IoU head, no spare tokens, one hypernetwork
        MLP."""
        narrow = 3 * _linear(self.dim, self.dim // 2) + _linear(self.dim // 2, self.dim)
        mlp = _linear(self.dim, self.mlp_dim) + _linear(self.mlp_dim, self.dim)
        layer = 4 * _linear(self.dim, self.dim) + 2 * narrow + mlp + 4 * 2 * self.dim
        transformer = self.depth * layer + narrow + 2 * self.dim
        quarter, eighth = self.dim // 4, self.dim // 8
        upscaling = 4 * self.dim * quarter + quarter + 2 * quarter + 4 * quarter * eighth + eighth
        tokens = (1 + (mask_tokens if task == "multiclass" else 1)) * self.dim
        head = _linear(self.dim, num_classes + 1) if task == "multiclass" else 0
        finer = _linear(self.dim, quarter) + _linear(self.dim, eighth) + self.dim if self.finer_maps else 0
        return transformer + upscaling + tokens + self.hypernetwork + head + finer

    @property
    def frozen(self) -> int:
        """The rest of the decoder (spare tokens and MLPs, IoU head) and the prompt encoder."""
        tokens = 1 + SPARE_TOKENS
        iou_head = 2 * _linear(self.dim, self.dim) + _linear(self.dim, tokens)
        quarter = self.mask_channels // 4
        two_convolutions = 7 * quarter + 4 * quarter * self.mask_channels + 3 * self.mask_channels  # and their norms
        prompts = 6 * self.dim + two_convolutions + _linear(self.mask_channels, self.dim)
        score = 2 * _linear(self.dim, self.dim) + _linear(self.dim, 1) + self.dim if self.finer_maps else 0
        return SPARE_TOKENS * (self.hypernetwork + self.dim) + iou_head + prompts + score


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs
