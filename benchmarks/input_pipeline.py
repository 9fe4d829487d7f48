"""Images a second from the input pipeline, against the time of a training step.

``python -m benchmarks.input_pipeline [--image-size 1024] [--batch 4]`` prints the tables of docs/metrics.md. The pictures
are generated, of the sizes of real ones (ISIC 2017, CAMO, Massachusetts Roads), so nothing needs to be downloaded. A step
is stood for by a pause: it takes no processor time, like a step on a GPU, and everything else is the training loop's own
feeder.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from harness.datasets.base import Benchmark, Pair, Sample, Splits
from harness.datasets.reading.decoding import read_binary, read_image
from harness.protocols.load import for_backbone, load_protocol
from harness.training.batches import UpdatePlan
from harness.training.cache import ArrayCache
from harness.training.distributed import Workers
from harness.training.feeding import Feeder
from harness.training.images import ImageSource

SIZES = {
    "CAMO-like JPEG": (1000, 750, ".jpg"),
    "ISIC-like JPEG": (3000, 2000, ".jpg"),
    "road-like TIFF": (1500, 1500, ".tiff"),
}


class Generated(Benchmark):
    """Decodes as the real benchmarks do."""

    name = "generated"

    def locate(self, data_root: Path) -> Path:
        return data_root

    def splits(self, root: Path) -> Splits:
        raise NotImplementedError

    def read(self, pair: Pair) -> Sample:
        return Sample(image=read_image(pair.image), mask=read_binary(pair.mask))


def generate(folder: Path, *, width: int, height: int, suffix: str, count: int) -> list[Pair]:
    rng = np.random.default_rng(0)
    texture = np.stack([gaussian_filter(rng.normal(128, 200, (height, width)), 2) for _ in range(3)], axis=-1)
    pairs = []
    for index in range(count):
        pair = Pair(stem=str(index), image=folder / f"{index}{suffix}", mask=folder / f"{index}_mask.png")
        shifted = np.roll(texture, 31 * index, axis=1)
        Image.fromarray(np.clip(shifted, 0, 255).astype(np.uint8)).save(pair.image)
        Image.fromarray((shifted[..., 0] > 140).astype(np.uint8) * 255).save(pair.mask)
        pairs.append(pair)
    return pairs


def images_per_second(source: ImageSource, *, threads: int, rounds: int) -> float:
    """Copies what it reads, as batching does: a memory map alone would read nothing."""

    def read(index: int) -> None:
        np.copy(source.image(index))
        np.copy(source.mask_input(index))

    rates = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(rounds):
            begun = time.perf_counter()
            list(pool.map(read, range(len(source))))
            rates.append(len(source) / (time.perf_counter() - begun))
    return statistics.median(rates)


def wait_share(source: ImageSource, *, step_seconds: float, batch: int, updates: int) -> float:
    """Share of the time that the loop waits for images, from the second update on."""
    plan = UpdatePlan(indices=range(len(source)), batch_size=batch, flip=0.5)
    protocol = for_backbone(load_protocol("standard", {"image_size": source.image_size, "batch_size": batch}), "vit_b")
    feeder = Feeder(
        torch.nn.Identity(),
        source,
        plan=plan,
        protocol=protocol,
        device=torch.device("cpu"),
        workers=Workers(),
        embeddings=None,
    )
    waits = []
    with feeder:
        where = [divmod(update, plan.updates_per_epoch) for update in range(updates + 1)]
        feeder.prepare(*where[0])
        for following in where[1:]:
            feeder.prepare(*following)
            waits.append(feeder.take()[1])
            time.sleep(step_seconds)
        feeder.take()
    return sum(waits[1:]) / (sum(waits[1:]) + step_seconds * len(waits[1:]))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image-size", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--count", type=int, default=16, help="pictures of each kind")
    parser.add_argument("--steps-ms", default="100,200,400,800", help="times of a step to stand for")
    parser.add_argument("--updates", type=int, default=12)
    options = parser.parse_args(argv)
    cores = len(os.sched_getaffinity(0))
    steps = [int(text) / 1000 for text in options.steps_ms.split(",")]
    print(f"{options.image_size}², batch {options.batch}, {cores} cores, as many loading threads\n")
    headings = " | ".join(f"wait at {seconds * 1000:.0f} ms a step" for seconds in steps)
    print(f"| pictures | cache | images/s, 1 thread | images/s, {cores} threads | {headings} |")
    print("|---|---|---|---|" + "---|" * len(steps))
    for kind, (width, height, suffix) in SIZES.items():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            pairs = generate(folder, width=width, height=height, suffix=suffix, count=options.count)
            for cache in (None, folder / "cache"):
                source = ImageSource(
                    Generated(), pairs, image_size=options.image_size, cache=cache and ArrayCache(cache)
                )
                images_per_second(source, threads=cores, rounds=1)  # fills the cache
                rounds = 1 if cache is None else 5
                rates = [images_per_second(source, threads=threads, rounds=rounds) for threads in (1, cores)]
                shares = [
                    wait_share(source, step_seconds=seconds, batch=options.batch, updates=options.updates)
                    for seconds in steps
                ]
                waits = " | ".join(f"{share:.1%}" for share in shares)
                print(
                    f"| {kind} {width}×{height} | {'yes' if cache else 'no'} | {rates[0]:.0f} | {rates[1]:.0f} | {waits} |",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
