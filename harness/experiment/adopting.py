"""An adapter that Hugging Face peft trained on transformers' ``SamModel``, folded into SAM's weights.

The result is a model for predictions (`Adopted`), or the weights of a whole checkpoint (`merged_adapter`), to be compared with ``--methods
zeroshot --checkpoint FILE``.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import fields
from functools import partial, reduce
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save
from torch import Tensor, nn

from harness.experiment.trained import Trained, trained_segmenter
from harness.methods.base import Method
from harness.methods.peft import TUNERS
from harness.models.checkpoint import read_tensors, require_match
from harness.models.original_sam import plain_sam
from harness.models.published import hf_name
from harness.models.segmenter import Segmenter
from harness.system.errors import UsageError, shortened, writing_to
from harness.system.files import read_regular, write_atomically

_LARGEST = 1 << 20
"""Most bytes of ``adapter_config.json``."""
MOST_PRUNED = 64
"""An adapter may ask for at most this many times the numbers in its file; AdaLoRA's file lacks the ranks that it dropped."""
_MOST_CHOICES = 5
"""Repeats and groups in a pattern of layers' names: each further one may take ten times as long over all names of ViT-H."""
_CHANGED_WEIGHTS = ("corda", "loftq", "lora_ga", "pissa_niter_")
"""Initialisations of LoRA that change the frozen weights by something that is not in its file: data, quantisation, random numbers."""
BACKBONES = ("vit_b", "vit_l", "vit_h", "tiny")
_OF_MODEL = {"auto_mapping", "base_model_name_or_path", "revision", "task_type", "peft_type", "peft_version"}
"""Fields of ``adapter_config.json`` about the model that was trained."""


class Adopted(Trained):
    """A SAM with a folded adapter; ``state`` holds all of its weights, under segment_anything's names."""

    def segmenter(self, checkpoint: Path | None) -> tuple[Segmenter, Method]:
        self.require_checkpoint(checkpoint)
        with TemporaryDirectory() as folder:
            file = Path(folder, "merged.safetensors")
            file.write_bytes(save(dict(self.state)))
            return trained_segmenter(self.run, {}, checkpoint=file)


def write_merged(out: Path, folder: Path, *, backbone: str, checkpoint: Path) -> int:
    """Write what `merged_adapter` gives as ``.safetensors``; returns how many layers the adapter changes."""
    state, changed = merged_adapter(folder, backbone=backbone, checkpoint=checkpoint)
    with writing_to(f"--out {out}"):
        write_atomically(out, save(state))
    return len(changed)


