"""FacT (2212.03145): the updates of all layers are one tensor, ΔW_i = s · V Σ_i U, with U (r×d) and V (d×r) shared by all.

Every linear layer of a block is seen as d×d weights: q, k, v, the output projection, and the MLP's two layers as m each
for an MLP m times as wide as a token. This is FacT-TT (tensor train), which learns each Σ_i. U and Σ start as in the released
code, V at zero, so that the start is the identity. What is added is linear per token and folds into W. Deviation: no dropout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.methods.base import Count, MergeMode
from harness.methods.linears import LinearMethod, LinearsConfig
from harness.methods.parts.layers import kaiming_uniform
from harness.methods.parts.merging import MergeReport
from harness.methods.parts.placement import BackboneShape, BlockShape, MethodError, parse_sites
from harness.methods.parts.sites import SLICES, Adaptable


@dataclass(frozen=True, kw_only=True)
class FacTConfig(LinearsConfig):
    """FacT (2212.03145): the updates of all layers as one tensor, factored.

    Args:
        sites: which linears (paper: all of a block). The MLP's width must be a multiple of the token's, since its
            weights are treated as several square ones.
        rank: r = 16 (paper): U, V for all layers, and an r×r core for each square weight.
        scale: s = 1 (code; the paper tunes it over 0.01 to 100).
    """

    sites: str = "qkv,proj,mlp"
    rank: Count = 16
    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_sites(self.sites)  # refuses ``decoder``, which is not in a block

    def squares(self, shape: BlockShape) -> int:
        """How many square weights of the token's width the sites of a block hold.

        Raises:
            MethodError: the MLP does not divide into square weights.
        """
        ratio, rest = divmod(shape.mlp_dim, shape.dim)
        fused = 3 * (shape.dim // shape.entering)  # squares of the width that qkv reads
        sites = parse_sites(self.sites)
        if "mlp" in sites and rest:
            raise MethodError(
                f"sites={self.sites!r}: FacT sees the MLP as square weights, and {shape.mlp_dim} is not a multiple of "
                f"{shape.dim}; leave mlp out, as in sites=qkv,proj"
            )
        return sum({"qkv": fused, "mlp": 2 * ratio, "proj": 1}.get(site, fused // 3) for site in sites)

    def encoder_parameters(self, shape: BackboneShape) -> int:
        blocks = self.placed(shape)
        cores = sum(map(self.squares, blocks)) * self.rank**2
        return 2 * max(block.dim for block in blocks) * self.rank + cores


class FactoredLinear(nn.Module):
    """base(x) plus s · V Σ U on each square part of its weights.

    Args:
        base: the backbone's own layer, frozen.
        own: Σ (n, r, r), for the parts by output, then by input.
        outputs: the outputs of each part, (parts, d).
        factors: U (r, d), ``down``, and V (d, r), ``up``, which all layers share; they stay the encoder's own. A narrower layer uses
            the leading part of each.
        scale: s.
    """

    outputs: Tensor
    tokens_alone = True

    def __init__(
        self, base: nn.Linear, *, own: Tensor, outputs: Tensor, factors: nn.ParameterDict, scale: float
    ) -> None:
        super().__init__()
        self.base = base
        self.own = nn.Parameter(own)
        self.register_buffer("outputs", outputs, persistent=False)
        self.scale = scale
        self._in_order = torch.equal(outputs.flatten(), torch.arange(base.out_features))
        self._shared = (factors,)  # in a tuple, so that it is not registered in every layer

    def _blocks(self) -> Tensor:
        """Σ by output part and input part, (outputs, inputs, r, r)."""
        return self.own.unflatten(0, (len(self.outputs), -1))

    def _factors(self) -> tuple[Tensor, Tensor]:
        """U (r, d) and s · V (d, r) of this layer's width."""
        (factors,) = self._shared
        dim = self.outputs.shape[1]
        return factors["down"][:, :dim], self.scale * factors["up"][:dim]

    def forward(self, tokens: Tensor) -> Tensor:
        down, up = self._factors()
        blocks = self._blocks()
        parts, inputs, rank, _ = blocks.shape
        plain = self.base(tokens)
        narrow = F.linear(tokens.unflatten(-1, (inputs, -1)), down).flatten(-2)
        mixed = F.linear(narrow, blocks.transpose(1, 2).reshape(parts * rank, inputs * rank))
        update = F.linear(mixed.unflatten(-1, (parts, rank)), up).to(plain.dtype).flatten(-2)
        return plain + update if self._in_order else plain.index_add(-1, self.outputs.flatten(), update)

    @torch.no_grad()
    def folded(self) -> nn.Linear:
        """The base with the update in its own weights, computed in float64."""
        down, up = (factor.double() for factor in self._factors())
        weight = self.base.weight
        for rows, blocks in zip(self.outputs, self._blocks().double(), strict=True):
            update = torch.cat([up @ core @ down for core in blocks], dim=1)
            weight[rows] = (weight[rows].double() + update).to(weight.dtype)
        return self.base


class FacT(LinearMethod):
    """FacT; see the module."""

    name = "fact"
    config_class = FacTConfig
    config: FacTConfig
    merge_modes = ("exact",)
    _factors: nn.ParameterDict

    def _insert(self, segmenter: Adaptable) -> None:
        encoder, rank = segmenter.encoder, self.config.rank
        blocks = self.config.placed(encoder.shape)
        self.config.encoder_parameters(encoder.shape)  # refuses an MLP that does not divide into square weights
        dim = max(block.dim for block in blocks)
        down = kaiming_uniform((rank, dim), fan_in=dim, generator=self.generator)
        factors = nn.ParameterDict({"down": down, "up": torch.zeros(dim, rank)})
        self._factors = factors.to(next(encoder.parameters()).device)
        encoder.register_module("factors", self._factors)
        super()._insert(segmenter)

    def _adapt(self, target: Any, module: str, names: Sequence[str]) -> FactoredLinear:
        base, rank = self._linear(target, module), self.config.rank
        dim = target.entering if module == "qkv" else target.dim
        outputs = torch.arange(base.out_features)
        if module == "qkv":
            outputs = torch.cat([target.outputs(part) for part in ([*SLICES] if names == ["qkv"] else names)])
        outputs = outputs.view(-1, dim)
        parts = len(outputs) * (base.in_features // dim)
        # The MLP's second layer reads all of its parts at once, so its fan-in is the sum of theirs.
        fan_in = rank * (base.in_features // dim)
        own = kaiming_uniform((parts, rank, rank), fan_in=fan_in, generator=self.generator)
        factored = FactoredLinear(base, own=own, outputs=outputs, factors=self._factors, scale=self.config.scale)
        return factored.to(base.weight.device)

    def _fold(self, mode: MergeMode, calibration: Sequence[Tensor]) -> MergeReport:
        done = super()._fold(mode, calibration)
        del self.segmenter.get_submodule("encoder").factors
        return done
