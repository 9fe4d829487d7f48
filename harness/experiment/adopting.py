"""An adapter that Hugging Face peft trained on transformers' ``SamModel``, folded into SAM's weights.

The result is a model for predictions (`adopted`), or the weights of a whole checkpoint (`folded`), which is compared by ``--methods
zeroshot --checkpoint FILE``.
"""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import peft
from safetensors.torch import load_file, save
from torch import Tensor

from harness.archive.schema import Run
from harness.datasets.own import BINARY
from harness.experiment.trained import Trained, trained_segmenter
from harness.methods.base import Method
from harness.methods.configs.peft import TUNERS
from harness.models.catalog import backbone_shape
from harness.models.checkpoint import read_tensors
from harness.models.fingerprints import fingerprint
from harness.models.original_sam import plain_sam
from harness.models.published import hf_name
from harness.models.segmenter import Segmenter
from harness.protocols.card import Protocol
from harness.protocols.load import as_rules, for_backbone, protocol_hash
from harness.registry import add_own
from harness.system.errors import UsageError
from harness.system.files import read_regular

LARGEST = 1 << 20
"""Bytes of ``adapter_config.json``."""
_PREFIX = "base_model.model."
_OF_MODEL = {"auto_mapping", "base_model_name_or_path", "revision", "task_type", "modules_to_save", "peft_version"}
"""Fields of ``adapter_config.json`` about the model that was trained."""


class Adopted(Trained):
    """A SAM with a folded adapter; ``state`` holds all of its weights, under segment_anything's names."""

    def segmenter(self, checkpoint: Path | None) -> tuple[Segmenter, Method]:
        self.require_checkpoint(checkpoint)
        with TemporaryDirectory() as folder:
            file = Path(folder, "merged.safetensors")
            file.write_bytes(save(dict(self.state)))
            return trained_segmenter(self.run, {}, checkpoint=file)


def adopted(folder: Path, *, backbone: str, checkpoint: Path) -> Adopted:
    """The model of an adapter, as a run of ``zeroshot`` at the backbone's own image size.

    Raises:
        UsageError: as `folded`.
    """
    state, _ = folded(folder, backbone=backbone, checkpoint=checkpoint)
    name = "adopted"
    add_own(name, BINARY)
    size = backbone_shape(backbone).image_size
    rules = for_backbone(Protocol(name=name, image_size=size, own_classes=BINARY), backbone)
    run = Run(
        method="zeroshot",
        method_config={"lr": None},
        variant=str(folder),
        benchmark=name,
        backbone=backbone,
        checkpoint=fingerprint(checkpoint),
        protocol=name,
        protocol_hash=protocol_hash(rules),
        rules=as_rules(rules),
        seed=0,
        manifest="",
        split_rule="",
    )
    return Adopted(run=run, state=state)


def folded(folder: Path, *, backbone: str, checkpoint: Path | None) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """SAM's weights with the adapter in ``folder`` folded in, under segment_anything's names, and the layers that it changes.

    Args:
        backbone: ``vit_b``, ``vit_l``, ``vit_h``, or ``tiny``.
        checkpoint: the SAM that the adapter was trained on, under segment_anything's names; None for random weights.

    Raises:
        UsageError: no such folder, a tuner that is unknown or cannot be merged, or an adapter of another model.
    """
    config, tensors = _read(folder)
    kind = str(config.get("peft_type", "")).lower()
    if kind not in TUNERS or TUNERS[kind].unmerged:
        raise UsageError(
            f"{folder} is an adapter of the kind {kind or 'unknown'}, which is not folded into weights here"
        )
    sam: Any = plain_sam(backbone)
    if checkpoint is not None:
        sam.load_state_dict(read_tensors(checkpoint))
    layers = {hf_name(name): name for name, _ in sam.named_modules() if name}
    whole = {hf_name(name): name for name in sam.state_dict()}
    targets = [layers[name] for name in layers if _is_target(name, config.get("target_modules"))]
    if not targets:
        raise UsageError(
            f"{folder} names no layer of {backbone} as transformers' SamModel has it; give the backbone that it was trained on"
        )
    replaced: dict[str, Tensor] = {}
    adapter: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(_PREFIX)
        if name in whole:
            replaced[whole[name]] = tensor
            continue
        layer = next((part for part in layers if name.startswith(f"{part}.") and layers[part] in targets), "")
        adapter[key if key == name or not layer else f"{_PREFIX}{layers[layer]}{name.removeprefix(layer)}"] = tensor
    kinds = {member.value.lower(): member for member in peft.PEFT_TYPE_TO_CONFIG_MAPPING}
    config_class = peft.PEFT_TYPE_TO_CONFIG_MAPPING[kinds[kind]]
    known = {field.name for field in fields(config_class)} - _OF_MODEL
    sam.config = {"model_type": "custom"}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            given = {name: value for name, value in config.items() if name in known and name != "peft_type"}
            model: Any = peft.get_peft_model(
                sam, config_class(**{**given, "target_modules": targets, "inference_mode": False})
            )
            loaded: Any = peft.set_peft_model_state_dict(model, adapter)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise UsageError(f"{folder} is no adapter of {backbone}: {' '.join(str(error).split())[:200]}") from error
    if loaded.unexpected_keys:
        raise UsageError(f"{folder} holds {loaded.unexpected_keys[0]}, which {backbone} does not have")
    state = {**model.merge_and_unload().state_dict(), **replaced}
    return {name: tensor.contiguous() for name, tensor in state.items()}, tuple(targets)


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        config = json.loads(read_regular(folder / "adapter_config.json", largest=LARGEST))
        return dict(config), load_file(folder / "adapter_model.safetensors")
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise UsageError(f"{folder} is no folder of a peft adapter: {error}") from error


def _is_target(name: str, wanted: object) -> bool:
    """As peft decides: a list of names or their endings, or one pattern for the whole name."""
    if isinstance(wanted, str):
        return len(wanted) < LARGEST >> 8 and re.fullmatch(wanted, name) is not None
    return isinstance(wanted, list) and any(name == str(end) or name.endswith(f".{end}") for end in wanted)
