"""NAS-LoRA and NAS-PC-LoRA: a low-rank update whose bottleneck passes a searched cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from harness.methods.configs.lowrank import LowRankConfig
from harness.methods.parts.operations import cell_parameters, normed, parse_operations
from harness.methods.parts.placement import BackboneShape, MethodError


@dataclass(frozen=True, kw_only=True)
class NASLoRAConfig(LowRankConfig):
    """NAS-LoRA (2512.03499). What the paper leaves open is our choice and says so.

    Args:
        sites: the paper says "Q, K, V of every block". That fits one cell on the fused qkv as well as one each on ``q,k,v``.
            Our default is the first, so that LoRA and NAS-LoRA differ in the cell alone.
        rank: r = 3 (paper).
        scale: factor of the update; 1, the paper's formula has none.
        style: see `harness.methods.parts.operations` (the paper does not say whether ReLU and batch norm stay; ours: as DARTS).
        operations: ``all`` (DARTS's eight, paper), ``no-conv``, ``no-pool``, ``wide`` (three more, ours), or names separated
            by commas.
        scope: ``window`` runs the cell inside the attention window, ``image`` on the whole map (ours: window, as
            Conv-LoRA released).
        alpha_std: α ~ N(0, alpha_std²) at init, one α a cell (1e-3, paper).
        alpha_lr: learning rate of α (1e-3, paper). ``lr`` of the weights is the protocol's when None (1e-4, paper).
        alpha_weight_decay: weight decay of α (0, ours).
        alpha_optimizer: ``protocol`` gives α the optimiser, betas and schedule of the weights (ours), ``darts`` an Adam with
            betas (0.5, 0.999) at a constant rate, as DARTS and PC-DARTS have.
        stagewise: weights alone for ``search_start_epoch`` epochs, then weights and α alternate (paper); False learns
            both on every step.
        search_start_epoch: T_B = 10 (paper).
        alternate: how, from T_B on. ``both``: every iteration updates α on a batch of its own, then the weights on
            theirs, as DARTS and PC-DARTS do. The weights lose no update, at the price of a second pass. With ``alpha_data=holdout``
            they see only their part of the images, and under ``budget: epochs`` get so much fewer updates, half by default.
            ``joint``: one pass updates both. ``iteration`` and ``epoch``: turns, α first; the weights get half of the updates. The paper
            does not say (ours: ``both``).
        alpha_data: α learns from the ``train`` split as the weights do, or from a ``holdout`` part of it that the
            weights never see (ours: train). ``shuffled`` is a control: α learns from training images with the masks of
            others, which shows what it chooses where there is nothing to learn. A protocol with prompts has no such control,
            since they show where the other mask is.
        alpha_holdout: that part as a fraction (0.5, DARTS).
        order: with ``both`` and in turns: ``alpha-first`` as DARTS does, or ``weights-first`` (the paper does not say).
        residual: let the bottleneck pass the cell by too, B (cell(A x) + A x), as Conv-LoRA does; the formula of
            the paper has no such term.
        norm: after every pool, every stage of a convolution and each operation beyond DARTS's: ``batch`` (DARTS's while it searches: no
            parameters), ``batch-affine`` (a scale and an offset a channel are learnt) or ``none``; style=linear has none.
        fused: run the operations of a cell as few batched convolutions; equal to running them one by one.
        compiled: let torch.compile make few kernels of each cell; equal to rounding, and not with activation checkpointing.
    """

    scale: float = 1.0
    style: str = "darts"
    operations: str = "all"
    scope: Literal["window", "image"] = "window"
    alpha_std: float = 1e-3
    alpha_lr: float = 1e-3
    alpha_weight_decay: float = 0.0
    alpha_optimizer: Literal["protocol", "darts"] = "protocol"
    stagewise: bool = True
    search_start_epoch: int = 10
    alternate: Literal["both", "joint", "iteration", "epoch"] = "both"
    alpha_data: Literal["train", "holdout", "shuffled"] = "train"
    alpha_holdout: float = 0.5
    order: Literal["alpha-first", "weights-first"] = "alpha-first"
    residual: bool = False
    norm: Literal["batch", "batch-affine", "none"] = "batch"
    fused: bool = True
    compiled: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_maps()
        parse_operations(self.operations, style=self.style)
        if self.style == "linear" and self.norm == "batch-affine":
            raise MethodError("norm=batch-affine: style=linear has no norms; use style=darts, or leave norm out")
        if self.alternate == "joint" and self.alpha_data != "train":
            raise MethodError(
                f"alpha_data={self.alpha_data}: alternate=joint has one pass on one batch; use alternate=both"
            )
        if not self.stagewise and self.alpha_data != "train":
            raise MethodError(
                f"alpha_data={self.alpha_data}: stagewise=False has one pass on one batch; leave stagewise out"
            )
        for name in ("search_start_epoch", "alpha_std", "alpha_weight_decay"):
            if getattr(self, name) < 0:
                raise MethodError(f"{name}={getattr(self, name)}: must not be below zero")
        if not 0 < self.alpha_holdout < 1:
            raise MethodError(f"alpha_holdout={self.alpha_holdout}: a fraction of the training split, in (0, 1)")

    @property
    def cell_channels(self) -> int:
        """Channels of the bottleneck that pass the cell; the others bypass it."""
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
    def shuffles_masks(self) -> bool:
        """Whether α learns from images with the masks of others."""
        return self.alpha_data == "shuffled"

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
        norms = normed(operations) if self.norm == "batch-affine" else 0
        cell = cell_parameters(operations, channels=self.cell_channels) + 2 * norms * self.cell_channels
        return super().encoder_parameters(shape) + len(self.adapted(shape)) * cell


@dataclass(frozen=True, kw_only=True)
class NASPCLoRAConfig(NASLoRAConfig):
    """NAS-PC-LoRA (2512.03499): only a part of the bottleneck's channels passes the cell, as in PC-DARTS (1907.05737).

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
