"""NAS-LoRA (2512.03499): h = W0 x + Wd · Σ_i softmax(α)_i · O_i(We x), learnt stage-wise.

We (a→r) and Wd (r→b) are LoRA's projections, the O_i DARTS's operations on the r-channel bottleneck map
(`harness.methods.parts.cell`). No α/r scaling and no extra residual, as in the formula. Epochs before T_B learn the weights w alone;
from T_B on w and α alternate. Nobody published code: what the paper leaves open is a field of
`harness.methods.configs.naslora.NASLoRAConfig` with our default.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.methods.base import ARCHITECTURE, WEIGHTS, ParameterGroup, Role
from harness.methods.configs.naslora import NASLoRAConfig, NASPCLoRAConfig
from harness.methods.lora import LowRankMethod
from harness.methods.parts.cell import Cell
from harness.methods.parts.merging import MergeReport
from harness.methods.parts.operations import parse_operations
from harness.methods.parts.sites import TokenLayout


class OneConvolution(nn.Module):
    """What a linear cell is once its search is over: one convolution with zero padding.

    Args:
        cell: a cell of ``style=linear``.
    """

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.channels = cell.channels
        self.skip_folded = False
        self.weight = nn.Parameter(cell.kernel().detach().clone(), requires_grad=False)
        self._skip = float(cell.skip_weight().detach())

    def skip_weight(self) -> Tensor:
        """The skip connection's share of the kernel."""
        return self.weight.new_tensor(self._skip)

    def forward(self, maps: Tensor) -> Tensor:
        with torch.autocast(maps.device.type, enabled=False):
            return F.conv2d(maps.to(self.weight.dtype), self.weight, padding=self.weight.shape[-1] // 2)


class CellOnTokens(nn.Module):
    """A cell between down- and up-projection: tokens of the bottleneck are seen as a map.

    Channels beyond the cell's bypass it (partial channels). As in PC-DARTS (1907.05737) the first channels are the
    sampled ones. PC-DARTS then shuffles channels so that the next edge samples others; here the up-projection follows
    and mixes all channels, and a shuffle would only rename its columns, so there is none. Prefix tokens of a timm ViT
    have no neighbours and see the one operation that needs none, the skip connection.

    Args:
        cell: the mixed edge.
        width: r, channels of the bottleneck.
        layout: how tokens form maps at this site.
        scope: ``window`` or ``image``.

    Shape: (…, r) tokens as they come at the site, to the same.
    """

    def __init__(self, cell: Cell | OneConvolution, *, width: int, layout: TokenLayout, scope: str) -> None:
        super().__init__()
        self.cell = cell
        self.width = width
        self.layout = layout
        self.scope = scope

    def forward(self, tokens: Tensor) -> Tensor:
        sampled, bypass = tokens[..., : self.cell.channels], tokens[..., self.cell.channels :]
        mixed = self.layout.on_map(sampled, self.cell, scope=self.scope, prefix_function=self._alone)
        if not bypass.shape[-1]:
            return mixed
        if self.cell.skip_folded:
            bypass = torch.zeros_like(bypass)
        return torch.cat([mixed, bypass.to(mixed.dtype)], dim=-1)

    def _alone(self, prefix: Tensor) -> Tensor:
        skip = self.cell.skip_weight()
        return prefix.to(skip.dtype) * skip

    def linear_part(self) -> Tensor:
        """What the skip connection and the bypass pass, (r, r); see `harness.methods.parts.merging`. Nothing where
        the padding of windows, which ``scope=image`` leaves alone, is not zero: a weight would act on it."""
        if self._spares_padding:
            return torch.zeros(self.width, self.width)
        skip = self.cell.skip_weight().detach().cpu()
        diagonal = torch.ones(self.width)
        diagonal[: self.cell.channels] = skip
        return diagonal.diag()

    def drop_linear_part(self) -> bool:
        """Stop passing what `linear_part` passes; whether the cell has other operations."""
        assert isinstance(self.cell, Cell)
        if self._spares_padding:
            return True
        self.cell.skip_folded = True
        return any(name not in ("none", "skip_connect") for name in self.cell.operations)

    @property
    def _spares_padding(self) -> bool:
        return self.scope == "image" and bool(self.layout.window) and self.layout.normed_padding


DARTS_BETAS = (0.5, 0.999)
"""Of the Adam that updates α in DARTS and PC-DARTS (1806.09055, 1907.05737)."""


class NASLoRA(LowRankMethod):
    """NAS-LoRA; see the module."""

    name = "naslora"
    config_class = NASLoRAConfig
    config: NASLoRAConfig

    def __init__(self, config: NASLoRAConfig, *, seed: int = 0) -> None:
        super().__init__(config, seed=seed)
        self._operations = parse_operations(config.operations, style=config.style)
        self.merge_modes = ("exact", "conv", "calibrated") if config.style == "linear" else ("exact", "calibrated")

    def _scale(self) -> float:
        return self.config.scale

    def _core(self, layout: TokenLayout) -> nn.Module:
        cell = Cell(
            self._operations,
            channels=self.config.cell_channels,
            style=self.config.style,
            alpha_std=self.config.alpha_std,
            generator=self.generator,
            fused=self.config.fused,
            norm=self.config.norm,
            residual=self.config.residual,
            compiled=self.config.compiled,
        )
        return CellOnTokens(cell, width=self.config.rank, layout=layout, scope=self.config.scope)

    def cells(self) -> dict[str, Cell]:
        """Every cell by site."""
        cores = {site: adapter.core for site, adapter in self.adapters().items()}
        on_tokens = {site: core.cell for site, core in cores.items() if isinstance(core, CellOnTokens)}
        return {site: cell for site, cell in on_tokens.items() if isinstance(cell, Cell)}

    def parameter_groups(self) -> list[ParameterGroup]:
        alphas = {id(cell.alpha) for cell in self.cells().values()}
        trained = {name: p for name, p in self.segmenter.named_parameters() if p.requires_grad}
        weights = {name: p for name, p in trained.items() if id(p) not in alphas}
        architecture = {name: p for name, p in trained.items() if id(p) in alphas}
        groups = [ParameterGroup(role=WEIGHTS, named=weights, lr=self.config.lr)]
        if architecture:
            config = self.config
            betas = DARTS_BETAS if config.alpha_optimizer == "darts" else None
            groups.append(
                ParameterGroup(
                    role=ARCHITECTURE,
                    named=architecture,
                    lr=config.alpha_lr,
                    weight_decay=config.alpha_weight_decay,
                    betas=betas,
                )
            )
        return groups

    def roles_at(self, *, epoch: int, step: int) -> tuple[Role, ...]:
        if len(self._operations) == 1:
            return (WEIGHTS,)
        if not self.config.stagewise:
            return (WEIGHTS, ARCHITECTURE)
        searched = epoch - self.config.search_start_epoch
        if searched < 0:
            return (WEIGHTS,)
        if self.config.alternate in ("both", "joint"):
            return (WEIGHTS, ARCHITECTURE)
        # Adding the step to the epoch swaps the turns from epoch to epoch, so that both roles get steps in an epoch of
        # one step.
        turn = searched + step if self.config.alternate == "iteration" else searched
        return (ARCHITECTURE,) if (turn + self._weights_first) % 2 == 0 else (WEIGHTS,)

    def passes_at(self, *, epoch: int, step: int) -> tuple[tuple[Role, ...], ...]:
        roles = self.roles_at(epoch=epoch, step=step)
        one_after_the_other = self.config.stagewise and self.config.alternate == "both" and len(roles) == 2
        if not one_after_the_other:
            return (roles,)
        return ((WEIGHTS,), (ARCHITECTURE,)) if self._weights_first else ((ARCHITECTURE,), (WEIGHTS,))

    @property
    def _weights_first(self) -> bool:
        return self.config.order == "weights-first"

    def architecture_holdout(self) -> float:
        return self.config.alpha_holdout if self.config.holds_out else 0.0

    def architecture_masks_shuffled(self) -> bool:
        return self.config.shuffles_masks

    def architecture(self) -> dict[str, list[float]]:
        return {site: cell.mixture().tolist() for site, cell in self.cells().items() if cell.alpha is not None}

    def decode(self) -> bool:
        return sum(cell.decode() for cell in self.cells().values()) > 0  # all of them, where any() would stop early

    def _fold_convolutions(self) -> MergeReport:
        done = MergeReport()
        for site, adapter in self.adapters().items():
            assert isinstance(adapter.core, CellOnTokens)
            assert isinstance(adapter.core.cell, Cell)
            convolution = OneConvolution(adapter.core.cell)
            adapter.core.cell = convolution
            side = convolution.weight.shape[-1]
            done.left[site] = f"one {side}x{side} convolution on the bottleneck, and both projections"
        return done


class NASPCLoRA(NASLoRA):
    """NAS-PC-LoRA (2512.03499): the cell sees a part P of the bottleneck's channels, the others bypass it, as in PC-DARTS (1907.05737).
    P = 2/3, that is 2 of 3 channels; which, and why none are shuffled: see `CellOnTokens`."""

    name = "naspclora"
    config_class = NASPCLoRAConfig
