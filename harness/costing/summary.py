"""A session in a few lines for the terminal; the tables are made from the records."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from tabulate import tabulate

from harness.records.cost import CostRecord, MethodCost, Ratio

_PARTS = ("data", "forward", "backward", "optimiser", "untracked")


def summary(record: CostRecord) -> str:
    """Step time with quartiles and parts, memory, FLOPs and inference by method, then the ratios to each baseline."""
    at = record.comparability
    where = (
        f"{at.device}, {at.threads} threads, torch {at.torch}"
        if not at.driver
        else f"{at.device}, {at.driver}, torch {at.torch}"
    )
    clock = "" if at.options.get("clock", "wall") == "wall" else f", {at.options['clock']} time"
    what = (
        f"{at.backbone} {at.image_size} px, batch {at.batch}, {at.precision}, {at.task}, {record.rounds} rounds{clock}"
    )
    lines = [
        f"{what}; {where}",
        *([f"shared device: {record.shared}"] if record.shared else []),
        "",
        _times(record.methods),
        "",
        _sizes(record.methods),
    ]
    baselines = sorted({name for method in record.methods for name in method.ratios})
    for name in baselines:
        lines += ["", _ratios(record.methods, name)]
    return "\n".join(lines)


def _times(methods: Sequence[MethodCost]) -> str:
    rows = []
    for method in methods:
        for role, parts in method.seconds.items():
            rows.append([method.variant, role, f"{100 * method.shares[role]:.1f} %", *_step(parts)])
        if len(method.seconds) > 1:
            rows.append([method.variant, "average step", "", *_step(method.step_seconds)])
    headers = ["method", "step", "share", "ms [quartiles]", *_PARTS]
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def _step(parts: dict[str, list[float]]) -> list[str]:
    low, high = quartiles(parts["total"])
    total = f"{1e3 * statistics.median(parts['total']):.1f} [{1e3 * low:.1f}, {1e3 * high:.1f}]"
    return [total, *(f"{1e3 * statistics.median(parts[name]):.1f}" for name in _PARTS)]


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def _sizes(methods: Sequence[MethodCost]) -> str:
    rows = []
    for method in methods:
        memory = [
            f"{method.memory_bytes[name] / 2**20:.1f}"
            for name in ("allocated", "reserved", "weights", "gradients", "optimiser", "activations")
        ]
        speeds = ", ".join(
            f"{name} {1e3 * statistics.median(values):.1f}" for name, values in method.inference_seconds.items()
        )
        flops = f"{method.flops['forward'] / 1e9:.2f} + {method.flops['backward'] / 1e9:.2f}"
        energy = "" if method.joules is None else f"{method.joules:.1f}"
        rows.append(
            [
                method.variant,
                *memory,
                flops,
                method.parameters["trainable"],
                f"{method.checkpoint_bytes / 2**20:.2f}",
                speeds,
                energy,
            ]
        )
    memory_heads = [
        f"{name} (MiB)" for name in ("peak", "reserved", "weights", "gradients", "optimiser", "activations")
    ]
    heads = ["method", *memory_heads, "GFLOPs fwd + bwd", "trainable", "state (MiB)", "inference (ms)", "J"]
    return tabulate(rows, headers=heads, tablefmt="github", disable_numparse=True)


def _ratios(methods: Sequence[MethodCost], baseline: str) -> str:
    quantities = ["time", "memory", "flops", "device_hours"]
    rows = [
        [method.variant, *(change(method.ratios[baseline][name]) for name in quantities)]
        for method in methods
        if baseline in method.ratios
    ]
    heads = [f"against {baseline}", *(name.replace("_", "-") for name in quantities)]
    return tabulate(rows, headers=heads, tablefmt="github", disable_numparse=True)


def change(ratio: Ratio) -> str:
    """``-24.14 % [-25.0, -23.2]``."""
    text = f"{100 * (ratio.value - 1):+.2f} %"
    if ratio.low is None or ratio.high is None:
        return text
    return f"{text} [{100 * (ratio.low - 1):+.2f}, {100 * (ratio.high - 1):+.2f}]"
