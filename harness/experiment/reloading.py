"""``sam-peft export --verify``: a fresh process loads the written file and predicts.

It loads a whole checkpoint by segment_anything's own registry, or where backbone or image size are not the registry's into
segment_anything's own modules, and trained tensors alone into a freshly built segmenter with the method attached.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from segment_anything import sam_model_registry
from torch import Tensor

from harness.archive.schema import Run
from harness.experiment.exporting import Export, Exported, in_registry, mask_logits
from harness.experiment.trained import trained_segmenter
from harness.models.build import build_segmenter
from harness.models.catalog import backbone
from harness.models.checkpoint import read_tensors
from harness.models.original_sam import plain_sam
from harness.protocols.load import from_rules
from harness.registry import add_own_of, load_plugin
from harness.system.errors import UsageError

TOLERANCE = 1e-4
"""Largest difference of mask logits, relative to their largest magnitude, that passes as equal after reloading."""


def verify(exported: Exported, request: Export) -> float:
    """Load the written file in a fresh process; the largest relative difference of its predictions. Raises UsageError: the file
    does not load there, or predicts something else."""
    with tempfile.TemporaryDirectory() as folder:
        expected = Path(folder) / "expected.safetensors"
        save_file({"images": exported.held_out, "masks": exported.masks.contiguous()}, expected)
        order = {
            "run": asdict(exported.run),
            "file": str(request.out.absolute()),
            "expected": str(expected),
            "adapter_only": request.form == "adapter",
            "checkpoint": str(request.checkpoint.absolute()) if request.checkpoint else "",
            "plugins": [str(path.absolute()) for path in request.plugins],
        }
        command = [
            sys.executable,
            "-P",  # no module out of the working folder, to which others may write
            "-c",
            "import sys; sys.path.insert(0, sys.argv[1]); "
            "from harness.experiment.reloading import print_difference; print_difference(sys.argv[2])",
        ]
        root = str(Path(__file__).parents[2])
        done = subprocess.run([*command, root, json.dumps(order)], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"])[-1]
        raise UsageError(f"{request.out} was written, but a fresh process could not load it: {last}")
    difference = float(done.stdout)
    if not difference <= TOLERANCE:
        raise UsageError(
            f"{request.out} was written, but predicts otherwise in a fresh process: relative difference {difference:.2e}"
        )
    return difference


def print_difference(order: str) -> None:
    """The fresh process's side of `verify`: print the relative difference."""
    asked: dict[str, Any] = json.loads(order)
    for path in asked["plugins"]:
        load_plugin(Path(path))
    run = Run(**asked["run"])
    add_own_of(run.benchmark, run.rules)
    expected = load_file(asked["expected"])
    if asked["adapter_only"]:
        checkpoint = Path(asked["checkpoint"]) if asked["checkpoint"] else None
        segmenter, _ = trained_segmenter(run, read_tensors(Path(asked["file"])), checkpoint=checkpoint)
        masks = mask_logits(segmenter, expected["images"])
    else:
        masks = sam_masks(run, Path(asked["file"]), expected["images"])
    print(float((masks - expected["masks"]).abs().max() / expected["masks"].abs().max()))


@torch.no_grad()
def sam_masks(run: Run, file: Path, images: Tensor) -> Tensor:
    """Low-resolution mask logits (B, 1, h, w) of segment_anything's own modules, loaded strictly from ``file``; of ours for
    MobileSAM and SAM 2."""
    shape = backbone(run.backbone).shape
    if shape.stem or shape.pyramid:
        side = from_rules(run.rules).image_size
        return mask_logits(build_segmenter(run.backbone, task="binary", checkpoint=file, image_size=side), images)
    if in_registry(run):
        sam = sam_model_registry[run.backbone](checkpoint=str(file))
    else:
        sam = plain_sam(run.backbone, image_size=from_rules(run.rules).image_size)
        sam.load_state_dict(torch.load(file, map_location="cpu", weights_only=True), strict=True)
    masks = []
    for image in images:
        sparse, dense = sam.prompt_encoder(points=None, boxes=None, masks=None)
        embedding = sam.image_encoder(image.unsqueeze(0))
        low, _ = sam.mask_decoder(
            image_embeddings=embedding,
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        masks.append(low)
    return torch.cat(masks)
