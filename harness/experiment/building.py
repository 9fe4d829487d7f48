"""From a run's JSON to the segmenter with the method attached: the same for training, for testing, for an export."""

from __future__ import annotations

import os
from pathlib import Path

from harness.archive.schema import Run
from harness.check import from_mapping
from harness.methods.base import Method
from harness.models.build import build_segmenter
from harness.models.catalog import backbone_shape
from harness.models.decoder_shape import Task
from harness.models.segmenter import Segmenter
from harness.protocols.load import from_rules
from harness.registry import METHODS, method_config_class
from harness.training.batches import draw_number


def attached_segmenter(run: Run, *, task: Task, num_classes: int, checkpoint: Path | None) -> tuple[Segmenter, Method]:
    """A fresh segmenter on the CPU, in training mode, and the method attached to it.

    Head and method draw from streams of their own, so that for one seed every method meets the same head.

    Args:
        num_classes: classes of a multi-class benchmark, background included.
        checkpoint: the pretrained weights, None for random ones.

    Raises:
        MemoryError: what the method adds cannot fit; a file from elsewhere may ask for anything.
    """
    rules = from_rules(run.rules)
    config = from_mapping(method_config_class(run.method), run.method_config, where=f"method {run.method}")
    _require_memory(run, config.added_parameters(backbone_shape(run.backbone)))
    segmenter = build_segmenter(
        run.backbone,
        task=task,
        num_classes=num_classes,
        mask_tokens=rules.mask_tokens,
        image_size=rules.image_size,
        checkpoint=checkpoint,
        head_seed=draw_number("head", run.seed) % 2**31,
        fused_attention=rules.fused_attention,
        batched_decoder=rules.batched_decoder,
        activation_checkpointing=rules.activation_checkpointing,
        strict_loading=rules.quirks.strict_loading,
        spare_tokens=rules.quirks.spare_tokens,
        decoder=rules.decoder,
    )
    method: Method = METHODS.get(run.method)(config, seed=draw_number("method", run.seed) % 2**31)
    method.attach(segmenter)
    if rules.quantise:
        from harness.models.quantised import quantise

        quantise(segmenter, rules.quantise)
    return segmenter, method


def _require_memory(run: Run, added: int) -> None:
    needed, there = 4 * added, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise MemoryError(
            f"{run.variant} adds {added:,} parameters, {needed / 2**30:.0f} GiB, and this machine has {there / 2**30:.0f}"
        )
