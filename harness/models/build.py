"""From a backbone's name to a segmenter: modules, weights, head.

Random parts depend on ``head_seed`` alone, and torch's global generator is left as it is: with one seed, every method
starts from the same segmenter.

timm and what is built on it are imported only where a backbone or a decoder needs them: importing them takes a tenth as long as torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder
from torch import nn

from harness.methods.parts.placement import BackboneShape
from harness.models.catalog import SAM3_NEEDS, backbone, backbone_shape, require_stands
from harness.models.checkpoint import read_tensors, require_match
from harness.models.decoders import Decoder, Task
from harness.models.known import Backbone
from harness.models.mask_decoder import BatchedMaskDecoder, plain_mask_decoder
from harness.models.original_sam import DECODER, ENCODER, PROMPTS, prompt_encoder_of, published
from harness.models.sam2 import PlainSAM2Decoder, SAM2Encoder, SAM2MaskDecoder, is_memory
from harness.models.sam_encoder import BlockEncoder, SAMEncoder, resize_state, sam_neck
from harness.models.segmenter import DenseSegmenter, QuerySegmenter, SAMSegmenter, Segmenter
from harness.system.errors import UsageError

_TOKEN_NOISE = 0.02
_POSITION_STD = 0.02


def build_segmenter(
    name: str,
    *,
    task: Task,
    num_classes: int = 2,
    mask_tokens: int = 1,
    image_size: int | None = None,
    checkpoint: Path | None = None,
    head_seed: int = 0,
    fused_attention: bool = True,
    activation_checkpointing: bool = False,
    strict_loading: Literal["released", "intended"] = "intended",
    spare_tokens: Literal["released", "intended"] = "intended",
    decoder: Decoder = "sam",
) -> Segmenter:
    """A segmenter in training mode with every parameter trainable; a method freezes what it does not train.

    A SAM checkpoint fills encoder, prompt encoder and decoder. One of timm fills only the encoder; neck, prompt encoder and
    decoder are initialised from ``head_seed``. Without a checkpoint everything is initialised from ``head_seed``.
    Position tables are fitted to ``image_size`` when loaded (`resize_state`; timm's ``checkpoint_filter_fn``).

    Args:
        name: see `harness.models.catalog`.
        task: ``binary`` (one mask token), ``multiclass`` (``mask_tokens`` of them and a class head) or ``classification``.
        num_classes: number of classes, for masks including the background; two for a binary task.
        mask_tokens: K, the mask tokens of a multi-class head; where K > 1, each starts as SAM's token 0 plus noise of standard
            deviation 0.02 (ours).
        image_size: side of the square input in pixels, None for the backbone's own.
        checkpoint: a SAM ``.pth`` or ``.safetensors`` file, or the weights of a timm encoder; None for random weights.
        head_seed: seeds whatever no checkpoint provides.
        fused_attention: False builds attention scores as segment_anything does.
        activation_checkpointing: recompute the blocks' activations in the backward pass.
        strict_loading: ``released`` leaves SAM's positional encoding random after loading (quirk 12).
        spare_tokens: ``released`` leaves SAM's mask tokens 1-3 out of the decoder (quirk 14).
        decoder: ``sam``; or, on a timm ViT and without neck, prompts and mask tokens, Segmenter's ``linear`` or
            ``mask-transformer``, or ``mask2former``; for the task ``classification``, ``class-token`` or ``mean-pool``.

    Raises:
        UsageError: unknown backbone, unsuitable image size, a decoder that does not fit the backbone, or a checkpoint
            that does not belong to it.
    """
    entry, shape = backbone(name), backbone_shape(name, image_size)
    require_stands(decoder, name)
    way: dict[str, Any] = {"fused": fused_attention, "activation_checkpointing": activation_checkpointing}
    parts = _sam_parts if shape.neck_dim else _neckless_parts
    encoder, prompt_encoder, plain_decoder, neck = parts(entry, shape, checkpoint, seed=head_seed, **way)
    tokens = mask_tokens if task == "multiclass" else 1
    with seeded(head_seed + 1):
        if decoder != "sam":
            classes = 2 if task == "binary" else num_classes
            return _dense_segmenter(decoder, encoder, entry, classes=classes, task=task, fused=fused_attention)
        kind = SAM2MaskDecoder if isinstance(plain_decoder, PlainSAM2Decoder) else BatchedMaskDecoder
        mask_decoder = kind(plain_decoder, mask_tokens=tokens, spare_tokens=spare_tokens == "intended")
        if tokens > 1:
            with torch.no_grad():
                mask_decoder.mask_tokens.add_(_TOKEN_NOISE * torch.randn_like(mask_decoder.mask_tokens))
        head = nn.Linear(entry.decoder.dim, num_classes + 1) if task == "multiclass" else None
        if strict_loading == "released" and checkpoint is not None:
            prompt_encoder.pe_layer.positional_encoding_gaussian_matrix.normal_()
    return SAMSegmenter(encoder=encoder, prompt_encoder=prompt_encoder, mask_decoder=mask_decoder, neck=neck, head=head)


def _dense_segmenter(
    decoder: Decoder, encoder: nn.Module, entry: Backbone, *, classes: int, task: Task, fused: bool
) -> DenseSegmenter:
    """A decoder of `harness.models.dense_decoders` on a ViT of timm."""
    from harness.models.dense_decoders import dense_decoder

    if decoder == "class-token":
        encoder.gives_class_token = True  # type: ignore[assignment]
    dense = dense_decoder(decoder, entry.shape.dim, shape=entry.decoder, classes=classes, fused=fused)
    kind = QuerySegmenter if decoder == "mask2former" else DenseSegmenter
    return kind(encoder=encoder, decoder=dense, binary=task == "binary")


def require_checkpoint(name: str, checkpoint: Path) -> None:
    """Load ``checkpoint`` as `build_segmenter` does, into a backbone whose own tensors take no memory. Raises UsageError: as
    `build_segmenter` does."""
    entry = backbone(name)
    parts = _sam_parts if entry.shape.neck_dim else _neckless_parts
    with torch.device("meta"):
        parts(entry, entry.shape, checkpoint, fused=True, activation_checkpointing=False)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A context in which torch's global generator is seeded with ``seed``; afterwards it is as it was before."""
    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(before)


_Parts = tuple[nn.Module, PromptEncoder, MaskDecoder, nn.Module | None]
"""Encoder, prompt encoder, mask decoder and neck; no neck where the encoder has its own."""


def _sam_parts(
    entry: Backbone,
    shape: BackboneShape,
    checkpoint: Path | None,
    *,
    seed: int = 0,
    **way: bool,
) -> _Parts:
    """The parts of a SAM, with random weights where there is no checkpoint; ``way``: how the encoder computes."""
    kind = _encoder_class(shape)
    plain = PlainSAM2Decoder if entry.decoder.finer_maps else plain_mask_decoder

    def build() -> tuple[BlockEncoder, PromptEncoder, MaskDecoder]:
        return kind(shape, **way), prompt_encoder_of(entry, shape), plain(entry.decoder)

    if checkpoint is None:
        with seeded(seed):
            encoder, prompts, decoder = build()
            _random_positions(encoder)
        return encoder, prompts, decoder, None
    with torch.device("meta"):  # a ViT-H need not be filled with random numbers first
        encoder, prompts, decoder = build()
    parts = ((ENCODER, encoder), (PROMPTS, prompts), (DECODER, decoder))
    state = read_tensors(checkpoint)
    if shape.pyramid:
        state = {key: tensor for key, tensor in state.items() if not is_memory(key)}
    state = encoder.from_published(state, [part + key for part, module in parts for key in module.state_dict()])
    inside = {key.removeprefix(ENCODER): tensor for key, tensor in state.items() if key.startswith(ENCODER)}
    state = {**state, **{ENCODER + key: tensor for key, tensor in resize_state(inside, shape).items()}}
    unused = {ENCODER + key for key in encoder.unused()}
    state = {key: tensor for key, tensor in state.items() if key not in unused}
    names = {module: {key: published(encoder, part, key) for key in module.state_dict()} for part, module in parts}
    expected = {names[module][key]: tensor for module in names for key, tensor in module.state_dict().items()}
    require_match(state, expected, path=checkpoint, backbone=entry.name)
    for module, keys in names.items():
        module.load_state_dict({key: state[name].float() for key, name in keys.items()}, strict=True, assign=True)
    return encoder, prompts, decoder, None


def _encoder_class(shape: BackboneShape) -> type[BlockEncoder]:
    """The class of an encoder of that shape. Raises UsageError: it is SAM 3's, which the installed transformers lacks."""
    if shape.stem:
        from harness.models.tiny_vit import TinyViTEncoder

        return TinyViTEncoder
    if not shape.upscaled:
        return SAM2Encoder if shape.pyramid else SAMEncoder
    try:
        from harness.models.sam3 import SAM3Encoder
    except ImportError as error:
        raise UsageError(SAM3_NEEDS) from error
    return SAM3Encoder


def _neckless_parts(
    entry: Backbone,
    shape: BackboneShape,
    checkpoint: Path | None,
    *,
    seed: int = 0,
    **way: bool,
) -> _Parts:
    """Like `_sam_parts`, for a ViT of timm."""
    from harness.models.timm_encoder import TimmEncoder, create_vit, resized_for

    with seeded(seed):
        neck = sam_neck(shape.dim, entry.decoder.dim)
        prompts, decoder = prompt_encoder_of(entry, shape), plain_mask_decoder(entry.decoder)
        vit = create_vit(entry.timm_model, shape.image_size, **entry.timm_options)
    if checkpoint is not None:
        state = read_tensors(checkpoint)
        with torch.device("meta"):  # the tensors at the model's own image size, without memory
            expected = create_vit(entry.timm_model, entry.shape.image_size, **entry.timm_options).state_dict()
        classifier = [key for key in state if key.startswith("head.") and key not in expected]
        state = {key: tensor.float() for key, tensor in state.items() if key not in classifier}
        require_match(state, expected, path=checkpoint, backbone=entry.name)
        vit.load_state_dict(resized_for(state, vit), strict=True, assign=True)
    return TimmEncoder(vit, shape=shape, **way), prompts, decoder, neck


def _random_positions(encoder: nn.Module) -> None:
    """segment_anything initialises position tables to zero; a random encoder needs positions that differ."""
    for name, parameter in encoder.named_parameters():
        if name.startswith("pos_embed") or ".rel_pos_" in name or name.endswith(".attention_biases"):
            nn.init.normal_(parameter, std=_POSITION_STD)
