"""A step with the tokens of frozen blocks kept, against the same step that runs them, and against training all blocks.

``python -m benchmarks.prefix --backbone vit_b --image-size 1024 --rounds 5 [--cpu-time]``
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from benchmarks.saving import save
from benchmarks.step import in_turns, lora_contestant, step_options, turns_table
from harness.costing.device import used_by_others
from harness.training.prefix import FrozenPrefix, frozen_prefix


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="vit_b")
    parser.add_argument("--device", default="cpu", help=argparse.SUPPRESS)
    options = step_options(parser, argv, precision="fp32", rounds=5)
    device = torch.device(options.device)
    shared = used_by_others(device)
    models = {name: lora_contestant(options, device, blocks=name) for name in ("all", "last-half")}
    prefix = frozen_prefix(models["last-half"].model)
    assert prefix is not None
    size = (options.image_size, options.image_size)
    with torch.no_grad():
        tokens = prefix.tokens(models["last-half"].images)
    cut = lora_contestant(options, device, blocks="last-half")
    cut.trained, cut.optimiser = models["last-half"].trained, models["last-half"].optimiser
    cut.model = Cut(prefix, tokens, size=size)
    steps = {
        "all blocks": models["all"].step,
        "last half": models["last-half"].step,
        "last half, tokens kept": cut.step,
    }
    seconds = in_turns(steps, options.rounds)
    print(shared or "exclusive device")
    print(turns_table(seconds, "all blocks", "/ all blocks"))
    save(options.json, options=options, measured={"shared": shared, "seconds": seconds})
    return 0


class Cut(torch.nn.Module):
    """A segmenter from kept tokens on, whatever the images."""

    def __init__(self, prefix: FrozenPrefix, tokens: torch.Tensor, *, size: tuple[int, int]) -> None:
        super().__init__()
        self.prefix, self.tokens, self.size = prefix, tokens, size

    def forward(self, images: torch.Tensor) -> Any:
        return self.prefix.segmenter.decode(self.prefix.embedding(self.tokens, size=self.size))


if __name__ == "__main__":
    raise SystemExit(main())
