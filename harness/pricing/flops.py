"""The work of a run in closed form: floating-point operations, activations, sizes. Rough on purpose, and free of torch.

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
from harness.methods.parts.placement import BackboneShape, MethodError, NormedConvolution
from harness.models.decoders import Decoder, dense_activations, dense_flops
from harness.planning.data import Images
from harness.registry import method_config
from harness.system.errors import UsageError

DECODER_DIM = 256
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


def encoder_flops(shape: BackboneShape, *, image_size: int, decoder: Decoder = "sam") -> list[float]:
    """Operations of the encoder on one image: patch embedding, every block, the neck that SAM's decoder reads. Windows are
    counted whole: an upper bound where TinyViT leaves their padding out."""
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
        projected = 2.0 * (attended * 3 * block.entering * block.dim + queries * block.dim**2)
        attention = projected + 4.0 * queries * span * block.dim + 2.0 * entering**2 * block.inputs * block.dim
        before = leaving * math.prod(convolution.stride for convolution in block.downsampling)
        convolved = convolutions_flops(block.convolutions, side=before)
        blocks.append(convolved + attention + 2.0 * tokens * 2 * block.dim * block.mlp_dim)
    taps = shape.neck_taps if shape.neck_dim else replace(shape, neck_dim=DECODER_DIM).neck_taps
    neck = sum(2.0 * (side * scale) ** 2 * weights for weights, scale in taps)
    return [embed, *blocks, neck if decoder == "sam" else 0.0]


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


def step_flops(run: Run, shape: BackboneShape) -> float:
    """Operations of the forward and backward pass of one training image."""
    size, name = int(run.rules["image_size"]), decoder_of(run)
    embed, *blocks, neck = encoder_flops(shape, image_size=size, decoder=name)
    decoder = 3 * decoder_flops(shape, image_size=size, decoder=name)
    forward = embed + sum(blocks) + neck
    config = config_of(run)
    first = config.gradient_from(shape)
    if first is None:
        return forward + decoder
    if config.trains_backbone_weights:
        return 3 * forward + decoder
    behind = sum(blocks[first:]) + neck
    recomputed = behind if run.rules.get("activation_checkpointing") else 0.0
    return forward + behind + recomputed + decoder


def decoder_of(run: Run) -> Decoder:
    """The run's mask decoder; records from before there were others have SAM's."""
    decoder: Decoder = run.rules.get("decoder", "sam")
    return decoder


def model_of(run: Run) -> str:
    """The backbone, with its decoder where that is not SAM's."""
    return run.backbone + (f" + {decoder}" if (decoder := decoder_of(run)) != "sam" else "")


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


def forward_flops(run: Run, shape: BackboneShape) -> float:
    """Operations of the forward pass on one image, as in evaluation."""
    size, name = int(run.rules["image_size"]), decoder_of(run)
    encoder = sum(encoder_flops(shape, image_size=size, decoder=name))
    return encoder + decoder_flops(shape, image_size=size, decoder=name)


def run_flops(run: Run, shape: BackboneShape, images: Images) -> float:
    """Operations of a run: training, every validation, and the test of the best, the last, each merged and the decoded model."""
    rules = run.rules
    epochs = int(rules.get("epochs", 1))
    forward = forward_flops(run, shape)
    if not config_of(run).trains:
        return images.test * forward
    evaluations = epochs // max(1, int(rules.get("select_every", 1))) * images.val
    decoded = len(config_of(run).mixed_operations) > 1
    evaluations += images.test * (2 + len(rules.get("merge", ())) + decoded)
    if encodes_once(run):
        head = decoder_flops(shape, image_size=int(rules["image_size"]), decoder=decoder_of(run))
        views = 2 if rules.get("flip") else 1
        embeddings = (views * images.train + images.val + images.test) * (forward - head)
        shown = int(rules.get("epoch_images", 0)) or images.train
        return embeddings + head * (3 * epochs * shown + evaluations)
    config = config_of(run)
    passes = config.passes(epochs=epochs, of_updates=rules.get("budget") == "updates")
    shown = int(rules.get("epoch_images", 0)) or images.train
    return passes * epochs * shown * step_flops(run, shape) + evaluations * forward


def encodes_once(run: Run) -> bool:
    """Whether the encoder stays as it is and its embeddings are kept, so that an image passes it once."""
    return not config_of(run).trains_encoder and bool(run.rules.get("cache_embeddings"))


def activation_bytes(run: Run, shape: BackboneShape) -> float:
    """Bytes of activations that one training step keeps for its backward pass.

    The terms of Korthikanti et al. (2205.05198) for a transformer block with fused attention and no dropout: 32 bytes a
    token and channel at 16 bit where weights train, 22 where linear layers are frozen and keep no inputs.
    """
    size, batch = int(run.rules["image_size"]), int(run.rules.get("batch_size", 1))
    width = BYTES.get(str(run.rules.get("precision", "fp32")), 4) / 2
    side = size // shape.patch
    config = config_of(run)
    first = config.gradient_from(shape)
    of_block = 32 if config.trains_backbone_weights else 22
    sizes = [((side * block.scale) ** 2 + shape.prefix_tokens) * block.dim * width for block in shape.blocks]
    kept = sizes[-1:] if first is None else sizes[first:]
    recomputed = sum(kept) * 2 + max(kept) * of_block
    blocks = recomputed if run.rules.get("activation_checkpointing") else sum(kept) * of_block
    masks = 8 * 4 * size * size  # logits, probabilities, losses and their gradients at full size
    places = (size // shape.embedding_patch) ** 2
    upscaled = 2 * places * 16 * (DECODER_DIM // 8) * 8 * width
    if (name := decoder_of(run)) != "sam":
        upscaled = dense_activations(name, dim=shape.dim, tokens=side * side) * width
    return batch * (blocks + masks + upscaled)
