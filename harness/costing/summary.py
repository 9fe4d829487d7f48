"""A session in a few lines for the terminal; the tables are made from the records."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from tabulate import tabulate

from harness.archive.measured import CostRecord, MethodCost, Ratio

_PARTS = ("data", "forward", "backward", "optimiser", "untracked")
_MEMORY = {
    "allocated": "peak",
    **{name: name for name in ("reserved", "weights", "gradients", "optimiser", "activations")},
}


def summary(record: CostRecord) -> str:
    """Step time with quartiles and parts, memory, FLOPs and inference by method, then the ratios to each baseline."""
    at = record.comparability
    where = f"{at.device}, {at.driver or f'{at.threads} threads'}, torch {at.torch}"
    clock = "" if at.options.get("clock", "wall") == "wall" else f", {at.options['clock']} time"
    further = ("num_classes", "mask_tokens", "accumulate", "decoder")
    task = ", ".join([at.task, *(f"{name}={at.options[name]}" for name in further if name in at.options)])
    what = f"{at.backbone} {at.image_size} px, batch {at.batch}, {at.precision}, {task}, {record.rounds} rounds{clock}"
    lines = [
        f"{what}; {where}",
        *([f"shared device: {record.shared}"] if record.shared else []),
        *(f"not measured: {variant}: {reason}" for variant, reason in record.dropped.items()),
        *(f"not merged: {m.variant}, {mode}: {why}" for m in record.methods for mode, why in m.merge_failures.items()),
        "",
        _times(record.methods),
        "",
        _sizes(record),
        "",
        _inference(record.methods),
        "",
        _counted(record.methods),
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
    return _table(rows, ["method", "step", "share", "ms [quartiles]", *_PARTS])


def _table(rows: Sequence[Sequence[object]], heads: Sequence[str]) -> str:
    return tabulate(rows, headers=heads, tablefmt="github", disable_numparse=True)


def _step(parts: dict[str, list[float]]) -> list[str]:
    low, high = quartiles(parts["total"])
    total = f"{1e3 * statistics.median(parts['total']):.1f} [{1e3 * low:.1f}, {1e3 * high:.1f}]"
    return [total, *(f"{1e3 * statistics.median(parts[name]):.1f}" for name in _PARTS)]


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def _sizes(record: CostRecord) -> str:
    """Memory and FLOPs by method; reserved memory on a GPU alone, since a CPU's allocator tells nothing of it."""
    energy = any(method.joules is not None for method in record.methods)
    rows = [
        [
            method.variant,
            *(
                "–" if name == "reserved" and not record.comparability.on_gpu else _mebi(method.memory_bytes[name])
                for name in _MEMORY
            ),
            f"{method.flops['forward'] / 1e9:.2f} + {method.flops['backward'] / 1e9:.2f}",
            method.parameters["trainable"],
            f"{method.checkpoint_bytes / 2**20:.2f}",
            *([f"{method.joules:.1f}"] if method.joules is not None else [""] * energy),
        ]
        for method in record.methods
    ]
    heads = ["method", *(f"{head} (MiB)" for head in _MEMORY.values())]
    return _table(rows, [*heads, "GFLOPs fwd + bwd", "trainable", "state (MiB)", *["J"] * energy])


def _inference(methods: Sequence[MethodCost]) -> str:
    """One row a model: unmerged, and after each merge."""
    rows = [
        [
            method.variant,
            name,
            f"{1e3 * statistics.median(seconds):.1f}",
            _mebi(method.inference_memory_bytes[name]),
            method.inference_parameters[name],
        ]
        for method in methods
        for name, seconds in method.inference_seconds.items()
    ]
    return _table(rows, ["method", "inference", "ms", "peak (MiB)", "parameters"])


def _counted(methods: Sequence[MethodCost]) -> str:
    """The counter held against arithmetic: 1 where the encoder is plain, more where a method computes in it."""
    ratios = (f"{m.variant} {m.flops['encoder_forward'] / m.flops['closed_form']:.3f}" for m in methods)
    return f"encoder forward FLOPs, counted / closed form of the plain encoder: {', '.join(ratios)}"


def _mebi(count: int) -> str:
    return f"{count / 2**20:.1f}"


def _ratios(methods: Sequence[MethodCost], baseline: str) -> str:
    quantities = ["time", "memory", "flops", "device_hours"]
    rows = [
        [method.variant, *(change(method.ratios[baseline][name]) for name in quantities)]
        for method in methods
        if baseline in method.ratios
    ]
    return _table(rows, [f"against {baseline}", *(name.replace("_", "-") for name in quantities)])


def change(ratio: Ratio) -> str:
    """``-24.14 % [-25.0, -23.2]``."""
    text = f"{100 * (ratio.value - 1):+.2f} %"
    if ratio.low is None or ratio.high is None:
        return text
    return f"{text} [{100 * (ratio.low - 1):+.2f}, {100 * (ratio.high - 1):+.2f}]"
