"""What a run computes and holds, in closed form: operations, parameters, and bytes of memory in a training step.

A multiply-add counts as two operations; softmax, norms and element-wise operations are left out. The estimate of memory is rough.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from harness.archive.schema import Run
from harness.methods.parts.placement import BackboneShape, BlockShape, NormedConvolution
from harness.models.catalog import added_parameters, backbone_shape, total_parameters, trained_in_decoder
from harness.models.decoders import Decoder, dense_activations, dense_flops
from harness.planning.data import ImageCounts
from harness.protocols.keys import current_options
from harness.registry import BENCHMARKS, method_config

if TYPE_CHECKING:
    from harness.methods.base import MethodConfig

DECODER_DIM = 256
FUSED_BACKWARD = 2.5
"""Operations of a fused attention's backward pass, relative to its forward pass: five products, one of them recomputed, against two."""


def encoder_flops(shape: BackboneShape, *, image_size: int, decoder: Decoder = "sam") -> list[float]:
    """Operations of the encoder on one image: patch embedding, every block, the neck that SAM's decoder reads."""
    side = image_size // shape.patch
    first = side * shape.blocks[0].scale * shape.blocks[0].pool
    embed = _convolved(shape.stem, side=image_size) or 2.0 * first * first * shape.projection_taps
    taps = shape.neck_taps if shape.neck_dim else replace(shape, neck_dim=DECODER_DIM).neck_taps
    neck = sum(2.0 * (side * scale) ** 2 * weights for weights, scale in taps)
    blocks = [sum(_block_flops(shape, block, side=side)) for block in shape.blocks]
    return [embed, *blocks, neck if decoder == "sam" else 0.0]


def _block_flops(shape: BackboneShape, block: BlockShape, *, side: int) -> tuple[float, float]:
    """Operations of a block without its attention, and those of the attention: scores, and sums of values. Windows are counted whole,
    an upper bound where TinyViT leaves their padding out. Relative positions along the axes count as further dimensions of a head, as
    fused kernels compute them."""
    leaving = side * block.scale
    entering = leaving * block.pool
    attended, span = _attended(shape, block, side=side)
    products = 4.0 * attended / block.pool**2 * span * block.dim * widening(shape, block, side=entering)
    projected = 2.0 * (attended * 3 * block.entering * block.dim + attended / block.pool**2 * block.dim**2)
    before = leaving * math.prod(convolution.stride for convolution in block.downsampling)
    convolved = _convolved(block.convolutions, side=before) + 2.0 * entering**2 * block.inputs * block.dim
    tokens = leaving * leaving + shape.prefix_tokens
    return projected + convolved + 2.0 * tokens * 2 * block.dim * block.mlp_dim, products


