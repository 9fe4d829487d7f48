"""A training step of ours against the plain implementation.

``python -m benchmarks.step --backbone vit_b --image-size 1024 --rounds 5``

Every candidate has the same weights, images and loss. Their logits are compared first; then they take turns, and
ratios are paired by round. ``live`` memory counts tensors, exactly.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from tabulate import tabulate

from benchmarks.peers import ATTENTIONS, autogluon_conv_lora, hf_lora, matmul_rate
from benchmarks.reference import plain_twin
from benchmarks.saving import add_json, save
from harness.costing.instruments import LiveBytes, clock_of, flop_counter, used_by_others
from harness.costing.session import RandomImages
from harness.methods.convlora import ConvLoRA, ConvLoRAConfig
from harness.methods.lora import LoRA, LoRAConfig
from harness.methods.naslora import NASLoRA, NASLoRAConfig
from harness.methods.plain import DecoderOnly, DecoderOnlyConfig
from harness.models.build import build_segmenter
from harness.models.device import reset_peak
from harness.statistics import Ratio, paired_ratio
from harness.training.losses import structure_loss

METHODS = {
    "lora": (LoRA, LoRAConfig),
    "naslora": (NASLoRA, NASLoRAConfig),
    "convlora": (ConvLoRA, ConvLoRAConfig),
    "decoder": (DecoderOnly, DecoderOnlyConfig),
}


def step_options(
    parser: argparse.ArgumentParser, argv: list[str] | None, *, precision: str, rounds: int,
    precisions: Sequence[str] = ("fp32", "bf16"), image_size: int = 1024, batch: int = 1,
) -> argparse.Namespace:  # fmt: skip
    """The command line, with the options that all benchmarks of a step have; ``--cpu-time`` leaves one thread."""
    parser.add_argument("--image-size", type=int, default=image_size)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--precision", choices=precisions, default=precision)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument(
        "--cpu-time", action="store_true", help="processor time on one thread, where others use the machine"
    )
    add_json(parser)
    options = parser.parse_args(argv)
    if options.cpu_time:
        torch.set_num_threads(1)
    return options


class Subject:
    """A model with its optimiser.

    Args:
        model: images to `SegmenterOutput`.
        options: the command line.
    """

    def __init__(self, model: torch.nn.Module, options: argparse.Namespace, device: torch.device) -> None:
        self.model = model.to(device)
        self.device, self.options = device, options
        self.clock = clock_of("processor" if options.cpu_time else "wall", device)
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(self.trained, lr=1e-6)
        images = RandomImages(options.batch, image_size=options.image_size, num_classes=2)
        self.images = (torch.from_numpy(images._images).float() / 127.5 - 1).to(device)
        self.masks = torch.from_numpy(images._masks).to(device)
        self.loss = partial(structure_loss, quirk="intended")

    def forward(self) -> Any:
        half = self.options.precision != "fp32"
        dtype = torch.float16 if self.options.precision == "fp16" else torch.bfloat16
        with torch.autocast(self.device.type, dtype=dtype) if half else contextlib.nullcontext():
            return self.model(self.images)

    def step(self) -> float:
        begun = self.clock()
        self.loss(self.forward(), self.masks).backward()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return self.clock() - begun

    def flops(self) -> int:
        """FLOPs of a step as executed, what is computed again included."""
        with flop_counter() as counter:
            self.step()
        return counter.get_total_flops()

    def matmul_rate(self) -> float:
        dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
        return matmul_rate(self.device, dtypes[self.options.precision], clock=self.clock)

    def live_peak(self) -> int:
        tensors = [*self.model.parameters(), *self.model.buffers()]
        states = [v for s in self.optimiser.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
        resident = sum(t.numel() * t.element_size() for t in tensors + states)
        if self.device.type == "cuda":
            before = torch.cuda.memory_allocated()
            reset_peak(self.device)
            self.step()
            return resident + torch.cuda.max_memory_allocated() - before
        with LiveBytes([*tensors, *states, self.images, self.masks]) as counter:
            self.step()
        return resident + counter.peak


def candidates(options: argparse.Namespace, device: torch.device) -> dict[str, Subject]:
    """``<method>`` is ours, ``<method> plain`` the reference; with ``--peers`` also ``lora hf-sdpa``, ``lora hf-eager`` and
    ``convlora autogluon`` (`benchmarks.peers`)."""
    built = {}
    for name in options.methods.split(","):
        cls, config = METHODS[name]
        segmenter = build_segmenter(
            options.backbone, task="binary", image_size=options.image_size, head_seed=1,
            activation_checkpointing=options.activation_checkpointing,
        )  # fmt: skip
        method = cls(config(), seed=1)
        if name == "decoder":
            plain = plain_twin(options.backbone, segmenter, None)
            method.attach(segmenter)
        else:
            plain = plain_twin(options.backbone, segmenter, method)
        models = {name: segmenter, f"{name} plain": plain}
        if options.peers and name == "lora":
            models |= {f"lora hf-{attention}": hf_lora(plain, method, attention=attention) for attention in ATTENTIONS}
        if options.peers and name == "convlora":
            models["convlora autogluon"] = autogluon_conv_lora(plain, method)
        for label, model in models.items():
            if label not in options.without.split(","):
                built[label] = Subject(model, options, device)
    return built


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--backbone", default="vit_b")
    parser.add_argument("--methods", default="lora,naslora")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--activation-checkpointing", action="store_true", help="ours only")
    parser.add_argument("--peers", action="store_true", help="also transformers with peft, and AutoGluon's Conv-LoRA")
    parser.add_argument("--without", default="", help="candidates to leave out, such as 'naslora plain,decoder'")
    parser.add_argument(
        "--no-live", action="store_true", help="do not count tensors (--device meta does so in seconds)"
    )
    options = step_options(parser, argv, precision="fp32", rounds=5, precisions=("fp32", "bf16", "fp16"))
    if options.threads and not options.cpu_time:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    if device.type == "meta":  # tensors without content: exact memory of a step in seconds, whatever its size
        options.rounds = 0
    shared = used_by_others(device) if options.rounds else ""
    models = candidates(options, device)
    deviations = _compare(models) if options.rounds else {}
    live = {} if options.no_live else {name: model.live_peak() for name, model in models.items()}
    flops = {name: model.flops() for name, model in models.items()} if options.peers and options.rounds else {}
    rate = next(iter(models.values())).matmul_rate() if flops else 0.0
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for number in range(options.rounds):
        for name, model in models.items():
            seconds[name].append(model.step())
        print(f"round {number + 1}: " + ", ".join(f"{n} {s[-1]:.2f} s" for n, s in seconds.items()), file=sys.stderr)
    measured = {
        "shared": shared, "seconds": seconds, "ratios": _ratios(seconds), "flops": flops, "matmul_flops_per_s": rate,
        "share_of_limit": _shares(seconds, flops, rate), "live_bytes": live,
        "relative_deviation": deviations,
    }  # fmt: skip
    save(options.json, options=options, measured=measured)
    print(_table(measured))
    return 0


def _compare(models: dict[str, Subject]) -> dict[str, float]:
    """‖ours − plain‖ / ‖plain‖ of the logits, after a warm-up."""
    deviations = {}
    for name, model in models.items():
        base = f"{name.split()[0]} plain"
        if name == base or base not in models:
            continue
        with torch.no_grad():
            ours, plain = model.forward().masks, models[base].forward().masks
        deviations[name] = float((ours - plain).norm() / plain.norm())
    return deviations


def _table(measured: dict[str, Any]) -> str:
    rows = []
    seconds, live = measured["seconds"], measured["live_bytes"]
    for name in seconds:
        timed = bool(seconds[name])
        row = [
            name,
            f"{statistics.median(seconds[name]):.3f}" if timed else "",
            f"{live[name] / 2**30:.2f}" if live else "",
        ]
        base = f"{name.split()[0]} plain"
        if base in seconds and name != base:
            row.append(_ratio(seconds[name], seconds[base], digits=2) if timed else "")
            row.append(f"{live[name] / live[base]:.2f}" if live else "")
            row.append(f"{measured['relative_deviation'][name]:.1e}" if timed else "")
        if share := measured["share_of_limit"].get(name):
            row += [""] * (6 - len(row)) + [f"{100 * share:.0f} %"]
        rows.append(row)
    heads = [
        "candidate",
        "step (s)",
        "live (GiB)",
        "time / plain",
        "live / plain",
        "deviation",
        "of the limit",
    ]
    text = tabulate(rows, headers=heads, tablefmt="github", disable_numparse=True)
    if {"naslora", "lora"} <= seconds.keys() and seconds["lora"]:
        text += f"\n\nNAS-LoRA / LoRA: {_ratio(seconds['naslora'], seconds['lora'], digits=3)}"
    return text


def _ratios(seconds: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """``A / B`` -> value and 95 % interval, of the pairs that the table prints."""
    pairs = [(name, second) for name in seconds for second in seconds if second.startswith(f"{name} ")]
    pairs += [("naslora", "lora")]
    return {
        f"{first} / {second}": paired_ratio(seconds[first], seconds[second])._asdict()
        for first, second in pairs
        if seconds.get(first) and seconds.get(second)
    }


def _shares(seconds: dict[str, list[float]], flops: dict[str, int], rate: float) -> dict[str, float]:
    """The least that any candidate of a method computes, at the rate of matrix products, by the median of its time."""
    shares = {}
    for name in flops:
        least = min(count for other, count in flops.items() if other.split()[0] == name.split()[0])
        shares[name] = least / rate / statistics.median(seconds[name])
    return shares


def _ratio(values: list[float], baseline: list[float], *, digits: int) -> str:
    return with_interval(paired_ratio(values, baseline), digits=digits)


def with_interval(ratio: Ratio, *, digits: int = 2) -> str:
    interval = "" if ratio.low is None else f" [{ratio.low:.{digits}f}, {ratio.high:.{digits}f}]"
    return f"{ratio.value:.{digits}f}{interval}"


if __name__ == "__main__":
    raise SystemExit(main())
