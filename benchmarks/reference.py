"""The plain implementation that everything is measured against.

segment_anything's own modules, untouched: attention that builds its matrix of scores, the mask decoder called for one
image after the other. Methods are attached the straightforward way: LoRA as two further linear layers, NAS-LoRA's cell
as eight separate modules whose outputs are summed with softmax weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn

from harness.methods.base import Method
from harness.methods.naslora import CellOnTokens
from harness.methods.parts.cell import Cell
from harness.methods.parts.lowrank import LowRank
from harness.methods.parts.operations import CONVOLUTIONS
from harness.models.original_sam import plain_sam, sam_state_dict
from harness.models.segmenter import Segmenter, SegmenterOutput


class PlainLoRA(nn.Module):
    """W x + b + s · B core(A x), written out.

    Args:
        base: the frozen layer.
        adapter: whose weights are copied.
    """

    def __init__(self, base: nn.Linear, adapter: LowRank) -> None:
        super().__init__()
        rank, inputs = adapter.down.shape
        self.base = base
        self.down, self.up = nn.Linear(inputs, rank, bias=False), nn.Linear(rank, base.out_features, bias=False)
        self.down.weight.data.copy_(adapter.down)
        self.up.weight.data.copy_(adapter.up)
        self.scale = adapter.scale
        cell = adapter.core.cell if isinstance(adapter.core, CellOnTokens) else None
        self.core = PlainCell(cell) if isinstance(cell, Cell) else copy.deepcopy(adapter.core) or nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        return self.base(tokens) + self.scale * self.up(self.core(self.down(tokens)))


class PlainCell(nn.Module):
    """DARTS's eight operations one by one, on (B', h, w, C) tokens.

    Args:
        cell: whose weights are copied.
    """

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        assert cell.alpha is not None
        self.alpha = nn.Parameter(cell.alpha.detach().clone())
        self.operations = nn.ModuleList(_operation(name, cell) for name in cell.operations)

    def forward(self, tokens: Tensor) -> Tensor:
        maps = tokens.permute(0, 3, 1, 2)
        weights = self.alpha.softmax(dim=0)
        mixed = sum(weight * operation(maps) for weight, operation in zip(weights, self.operations, strict=True))
        return mixed.permute(0, 2, 3, 1)


class _Nothing(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return maps * 0.0


def stages(name: str, cell: Any) -> list[tuple[Tensor, Tensor]]:
    """The depthwise (C, 1, k, k) and pointwise weights (C, C, 1, 1) of each stage of a separable convolution."""
    order = [*cell.stages.twice, *cell.stages.once, *cell.stages.twice]
    taps = cell.stages.depthwise.split([CONVOLUTIONS[each].kernel ** 2 for each in order], dim=1)
    side = CONVOLUTIONS[name].kernel
    return [
        (taps[place].reshape(-1, 1, side, side), cell.stages.pointwise[place][:, :, None, None])
        for place, each in enumerate(order)
        if each == name
    ]


def _operation(name: str, cell: Cell) -> nn.Module:
    channels = cell.channels

    def norm() -> nn.Module:
        return nn.BatchNorm2d(channels, affine=False)

    if name == "none":
        return _Nothing()
    if name == "skip_connect":
        return nn.Identity()
    if name == "max_pool_3x3":
        return nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), norm())
    if name == "avg_pool_3x3":
        return nn.Sequential(nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False), norm())
    form = CONVOLUTIONS[name]
    layers: list[nn.Module] = []
    for taps, mixer in stages(name, cell):
        depthwise = nn.Conv2d(
            channels, channels, form.kernel, padding=form.span // 2, dilation=form.dilation, groups=channels, bias=False
        )
        pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        depthwise.weight.data.copy_(taps)
        pointwise.weight.data.copy_(mixer)
        layers += [nn.ReLU(), depthwise, pointwise, norm()]
    return nn.Sequential(*layers)


class PlainSegmenter(nn.Module):
    """Images (B, 3, S, S) to mask logits through segment_anything's modules, the decoder an image at a time.

    Args:
        sam: with a method attached to its encoder or not.
    """

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.sam = sam

    def forward(self, images: Tensor) -> SegmenterOutput:
        sam = self.sam
        sparse, dense = sam.prompt_encoder(points=None, boxes=None, masks=None)
        masks = []
        for embedding in sam.image_encoder(images):
            mask, _ = sam.mask_decoder(
                image_embeddings=embedding.unsqueeze(0),
                image_pe=sam.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=False,
            )
            masks.append(mask)
        return SegmenterOutput(torch.cat(masks).float(), None)


def plain_twin(name: str, segmenter: Segmenter, attach: Method | None) -> PlainSegmenter:
    """The plain implementation of a segmenter with its weights.

    Args:
        name: the backbone's name.
        segmenter: not adapted yet; ``attach``, a LoRA or NAS-LoRA not attached yet, is attached to it here.
    """
    return twin_of(plain_sam(name, image_size=segmenter.encoder.shape.image_size), segmenter, attach)


def twin_of(
    sam: Any, segmenter: Segmenter, attach: Method | None, *, encoder: Callable[[Any], Any] = lambda module: module
) -> PlainSegmenter:
    """`plain_twin` of any model with SAM's parts and names.

    Args:
        sam: has the segmenter's names.
        encoder: makes of its encoder one with ``blocks``, in the order of the segmenter's.
    """
    sam.load_state_dict(sam_state_dict(segmenter))
    sam.image_encoder = encoder(sam.image_encoder)
    sam.requires_grad_(False)
    decoder = sam.mask_decoder
    for module in (decoder.transformer, decoder.iou_token, decoder.mask_tokens, decoder.output_upscaling):
        module.requires_grad_(True)
    decoder.output_hypernetworks_mlps[0].requires_grad_(True)
    if attach is not None:
        attach.attach(segmenter)
        for site, adapter in attach.adapters().items():  # type: ignore[attr-defined]
            block = sam.image_encoder.blocks[int(site.split(".")[1])]
            block.attn.qkv = PlainLoRA(block.attn.qkv, adapter)
    return PlainSegmenter(sam).train()