def _attended(shape: BackboneShape, block: BlockShape, *, side: int) -> tuple[int, int]:
    """The number of tokens that attend in a block, and how many each attends to."""
    entering = side * block.scale * block.pool
    if block.window:
        return (-(-entering // block.window) * block.window) ** 2, block.window**2
    return (tokens := entering * entering + shape.prefix_tokens), tokens


def _convolved(convolutions: Iterable[NormedConvolution], *, side: int) -> float:
    """Operations of these convolutions in sequence, on a map of ``side`` by ``side``."""
    total = 0.0
    for convolution in convolutions:
        side //= convolution.stride
        total += 2.0 * side * side * convolution.taps
    return total


def decoder_flops(shape: BackboneShape, *, image_size: int, decoder: Decoder = "sam") -> float:
    """Operations of the decoder on one image. For SAM's: the image side of the two-way transformer, and upscaling."""
    side, dim = image_size // shape.embedding_patch, shape.neck_dim or DECODER_DIM
    if decoder != "sam":
        return dense_flops(decoder, dim=shape.dim, tokens=side * side)
    layers = 2.0 * side * side * dim * (dim // 2) * (4 * 2 + 2)
    upscaling = 2.0 * side * side * (4 * dim * (dim // 4) + 16 * (dim // 4) * (dim // 8))
    finer = 2.0 * side * side * dim * (4 * (dim // 4) + 16 * (dim // 8)) if shape.pyramid or shape.upscaled else 0.0
    return layers + upscaling + finer


def step_flops(run: Run, shape: BackboneShape) -> float:
    """Operations of the forward and backward pass of one training image. A product's backward pass is one product for the gradient of its
    input, and one for that of its weights where they train."""
    size, name = int(run.rule("image_size")), run.rule("decoder")
    embed, *blocks, neck = encoder_flops(shape, image_size=size, decoder=name)
    decoder = 3 * decoder_flops(shape, image_size=size, decoder=name)
    forward = embed + sum(blocks) + neck
    config = configuration_of(run)
    first = config.gradient_from(shape)
    if first is None:
        return forward + decoder
    attended = sum(_block_flops(shape, block, side=size // shape.patch)[1] for block in shape.blocks[first:])
    recomputed = sum(blocks[first:]) if run.rule("activation_checkpointing") else 0.0
    backward = sum(blocks[first:]) + neck + (FUSED_BACKWARD - 1) * attended
    if config.trains_backbone_weights:
        of_weights = forward - attended
    else:
        adapted = 2.0 * (size // shape.patch) ** 2 * sum(inputs * outputs for inputs, outputs in config.adapted(shape))
        of_weights = config.weight_products * adapted
    return forward + recomputed + backward + of_weights + decoder


def forward_flops(run: Run, shape: BackboneShape) -> float:
    """Operations of the forward pass on one image, as in evaluation."""
    size, name = int(run.rule("image_size")), run.rule("decoder")
    encoder = sum(encoder_flops(shape, image_size=size, decoder=name))
    return encoder + decoder_flops(shape, image_size=size, decoder=name)


def scored(run: Run, images: ImageCounts) -> int:
    """Images that a run scores: in every validation, and in the tests of the best, last, merged and decoded models."""
    config = configuration_of(run)
    if not config.trains:
        return images.test
    validations = int(run.rule("epochs")) // max(1, int(run.rule("select_every")))
    models = 2 + len(run.rule("merge")) + (len(config.mixed_operations) > 1)
    return validations * images.val + models * images.test


def trained_images(run: Run, images: ImageCounts) -> float:
    """Images of all training passes, including those for an architecture."""
    epochs = int(run.rule("epochs"))
    passes = configuration_of(run).passes(epochs=epochs, of_updates=run.rule("budget") == "updates")
    return passes * epochs * (int(run.rule("epoch_images")) or images.train)


def _encoded_once(run: Run, images: ImageCounts) -> float:
    """Images, mirrored ones included, that pass a frozen encoder with cached embeddings; augmented ones each time. 0 without a cache."""
    config = configuration_of(run)
    if not config.trains or config.trains_encoder or not run.rule("cache_embeddings"):
        return 0
    once, passes = (2 if run.rule("flip") else 1) * images.train, trained_images(run, images)
    return (passes if run.rule("augment") else min(once, passes)) + images.val + images.test


def run_flops(run: Run, images: ImageCounts) -> float:
    """Operations of a run: training, every validation and every test."""
    shape, trained, evaluations = backbone_shape(run.backbone), trained_images(run, images), scored(run, images)
    forward = forward_flops(run, shape)
    if not (encoded := _encoded_once(run, images)):
        return trained * step_flops(run, shape) + evaluations * forward
    head = decoder_flops(shape, image_size=int(run.rule("image_size")), decoder=run.rule("decoder"))
    return encoded * (forward - head) + head * (3 * trained + evaluations)


def training_bytes(run: Run, kinds: Mapping[str, str] = MappingProxyType({})) -> float:
    """Weights, gradients, Adam's moments and activations of a training step. ``kinds``: see `activation_bytes`."""
    _, trained, total = parameters(run)
    return 4.0 * (total + 3 * trained) + activation_bytes(run, backbone_shape(run.backbone), kinds)


def parameters(run: Run) -> tuple[int, int, int]:
    """How many parameters a run trains in the encoder, trains in all, and has."""
    size, backbone, config = int(run.rule("image_size")), run.backbone, configuration_of(run)
    benchmark = BENCHMARKS.get(run.benchmark)
    head: Any = {"task": benchmark.task, "num_classes": benchmark.num_classes, "decoder": run.rule("decoder")}
    head["mask_tokens"] = int(run.rules["mask_tokens"])
    encoder = trained_in_encoder(run.method, run.method_config, backbone, image_size=size)
    total = total_parameters(backbone, image_size=size, **head) + added_parameters(config, backbone, image_size=size)
    return encoder, encoder + trained_in_decoder(config, backbone, **head), total


def trained_in_encoder(method: str, options: Mapping[str, Any], backbone: str, *, image_size: int) -> int:
    """How many of the encoder's parameters a method's configuration trains; counted once. Raises what its closed form raises."""
    return _encoder_parameters(method, json.dumps(options, sort_keys=True), backbone, image_size)


@functools.lru_cache(maxsize=4096)
def _encoder_parameters(method: str, options: str, backbone: str, image_size: int) -> int:
    count: int = method_config(method, json.loads(options)).encoder_parameters(backbone_shape(backbone, image_size))
    return count


def activation_bytes(run: Run, shape: BackboneShape, kinds: Mapping[str, str] = MappingProxyType({})) -> float:
    """Bytes of activations that one training step keeps for its backward pass.

    ``kinds``: how ``global`` and ``window`` blocks attend where the protocol leaves it to the GPU, *widened* if unknown
    (`harness.models.attention_choice`).

    Of a block, per token and channel: two inputs of norms in fp32, the MLP's hidden layer (4), an adapter's input (1). Of
    attention: q, k, v and the output (4) and q for the positions (1); its windows are padded. Relative positions widen its heads, or
    are a value (*bias*) or two (*math*) for each score. Where weights train, every linear layer keeps its input (5, and 3 in attention).
    This is within 3 % of what a GPU's kernels keep of ViT-H at batch 4 in bf16, 22.0 GiB under LoRA and 32.8 GiB trained in full, and
    within 6 % where scores are kept.
    """
    size, batch = int(run.rule("image_size")), int(run.rule("batch_size"))
    width = 4 if run.rule("precision") == "fp32" else 2
    bytes_of_a_score = 4 + (width if width < 4 else 0)  # softmax in fp32, and its copy in half precision
    side, config = size // shape.patch, configuration_of(run)
    full = config.trains_backbone_weights

    def kept(block: BlockShape) -> tuple[float, float]:
        """Bytes of all of it, and of its input alone."""
        along = side * block.scale
        tokens = (along**2 + shape.prefix_tokens) * block.dim
        padded = (-(-along // block.window) * block.window / along) ** 2 if block.window else 1.0
        kind = _kind_of(run, shape, block, kinds)
        wider = widening(shape, block, side=along) if kind == "widened" else 1.0
        attention = padded * (4 * wider + (4 if full else 1))
        span = block.window**2 if block.window else along**2 + shape.prefix_tokens
        scores = padded * along**2 * span * block.heads * (bytes_of_a_score if kind == "math" else width)
        kept = tokens * (8 + width * (5 + (5 if full else 0) + attention))
        return kept + (scores if kind in ("math", "bias") else 0.0), tokens * 4.0

    first = config.gradient_from(shape)
    blocks = [kept(block) for block in (shape.blocks[-1:] if first is None else shape.blocks[first:])]
    total = sum(whole for whole, _ in blocks)
    if run.rule("activation_checkpointing"):
        total = sum(entering for _, entering in blocks) + max(whole for whole, _ in blocks)
    masks = 8 * 4 * size * size  # logits, probabilities, losses and their gradients at full size
    upscaled = 2.0 * (size // shape.embedding_patch) ** 2 * 16 * (DECODER_DIM // 8) * 4 * width
    if (name := run.rule("decoder")) != "sam":
        upscaled = dense_activations(name, dim=shape.dim, tokens=side * side) * width / 2
    return batch * (total + masks + upscaled)


def _kind_of(run: Run, shape: BackboneShape, block: BlockShape, kinds: Mapping[str, str]) -> str:
    """How a block of the run attends: *widened* without relative positions by axes, where no head is wider."""
    if shape.relative_positions != "axes":
        return "widened"
    if not run.rule("fused_attention"):
        return "math"
    named = str(run.rule("attention"))
    return kinds.get("window" if block.window else "global", "widened") if named == "auto" else named


def widening(shape: BackboneShape, block: BlockShape, *, side: int) -> float:
    """How many times wider a head is with its relative positions as dimensions, one a row and one a column of its map."""
    if shape.relative_positions != "axes":
        return 1.0
    width = block.dim / block.heads
    return (width + 2 * (block.window or side)) / width


def configuration_of(run: Run) -> MethodConfig:
    """The run's method configuration. Raises UsageError, MethodError: its method or an option is not known here."""
    return _config_of(run.method, json.dumps(run.method_config, sort_keys=True))


@functools.lru_cache(maxsize=4096)
def _config_of(method: str, options: str) -> MethodConfig:
    config: MethodConfig = method_config(method, current_options(method, json.loads(options)))
    return config
