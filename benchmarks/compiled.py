"""A LoRA step of ours as it is, through torch.compile, and with images and weights in channels-last.

``python -m benchmarks.compiled --backbone vit_b --image-size 1024 --precision bf16``; the first step of each, in which it
is compiled, is told apart.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import asdict
from typing import Any

import torch
from tabulate import tabulate

from benchmarks.saving import save
from benchmarks.step import Contestant, lora_contestant, step_options
from harness.comparison.step_costs import paired_ratio
from harness.costing.device import used_by_others
from harness.costing.session import why

WAYS = ("plain", "compiled", "channels-last", "compiled, channels-last")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="vit_b")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--not-compiled", action="store_true", help="leave torch.compile out, which takes minutes on a CPU"
    )
    options = step_options(parser, argv, precision="bf16", rounds=9, precisions=("fp32", "bf16", "fp16"))
    device = torch.device(options.device)
    shared = used_by_others(device)
    ways = {
        name: _contestant(options, device, name) for name in WAYS if "compiled" not in name or not options.not_compiled
    }
    failed: dict[str, str] = {}
    logits: dict[str, torch.Tensor] = {}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(options.rounds + 1):
        for name, contestant in ways.items():
            if name in failed:
                continue
            try:
                if not number:
                    with torch.no_grad():
                        logits[name] = contestant.forward().masks.float()
                seconds[name].append(contestant.step())
            except Exception as error:  # a compiler may fail in many ways, and the others are measured on
                failed[name] = why(error)
    measured = _measured(seconds, logits, failed)
    print(shared or "exclusive device")
    print(_table(measured))
    save(options.json, options=options, measured={"shared": shared, **measured})
    return 0


def _contestant(options: argparse.Namespace, device: torch.device, way: str) -> Contestant:
    contestant = lora_contestant(options, device)
    if "channels-last" in way:
        plain: Any = contestant.model  # torch's types have no memory format without a dtype
        contestant.model = plain.to(memory_format=torch.channels_last)
        contestant.images = contestant.images.contiguous(memory_format=torch.channels_last)
    if "compiled" in way:
        compiled: Any = torch.compile(contestant.model)
        contestant.model = compiled
    return contestant


def _measured(
    seconds: dict[str, list[float]], logits: dict[str, torch.Tensor], failed: dict[str, str]
) -> dict[str, Any]:
    timed = {name: values[1:] for name, values in seconds.items() if name not in failed}
    plain = logits.get("plain")
    return {
        "first_step_s": {name: values[0] for name, values in seconds.items() if values},
        "seconds": timed,
        "ratios": {
            f"{name} / plain": asdict(paired_ratio(values, timed["plain"]))
            for name, values in timed.items()
            if name != "plain" and "plain" in timed
        },
        "relative_deviation": {
            name: float((output - plain).norm() / plain.norm()) for name, output in logits.items() if plain is not None
        },
        "failed": failed,
    }


def _table(measured: dict[str, Any]) -> str:
    rows = []
    for name, values in measured["seconds"].items():
        ratio = measured["ratios"].get(f"{name} / plain")
        share = "" if ratio is None else f"{ratio['value']:.2f}"
        rows.append([name, f"{measured['first_step_s'][name]:.1f}", f"{statistics.median(values):.3f}", share])
    rows += [[name, reason, "", ""] for name, reason in measured["failed"].items()]
    heads = ["LoRA step", "first (s)", "median (s)", "/ plain"]
    return str(tabulate(rows, headers=heads, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    raise SystemExit(main())
