"""Room on disk in closed form: a run's states while it is unfinished and afterwards, and the caches that runs share."""

from __future__ import annotations

from collections.abc import Iterable

from harness.archive.schema import Run
from harness.methods.configs import MethodConfig
from harness.methods.parts.placement import BackboneShape
from harness.planning.data import Images
from harness.pricing.flops import config_of, encodes_once
from harness.training.bounds import CACHE_BYTES, TOKEN_BYTES, worth_keeping

UNFINISHED = 7
"""Times the trained tensors: two checkpoints, each with the weights and Adam's two moments, and the best state."""
FINISHED = 2
"""Times the trained tensors: the best and the last state."""
RECORD_BYTES = 40_000
IMAGE_ROW_BYTES = 150


def result_bytes(run: Run, images: Images) -> float:
    """The record, and a row an image and scored model."""
    return RECORD_BYTES + IMAGE_ROW_BYTES * (images.val + images.test * (2 + len(run.rules.get("merge", ()))))


def image_cache_bytes(runs: Iterable[tuple[Run, Images]]) -> float:
    """Input images with their masks (4 bytes a pixel), once for all runs that see the same ones.

    Masks at their own size, which scoring keeps as well, are not in it: nothing tells their size before they are read.
    """
    found = {}
    for run, images in runs:
        if run.rules.get("cache_images"):
            size = int(run.rules["image_size"])
            found[run.benchmark, run.manifest, size] = 4.0 * size**2 * (images.train + images.val + images.test)
    return min(sum(found.values()), CACHE_BYTES)


def embedding_cache_bytes(runs: Iterable[tuple[Run, Images, BackboneShape]]) -> float:
    """Training images as a frozen encoder gives them, plain and flipped, once for all runs with one encoder."""
    found = {}
    for run, images, shape in runs:
        if encodes_once(run):
            side = int(run.rules["image_size"]) // shape.patch
            encoder = (run.backbone, run.checkpoint or run.seed, run.rules.get("precision"), side)
            needed = 2.0 * images.train * 4 * side**2 * (shape.neck_dim or shape.dim)
            found[(*encoder, run.benchmark, run.manifest)] = needed if needed <= CACHE_BYTES else 0.0
    return sum(found.values())


def token_cache_bytes(runs: Iterable[tuple[Run, Images, BackboneShape]]) -> float:
    """Training images as the blocks in front of the first trained one leave them (`harness.training.prefix`), plain and
    flipped, once for all runs that leave the same blocks alone. They are kept on a CPU only."""
    found = {}
    for run, images, shape in runs:
        blocks = kept_blocks(config_of(run), shape)
        if run.rules.get("cache_prefix") and blocks is not None:
            side = int(run.rules["image_size"]) // shape.patch
            encoder = (run.backbone, run.checkpoint or run.seed, run.rules.get("precision"), side, blocks)
            last = shape.blocks[max(blocks - 1, 0)]  # the stem leaves the map of the first
            needed = 2.0 * images.train * 4 * ((side * last.scale) ** 2 + shape.prefix_tokens) * last.dim
            found[(*encoder, run.benchmark, run.manifest)] = needed if needed <= TOKEN_BYTES else 0.0
    return sum(found.values())


def kept_blocks(config: MethodConfig, shape: BackboneShape) -> int | None:
    """How many blocks are in front of the tokens that runs of a method keep; None where they keep none."""
    blocks = config.untouched_blocks(shape)
    # Embedding an image sets the rotations of every block.
    rotates = not shape.stem and (shape.pre_norm or shape.learnt_positions == 0)
    return blocks if blocks is not None and worth_keeping(shape, blocks) and not rotates else None
