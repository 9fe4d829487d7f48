"""Write the table of estimates of docs/gpu.md from the plan: ``python docs/gpu.py``. A test keeps them equal."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from harness.dispatch.target import target_of
from harness.planning.plan import find, plan
from harness.planning.request import PlannedRow, Request
from harness.pricing import device, price, step_seconds
from harness.protocols.load import load_protocol
from harness.registry import BENCHMARKS

PAGE = Path(__file__).with_name("gpu.md")
BLOCK = re.compile(r"(?<=^<!-- estimates -->\n).*?(?=^<!-- /estimates -->)", re.M | re.S)
BACKBONES = {"vit_b": "ViT-B", "vit_h": "ViT-H"}
METHODS = ("lora", "naslora", "full")


def page() -> str:
    """The page with the table written anew."""
    return BLOCK.sub(lambda _: table(), PAGE.read_text(encoding="utf-8"))


def table() -> str:
    columns = [of_backbone(name) for name in BACKBONES]
    lines = [f"| on one H100, batch 4, bf16 (estimates) | {' | '.join(BACKBONES.values())} |", "|---|---|---|"]
    return "".join(
        f"{line}\n"
        for line in [*lines, *(f"| {name} | {' | '.join(c[name] for c in columns)} |" for name in columns[0])]
    )


def of_backbone(backbone: str) -> dict[str, str]:
    """What a plan of the paper's nine benchmarks says, by the names of the rows; nothing has to be on disk."""
    rows = tuple(PlannedRow(method=name) for name in METHODS)
    benchmarks = tuple(name for name in BENCHMARKS.names() if BENCHMARKS.get(name).task != "classification")
    where = target_of(cluster="gpu", cluster_overrides={"gres": "gpu:h100:1"})
    with TemporaryDirectory() as folder:
        request: dict[str, Any] = {
            "rows": rows,
            "benchmarks": benchmarks,
            "protocol": load_protocol("nas-lora"),
            "backbones": (backbone,),
        }
        asked = Request(**request, results=Path(folder))
        planned = plan(asked, find(asked))
        prices = price(planned, None, target=where)
    of = {name: [each for each in prices if each.run.method == name] for name in METHODS}
    binary = {name: next(each for each in runs if each.run.benchmark == "kvasir") for name, runs in of.items()}
    seconds = {name: step_seconds(each.run, device(planned, where)) for name, each in binary.items()}
    hours = sum(run.hours for name in ("lora", "naslora") for run in of[name])
    return {
        "a LoRA step": f"{1000 * seconds['lora']:.0f} ms",
        "a step of full fine-tuning": f"{1000 * seconds['full']:.0f} ms",
        "LoRA and NAS-LoRA on nine benchmarks, one seed": f"{hours:.1f} GPU-hours",
        "memory of a LoRA run": f"{binary['lora'].peak_memory_bytes / 2**30:.1f} GiB",
        "memory of full fine-tuning": f"{binary['full'].peak_memory_bytes / 2**30:.1f} GiB",
    }


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
