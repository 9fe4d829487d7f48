"""The instruments: live bytes, FLOPs against the closed form, paired ratios, the device's other users."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import ttest_rel

from harness.costing import instruments as device_module
from harness.costing.instruments import LiveBytes, clock_of, flop_counter, used_by_others
from harness.methods.parts.placement import BackboneShape
from harness.models.build import build_segmenter
from harness.planning.work import encoder_flops
from harness.statistics import paired_ratio
from harness.system.errors import UsageError

CPU = torch.device("cpu")


def test_live_bytes_follow_creation_views_and_freeing() -> None:
    known = torch.zeros(1000)
    with LiveBytes([known]) as counter:
        first = known + 1
        view = first.view(10, 100).t()
        assert counter.now == 4000
        second = first * 2
        assert counter.now == 8000
        del first
        assert counter.now == 8000, "the view keeps it alive"
        del view
        assert counter.now == 4000
        known.add_(1)
        assert counter.now == 4000, "in place, and known before"
        del second
    assert (counter.now, counter.peak) == (0, 8000)


def test_live_bytes_see_what_backward_needs() -> None:
    weight = torch.randn(64, 64, requires_grad=True)
    x = torch.randn(32, 64)
    with LiveBytes([weight, x]) as counter:
        out = (x @ weight).exp()
        kept = counter.now
        loss = out.sum()
        del out
        assert counter.now >= 32 * 64 * 4, "exp keeps its output for backward"
        loss.backward()
        del loss
    assert kept == 32 * 64 * 4
    assert weight.grad is not None
    assert counter.now == weight.grad.numel() * 4
    assert counter.peak > kept


def encoder_forward_flops(shape: BackboneShape, *, image_size: int) -> float:
    """Closed form of the plain encoder's forward pass for one image, relative positions included."""
    plain = replace(shape, relative_positions="") if shape.relative_positions == "axes" else shape
    *parts, neck = encoder_flops(plain, image_size=image_size)
    total = sum(parts) + (neck if shape.neck_dim else 0.0)  # a timm ViT has its neck behind it
    if shape.relative_positions != "axes":
        return total
    side = image_size // shape.patch
    for block in shape.blocks:
        span = block.window or side
        padded = -(-side // span) * span
        total += 2 * 2.0 * padded**2 * span * block.dim  # each query with every row and every column of its map
    return total


@pytest.mark.parametrize("name", ["tiny", "tiny_timm", "tiny_sam2", "tiny_sam3"])
@pytest.mark.parametrize("fused", [True, False])
def test_counted_flops_equal_the_closed_form(name: str, fused: bool) -> None:
    segmenter = build_segmenter(name, task="binary", fused_attention=fused)
    shape = segmenter.encoder.shape
    images = torch.zeros(2, 3, shape.image_size, shape.image_size)
    with torch.no_grad(), flop_counter() as count:
        segmenter.encode(images)
    assert count.get_total_flops() == 2 * encoder_forward_flops(shape, image_size=shape.image_size)


def test_paired_ratios_cancel_what_slows_a_round_and_have_the_interval_of_a_paired_t_test_on_logarithms() -> None:
    slow = [1.0, 5.0, 2.0, 9.0, 3.0]
    ratio = paired_ratio([0.8 * value for value in slow], slow)
    assert [ratio.value, ratio.low, ratio.high] == pytest.approx([0.8] * 3)
    assert paired_ratio([2.0], [1.0]).low is None
    values, base = [1.1, 1.3, 0.9, 1.2], [1.0, 1.1, 1.0, 1.05]
    interval = ttest_rel(np.log(values), np.log(base)).confidence_interval(0.95)
    ratio = paired_ratio(values, base)
    assert (ratio.low, ratio.high) == pytest.approx((math.exp(interval.low), math.exp(interval.high)))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_busy_cpu_is_noticed() -> None:
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        assert "other processes use" in used_by_others(CPU, seconds=0.5)
    finally:
        busy.kill()
        busy.wait()


def test_what_this_process_computes_itself_is_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    busy, own = iter([100.0, 103.0]), iter([10.0, 12.0])
    monkeypatch.setattr(device_module, "_busy_seconds", lambda: next(busy))
    monkeypatch.setattr(device_module, "time", SimpleNamespace(process_time=lambda: next(own), sleep=lambda _: None))
    assert used_by_others(CPU, seconds=1.0).startswith("other processes use 1.0 of ")


def test_the_processor_clock_is_for_one_thread_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for threads, device in ((2, "cpu"), (1, "cuda:0")):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        with pytest.raises(UsageError, match="--threads 1"):
            clock_of("processor", torch.device(device))
    assert clock_of("processor", CPU)() > 0
