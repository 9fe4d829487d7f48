"""A step of LoRA on MobileSAM against MobileSAM's own modules with the same LoRA, side by side; outputs and gradients are
compared first.

``python -m benchmarks.mobile_sam --checkout DIR --image-size 512 --batch 2 --rounds 7 [--cpu-time]``, DIR a checkout of
github.com/ChaoningZhang/MobileSAM (34bbbfd).
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.plain_training import AnySize, own_sam
from benchmarks.prefix import Cut
from benchmarks.reference import PlainSegmenter, twin_of
from benchmarks.saving import save
from benchmarks.step import Contestant, in_turns, step_options, turns_table
from harness.costing.device import used_by_others
from harness.methods.configs import LoRAConfig
from harness.methods.lora import LoRA
from harness.models.build import build_segmenter
from harness.training.prefix import frozen_prefix

OWN, PLAIN, KEPT = "MobileSAM's own modules", "ours", "ours, stem and stage 0 kept"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkout", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, help="random weights without")
    options = step_options(parser, argv, precision="fp32", rounds=7, image_size=512, batch=2)
    device = torch.device("cpu")
    segmenter, official = pair(options.checkout, image_size=options.image_size, checkpoint=options.checkpoint)
    ours, theirs = Contestant(segmenter, options, device), Contestant(official, options, device)
    masks, gradients = deviations(ours, theirs)
    print(f"masks differ by {masks:.1e}, gradients of LoRA by {gradients:.1e} (relative to the largest)")
    prefix = frozen_prefix(segmenter)
    assert prefix is not None
    with torch.no_grad():
        tokens = prefix.tokens(ours.images)
    kept = copy.copy(ours)
    kept.model = Cut(prefix, tokens, size=(options.image_size, options.image_size))
    seconds = in_turns({OWN: theirs.step, PLAIN: ours.step, KEPT: kept.step}, options.rounds)
    shared = used_by_others(device)
    print(shared or "exclusive device")
    print(turns_table(seconds, OWN, "/ own modules"))
    measured = {"shared": shared, "seconds": seconds, "masks": masks, "gradients": gradients}
    save(options.json, options=options, measured=measured)
    return 0


def pair(checkout: Path, *, image_size: int, checkpoint: Path | None) -> tuple[Any, PlainSegmenter]:
    """Ours and MobileSAM's own, with the same weights and the same LoRA, which is away from its start."""
    segmenter = build_segmenter("mobile_sam", task="binary", image_size=image_size, checkpoint=checkpoint, head_seed=1)
    sam = own_sam(checkout, image_size=image_size)
    method = LoRA(LoRAConfig(), seed=1)
    generator = torch.Generator().manual_seed(1)
    official = twin_of(sam, segmenter, method, encoder=AnySize)
    for adapter, block in zip(method.adapters().values(), sam.image_encoder.blocks, strict=True):
        adapter.up.data.copy_(0.02 * torch.randn(adapter.up.shape, generator=generator))
        block.attn.qkv.up.weight.data.copy_(adapter.up)
    official.sam.image_encoder.eval()  # statistics of batch norms are the checkpoint's
    return segmenter.train(), official


def deviations(ours: Contestant, theirs: Contestant) -> tuple[float, float]:
    """Largest differences of mask logits and of LoRA's gradients, relative to the largest of each."""
    outputs, gradients = [], []
    for contestant in (ours, theirs):
        masks = contestant.forward().masks
        masks.square().mean().backward()
        outputs.append(masks.detach())
        adapters = [
            p
            for name, p in contestant.model.named_parameters()
            if name.endswith((".up", ".down", ".up.weight", ".down.weight"))
        ]
        gradients.append([p.grad.clone() for p in adapters if p.grad is not None])
        contestant.optimiser.zero_grad(set_to_none=True)
    assert len(gradients[0]) == len(gradients[1]) > 0
    return _relative(*outputs), max(_relative(first, second) for first, second in zip(*gradients, strict=True))


def _relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


if __name__ == "__main__":
    raise SystemExit(main())
