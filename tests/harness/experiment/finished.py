"""Runs as training leaves them, without training, and their exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.archive.schema import Record, Run
from harness.archive.store import RecordStore
from harness.cli import export
from harness.experiment.building import attached_segmenter
from harness.models.build import build_segmenter
from harness.models.catalog import backbone
from harness.models.original_sam import plain_sam
from harness.registry import BENCHMARKS
from harness.training.checkpoint import BEST, LAST, write_state
from tests.harness.planned import job_of


def finished(
    results: Path,
    method: str,
    *,
    benchmark: str = "kvasir",
    backbone: str = "tiny",
    checkpoint: Path | None = None,
    code: Any = "OK",
    rules: dict[str, str] | None = None,
    **options: Any,
) -> Run:
    """A run with a record and a state as training leaves them; the state is far from its start, not learnt."""
    fields = {
        "benchmarks": (benchmark,),
        "backbones": (backbone,),
        "checkpoints": {"": checkpoint} if checkpoint else {},
    }
    run = job_of(results, method, options, **fields, **rules or {}).run
    task = BENCHMARKS.get(benchmark).task
    classes = BENCHMARKS.get(benchmark).num_classes
    _, attached = attached_segmenter(run, task=task, num_classes=classes, checkpoint=checkpoint)
    generator = torch.Generator().manual_seed(0)
    state = {
        name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in attached.state().items()
        if tensor.is_floating_point()  # positions of taps are no weights
    }
    state = {**attached.state(), **state}
    state |= {name: tensor.abs() + 0.5 for name, tensor in state.items() if name.endswith("running_var")}
    keep_state(results, run.key, state)
    RecordStore(results).write(Record(run=run, key=run.key, code=code, message="" if code == "OK" else "it failed"))
    return run


def keep_state(results: Path, key: str, state: dict[str, Tensor]) -> None:
    """The files that training leaves."""
    for name in (BEST, LAST):
        write_state(results / "state" / key / name, state, identity=key, epoch=1)


def export_to(results: Path, run: Run, out: Path, *arguments: str) -> int:
    """The verb's exit code."""
    return export.main(["--results", str(results), "--run", run.key, "--out", str(out), *arguments])


@torch.no_grad()
def sam_masks(run: Run, file: Path, images: Tensor) -> Tensor:
    """Low-resolution mask logits (B, 1, h, w) of a checkpoint that is loaded strictly: by segment_anything's own modules, and by
    ours for MobileSAM, SAM 2 and SAM 3."""
    shape, side = backbone(run.backbone).shape, run.rules["image_size"]
    if shape.stem or shape.pyramid or shape.upscaled:
        return build_segmenter(run.backbone, task="binary", checkpoint=file, image_size=side)(images).masks
    sam = plain_sam(run.backbone, image_size=side)
    sam.load_state_dict(torch.load(file, map_location="cpu", weights_only=True), strict=True)
    masks = []
    for image in images:
        sparse, dense = sam.prompt_encoder(points=None, boxes=None, masks=None)
        low, _ = sam.mask_decoder(
            image_embeddings=sam.image_encoder(image.unsqueeze(0)),
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        masks.append(low)
    return torch.cat(masks)
