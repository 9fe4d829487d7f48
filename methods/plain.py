"""Methods that add nothing to the backbone: zero-shot, full fine-tuning, and the decoder alone, the floor of every comparison."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from harness.methods.base import WEIGHTS, Method, MethodConfig, ParameterGroup, Positive
from harness.methods.parts.placement import BackboneShape, MethodError
from harness.methods.parts.sites import Adaptable


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
            raise MethodError(f"lr={self.lr}: zeroshot trains nothing; leave lr out")

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


class ZeroShot(Method):
    """The pretrained segmenter as it is: a run makes no update and is tested like any other, so that tables show what
    fine-tuning gains."""

    name = "zeroshot"
    config_class = ZeroShotConfig

    def _insert(self, segmenter: Adaptable) -> None:
        return None

    def _trained_besides(self, segmenter: Adaptable) -> Iterable[tuple[str, nn.Parameter]]:
        return ()


class Full(Method):
    """The whole encoder trains besides mask decoder and head; prompt encoder and IoU head stay frozen. A pretrained encoder may need a
    lower rate than a decoder that starts from random weights: ``encoder_lr`` (ours; no paper gives it)."""

    name = "full"
    config_class = FullConfig
    config: FullConfig

    def _insert(self, segmenter: Adaptable) -> None:
        segmenter.encoder.requires_grad_(True)

    def parameter_groups(self) -> list[ParameterGroup]:
        """One group, or two where the encoder has a rate of its own."""
        (group,) = super().parameter_groups()
        rate = self.config.encoder_lr
        if rate is None:
            return [group]
        encoder = {name: parameter for name, parameter in group.named.items() if name.startswith("encoder.")}
        rest = {name: parameter for name, parameter in group.named.items() if name not in encoder}
        return [
            ParameterGroup(role=WEIGHTS, named=encoder, lr=rate),
            ParameterGroup(role=WEIGHTS, named=rest, lr=group.lr),
        ]


class DecoderOnly(Method):
    """The encoder stays frozen; mask decoder and head train. No gradient passes it, so its image embeddings can be cached."""

    name = "decoder"
    config_class = DecoderOnlyConfig

    def _insert(self, segmenter: Adaptable) -> None:
        return None
