"""The trained model of a run as an adapter of Hugging Face's PEFT, for transformers' ``SamModel`` or, of SAM 3, ``Sam3TrackerModel``.

PEFT's LoRA format holds LoRA and SAMed. It also holds the affine map (M, c) that ``calibrated`` fits to a cell (NAS-LoRA, NAS-PC-LoRA,
Conv-LoRA) on training images: A' = M A, B, and a bias s · B c on the layer. peft's own tuners have formats of their own. The mask decoder
travels whole, as a module to save.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from harness.methods.base import Method
from harness.methods.parts.merging import AffineUpdate
from harness.methods.parts.placement import MethodError
from harness.models.published import hf_name
from harness.models.sam_encoder import SAMEncoder
from harness.models.segmenter import SAMSegmenter
from harness.system.errors import UsageError

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
MERGED = ("LORA", "ADALORA")
"""Kinds of adapters that peft can merge when a module is saved with them."""
_PREFIX, _DECODER = "base_model.model.", "mask_decoder"

Names = Callable[[str], list[str]]
"""The name of a layer or a tensor, as a checkpoint of SAM has it, to its name in transformers; for a fused qkv those of q, k and v where
they are separate there (SAM 3)."""


def peft_adapter(
    segmenter: SAMSegmenter, method: Method, calibration: Sequence[Tensor], *, base: str | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The content of ``adapter_config.json``, and the tensors of ``adapter_model.safetensors``.

    Args:
        segmenter: a SAM with ``method`` attached and its state loaded, in evaluation mode.
        method: not merged.
        calibration: batches (B, 3, S, S) of training images to which cells are fitted; empty for none.
        base: name on the Hub of the model that it belongs to, None where it has none.

    Raises:
        UsageError: the method is not a low-rank update of linear layers, or has cells that were not fitted.
    """
    names = _names(segmenter)
    decoder: dict[str, Tensor] = {}
    for key, tensor in segmenter.mask_decoder.plain_state().items():
        (name,) = names(f"{_DECODER}.{key}")
        if name.startswith(_DECODER):  # SAM 3's frozen embedding of "no memory" is elsewhere there
            decoder[_PREFIX + name] = tensor
    if (adapter := getattr(method, "adapter", None)) is not None:  # of peft's own tuners
        config, tensors = adapter(lambda layer, part: _of_part(names(f"image_encoder.{layer}"), part))
    else:
        config, tensors = _lora(_updates(method, calibration, names))
    return {**config, "base_model_name_or_path": base, "modules_to_save": [_DECODER]}, tensors | decoder


def require_in_transformers(segmenter: SAMSegmenter, backbone: str) -> None:
    """Raises UsageError: transformers has no model into which PEFT could load the adapter."""
    if not (isinstance(segmenter.encoder, SAMEncoder) or segmenter.encoder.shape.upscaled):
        raise UsageError(
            f"PEFT loads into transformers' SamModel or Sam3TrackerModel, and {backbone} is neither; leave --peft out "
            "for a whole checkpoint, or use --adapter-only"
        )


def _names(segmenter: SAMSegmenter) -> Names:
    if not segmenter.encoder.shape.upscaled:
        return lambda name: [hf_name(name)]
    from harness.models.sam3 import tracker_names  # needs transformers, as the encoder did

    return tracker_names


def _of_part(names: list[str], part: str) -> str:
    """The name of a whole layer (no ``part``), or of its q, k or v."""
    if len(names) > 1 and not part:
        raise UsageError(
            "transformers' SAM 3 has separate q, k and v, so a tuner of the fused layer does not fit; train with sites=q,k,v"
        )
    if len(names) > 1:
        return names["qkv".index(part)]
    return f"{names[0]}.parts.{part}" if part else names[0]


def _updates(method: Method, calibration: Sequence[Tensor], names: Names) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """A (rank, inputs), B (outputs, rank) and bias (outputs,) by transformers' names of the layers."""
    affine: Any = getattr(method, "affine_updates", None)
    if affine is None:
        raise UsageError(
            f"{method.name} is not a low-rank update of linear layers, which is all that PEFT's LoRA format holds; use --adapter-only"
        )
    if method.config.freezes_decoder:
        raise UsageError(
            f"{method.name} adapts the mask decoder too, which goes whole into a PEFT export; merge it into a whole SAM, or use "
            "--adapter-only"
        )
    try:
        updates: list[AffineUpdate] = affine(calibration)
    except MethodError as error:
        raise UsageError(
            f"{method.name} has cells, which PEFT's format holds only as low-rank updates that are fitted to them; "
            "use --merge calibrated or --adapter-only"
        ) from error
    return {name: layer for each in updates for name, layer in _apart(names(f"image_encoder.{each.layer}"), each)}


def _apart(names: list[str], update: AffineUpdate) -> Iterator[tuple[str, tuple[Tensor, Tensor, Tensor]]]:
    """The update of one of our layers, split over its layers in transformers; those that it does not change are left out."""
    parts = zip(names, update.up.chunk(len(names)), update.offset.chunk(len(names)), strict=True)
    for name, up, offset in parts:
        used = up.any(dim=0) if len(names) > 1 else slice(None)
        if up[:, used].numel():
            yield name, (update.down[used], up[:, used], offset)


def _lora(layers: dict[str, tuple[Tensor, Tensor, Tensor]]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors of PEFT's LoRA."""
    biased = any(bool(offset.any()) for _, _, offset in layers.values())
    tensors: dict[str, Tensor] = {}
    for name, (down, up, offset) in layers.items():
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = down
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = up
        if biased:
            tensors[f"{_PREFIX}{name}.lora_B.bias"] = offset
    ranks = {name: len(down) for name, (down, _, _) in layers.items()}
    rank = max(ranks.values())
    differing = {name: layer_rank for name, layer_rank in ranks.items() if layer_rank != rank}
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,  # the scale is in B
        "rank_pattern": differing,
        "alpha_pattern": differing,
        "target_modules": sorted(ranks),
        "lora_bias": biased,
    }
    return config, tensors
