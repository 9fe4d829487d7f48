"""The kernel of SAM's attention on this GPU: timed at a run's start, on one global and one window block, and remembered."""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from harness.methods.parts.placement import BackboneShape
from harness.models.attention import KERNELS, RelativeAttention
from harness.system.files import write_atomically
from harness.system.machine import user_cache

_ROUNDS = 5
_FILE = "attention.json"

Choice = dict[str, str]
"""``global`` and ``window``, as far as there are such blocks -> one of `KERNELS`."""


def in_words(choice: Mapping[str, str]) -> str:
    """``global=bias window=widened``; empty without a choice."""
    return " ".join(f"{name}={kind}" for name, kind in sorted(choice.items()))


def apply_choice(segmenter: nn.Module, choice: Mapping[str, str]) -> None:
    """Set the kernels of a choice in a segmenter; only SAM's own attention has one."""
    for block in segmenter.get_submodule("encoder").modules():
        if hasattr(block, "window_size"):
            for module in block.modules():
                if isinstance(module, RelativeAttention):
                    module.kind = choice.get("window" if block.window_size else "global", "auto")


def choose(
    shape: BackboneShape, named: str, *, batch: int, image_size: int, dtype: torch.dtype, device: torch.device
) -> Choice:
    """The choice for a run: what its card names, on a GPU the fastest where that is ``auto``; nothing elsewhere.

    Args:
        shape: of the backbone.
        batch: images of a forward pass.
        dtype: that attention computes in.
    """
    side = image_size // shape.patch
    blocks = {"window" if block.window else "global": block for block in shape.blocks}
    if shape.relative_positions != "axes" or (named == "auto" and device.type != "cuda"):
        return {}
    if named != "auto":
        return dict.fromkeys(blocks, named)
    chosen: Choice = {}
    for name, block in blocks.items():
        span = block.window or side
        maps = batch * (-(-side // span)) ** 2
        size = (maps, block.heads, span, block.dim // block.heads)
        # timed without cuDNN's attention, as runs compute; keys without these words were not
        key = f"{torch.cuda.get_device_name(device)} | torch {torch.__version__} | {dtype} | {size} | no cuDNN"
        kind = _known().get(key)
        if kind not in KERNELS:
            kind = fastest({kind: _pass(kind, size, dtype, device) for kind in KERNELS})
            if folder := user_cache():
                with contextlib.suppress(OSError):
                    write_atomically(folder / _FILE, json.dumps(_known() | {key: kind}, indent=1) + "\n")
        chosen[name] = kind
    return chosen


def fastest(passes: Mapping[str, Callable[[], None]], clock: Callable[[], float] = time.perf_counter) -> str:
    """The name of the pass with the least median time, of those that have room; the first where none has."""
    times = {}
    for name, run in passes.items():
        seconds = []
        with contextlib.suppress(torch.OutOfMemoryError):
            run()  # warm
            for _ in range(_ROUNDS):
                begun = clock()
                run()
                seconds.append(clock() - begun)
            times[name] = statistics.median(seconds)
    return min(times, key=times.__getitem__) if times else next(iter(passes))


def _pass(kind: str, size: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> Callable[[], None]:
    """Forward and backward of one block's attention, until the GPU is done."""
    maps, heads, span, width = size

    def run() -> None:
        shapes = [(maps, heads, span**2, width)] * 3 + [(maps, heads, span**2, span)] * 2
        tensors = [torch.ones(shape, dtype=dtype, device=device, requires_grad=True) for shape in shapes]
        KERNELS[kind](*tensors, scale=width**-0.5).sum().backward()
        torch.cuda.synchronize(device)

    return run


def _known() -> dict[str, Any]:
    """The kinds chosen by earlier runs, by GPU, torch, type and shape."""
    folder = user_cache()
    try:
        content = json.loads((folder / _FILE).read_text(encoding="utf-8")) if folder else {}
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
