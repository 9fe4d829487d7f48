"""The choice of SAM's attention kernel on this GPU: measured when a run starts, on one global and one window block, and remembered."""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from harness.methods.parts.placement import BackboneShape
from harness.models.attention import KERNELS, RelativeAttention
from harness.system.files import write_atomically
from harness.system.machine import user_cache

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""The types of autocast by their names in protocols; fp32 has none."""
KINDS = tuple(KERNELS)
GAIN = 0.95
"""Another kind is chosen only below this share of *widened*'s time: *widened* keeps the least memory, and plans count on it."""
MORE_MEMORY = 0.25
"""Share of a GPU's memory that another kind may keep in addition to what *widened* keeps, in all blocks together."""
_ROUNDS = 5
_FILE = "attention.json"

Choice = dict[str, str]
"""``global`` and ``window``, as far as the backbone has such blocks -> one of `KERNELS`."""


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
    shape: BackboneShape, named: str, *, batch: int, image_size: int, precision: str, device: torch.device
) -> Choice:
    """The choice for a run: the kind that its protocol names; for ``auto``, `best` on a GPU and nothing elsewhere.

    Args:
        shape: shape of the backbone.
        batch: images of a forward pass.
        precision: precision of the forward pass, as protocols name it.
    """
    if shape.relative_positions != "axes" or (named == "auto" and device.type != "cuda"):
        return {}
    if named != "auto":
        return {("window" if block.window else "global"): named for block in shape.blocks}
    sizes = {"batch": batch, "image_size": image_size}
    gpu = torch.cuda.get_device_name(device)
    chosen = remembered(shape, gpu=gpu, precision=precision, **sizes)
    for name, (blocks, size) in _kinds_of_blocks(shape, **sizes).items():
        if name in chosen:
            continue
        room = MORE_MEMORY * torch.cuda.get_device_properties(device).total_memory
        measured = {kind: _measured(kind, size, DTYPES.get(precision), device) for kind in KERNELS}
        chosen[name] = best(measured, blocks=blocks, room=room)
        known = {**_known(), _key(gpu, blocks, size, precision): chosen[name]}
        if folder := user_cache():
            with contextlib.suppress(OSError):
                write_atomically(folder / _FILE, json.dumps(known, indent=1) + "\n")
    return chosen


def remembered(shape: BackboneShape, *, gpu: str, batch: int, image_size: int, precision: str) -> Choice:
    """What earlier runs on this machine chose for such a run on a GPU of that name; empty where there were none."""
    known, kinds = _known(), _kinds_of_blocks(shape, batch=batch, image_size=image_size)
    keys = {name: _key(gpu, blocks, size, precision) for name, (blocks, size) in kinds.items()}
    return {name: known[key] for name, key in keys.items() if key in known}


def best(measured: Mapping[str, tuple[float, float] | None], *, blocks: int, room: float) -> str:
    """The fastest kind among those that take less than `GAIN` of *widened*'s time and keep at most ``room`` bytes more for the backward
    pass; *widened* where there are none.

    Args:
        measured: kind -> seconds and bytes kept of one block; None where memory ran out.
        blocks: how many blocks keep as much as that one.
    """
    ran = {kind: numbers for kind, numbers in measured.items() if numbers is not None}
    seconds, kept = ran.get(KINDS[0], (float("inf"), 0.0))
    fitting = {
        kind: taken
        for kind, (taken, keeps) in ran.items()
        if taken < GAIN * seconds and blocks * (keeps - kept) <= room
    }
    return min(fitting, key=fitting.__getitem__, default=KINDS[0])


AttentionSize = tuple[int, int, int, int]
"""Maps, heads, side of a map, width of a head."""


def _kinds_of_blocks(shape: BackboneShape, *, batch: int, image_size: int) -> dict[str, tuple[int, AttentionSize]]:
    """``global`` and ``window``: the number of blocks and the size of their attention; none without relative positions by axes."""
    side, kinds = image_size // shape.patch, dict[str, tuple[int, AttentionSize]]()
    for block in shape.blocks if shape.relative_positions == "axes" else ():
        name, span = "window" if block.window else "global", block.window or side
        size = (batch * (-(-side // span)) ** 2, block.heads, span, block.dim // block.heads)
        kinds[name] = (kinds.get(name, (0, size))[0] + 1, size)
    return kinds


def _key(gpu: str, blocks: int, size: AttentionSize, precision: str) -> str:
    """The name of a choice on disk, which includes the rules by which it was made."""
    rules = f"no cuDNN, autocast, {GAIN} of widened, {MORE_MEMORY} of memory"
    return f"{gpu} | torch {torch.__version__} | {precision} | {size} x {blocks} | {rules}"


def _measured(
    kind: str, size: AttentionSize, half: torch.dtype | None, device: torch.device
) -> tuple[float, float] | None:
    """Median seconds of one block's attention, forward and backward, under a run's autocast, and the bytes that it keeps in between;
    None where memory runs out."""
    maps, heads, span, width = size
    shapes = [(maps, heads, span**2, width)] * 3 + [(maps, heads, span**2, span)] * 2
    seconds, kept = [], 0.0
    with contextlib.suppress(torch.OutOfMemoryError):
        for _ in range(_ROUNDS + 1):
            made: Any = {"dtype": half or torch.float32, "device": device, "requires_grad": True}
            tensors = [torch.ones(shape, **made) for shape in shapes]
            torch.cuda.synchronize(device)
            begun, before = time.perf_counter(), torch.cuda.memory_allocated(device)
            with torch.autocast(device.type, dtype=half, enabled=half is not None):
                out = KERNELS[kind](*tensors, scale=width**-0.5)
            kept = float(torch.cuda.memory_allocated(device) - before)
            out.sum().backward()
            torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - begun)
        return statistics.median(seconds[1:]), kept  # the first one warms up
    return None


def _known() -> dict[str, str]:
    """The kinds chosen by earlier runs, by `_key`."""
    folder = user_cache()
    try:
        content = json.loads((folder / _FILE).read_text(encoding="utf-8")) if folder else {}
    except (OSError, ValueError):
        return {}
    return {key: kind for key, kind in content.items() if kind in KINDS} if isinstance(content, dict) else {}
