"""Where a merge changes what a model computes: its deviation block by block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def block_deviations(encoder: Any, merged: Any, batches: Sequence[Tensor], *, device: torch.device) -> list[float]:
    """‖h' − h‖ / ‖h‖ of every block's output, h the unmerged model's and h' the merged one's on the same images.

    Differences of earlier blocks are in it, as they are in the prediction.

    Args:
        encoder, merged: see `harness.methods.parts.sites.Encoder`.
        batches: images (B, 3, S, S), normalised; one is kept at a time.
    """
    squares = [[0.0, 0.0] for _ in encoder.blocks]
    for batch in batches:
        for image in batch.split(1):  # the outputs of all blocks are kept: 0.7 GB of a ViT-H's for one image
            kept = _outputs(encoder, image.to(device))
            for pair, mine, theirs in zip(squares, kept, _outputs(merged, image.to(device)), strict=True):
                pair[0] += float((theirs - mine).double().square().sum())
                pair[1] += float(mine.double().square().sum())
    return [math.sqrt(moved / norm) if norm else 0.0 for moved, norm in squares]


def _outputs(encoder: Any, images: Tensor) -> list[Tensor]:
    found: list[Tensor] = []
    handles = [
        block.register_forward_hook(lambda module, args, output: found.append(output)) for block in encoder.blocks
    ]
    try:
        encoder.run_blocks(encoder.embed(images))
    finally:
        for handle in handles:
            handle.remove()
    return found
