"""Estimate the memory of a training step in closed form. The estimate is rough."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from harness.archive.schema import Run
from harness.methods.parts.placement import BackboneShape, BlockShape
from harness.models.catalog import added_parameters, backbone_shape, total_parameters, trained_in_decoder
from harness.models.decoders import dense_activations
from harness.protocols.keys import current_options
from harness.registry import BENCHMARKS, method_config

if TYPE_CHECKING:
    from harness.methods.base import MethodConfig

DECODER_DIM = 256
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
NONE: Mapping[str, str] = MappingProxyType({})


def training_bytes(run: Run, kinds: Mapping[str, str] = NONE) -> float:
    """Weights, gradients, Adam's moments and activations of a training step. ``kinds``: see `activation_bytes`."""
    _, trained, total = parameters(run)
    return 4.0 * (total + 3 * trained) + activation_bytes(run, backbone_shape(run.backbone), kinds)


def parameters(run: Run) -> tuple[int, int, int]:
    """How many parameters a run trains in the encoder, trains in all, and has."""
    size, backbone, config = int(run.rule("image_size")), run.backbone, method_config(run.method, run.method_config)
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


def activation_bytes(run: Run, shape: BackboneShape, kinds: Mapping[str, str] = NONE) -> float:
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
    width = BYTES.get(str(run.rule("precision")), 4)
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
