"""What adds nothing to the backbone: zero-shot, full fine-tuning, and the decoder alone, the floor of every comparison."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from harness.methods.base import WEIGHTS, Method, ParameterGroup
from harness.methods.configs import DecoderOnlyConfig, FullConfig, ZeroShotConfig
from harness.methods.parts.sites import Adaptable


class ZeroShot(Method):
    """The pretrained segmenter as it is: a run makes no update and is tested like every other, so that tables can say what fine-tuning
    bought."""

    name = "zeroshot"
    config_class = ZeroShotConfig

    def _insert(self, segmenter: Adaptable) -> None:
        return None

    def _trained_besides(self, segmenter: Adaptable) -> Iterable[tuple[str, nn.Parameter]]:
        return ()


class Full(Method):
    """The whole encoder trains besides mask decoder and head; prompt encoder and IoU head stay frozen. A pretrained encoder may need a
    lower rate than a decoder that starts from random weights: ``encoder_lr`` (ours; no paper says)."""

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
