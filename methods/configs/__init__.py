"""What a user may set in each method, its default with where it comes from, and what it costs in trainable parameters.

Free of torch: planning a thousand runs reads this package and builds no model. ``encoder_parameters`` is the closed form
that the contract tests hold against the attached model. Here is what all configurations have, and those of the methods that add
nothing to the backbone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from harness.methods.parts.placement import BackboneShape, BlockShape, MethodError, parse_blocks

Count = Annotated[int, "a whole number above zero"]
Positive = Annotated[float, "above zero"]


@cache
def _kinds(config: type) -> dict[str, Any]:
    hints = get_type_hints(config, include_extras=True)
    return {field.name: hints[field.name] for field in fields(config)}


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Base of all configurations.

    Args:
        lr: learning rate of the weights, None for the protocol's.
    """

    lr: float | None = None

    def __post_init__(self) -> None:
        """Raises MethodError: a field has another value than its type allows, where that is a choice, a `Count` or a `Positive`."""
        for name, kind in _kinds(type(self)).items():  # type: ignore[arg-type]  # a class is hashable
            value = getattr(self, name)
            if get_origin(kind) is Literal and value not in get_args(kind):
                raise MethodError(f"{name}={value!r}: choose {' or '.join(get_args(kind))}")
            if kind == Count and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise MethodError(f"{name}={value}: must be a whole number above zero")
            if Positive in (kind, *get_args(kind)) and value is not None and not value > 0:
                raise MethodError(f"{name}={value}: must be above zero")

    weight_products: ClassVar[int] = 0
    """Products of the size of an adapted layer's own that its training adds: one where the gradient of whole weights is needed."""

    trains: ClassVar[bool] = True
    """Whether a run trains anything; where it does not, the pretrained segmenter is tested as it is."""

    @property
    def spares_weight_updates(self) -> bool:
        """Whether the weights get fewer updates than the iterations of an epoch over the whole training split: some go
        to the architecture, or it keeps images for itself."""
        return False

    @property
    def label_note(self) -> str:
        """What a table must say after the method's name, because the row is not what a reader takes that name for."""
        return ""

    def never_reached(self, epochs: int) -> str:
        """What of the method a run of so many epochs never comes to, in words; empty where it comes to everything."""
        return ""

    @property
    def mixed_operations(self) -> tuple[str, ...]:
        """Names of the operations that an α weighs, in the order of its shares; empty for a method without one."""
        return ()

    def passes(self, *, epochs: int, of_updates: bool) -> float:
        """Forward and backward passes of a run, as a multiple of those of ``epochs`` epochs with one pass a step.

        Args:
            of_updates: the run goes on until the weights have had the updates of these epochs.
        """
        return 1.0

    @property
    def trains_encoder(self) -> bool:
        """Whether anything in the encoder trains; where nothing does, an image's embedding is computed once and kept."""
        return True

    @property
    def trains_backbone_weights(self) -> bool:
        """Whether the backbone's own matrices train, so that backward needs their gradients and the inputs of every
        linear layer."""
        return False

    def encoder_parameters(self, shape: BackboneShape) -> int:
        """Trainable parameters in the encoder, mask decoder not counted."""
        raise NotImplementedError

    @property
    def freezes_decoder(self) -> bool:
        """Whether the mask decoder is frozen. What the method adds to it still trains, and so does what is new to a benchmark or a
        backbone: class head, neck after a timm ViT, further mask tokens."""
        return False

    def decoder_parameters(self, linears: Sequence[tuple[int, int]]) -> int:
        """What the method adds to a frozen mask decoder with ``linears`` (inputs, outputs)."""
        return 0

    def added_parameters(self, shape: BackboneShape) -> int:
        """Trainable parameters in the encoder that the plain backbone does not have."""
        return self.encoder_parameters(shape)

    def adapted(self, shape: BackboneShape) -> list[tuple[int, int]]:
        """(inputs, outputs) of every linear map of the encoder that it adapts; nothing for a method on other parts."""
        return []

    def gradient_from(self, shape: BackboneShape) -> int | None:
        """The first block that backward passes, None where no gradient passes the backbone."""
        return 0


@dataclass(frozen=True, kw_only=True)
class PlacedConfig(MethodConfig):
    """A method that acts on chosen blocks. See `harness.methods.parts.placement` for the grammar."""

    blocks: str = "all"

    def placed(self, shape: BackboneShape) -> list[BlockShape]:
        """The blocks that it acts on."""
        indices = parse_blocks(self.blocks, depth=shape.depth, global_blocks=shape.global_blocks)
        return [shape.blocks[index] for index in indices]

    def gradient_from(self, shape: BackboneShape) -> int | None:
        return parse_blocks(self.blocks, depth=shape.depth, global_blocks=shape.global_blocks)[0]


@dataclass(frozen=True, kw_only=True)
class DecoderOnlyConfig(MethodConfig):
    """Encoder frozen; only mask decoder and head train."""

    @property
    def trains_encoder(self) -> bool:
        return False

    def encoder_parameters(self, shape: BackboneShape) -> int:
        return 0

    def gradient_from(self, shape: BackboneShape) -> int | None:
        return None


@dataclass(frozen=True, kw_only=True)
class ZeroShotConfig(DecoderOnlyConfig):
    """Nothing trains: the pretrained segmenter as it is."""

    trains: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.lr is not None:
            raise MethodError(f"lr={self.lr}: nothing of zeroshot trains; leave out its rate")

    def passes(self, *, epochs: int, of_updates: bool) -> float:
        return 0.0


@dataclass(frozen=True, kw_only=True)
class FullConfig(MethodConfig):
    """Everything trains but prompt encoder and IoU head.

    Args:
        encoder_lr: learning rate of the encoder, None for that of the rest (ours).
    """

    encoder_lr: Positive | None = None

    @property
    def trains_backbone_weights(self) -> bool:
        return True

    def added_parameters(self, shape: BackboneShape) -> int:
        return 0

    def encoder_parameters(self, shape: BackboneShape) -> int:
        return shape.parameters
