"""From a backbone's name to a segmenter: modules, weights, head.

Random parts come from ``head_seed`` alone and draw nothing from torch's global generator: for one seed every method
meets the same segmenter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam
from timm.models import eva, vision_transformer
from torch import Tensor, nn

from harness.models.catalog import backbone, backbone_shape, require_stands
from harness.models.checkpoint import read_shapes, read_tensors, require_match
from harness.models.decoder_shape import Task
from harness.models.decoders import Decoder
from harness.models.dense_decoders import dense_decoder
from harness.models.dinov3_encoder import DINOv3Encoder
from harness.models.known import Backbone
from harness.models.mask2former import Mask2FormerDecoder
from harness.models.mask_decoder import BatchedMaskDecoder, plain_mask_decoder
from harness.models.sam3_encoder import SAM3Encoder, trunk_state
from harness.models.sam_encoder import SAMEncoder, resize_state
from harness.models.segmenter import DenseSegmenter, QuerySegmenter, SAMSegmenter, Segmenter
from harness.models.timm_encoder import TimmEncoder, create_vit, sam_neck
from methods.parts.placement import BackboneShape

_ENCODER, _PROMPTS, _DECODER = "image_encoder.", "prompt_encoder.", "mask_decoder."
_GAUSSIAN = "pe_layer.positional_encoding_gaussian_matrix"
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
    batched_decoder: bool = True,
    activation_checkpointing: bool = False,
    strict_loading: Literal["released", "intended"] = "intended",
    spare_tokens: Literal["released", "intended"] = "intended",
    decoder: Decoder = "sam",
) -> Segmenter:
    """A segmenter in training mode with every parameter trainable; a method freezes what it does not train.

    A SAM checkpoint fills encoder, prompt encoder and decoder; one of timm or of SAM 3 fills the encoder, while neck,
    prompt encoder and decoder start from ``head_seed``. Without a checkpoint everything starts from ``head_seed``.
    Position tables are fitted to ``image_size`` when loaded (`resize_state`; timm's ``checkpoint_filter_fn``).

    Args:
        name: see `harness.models.catalog`.
        task: ``binary`` (one mask token), ``multiclass`` (``mask_tokens`` of them and a class head) or ``classification``.
        num_classes: classes, of masks with the background; two of a binary task.
        mask_tokens: K of a multi-class head; where K > 1 each starts as SAM's token 0 plus noise of standard
            deviation 0.02 (ours).
        image_size: side of the square input in pixels, None for the backbone's own.
        checkpoint: a SAM ``.pth`` or ``.safetensors`` file, the weights of a timm encoder, or SAM 3's; None for random weights.
        head_seed: seeds whatever no checkpoint brings.
        fused_attention: False builds attention scores as segment_anything does.
        batched_decoder: False decodes one image after the other as segment_anything does.
        activation_checkpointing: recompute block activations in backward.
        strict_loading: ``released`` leaves SAM's positional encoding random after loading (quirk 12).
        spare_tokens: ``released`` leaves SAM's mask tokens 1-3 out of the decoder (quirk 14).
        decoder: ``sam``; or on a timm ViT, without neck, prompts and mask tokens, Segmenter's ``linear`` or
            ``mask-transformer``, or ``mask2former``; for a task ``classification`` ``class-token`` or ``mean-pool``.

    Raises:
        UsageError: unknown backbone, unfit image size, a decoder that does not stand on the backbone, or a checkpoint
            that does not belong to it.
    """
    entry, shape = backbone(name), backbone_shape(name, image_size)
    require_stands(decoder, name)
    parts = _sam_parts if entry.shape.neck_dim else _neckless_parts
    encoder, prompt_encoder, plain_decoder, neck = parts(
        entry, shape, checkpoint=checkpoint, seed=head_seed, fused=fused_attention, recompute=activation_checkpointing
    )
    if decoder != "sam":
        with seeded(head_seed + 1):
            classes = 2 if task == "binary" else num_classes
            if decoder == "mask2former":
                queries = Mask2FormerDecoder(shape.dim, shape=entry.decoder, classes=classes)
                return QuerySegmenter(encoder=encoder, decoder=queries, binary=task == "binary")
            dense = dense_decoder(decoder, dim=shape.dim, classes=classes, fused=fused_attention)
        if decoder == "class-token":
            encoder.gives_class_token = True  # type: ignore[assignment]
        return DenseSegmenter(encoder=encoder, decoder=dense, binary=task == "binary")
    tokens = mask_tokens if task == "multiclass" else 1
    with seeded(head_seed + 1):
        mask_decoder = BatchedMaskDecoder(plain_decoder, mask_tokens=tokens, spare_tokens=spare_tokens == "intended")
        if tokens > 1:
            with torch.no_grad():
                mask_decoder.mask_tokens.add_(_TOKEN_NOISE * torch.randn_like(mask_decoder.mask_tokens))
        head = nn.Linear(entry.decoder.dim, num_classes + 1) if task == "multiclass" else None
        if strict_loading == "released" and checkpoint is not None:
            prompt_encoder.pe_layer.positional_encoding_gaussian_matrix.normal_()
    return SAMSegmenter(
        encoder=encoder,
        prompt_encoder=prompt_encoder,
        mask_decoder=mask_decoder,
        neck=neck,
        head=head,
        batched_decoder=batched_decoder,
    )


def require_checkpoint(name: str, checkpoint: Path) -> None:
    """Load ``checkpoint`` into the backbone as `build_segmenter` does, without values and without memory.

    Raises:
        UsageError: as `build_segmenter`.
    """
    entry = backbone(name)
    parts = _sam_parts if entry.shape.neck_dim else _neckless_parts
    with torch.device("meta"):
        parts(entry, entry.shape, checkpoint=checkpoint, seed=0, fused=True, recompute=False, read=read_shapes)


def plain_sam(name: str, *, image_size: int | None = None) -> Sam:
    """segment_anything's own ``Sam`` with the numbers of a catalogue entry, for verification and for loading an export.

    At 1024 pixels ``vit_b``, ``vit_l`` and ``vit_h`` are what ``sam_model_registry`` builds.
    """
    entry, shape = backbone(name), backbone_shape(name, image_size)
    encoder = ImageEncoderViT(
        img_size=shape.image_size,
        patch_size=shape.patch,
        embed_dim=shape.dim,
        depth=shape.depth,
        num_heads=shape.heads,
        mlp_ratio=shape.mlp_dim / shape.dim,
        out_chans=shape.neck_dim,
        qkv_bias=True,
        use_rel_pos=True,
        norm_layer=lambda width: nn.LayerNorm(width, eps=1e-6),
        window_size=shape.window,
        global_attn_indexes=shape.global_blocks,
    )
    return Sam(
        image_encoder=encoder,
        prompt_encoder=_prompt_encoder(entry, shape),
        mask_decoder=plain_mask_decoder(entry.decoder),
    ).eval()


def sam_state_dict(segmenter: Segmenter) -> dict[str, Tensor]:
    """The segmenter under segment_anything's names, complete: loads strictly into `plain_sam` at the segmenter's
    image size.

    Raises:
        ValueError: a timm encoder, a class head, K > 1 mask tokens, a decoder without SAM's spare tokens, or parts of a
            method that is not merged, none of which a plain SAM can hold.
    """
    if not isinstance(segmenter.encoder, SAMEncoder):
        raise ValueError("only SAM's own backbones save as a SAM checkpoint")
    assert isinstance(segmenter, SAMSegmenter)  # no other decoder stands on SAM's encoder
    if segmenter.head is not None or len(segmenter.mask_decoder.mask_tokens) > 1:
        raise ValueError("a multi-class segmenter has a class head and mask tokens that a SAM checkpoint cannot hold")
    if not segmenter.mask_decoder.attends_to_spare_tokens:
        raise ValueError(
            "its decoder left out SAM's mask tokens 1-3 (quirk 14), and a plain SAM, which attends to them, would give other "
            "masks; train with --set quirks.spare_tokens=intended to export one"
        )
    with torch.device("meta"):
        plain = SAMEncoder(segmenter.encoder.shape, fused=True, activation_checkpointing=False).state_dict()
    encoder = segmenter.encoder.state_dict()
    if foreign := sorted(encoder.keys() ^ plain.keys()):
        raise ValueError(f"the encoder still holds parts of a method, such as {foreign[0]}; merge it first")
    parts = (
        (_ENCODER, encoder),
        (_PROMPTS, segmenter.prompt_encoder.state_dict()),
        (_DECODER, segmenter.mask_decoder.plain_state()),
    )
    return {prefix + key: tensor.detach().clone() for prefix, state in parts for key, tensor in state.items()}


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from a fresh CPU stream inside, and leave torch's global generator as it was."""
    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(before)


def _sam_parts(
    entry: Backbone,
    shape: BackboneShape,
    *,
    checkpoint: Path | None,
    seed: int,
    fused: bool,
    recompute: bool,
    read: Callable[[Path], dict[str, Tensor]] = read_tensors,
) -> tuple[nn.Module, PromptEncoder, MaskDecoder, nn.Module | None]:
    def build() -> tuple[SAMEncoder, PromptEncoder, MaskDecoder]:
        encoder = SAMEncoder(shape, fused=fused, activation_checkpointing=recompute)
        return encoder, _prompt_encoder(entry, shape), plain_mask_decoder(entry.decoder)

    if checkpoint is None:
        with seeded(seed):
            encoder, prompts, decoder = build()
            _random_positions(encoder)
        return encoder, prompts, decoder, None
    with torch.device("meta"):  # a ViT-H need not be filled with random numbers first
        encoder, prompts, decoder = build()
    found = read(checkpoint)
    inside = {key.removeprefix(_ENCODER): tensor for key, tensor in found.items() if key.startswith(_ENCODER)}
    found = {**found, **{_ENCODER + key: tensor for key, tensor in resize_state(inside, shape).items()}}
    parts = ((_ENCODER, encoder), (_PROMPTS, prompts), (_DECODER, decoder))
    expected = {prefix + key: tensor for prefix, module in parts for key, tensor in module.state_dict().items()}
    require_match(found, expected, path=checkpoint, backbone=entry.name)
    for prefix, module in parts:
        own = {key.removeprefix(prefix): tensor.float() for key, tensor in found.items() if key.startswith(prefix)}
        module.load_state_dict(own, strict=True, assign=True)
    return encoder, prompts, decoder, None


def _neckless_parts(
    entry: Backbone,
    shape: BackboneShape,
    *,
    checkpoint: Path | None,
    seed: int,
    fused: bool,
    recompute: bool,
    read: Callable[[Path], dict[str, Tensor]] = read_tensors,
) -> tuple[nn.Module, PromptEncoder, MaskDecoder, nn.Module | None]:
    fill = _timm_encoder if entry.timm_model else _sam3_encoder
    with seeded(seed):
        neck = sam_neck(shape.dim, entry.decoder.dim)
        prompts, decoder = _prompt_encoder(entry, shape), plain_mask_decoder(entry.decoder)
        encoder = fill(entry, shape, checkpoint=checkpoint, fused=fused, recompute=recompute, read=read)
    return encoder, prompts, decoder, neck


def _timm_encoder(
    entry: Backbone,
    shape: BackboneShape,
    *,
    checkpoint: Path | None,
    fused: bool,
    recompute: bool,
    read: Callable[[Path], dict[str, Tensor]],
) -> nn.Module:
    vit = create_vit(entry.timm_model, shape.image_size, **entry.timm_options)
    rotary = isinstance(vit, eva.Eva)
    if checkpoint is not None:
        found = read(checkpoint)
        own_size = _vit_state(entry)
        classifier = [key for key in found if key.startswith("head.") and key not in own_size]
        found = {key: tensor.float() for key, tensor in found.items() if key not in classifier}
        require_match(found, own_size, path=checkpoint, backbone=entry.name)
        fit = eva.checkpoint_filter_fn if rotary else vision_transformer.checkpoint_filter_fn
        vit.load_state_dict(fit(found, vit, interpolation="bicubic", antialias=True), strict=True)  # type: ignore[arg-type]
    if isinstance(vit, eva.Eva):
        return DINOv3Encoder(vit, shape=shape, fused=fused, activation_checkpointing=recompute)
    return TimmEncoder(vit, shape=shape, fused=fused, activation_checkpointing=recompute)


def _sam3_encoder(
    entry: Backbone,
    shape: BackboneShape,
    *,
    checkpoint: Path | None,
    fused: bool,
    recompute: bool,
    read: Callable[[Path], dict[str, Tensor]],
) -> nn.Module:
    encoder = SAM3Encoder(shape, fused=fused, activation_checkpointing=recompute)
    if checkpoint is not None:
        found = trunk_state(read(checkpoint))
        require_match(found, encoder.state_dict(), path=checkpoint, backbone=entry.name)
        encoder.load_state_dict({name: tensor.float() for name, tensor in found.items()}, strict=True)
    return encoder


def _vit_state(entry: Backbone) -> dict[str, Tensor]:
    """Names and shapes of a timm model's tensors at its own image size, without memory."""
    with torch.device("meta"):
        return create_vit(entry.timm_model, entry.shape.image_size, **entry.timm_options).state_dict()


def _prompt_encoder(entry: Backbone, shape: BackboneShape) -> PromptEncoder:
    side = shape.image_size // shape.patch
    return PromptEncoder(
        embed_dim=entry.decoder.dim,
        image_embedding_size=(side, side),
        input_image_size=(shape.image_size, shape.image_size),
        mask_in_chans=entry.decoder.mask_channels,
    )


def _random_positions(encoder: SAMEncoder) -> None:
    """segment_anything starts position tables at zero; a random encoder needs places to tell apart."""
    for name, parameter in encoder.named_parameters():
        if name == "pos_embed" or ".rel_pos_" in name:
            nn.init.normal_(parameter, std=_POSITION_STD)
