"""NAS-LoRA (2512.03499): h = W0 x + Wd · Σ_i softmax(α)_i · O_i(We x), learnt stage-wise.

We (a→r) and Wd (r→b) are LoRA's projections, the O_i DARTS's operations on the r-channel bottleneck map
(`harness.methods.parts.cell`). No α/r scaling and no extra residual, as in the formula. Epochs before T_B learn the weights w alone;
from T_B on w and α alternate. Nobody published code: what the paper leaves open is a field of
`NASLoRAConfig` with our default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.methods.base import ARCHITECTURE, WEIGHTS, ParameterGroup, Positive, Role
from harness.methods.linears import LowRankConfig
from harness.methods.lora import LowRankMethod
from harness.methods.parts.cell import Cell
from harness.methods.parts.merging import MergeReport
from harness.methods.parts.operations import cell_parameters, parse_operations
from harness.methods.parts.placement import BackboneShape, MethodError
from harness.methods.parts.sites import TokenLayout


@dataclass(frozen=True, kw_only=True)
class NASLoRAConfig(LowRankConfig):
    """NAS-LoRA (2512.03499). What the paper leaves open is our choice and says so.

    Args:
        sites: the paper says "Q, K, V of every block". That can mean one cell on the fused qkv or one each on ``q,k,v``.
            Our default is the first, so that LoRA and NAS-LoRA differ in the cell alone.
        rank: r = 3 (paper).
        scale: factor of the update; 1, since the paper's formula has none.
        style: see `harness.methods.parts.operations` (the paper does not say whether ReLU and batch norm stay; ours: as DARTS).
        operations: ``all`` (DARTS's eight, paper), ``no-conv``, ``no-pool``, or names separated by commas.
        scope: ``window`` runs the cell inside the attention window, ``image`` on the whole map (ours: window, as
            Conv-LoRA released).
        alpha_std: α ~ N(0, alpha_std²) at init, one α per cell (1e-3, paper).
        alpha_lr: learning rate of α (1e-3, paper), which has no weight decay (ours). ``lr`` of the weights is the protocol's when None
            (1e-4, paper).
        stagewise: weights alone for ``search_start_epoch`` epochs, then weights and α alternate (paper); False learns
            both on every step.
        search_start_epoch: T_B = 10 (paper).
        alternate: how, from T_B on. ``both``: every iteration updates α on a batch of its own, then the weights on
            theirs, as DARTS and PC-DARTS do. The weights lose no update, at the price of a second pass. With ``alpha_data=holdout``
            they see only their part of the images, and under ``budget: epochs`` get correspondingly fewer updates, half by default.
            ``joint``: one pass updates both. ``iteration`` and ``epoch``: they take turns, α first; the weights get half of the updates.
            The paper does not say (ours: ``both``).
        alpha_data: α learns from the ``train`` split as the weights do, or from a ``holdout`` half of it that the
            weights never see, as in DARTS (ours: train). ``shuffled`` is a control: α learns from training images with the masks of
            others, which shows what it chooses where there is nothing to learn. A protocol with prompts has no such control,
            since they show where the other mask is.
        order: with ``both`` and with turns: ``alpha-first`` as DARTS does, or ``weights-first`` (the paper does not say).
        residual: let the bottleneck bypass the cell as well, B (cell(A x) + A x), as Conv-LoRA does; the formula of
            the paper has no such term.
        norm: after every pool and every stage of a convolution: ``batch`` (DARTS's while it searches: no parameters) or ``none``;
            style=linear has none.
    """

    scale: float = 1.0
    style: str = "darts"
    operations: str = "all"
    scope: Literal["window", "image"] = "window"
    alpha_std: float = 1e-3
    alpha_lr: Positive = 1e-3
    stagewise: bool = True
    search_start_epoch: int = 10
    alternate: Literal["both", "joint", "iteration", "epoch"] = "both"
    alpha_data: Literal["train", "holdout", "shuffled"] = "train"
    order: Literal["alpha-first", "weights-first"] = "alpha-first"
    residual: bool = False
    norm: Literal["batch", "none"] = "batch"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_maps()
        parse_operations(self.operations, style=self.style)
        if self.alternate == "joint" and self.alpha_data != "train":
            raise MethodError(
                f"alpha_data={self.alpha_data}: alternate=joint has one pass on one batch; use alternate=both"
            )
        if not self.stagewise and self.alpha_data != "train":
            raise MethodError(
                f"alpha_data={self.alpha_data}: stagewise=False has one pass on one batch; leave stagewise out"
            )
        for name in ("search_start_epoch", "alpha_std"):
            if getattr(self, name) < 0:
                raise MethodError(f"{name}={getattr(self, name)}: must not be below zero")

    @property
    def cell_channels(self) -> int:
        """Channels of the bottleneck that go through the cell; the others bypass it."""
        return self.rank

    @property
    def mixed_operations(self) -> tuple[str, ...]:
        return parse_operations(self.operations, style=self.style)

    @property
    def searches(self) -> bool:
        """Whether there is an α to learn."""
        return len(self.mixed_operations) > 1

    @property
    def holds_out(self) -> bool:
        """Whether α learns from images that the weights never see."""
        return self.searches and self.stagewise and self.alpha_data == "holdout"

    @property
    def spares_weight_updates(self) -> bool:
        in_turns = self.searches and self.stagewise and self.alternate in ("iteration", "epoch")
        return in_turns or self.holds_out

    def never_reached(self, epochs: int) -> str:
        if not (self.searches and self.stagewise) or self.search_start_epoch < epochs:
            return ""
        return f"a control without a search: it would begin after T_B = {self.search_start_epoch} of {epochs} epochs"

    def passes(self, *, epochs: int, of_updates: bool) -> float:
        searched = max(0, epochs - self.search_start_epoch) if self.searches and self.stagewise else 0
        twice = self.alternate == "both" or (of_updates and self.alternate in ("iteration", "epoch"))
        return 1 + searched / epochs if twice else 1.0

    def encoder_parameters(self, shape: BackboneShape) -> int:
        operations = parse_operations(self.operations, style=self.style)
        cell = cell_parameters(operations, channels=self.cell_channels)
        return super().encoder_parameters(shape) + len(self.adapted(shape)) * cell


@dataclass(frozen=True, kw_only=True)
class NASPCLoRAConfig(NASLoRAConfig):
    """NAS-PC-LoRA (2512.03499): only some of the bottleneck's channels go through the cell, as in PC-DARTS (1907.05737).

    Args:
        channel_ratio: P = 2/3 (paper): 2 of 3 channels; rounded to at least one channel, so that at rank 1 no channel is
            left to bypass the cell and the method is NAS-LoRA.
    """

    channel_ratio: float = 2 / 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.channel_ratio <= 1:
            raise MethodError(f"channel_ratio={self.channel_ratio} must be above 0 and not above 1")

    @property
    def cell_channels(self) -> int:
        return max(1, round(self.channel_ratio * self.rank))

    @property
    def label_note(self) -> str:
        return "no channel left out: naslora" if self.cell_channels == self.rank else ""


class OneConvolution(nn.Module):
    """A linear cell after its search: one convolution with zero padding.

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
        """Stop passing what `linear_part` passes. Returns whether the cell has other operations."""
        assert isinstance(self.cell, Cell)
        if self._spares_padding:
            return True
        self.cell.skip_folded = True
        return any(name not in ("none", "skip_connect") for name in self.cell.operations)

    @property
    def _spares_padding(self) -> bool:
        return self.scope == "image" and bool(self.layout.window) and self.layout.normed_padding


class NASLoRA(LowRankMethod):
    """NAS-LoRA; see the module."""

    name = "naslora"
    config_class = NASLoRAConfig
    config: NASLoRAConfig

    def __init__(self, config: NASLoRAConfig, *, seed: int = 0) -> None:
        super().__init__(config, seed=seed)
        self.merge_modes = ("exact", "conv", "calibrated") if config.style == "linear" else ("exact", "calibrated")

    def _scale(self) -> float:
        return self.config.scale

    def _core(self, layout: TokenLayout) -> nn.Module:
        cell = Cell(
            self.config.mixed_operations,
            channels=self.config.cell_channels,
            style=self.config.style,
            alpha_std=self.config.alpha_std,
            generator=self.generator,
            norm=self.config.norm,
            residual=self.config.residual,
        )
        return CellOnTokens(cell, width=self.config.rank, layout=layout, scope=self.config.scope)

    def cells(self) -> dict[str, Cell]:
        """Every cell by site."""
        cells = {site: getattr(adapter.core, "cell", None) for site, adapter in self.adapters().items()}
        return {site: cell for site, cell in cells.items() if isinstance(cell, Cell)}

    def parameter_groups(self) -> list[ParameterGroup]:
        alphas = {id(cell.alpha) for cell in self.cells().values()}
        trained = {name: p for name, p in self.segmenter.named_parameters() if p.requires_grad}
        weights = {name: p for name, p in trained.items() if id(p) not in alphas}
        architecture = {name: p for name, p in trained.items() if id(p) in alphas}
        groups = [ParameterGroup(role=WEIGHTS, named=weights, lr=self.config.lr)]
        if architecture:
            rate = self.config.alpha_lr
            groups.append(ParameterGroup(role=ARCHITECTURE, named=architecture, lr=rate, weight_decay=0.0))
        return groups

    def passes_at(self, *, epoch: int, step: int) -> tuple[tuple[Role, ...], ...]:
        searched = epoch - self.config.search_start_epoch if self.config.stagewise else 0
        if not self.config.searches or searched < 0:
            return ((WEIGHTS,),)
        if self.config.alternate == "joint" or not self.config.stagewise:
            return ((WEIGHTS, ARCHITECTURE),)
        order: tuple[Role, Role] = (
            (ARCHITECTURE, WEIGHTS) if self.config.order == "alpha-first" else (WEIGHTS, ARCHITECTURE)
        )
        if self.config.alternate == "both":
            return ((order[0],), (order[1],))
        # Adding the step to the epoch swaps the turns from epoch to epoch, so that both roles get steps in an epoch of
        # one step.
        turn = searched + step if self.config.alternate == "iteration" else searched
        return ((order[turn % 2],),)

    def architecture_holdout(self) -> float:
        return 0.5 if self.config.holds_out else 0.0

    def architecture_masks_shuffled(self) -> bool:
        return self.config.alpha_data == "shuffled"

    def architecture(self) -> dict[str, list[float]]:
        return {site: cell.mixture().tolist() for site, cell in self.cells().items() if cell.alpha is not None}

    def decode(self) -> bool:
        return sum(cell.decode() for cell in self.cells().values()) > 0  # decodes every cell; any() would stop early

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
