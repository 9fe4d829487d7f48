"""One finished run's best model against its frozen backbone, on test images: `measure_insides` makes its evidence record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.archive.masks import chosen_images
from harness.archive.measured import BlockEvidence, EvidenceRecord
from harness.archive.schema import Run
from harness.evidence.attention import uniform_distance
from harness.evidence.merging import block_deviations
from harness.evidence.probe import Seen, rounded, watched
from harness.experiment.data import open_data
from harness.experiment.environment import environment
from harness.experiment.exporting import calibration_images
from harness.experiment.trained import Trained
from harness.methods.base import MergeMode
from harness.models.build import build_segmenter
from harness.planning.data import data_options
from harness.protocols.load import from_rules
from harness.registry import BENCHMARKS
from harness.statistics.cka import FEWEST
from harness.system.errors import UsageError
from harness.training.batches import draw_number
from harness.training.feeding import normalise


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What to measure.

    Args:
        trained: the run and its best state.
        checkpoint: the pretrained weights that it started from, None for random ones.
        data: folder that holds the benchmark.
        images: test images at most, chosen by a hash of their names, so that every run of a benchmark meets the same.
        batch: images a minibatch of CKA.
        merges: modes whose deviation is measured, None for those that the run was merged by.
    """

    trained: Trained
    checkpoint: Path | None
    data: Path
    images: int
    batch: int
    merges: Sequence[MergeMode] | None = None


def measure_insides(
    asked: Measure, *, device: torch.device, tell: Callable[[str], None] = lambda stage: None
) -> EvidenceRecord:
    """Run the images through both encoders in float32, a block's evidence reduced while the block runs.

    Raises:
        UsageError: fewer than four test images, or the wrong checkpoint.
        DatasetError: the data are not the run's.
    """
    run, trained = asked.trained.run, asked.trained
    tell("loading the model")
    segmenter, method = trained.segmenter(asked.checkpoint)
    frozen = frozen_encoder(run, asked.checkpoint).to(device)
    encoder: Any = segmenter.to(device).encoder
    tell("reading images")
    names, batches = test_images(run, asked.data, images=asked.images, batch=asked.batch)
    tell("measuring the frozen backbone")
    with watched(frozen) as before:
        pass_through(frozen, batches, device=device)
    tell("measuring the trained model")
    with watched(encoder, against=frozen) as after:
        pass_through(encoder, batches, device=device)
    shape, grid = encoder.shape, (encoder.grid.height, encoder.grid.width)
    wanted = from_rules(run.rules).merge if asked.merges is None else asked.merges
    merged: dict[str, list[float]] = {}
    for mode in (mode for mode in wanted if mode in method.merge_modes):
        tell(f"merging ({mode})")
        other, merging = trained.segmenter(asked.checkpoint)
        calibration, _ = calibration_images(run, asked.data) if mode == "calibrated" else ([], None)
        other.to(device)
        merging.merge(mode, calibration=[batch.to(device) for batch in calibration])
        found = block_deviations(encoder, other.encoder, batches, device=device)
        merged[mode] = [rounded(value) for value in found]
    blocks = []
    for index, (now, then) in enumerate(zip(after, before, strict=True)):
        blocks.append(_block(now, then, window=shape.blocks[index].window, grid=grid, patch=shape.patch))
    return EvidenceRecord(
        key=run.key,
        state=trained.digest,
        images=names,
        batch=len(batches[0]),
        grid=grid,
        patch=shape.patch,
        blocks=blocks,
        merge=merged,
        environment=environment(device),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _block(now: Seen, then: Seen, *, window: int, grid: tuple[int, int], patch: int) -> BlockEvidence:
    uniform = rounded(uniform_distance(grid, window=window, patch=patch))
    return BlockEvidence(window=window, uniform_px=uniform, trained=now.inside, frozen=then.inside, update=now.update)


def frozen_encoder(run: Run, checkpoint: Path | None) -> Any:
    """The run's backbone as its training met it, without the method, in evaluation mode."""
    rules = from_rules(run.rules)
    segmenter = build_segmenter(
        run.backbone,
        task="binary",
        image_size=rules.image_size,
        checkpoint=checkpoint,
        head_seed=draw_number("head", run.seed) % 2**31,
        fused_attention=rules.fused_attention,
    )
    return segmenter.encoder.eval().requires_grad_(False)


def test_images(run: Run, data: Path, *, images: int, batch: int) -> tuple[list[tuple[str, str]], list[Tensor]]:
    """Names (split, stem) and minibatches (batch, 3, S, S), normalised; what does not fill a minibatch is left out.

    Raises:
        UsageError: too few for one.
    """
    rules = from_rules(run.rules)
    opened = open_data(run, BENCHMARKS.get(run.benchmark)(data_options(rules, run.benchmark)).locate(data))
    places = {name: {one.stem(index): index for index in range(len(one))} for name, one in opened.tests.items()}
    names = chosen_images(places, images)
    batch = min(batch, len(names))
    if batch < FEWEST:
        raise UsageError(f"{len(names)} test images; evidence needs {FEWEST} at least (--images, --batch)")
    names = names[: len(names) // batch * batch]
    inputs = torch.stack([torch.from_numpy(opened.tests[split].image(places[split][stem])) for split, stem in names])
    return names, list(normalise(inputs, mean=rules.pixel_mean, std=rules.pixel_std).split(batch))


@torch.no_grad()
def pass_through(encoder: Any, batches: Sequence[Tensor], *, device: torch.device) -> None:
    """Every minibatch through the blocks; neck and decoder have no part in it."""
    for batch in batches:
        encoder.run_blocks(encoder.embed(batch.to(device)))