def merged_adapter(
    folder: Path, *, backbone: str, checkpoint: Path | None
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """SAM's weights with the adapter in ``folder`` folded in, under segment_anything's names, and the layers that it changes.

    Args:
        backbone: ``vit_b``, ``vit_l``, ``vit_h``, or ``tiny``.
        checkpoint: the SAM that the adapter was trained on, under segment_anything's names; None for random weights.

    Raises:
        UsageError: no such folder, a damaged file, a tuner or an option that is unknown or cannot be merged, or an adapter or a
            checkpoint of another model.
    """
    content, tensors = _read(folder)
    config = _configuration(folder, content)
    if backbone not in BACKBONES:
        raise UsageError(f"--adapter and --adopt are for {', '.join(BACKBONES)}, not for {backbone}")
    sam = plain_sam(backbone)
    whole = {hf_name(name): name for name in sam.state_dict()}
    if checkpoint is not None:
        weights = read_tensors(checkpoint)
        require_match(weights, sam.state_dict(), path=checkpoint, backbone=backbone)
        sam.load_state_dict(weights)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # First without memory, since the configuration may ask for any amount. Not for tuners that start from the weights' values.
            with suppress(RuntimeError), torch.device("meta"):  # NotImplementedError is a RuntimeError
                _adapted(plain_sam(backbone), config, tensors)
            model = _adapted(sam, config, tensors)
            peft.set_peft_model_state_dict(model, dict(tensors))
            layers = model.base_model.model.named_modules()
            changed = tuple(name for name, layer in layers if isinstance(layer, BaseTunerLayer))
            merged = model.merge_and_unload().state_dict()
            if bad := next((name for name, tensor in merged.items() if not tensor.isfinite().all()), ""):
                raise ValueError(f"{whole[bad]} is not finite once the adapter is folded in")
    except Exception as error:  # peft has no type of its own for what it cannot load or merge
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UsageError(f"{folder} is not an adapter for {backbone} in transformers' SamModel: {reason}") from error
    return {whole[name]: tensor.contiguous() for name, tensor in merged.items()}, changed


def _configuration(folder: Path, content: Mapping[str, Any]) -> Callable[[], Any]:
    """Makes peft's configuration of ``adapter_config.json``. Raises UsageError: an unknown kind or option, or what `_require_determined`
    refuses."""
    kind = str(content.get("peft_type", "")).lower()
    if kind not in TUNERS or TUNERS[kind].unmerged:
        raise UsageError(f"{folder} is an adapter of the kind {kind or 'unknown'}, which cannot be folded into weights")
    kinds = {member.value.lower(): member for member in peft.PEFT_TYPE_TO_CONFIG_MAPPING}
    config_class = peft.PEFT_TYPE_TO_CONFIG_MAPPING[kinds[kind]]
    given = {name: value for name, value in content.items() if name not in _OF_MODEL}
    _require_determined(folder, given)
    known = {field.name for field in fields(config_class)}
    if unknown := [name for name, value in given.items() if name not in known and value]:
        raise UsageError(
            f"{folder} sets {unknown[0]}, which peft {peft.__version__} does not know for {kind}; install the peft that wrote it"
        )
    options = {name: value for name, value in given.items() if name in known} | {"inference_mode": False}
    return partial(config_class, **options)


def _adapted(plain: nn.Module, config: Callable[[], Any], tensors: Mapping[str, Tensor]) -> Any:
    """The model with the adapter's layers. Raises ValueError: the file holds others."""
    tree: Any = named_as_transformers(plain)
    model: Any = peft.get_peft_model(tree, config())
    needed = peft.get_peft_model_state_dict(model)
    lacking, odd = needed.keys() - tensors.keys(), tensors.keys() - needed.keys()
    if lacking or odd:
        raise ValueError(f"its file {'lacks' if lacking else 'holds, and should not,'} {min(lacking or odd)}")
    asked, held = (sum(tensor.numel() for tensor in of.values()) for of in (needed, tensors))
    if asked > MOST_PRUNED * held:
        raise ValueError(f"its configuration asks for {asked:,} numbers, and its file holds {held:,}")
    return model


def _require_determined(folder: Path, given: Mapping[str, Any]) -> None:
    """Refuse a configuration with which the file does not say what the adapter does, or a pattern that could take forever to match.

    Raises:
        UsageError: a number that is not finite, a start that changed the frozen weights, or a pattern with repeats inside repeats.
    """
    start = str(given.get("init_lora_weights", ""))
    if start.startswith(_CHANGED_WEIGHTS):
        raise UsageError(
            f"{folder} has init_lora_weights={start}, which changed the weights that it was trained on in a way that its file does not "
            "hold; let peft write it as plain LoRA (save_pretrained with path_initial_model_for_weight_conversion)"
        )
    for name, value in given.items():
        for leaf in _leaves(value):
            if isinstance(leaf, float) and not isfinite(leaf):
                raise UsageError(f"{folder} has {name}={leaf}, which must be a finite number")
            if isinstance(leaf, str) and backtracks(leaf):
                raise UsageError(
                    f"{folder} has the pattern {shortened(leaf)!r} in {name}, which could take forever to match"
                )


def _leaves(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def backtracks(pattern: str) -> bool:
    """Whether matching a layer's name may take forever: a group is repeated, the flag x allows blanks in between, or
    there are too many repeats and groups."""
    return bool(re.search(r"\)\s*[*+{]|\(\?[a-z]*x", pattern)) or len(re.findall(r"[*+{?(]", pattern)) > _MOST_CHOICES


def named_as_transformers(sam: nn.Module) -> nn.Module:
    """The modules of segment_anything's ``Sam`` as a tree of transformers' names, by which an adapter says what it changes."""
    tree = nn.Module()
    tree.config = {"model_type": "custom"}  # type: ignore[assignment]
    for name, tensor in sam.state_dict(keep_vars=True).items():
        path, _, leaf = name.rpartition(".")
        *parents, own, new_leaf = hf_name(name).split(".")
        owner = reduce(_child, parents, tree)
        module = sam.get_submodule(path)
        if new_leaf == leaf and not any(module.children()):
            owner.add_module(own, module)
        elif isinstance(tensor, nn.Parameter):
            _child(owner, own).register_parameter(new_leaf, tensor)
        else:
            _child(owner, own).register_buffer(new_leaf, tensor)
    return tree


def _child(owner: nn.Module, name: str) -> nn.Module:
    if not hasattr(owner, name):
        owner.add_module(name, nn.Module())
    return owner.get_submodule(name)


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        # Links, as in the Hub's cache, are followed to their file.
        config = dict(json.loads(read_regular((folder / "adapter_config.json").resolve(), largest=_LARGEST)))
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise UsageError(f"{folder} is not the folder of a peft adapter: adapter_config.json: {error}") from error
    return config, read_tensors(folder / "adapter_model.safetensors")
