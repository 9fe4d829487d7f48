"""What bounds a step of LoRA: its matrix products one by one, against square ones, and what else takes time.

``python -m benchmarks.products --backbone vit_b --image-size 1024 --precision bf16 [--cpu-time] [--json FILE]``. Every product of one
step is repeated alone with factors of its shape, strides and type; *alone* is what a step would take of which nothing but the products
were computed, each as fast as that. Beyond it are copies and conversions (`copy_`), other operations, and products that wait for memory
in a step and find their factors in caches alone. Fused attention and convolutions are no products here: on a model that has them
(MobileSAM, timm) *alone* is too small.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections import Counter
from typing import Any

import torch
from tabulate import tabulate
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.peers import matmul_rate
from benchmarks.saving import save
from benchmarks.step import lora_contestant, step_options
from harness.costing.device import used_by_others

PRODUCTS = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2)}
"""Operation -> places of its factors."""
Layout = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]
SHOWN = 12
REPEATS = 5


class Recorded(TorchDispatchMode):
    """Counts products by their factors' layouts, those of backward too.

    Attributes:
        counts: two layouts -> how often.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[tuple[Layout, Layout]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if places := PRODUCTS.get(func.overloadpacket.__name__):
            left, right = ((tuple(args[place].shape), args[place].stride(), args[place].dtype) for place in places)
            self.counts[left, right] += 1
        return func(*args, **(kwargs or {}))


def flops(left: Layout, right: Layout) -> int:
    return 2 * math.prod(left[0]) * right[0][-1]


def seconds_alone(first: Layout, second: Layout, *, clock: Any) -> float:
    """The best of several of one product."""
    left, right = (
        torch.empty_strided(shape, stride, dtype=dtype).normal_() for shape, stride, dtype in (first, second)
    )
    best = math.inf
    for _ in range(REPEATS):
        begun = clock()
        torch.matmul(left, right)
        best = min(best, clock() - begun)
    return best


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--backbone", default="vit_b")
    options = step_options(parser, argv, precision="bf16", rounds=3)
    shared = used_by_others(torch.device("cpu"))
    step = lora_contestant(options, torch.device("cpu"))
    with Recorded() as recorded:
        step.step()
    step_s = statistics.median(step.step() for _ in range(options.rounds))
    operations = step.operations()
    limit = step.matmul_rate()
    wide = matmul_rate(step.device, torch.float32, clock=step.clock)
    products = [
        {"left": left[:2], "right": right[:2], "type": str(left[2]), "count": count,
         "flops": count * flops(left, right), "seconds": count * seconds_alone(left, right, clock=step.clock)}
        for (left, right), count in recorded.counts.items()
    ]  # fmt: skip
    products.sort(key=lambda product: -product["seconds"])
    measured = {"shared": shared, "step_s": step_s, "square_flops_per_s": limit, "square_flops_per_s_fp32": wide,
                "products": products, "operations": operations}  # fmt: skip
    save(options.json, options=options, measured=measured)
    print(shared or "exclusive device")
    print(summary(measured))
    return 0


def summary(measured: dict[str, Any]) -> str:
    """The products that take most, and where the step's time goes."""
    limit, step_s, products = measured["square_flops_per_s"], measured["step_s"], measured["products"]
    rows = []
    for product in products[:SHOWN]:
        rate = product["flops"] / product["seconds"]
        layouts = " · ".join(
            f"{'×'.join(map(str, shape))}{'' if stride[-1] == 1 else ' transposed'}"
            for shape, stride in (product["left"], product["right"])
        )
        rows.append(
            [
                layouts,
                product["type"].removeprefix("torch."),
                product["count"],
                f"{product['seconds']:.3f}",
                f"{rate / 1e9:.0f}",
                f"{100 * rate / limit:.0f} %",
            ]
        )
    alone, work = (sum(product[key] for product in products) for key in ("seconds", "flops"))
    within = sum(seconds for name, seconds in measured["operations"].items() if name.removeprefix("aten::") in PRODUCTS)
    copied = sum(
        measured["operations"].get(f"aten::{name}", 0.0) for name in ("copy_", "_to_copy", "clone", "contiguous")
    )
    heads = ["product", "type", "a step", "alone (s)", "GFLOP/s", "of 2048²"]
    largest = measured["operations"]
    return "\n".join(
        [
            tabulate(rows, headers=heads, tablefmt="github", disable_numparse=True),
            "",
            f"- 2048² products: {limit / 1e9:.0f} GFLOP/s, in fp32 {measured['square_flops_per_s_fp32'] / 1e9:.0f}",
            f"- a step: {step_s:.2f} s, {100 * work / limit / step_s:.0f} % of that limit",
            f"- its products alone: {alone:.2f} s, {100 * work / limit / alone:.0f} % of the limit",
            f"- a profiled step: products {within:.2f} s, copies and conversions {copied:.2f} s, its {len(largest)} largest "
            f"operations {sum(largest.values()):.2f} s",
        ]
    )


if __name__ == "__main__":
    raise SystemExit(main())
