"""Zero-shot: the pretrained segmenter as it is. Nothing trains, so that tables can say what fine-tuning bought."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from harness.methods.base import Method
from harness.methods.configs import ZeroShotConfig
from harness.methods.parts.sites import Adaptable


class ZeroShot(Method):
    """Adds nothing and trains nothing; a run of it makes no update and is tested like every other."""

    name = "zeroshot"
    config_class = ZeroShotConfig

    def _insert(self, segmenter: Adaptable) -> None:
        return None

    def _trained_beside(self, segmenter: Adaptable) -> Iterable[tuple[str, nn.Parameter]]:
        return ()
