"""FLOPs as executed, and those that attention needs."""

from __future__ import annotations

import torch

from harness.costing.instruments import FlopCount, useful
from harness.models.attention_choice import apply_choice
from harness.models.build import build_segmenter


def test_what_widened_heads_compute_more_is_not_useful() -> None:
    segmenter = build_segmenter("tiny", task="binary", image_size=64)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    counts = {}
    for kind in ("widened", "math"):
        apply_choice(segmenter, {"global": kind, "window": kind})
        with FlopCount() as forward:
            masks = segmenter(images).masks
        with FlopCount() as backward:
            masks.sum().backward()
        counts[kind] = (forward.total, useful(forward, backward, segmenter) - backward.total, backward, forward)
    assert counts["widened"][0] > counts["math"][0]
    assert counts["math"][0] == counts["math"][1]
    forward = counts["widened"][3]
    assert useful(forward, FlopCount(), segmenter) == forward.total  # by the ways of now
    apply_choice(segmenter, {"global": "widened", "window": "widened"})
    assert useful(forward, FlopCount(), segmenter) == counts["math"][0]
