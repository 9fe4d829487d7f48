"""SAM's attention by torch's flex_attention, its relative positions a score modification, against the widened heads.

``python -m benchmarks.flex --backbone vit_b --image-size 1024`` times forward and backward of the attention of a global
block and of a windowed one, without the linear layers around it. On a GPU flex_attention is compiled, as it is made for;
on a CPU, where it knows no backward, forward alone is timed.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from benchmarks.saving import save
from benchmarks.step import step_options
from harness.comparison.step_costs import paired_ratio
from harness.costing.device import processor_clock, used_by_others, wall_clock
from harness.costing.session import why
from harness.models.attention import plain_attention, widened_attention
from harness.models.catalog import backbone_shape
from harness.training.memory import reset_peak

Attend = Callable[..., Tensor]


def flex(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, *, scale: float, by: Any = flex_attention
) -> Tensor:
    """As `harness.models.attention.widened_attention`, by ``by``: flex_attention, or what torch.compile made of it."""
    output: Tensor = by(q, k, v, score_mod=with_positions(rows, columns), scale=scale)
    return output


def with_positions(rows: Tensor, columns: Tensor) -> Callable[..., Tensor]:
    """The score modification: a query's term for the row and for the column of the key."""
    width = columns.shape[-1]

    def modified(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score + rows[batch, head, query, key // width] + columns[batch, head, query, key % width]

    return modified


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="vit_b")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = step_options(parser, argv, precision="bf16", rounds=20)
    device = torch.device(options.device)
    measured: dict[str, Any] = {"shared": used_by_others(device)}
    for where in ("global", "windowed"):
        measured[where] = _measured(where, options, device)
        print(_table(where, measured[where]))
    save(options.json, options=options, measured=measured)
    return 0


def inputs(options: argparse.Namespace, device: torch.device, *, window: int) -> list[Tensor]:
    """q, k, v (B', heads, N, c), and the terms of rows and columns (B', heads, N, side), all random leaves."""
    shape = backbone_shape(options.backbone, options.image_size)
    whole = options.image_size // shape.patch
    side = window or whole
    maps = options.batch * (-(-whole // side)) ** 2
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    generator = torch.Generator().manual_seed(0)
    widths = [shape.dim // shape.blocks[0].heads] * 3 + [side] * 2
    made = [torch.randn(maps, shape.blocks[0].heads, side**2, width, generator=generator) for width in widths]
    return [tensor.to(device, dtype).requires_grad_() for tensor in made]


def _measured(where: str, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Seconds, peak memory and deviation of each way, or why it failed."""
    leaves = inputs(
        options, device, window=backbone_shape(options.backbone).blocks[0].window if where == "windowed" else 0
    )
    scale = leaves[0].shape[-1] ** -0.5
    compiled = torch.compile(flex_attention, dynamic=False) if device.type == "cuda" else flex_attention
    ways: dict[str, Attend] = {
        "plain": plain_attention,
        "widened": widened_attention,
        "flex": partial(flex, by=compiled),
    }
    clock = (processor_clock if options.cpu_time else wall_clock)(device)
    first: dict[str, list[Tensor]] = {}
    peaks: dict[str, int] = {}
    failed: dict[str, str] = {}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(-1, options.rounds):
        for name, attend in ways.items():
            if name in failed:
                continue
            begun = clock()
            try:
                tensors = _pass(attend, leaves, scale=scale)
            except Exception as error:  # a kernel may refuse a shape in many ways, and the others are measured on
                failed[name] = why(error)
                continue
            if number < 0:  # warms up, compiles
                first[name] = tensors
                if device.type == "cuda":
                    reset_peak(device)
                    _pass(attend, leaves, scale=scale)
                    peaks[name] = torch.cuda.max_memory_allocated(device)
                continue
            seconds[name].append(clock() - begun)
    timed = {name: values for name, values in seconds.items() if name not in failed}
    ratios = {
        f"{name} / widened": asdict(paired_ratio(timed[name], timed["widened"]))
        for name in timed
        if name != "widened" and "widened" in timed
    }
    return {
        "tokens": leaves[0].shape[2], "maps": len(leaves[0]), "seconds": timed, "ratios": ratios, "peak_bytes": peaks,
        "relative_deviation": {name: _deviation(first[name], first["plain"]) for name in first if "plain" in first},
        "failed": failed,
    }  # fmt: skip


def _pass(attend: Attend, leaves: Sequence[Tensor], *, scale: float) -> list[Tensor]:
    """The output and, but on a CPU, the gradients of its mean square."""
    if leaves[0].device.type == "cpu":
        with torch.no_grad():
            return [attend(*(leaf.detach() for leaf in leaves), scale=scale)]
    out = attend(*leaves, scale=scale)
    return [out.detach(), *torch.autograd.grad(out.float().square().mean(), leaves)]


def _deviation(tensors: Sequence[Tensor], plain: Sequence[Tensor]) -> float:
    """The largest ‖tensor − plain‖ / ‖plain‖ of outputs and gradients."""
    return max(float((a - b).float().norm() / b.float().norm()) for a, b in zip(tensors, plain, strict=True))


def _table(where: str, measured: dict[str, Any]) -> str:
    rows = []
    for name, values in measured["seconds"].items():
        ratio = measured["ratios"].get(f"{name} / widened")
        share = "" if ratio is None else f"{ratio['value']:.2f}"
        rows.append(
            [
                name,
                f"{1000 * statistics.median(values):.2f}",
                share,
                f"{measured['relative_deviation'].get(name, 0):.1e}",
            ]
        )
    rows += [[name, reason, "", ""] for name, reason in measured["failed"].items()]
    heads = [f"attention, {where}", "median (ms)", "/ widened", "deviation"]
    return str(tabulate(rows, headers=heads, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    raise SystemExit(main())
