"""A trained low-rank method in the format of Hugging Face's PEFT, for transformers' ``SamModel``.

LoRA and SAMed are what PEFT calls LoRA. A cell (NAS-LoRA, NAS-PC-LoRA, Conv-LoRA) is not, but the affine map (M, c) of
the bottleneck that is fitted to it on training images is: A' = M A, B, and a bias s · B c on the layer. The mask decoder,
which every method trains, travels whole as a module to save.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from harness.experiment.trained import METADATA
from harness.methods.base import Method
from harness.methods.parts.merging import Affine, AffineUpdate
from harness.models.hf_names import hf_name
from harness.models.segmenter import SAMSegmenter
from harness.system.errors import UsageError, os_reason
from harness.system.files import write_atomically

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_DECODER = "mask_decoder"


def require_affine(method: Method) -> Affine:
    """Raises UsageError where the method's updates are no low-rank updates of linear layers."""
    if not isinstance(method, Affine):
        raise UsageError(
            f"{method.name} is no low-rank update of linear layers, which is all that PEFT's LoRA format holds; "
            "use --adapter-only"
        )
    if method.config.freezes_decoder:
        raise UsageError(
            f"{method.name} adapts the mask decoder too, which goes whole into a PEFT export; merge it into a whole SAM, or use "
            "--adapter-only"
        )
    return method


def peft_adapter(
    segmenter: SAMSegmenter, method: Affine, calibration: Sequence[Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Content of ``adapter_config.json``, and the tensors of ``adapter_model.safetensors``.

    Args:
        segmenter: a SAM with ``method`` attached and its state loaded, in evaluation mode.
        method: not merged.
        calibration: batches (B, 3, S, S) of training images, to which cells are fitted.

    Raises:
        MethodError: there are cells, and no images.
    """
    updates = method.affine_updates(calibration)
    biased = any(bool(update.offset.any()) for update in updates)
    tensors: dict[str, Tensor] = {}
    for update in updates:
        name = f"{_PREFIX}{_layer(update)}"
        tensors[f"{name}.lora_A.weight"] = update.down
        tensors[f"{name}.lora_B.weight"] = update.up
        if biased:
            tensors[f"{name}.lora_B.bias"] = update.offset
    for name, tensor in segmenter.mask_decoder.plain_state().items():
        tensors[f"{_PREFIX}{hf_name(f'{_DECODER}.{name}')}"] = tensor
    return _config(updates, biased=biased), tensors


def _layer(update: AffineUpdate) -> str:
    return hf_name(f"image_encoder.{update.layer}")


def _config(updates: Sequence[AffineUpdate], *, biased: bool) -> dict[str, Any]:
    ranks = {_layer(update): len(update.down) for update in updates}
    rank = max(ranks.values())
    others = {name: own for name, own in ranks.items() if own != rank}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,  # the scale is in B
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(ranks),
        "modules_to_save": [_DECODER],
        "lora_bias": biased,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
    }


def write_peft(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], *, metadata: str) -> None:
    """Both files into ``folder``, the tensors first: where the configuration is there, all is.

    Raises:
        UsageError: they cannot be written.
    """
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        write_atomically(folder / TENSORS, save(content, {"format": "pt", METADATA: metadata}))
        write_atomically(folder / CONFIG, json.dumps(config, indent=2) + "\n")
    except OSError as error:
        raise UsageError(f"--out {folder} cannot be written: {os_reason(error)}") from error
