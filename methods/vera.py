"""VeRA (2310.11454): y = W x + b + Λ_b B Λ_d A x, with W, b, A and B frozen and the diagonals b and d learnt.

One random pair A (r, inputs), B (outputs, r) serves every adapted layer, each with the leading rows and columns that it needs;
both start Kaiming-uniform, d at a constant, b at zero, as HF peft draws them. A and B are buffers that the state holds, so that
it restores on any machine. The update is linear per token, so that all of it folds into W.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from harness.methods.configs.lowrank import VeRAConfig
from harness.methods.lora import LowRankMethod
from harness.methods.parts.initialisation import kaiming_uniform
from harness.methods.parts.lowrank import LowRank
from harness.methods.parts.sites import Adaptable, TokenLayout, decoder_sites

GAIN = 6**0.5
"""Of Kaiming's bound for a ReLU over the 1/√fan_in of `kaiming_uniform`."""


class Projections(nn.Module):
    """A and B of all layers, frozen.

    Args:
        down: A, (r, most inputs).
        up: B, (most outputs, r).
    """

    down: Tensor
    up: Tensor

    def __init__(self, *, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.register_buffer("down", down)
        self.register_buffer("up", up)


class Scaled(LowRank):
    """Λ_b B Λ_d A on the outputs ``rows``.

    Args:
        shared: A and B.
        inputs: of the layer.
        outputs: how many the update reaches.
        initial: what d starts from.
        rows: which these are, None for all.
    """

    def __init__(self, shared: Projections, *, inputs: int, outputs: int, initial: float, rows: Tensor | None) -> None:
        rank = len(shared.down)
        super().__init__(down=torch.full((rank,), initial), up=torch.zeros(outputs), scale=1.0, rows=rows)
        self.shared = shared
        self.inputs = inputs

    def factors(self) -> tuple[Tensor, Tensor]:
        """Λ_d A and Λ_b B; ``down`` is d, ``up`` is b."""
        return self.down[:, None] * self.shared.down[:, : self.inputs], self.up[:, None] * self.shared.up[
            : len(self.up)
        ]


class VeRA(LowRankMethod):
    """VeRA; see the module."""

    name = "vera"
    config_class = VeRAConfig
    config: VeRAConfig

    def _insert(self, segmenter: Adaptable) -> None:
        widths = self.config.adapted(segmenter.encoder.shape)
        if self.config.freezes_decoder:
            linears = (part.get(leaf) for part, leaf in decoder_sites(cast(nn.Module, segmenter)))
            widths += [(linear.in_features, linear.out_features) for linear in linears if isinstance(linear, nn.Linear)]
        inputs, outputs, rank = max(i for i, _ in widths), max(o for _, o in widths), self.config.rank
        self._shared = Projections(
            down=GAIN * kaiming_uniform((rank, inputs), fan_in=inputs, generator=self.generator),
            up=GAIN * kaiming_uniform((outputs, rank), fan_in=rank, generator=self.generator),
        )
        super()._insert(segmenter)

    def _low_rank(self, base: nn.Linear, rows: Tensor | None, layout: TokenLayout) -> LowRank:
        outputs = base.out_features if rows is None else len(rows)
        initial = self.config.initial
        adapter = Scaled(self._shared, inputs=base.in_features, outputs=outputs, initial=initial, rows=rows)
        return adapter.to(base.weight.device)
