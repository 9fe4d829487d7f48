"""How many images a second the loaders of training give, by cores: new ones (decoded and resized) and those that the cache holds.

    python -m benchmarks.loading --image-size 1024 --cores 1,2

Photographs of 1500 × 1000 pixels with a mask, as the loop loads them (`harness.training.feeding.Feeder`), with nothing computed.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tabulate import tabulate
from torch import nn

from harness.datasets.base import Pair
from harness.protocols.protocol import Protocol
from harness.registry import BENCHMARKS
from harness.system.machine import affinity
from harness.training.batches import UpdatePlan
from harness.training.cache import ArrayCache
from harness.training.feeding import LOOKAHEAD, Feeder
from harness.training.images import ImageSource

PHOTOGRAPH = (1500, 1000)
BATCH = 4


def written(folder: Path, count: int) -> list[Pair]:
    """``count`` photographs."""
    pairs = []
    for number in range(count):
        coarse = np.random.default_rng(number).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        path = folder / f"{number}.jpg"
        Image.fromarray(coarse).resize(PHOTOGRAPH, Image.Resampling.BICUBIC).save(path, quality=92)
        mask = path.with_suffix(".png")
        Image.new("L", PHOTOGRAPH, 255 * (number % 2)).save(mask)
        pairs.append(Pair(stem=str(number), image=path, mask=mask))
    return pairs


def rate(source: ImageSource) -> tuple[float, float]:
    """Images a second of one epoch, and milliseconds of a core an image, which others on the machine do not change."""
    plan = UpdatePlan(indices=range(len(source)), batch_size=BATCH, flip=0.5)
    rules = Protocol(name="loading", batch_size=BATCH)
    device = torch.device("cpu")
    begun, busy = time.perf_counter(), time.process_time()
    with Feeder(nn.Identity(), source, plan=plan, protocol=rules, device=device, embeddings=None) as feeder:
        for step in range(plan.updates_per_epoch + LOOKAHEAD):
            if step < plan.updates_per_epoch:
                feeder.prepare(0, step)
            if step >= LOOKAHEAD:
                feeder.take()
    images = len(source)
    return images / (time.perf_counter() - begun), 1000 * (time.process_time() - busy) / images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=1024)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument(
        "--cores", default=",".join(map(str, {1, affinity()})), help="such as 1,4,8 (default: 1 and all)"
    )
    given = parser.parse_args()
    allowed, rows = sorted(os.sched_getaffinity(0)), []
    with tempfile.TemporaryDirectory() as name:
        pairs = written(Path(name), given.images)
        for cores in map(int, given.cores.split(",")):
            os.sched_setaffinity(0, allowed[:cores])
            cache = ArrayCache(Path(name) / f"cache-{cores}")
            source = ImageSource(BENCHMARKS.get("kvasir")(), pairs, image_size=given.image_size)
            kept = ImageSource(source.benchmark, pairs, image_size=given.image_size, cache=cache)
            new, _, warm = rate(source), rate(kept), rate(kept)
            rows.append([cores, *new, *warm])
    heads = ["cores", "new: images/s", "ms of a core", "cached: images/s", "ms of a core"]
    print(tabulate(rows, heads, tablefmt="github", floatfmt=".1f"))


if __name__ == "__main__":
    main()
