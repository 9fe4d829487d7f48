"""The work of a run in closed form: floating-point operations, kernels, memory. Rough on purpose, and free of torch.

A multiply-add counts as two operations. Softmax, norms and element-wise operations are left out.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable
from dataclasses import replace

from harness.archive.schema import Run
from harness.methods.configs import MethodConfig, PlacedConfig
from harness.methods.parts.placement import BackboneShape, BlockShape, MethodError, NormedConvolution
from harness.models.decoders import Decoder, dense_activations, dense_flops
from harness.planning.data import Images
from harness.registry import method_config
from harness.system.errors import UsageError

DECODER_DIM = 256
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
BLOCK_KERNELS, DECODER_KERNELS = 77, 150
"""Kernels of a forward pass through a block (counted: 919 for ViT-B's encoder), and through the mask decoder (roughly)."""


def encoder_flops(
    shape: BackboneShape, *, image_size: int, decoder: Decoder = "sam", as_executed: bool = False
) -> list[float]:
    """Operations of the encoder on one image: patch embedding, every block, the neck that SAM's decoder reads. Windows are
    counted whole: an upper bound where TinyViT leaves their padding out.

    Args:
        as_executed: fused kernels take SAM's relative positions as further dimensions of a head, and this counts them.
    """
    side = image_size // shape.patch
    first = side * shape.blocks[0].scale * shape.blocks[0].pool
    embed = convolutions_flops(shape.stem, side=image_size) or 2.0 * first * first * shape.projection_taps
    blocks = []
    for block in shape.blocks:
        leaving = side * block.scale
        tokens = leaving * leaving + shape.prefix_tokens
        entering = leaving * block.pool
        attended = span = entering * entering + shape.prefix_tokens
        if block.window:
            attended, span = (-(-entering // block.window) * block.window) ** 2, block.window**2
        queries = attended / block.pool**2
        wider = widening(shape, block, side=entering) if as_executed else 1.0
        projected = 2.0 * (attended * 3 * block.entering * block.dim + queries * block.dim**2)
        attention = projected + 4.0 * queries * span * block.dim * wider + 2.0 * entering**2 * block.inputs * block.dim
        before = leaving * math.prod(convolution.stride for convolution in block.downsampling)
        convolved = convolutions_flops(block.convolutions, side=before)
        blocks.append(convolved + attention + 2.0 * tokens * 2 * block.dim * block.mlp_dim)
    taps = shape.neck_taps if shape.neck_dim else replace(shape, neck_dim=DECODER_DIM).neck_taps
    neck = sum(2.0 * (side * scale) ** 2 * weights for weights, scale in taps)
    return [embed, *blocks, neck if decoder == "sam" else 0.0]


def widening(shape: BackboneShape, block: BlockShape, *, side: int) -> float:
    """How many times wider a head is with its relative positions as dimensions, one a row and one a column of its map."""
    if shape.relative_positions != "axes":
        return 1.0
    width = block.dim / block.heads
    return (width + 2 * (block.window or side)) / width


def convolutions_flops(convolutions: Iterable[NormedConvolution], *, side: int) -> float:
    """Operations of these convolutions in sequence, on a map of ``side`` by ``side``."""
    total = 0.0
    for convolution in convolutions:
        side //= convolution.stride
        total += 2.0 * side * side * convolution.taps
    return total


def decoder_flops(shape: BackboneShape, *, image_size: int, decoder: Decoder = "sam") -> float:
    """Operations of SAM's decoder on one image: the image side of the two-way transformer, and upscaling; output tokens are left out.
    Of Segmenter's decoders see `dense_flops`."""
    side, dim = image_size // shape.embedding_patch, shape.neck_dim or DECODER_DIM
    if decoder != "sam":
        return dense_flops(decoder, dim=shape.dim, tokens=side * side)
    layers = 2.0 * side * side * dim * (dim // 2) * (4 * 2 + 2)
    upscaling = 2.0 * side * side * (4 * dim * (dim // 4) + 16 * (dim // 4) * (dim // 8))
    finer = 2.0 * side * side * dim * (4 * (dim // 4) + 16 * (dim // 8)) if shape.pyramid else 0.0
    return layers + upscaling + finer


def step_flops(run: Run, shape: BackboneShape, *, as_executed: bool = False) -> float:
    """Operations of the forward and backward pass of one training image. What a fused kernel executes besides, of widened
    heads, it executes 2.5 times in its backward pass, which recomputes the scores."""
    size, name = int(run.rules["image_size"]), decoder_of(run)
    embed, *blocks, neck = encoder_flops(shape, image_size=size, decoder=name)
    wide = encoder_flops(shape, image_size=size, decoder=name, as_executed=True)[1:-1] if as_executed else blocks
    besides = [executed - useful for executed, useful in zip(wide, blocks, strict=True)]
    decoder = 3 * decoder_flops(shape, image_size=size, decoder=name)
    forward = embed + sum(blocks) + neck
    config = config_of(run)
    first = config.gradient_from(shape)
    if first is None:
        return forward + sum(besides) + decoder
    if config.trains_backbone_weights:
        return 3 * forward + 3.5 * sum(besides) + decoder
    forward += sum(besides)
    behind = sum(blocks[first:]) + 2.5 * sum(besides[first:]) + neck
    recomputed = behind if run.rules.get("activation_checkpointing") else 0.0
    return forward + behind + recomputed + config.weight_products * _adapted(config, shape, size) + decoder


def _adapted(config: MethodConfig, shape: BackboneShape, size: int) -> float:
    """Operations of a forward pass through the linear layers that a method adapts."""
    pairs = config.adapted(shape)
    return 2.0 * (size // shape.patch) ** 2 * sum(inputs * outputs for inputs, outputs in pairs)


def forward_flops(run: Run, shape: BackboneShape, *, as_executed: bool = False) -> float:
    """Operations of the forward pass on one image, as in evaluation."""
    size, name = int(run.rules["image_size"]), decoder_of(run)
    encoder = sum(encoder_flops(shape, image_size=size, decoder=name, as_executed=as_executed))
    return encoder + decoder_flops(shape, image_size=size, decoder=name)


def decoder_of(run: Run) -> Decoder:
    """The run's mask decoder; records from before there were others have SAM's."""
    decoder: Decoder = run.rules.get("decoder", "sam")
    return decoder


def config_of(run: Run) -> MethodConfig:
    """The run's method configuration; one that trains all of the encoder's blocks where the method is not known here, or
    no longer takes such options: older records and others' plug-ins are priced too."""
    return _config_of(run.method, json.dumps(run.method_config, sort_keys=True))


@functools.lru_cache(maxsize=4096)
def _config_of(method: str, options: str) -> MethodConfig:
    try:
        return method_config(method, json.loads(options))
    except (UsageError, MethodError):
        return PlacedConfig()


def scored(run: Run, images: Images) -> int:
    """Images that a run scores: every validation, and the test of the best, the last, each merged and the decoded model."""
    rules, config = run.rules, config_of(run)
    if not config.trains:
        return images.test
    validations = int(rules.get("epochs", 1)) // max(1, int(rules.get("select_every", 1)))
    models = 2 + len(rules.get("merge", ())) + (len(config.mixed_operations) > 1)
    return validations * images.val + models * images.test


def trained_images(run: Run, images: Images) -> float:
    """Images of all training passes, those for an architecture among them."""
    rules, config = run.rules, config_of(run)
    passes = config.passes(epochs=int(rules.get("epochs", 1)), of_updates=rules.get("budget") == "updates")
    return passes * int(rules.get("epochs", 1)) * (int(rules.get("epoch_images", 0)) or images.train)


def run_flops(run: Run, shape: BackboneShape, images: Images, *, as_executed: bool = False) -> float:
    """Operations of a run: training, every validation and every test."""
    rules = run.rules
    forward = forward_flops(run, shape, as_executed=as_executed)
    trained, evaluations = trained_images(run, images), scored(run, images)
    if not encodes_once(run):
        return trained * step_flops(run, shape, as_executed=as_executed) + evaluations * forward
    head = decoder_flops(shape, image_size=int(rules["image_size"]), decoder=decoder_of(run))
    embedded = (2 if rules.get("flip") else 1) * images.train + images.val + images.test
    return embedded * (forward - head) + head * (3 * trained + evaluations)


def encodes_once(run: Run) -> bool:
    """Whether the encoder stays as it is and its embeddings are kept, so that an image passes it once."""
    config = config_of(run)
    return config.trains and not config.trains_encoder and bool(run.rules.get("cache_embeddings"))


def run_kernels(run: Run, shape: BackboneShape, images: Images) -> float:
    """Kernels that a run launches: a backward pass has two for one of the forward pass."""
    config, batch = config_of(run), int(run.rules.get("batch_size", 1))
    blocks = len(shape.blocks) * (BLOCK_KERNELS + config.added_kernels)
    steps, evaluations = trained_images(run, images) / batch, scored(run, images) / batch
    if encodes_once(run):
        encoded = (images.train * 2 + images.val + images.test) / batch
        return encoded * blocks + DECODER_KERNELS * (3 * steps + evaluations)
    return (blocks + DECODER_KERNELS) * (3 * steps + evaluations)


def activation_bytes(run: Run, shape: BackboneShape) -> float:
    """Bytes of activations that one training step keeps for its backward pass.

    Of a block, per token and channel: two inputs of norms in fp32, the MLP's hidden layer (4), an adapter's input (1); of
    attention, whose windows are padded and whose heads are widened by relative positions, q, k, v and the output (4) and q
    for the positions (1). Where weights train, every linear layer keeps its input (5, and 3 in attention). This is within 3 %
    of what a GPU's kernels keep of ViT-H at batch 4 in bf16: 22.0 GiB under LoRA, 32.8 GiB trained in full.
    """
    size, batch = int(run.rules["image_size"]), int(run.rules.get("batch_size", 1))
    width = BYTES.get(str(run.rules.get("precision", "fp32")), 4)
    side, config = size // shape.patch, config_of(run)
    full = config.trains_backbone_weights

    def kept(block: BlockShape) -> tuple[float, float]:
        """Bytes of all of it, and of its input alone."""
        along = side * block.scale
        tokens = (along**2 + shape.prefix_tokens) * block.dim
        padded = (-(-along // block.window) * block.window / along) ** 2 if block.window else 1.0
        attention = padded * (4 * widening(shape, block, side=along) + (4 if full else 1))
        return tokens * (8 + width * (5 + (5 if full else 0) + attention)), tokens * 4.0

    first = config.gradient_from(shape)
    blocks = [kept(block) for block in (shape.blocks[-1:] if first is None else shape.blocks[first:])]
    total = sum(whole for whole, _ in blocks)
    if run.rules.get("activation_checkpointing"):
        total = sum(entering for _, entering in blocks) + max(whole for whole, _ in blocks)
    masks = 8 * 4 * size * size  # logits, probabilities, losses and their gradients at full size
    upscaled = 2.0 * (size // shape.embedding_patch) ** 2 * 16 * (DECODER_DIM // 8) * 4 * width
    if (name := decoder_of(run)) != "sam":
        upscaled = dense_activations(name, dim=shape.dim, tokens=side * side) * width / 2
    return batch * (total + masks + upscaled)
