"""A step with the tokens of frozen blocks kept, against the same step that runs them, and against training all blocks.

``python -m benchmarks.prefix --backbone vit_b --image-size 1024 --rounds 5 [--cpu-time]``
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from tabulate import tabulate

from benchmarks.saving import add_json, save
from benchmarks.step import Contestant
from harness.costing.device import used_by_others
from harness.costing.measure import paired_ratio
from harness.methods.configs import LoRAConfig
from harness.methods.lora import LoRA
from harness.models.build import build_segmenter
from harness.training.prefix import FrozenPrefix, frozen_prefix


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="vit_b")
    parser.add_argument("--image-size", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", help=argparse.SUPPRESS)
    parser.add_argument("--cpu-time", action="store_true", help="processor time on one thread")
    add_json(parser)
    options = parser.parse_args(argv)
    if options.cpu_time:
        torch.set_num_threads(1)
    device = torch.device(options.device)
    shared = used_by_others(device)
    models = {name: _contestant(options, device, blocks=name) for name in ("all", "last-half")}
    prefix = frozen_prefix(models["last-half"].model)
    assert prefix is not None
    size = (options.image_size, options.image_size)
    with torch.no_grad():
        tokens = prefix.tokens(models["last-half"].images)
    cut = _contestant(options, device, blocks="last-half")
    cut.trained, cut.optimiser = models["last-half"].trained, models["last-half"].optimiser
    cut.model = Cut(prefix, tokens, size=size)
    steps: dict[str, Callable[[], float]] = {
        "all blocks": models["all"].step,
        "last half": models["last-half"].step,
        "last half, tokens kept": cut.step,
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(options.rounds + 1):
        for name, step in steps.items():
            value = step()
            if number:  # the first warms up
                seconds[name].append(value)
    rows = []
    for name, values in seconds.items():
        ratio = paired_ratio(values, seconds["all blocks"])
        interval = "" if ratio.low is None else f" [{ratio.low:.2f}, {ratio.high:.2f}]"
        rows.append([name, f"{statistics.median(values):.3f}", f"{ratio.value:.2f}{interval}"])
    print(shared or "exclusive device")
    print(tabulate(rows, headers=["step", "median (s)", "/ all blocks"], tablefmt="github", disable_numparse=True))
    save(options.json, options=options, measured={"shared": shared, "seconds": seconds})
    return 0


class Cut(torch.nn.Module):
    """A segmenter from kept tokens on, whatever the images."""

    def __init__(self, prefix: FrozenPrefix, tokens: torch.Tensor, *, size: tuple[int, int]) -> None:
        super().__init__()
        self.prefix, self.tokens, self.size = prefix, tokens, size

    def forward(self, images: torch.Tensor) -> Any:
        return self.prefix.segmenter.decode(self.prefix.embedding(self.tokens, size=self.size))


def _contestant(options: argparse.Namespace, device: torch.device, *, blocks: str) -> Contestant:
    segmenter = build_segmenter(options.backbone, task="binary", image_size=options.image_size, head_seed=1)
    LoRA(LoRAConfig(blocks=blocks), seed=1).attach(segmenter)
    return Contestant(segmenter, options, device)


if __name__ == "__main__":
    raise SystemExit(main())
