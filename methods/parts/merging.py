"""Merging low-rank updates s · B · core(A x) into the linear layer that they adapt.

``fold_exactly`` folds what is linear per token. LoRA has no core, and its whole update is. A core may split itself: it
then offers ``linear_part()``, an r×r matrix M, and ``drop_linear_part()``, which takes M out of the core and says
whether anything is left. Then W0 + s·B·M·A replaces W0, and the rest of the core stays next to it.

``fold_calibrated`` replaces any core by the affine map of the bottleneck that is nearest to it on given images: with
z = A x and y = core(z) over all tokens, (M, c) minimises Σ ‖M z + c − y‖², solved by normal equations accumulated in
float64. W0 + s·B·M·A and b0 + s·B·c then replace W0 and b0, and nothing is left. All sites are fitted in one pass over
the unmerged model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from harness.methods.parts.lowrank import LowRank
from harness.methods.parts.placement import MethodError
from harness.methods.parts.sites import BlockSite, DecoderSite


@dataclass(kw_only=True)
class MergeReport:
    """What a merge did.

    Args:
        mode: the requested mode; `harness.methods.base.Method.merge` fills it in, and the deviations.
        folded: sites whose adapter went into the backbone's own weights.
        partly: those of ``left`` whose share that is linear per token went into the backbone's weights (the skip share
            of a cell, Conv-LoRA's linear path); the adapter keeps the rest.
        left: sites that keep an adapter, with the reason.
        extra_parameters: parameters that inference still needs beyond the plain backbone.
        max_deviation: largest absolute difference of the mask logits on held-out images, None if none were given.
        relative_deviation: the same as ‖merged − unmerged‖ / ‖unmerged‖.
    """

    mode: str = ""
    folded: list[str] = field(default_factory=list)
    partly: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    extra_parameters: int = 0
    max_deviation: float | None = None
    relative_deviation: float | None = None


@torch.no_grad()
def predictions(segmenter: nn.Module, batches: Sequence[Tensor]) -> list[Tensor]:
    """Logits of every batch (B, 3, H, W) in evaluation mode; its mode is then restored."""
    training = segmenter.training
    segmenter.eval()
    try:
        return [leading(segmenter(batch)).float() for batch in batches]
    finally:
        segmenter.train(training)


def leading(output: Tensor | Sequence[Tensor]) -> Tensor:
    """The mask logits of a segmenter's output, which a multi-class head puts first."""
    return output if isinstance(output, Tensor) else output[0]


def deviation(before: Sequence[Tensor], after: Sequence[Tensor]) -> tuple[float | None, float | None]:
    """Largest absolute difference and ‖after − before‖ / ‖before‖ over all batches; None, None without batches."""
    if not before:
        return None, None
    largest = max(float((b - a).abs().max()) for b, a in zip(before, after, strict=True))
    difference = sum(float((b - a).double().square().sum()) for b, a in zip(before, after, strict=True))
    norm = sum(float(b.double().square().sum()) for b in before)
    return largest, (difference / norm) ** 0.5 if norm else 0.0


@dataclass(kw_only=True)
class Layer:
    """An adapted linear layer and what it belongs to.

    Args:
        target: its block, or its part of the mask decoder.
        module: its role in the block, such as ``qkv``.
        adapted: the layer.
    """

    target: BlockSite | DecoderSite
    module: str
    adapted: Any

    def adapters(self) -> dict[str, LowRank]:
        """Adapters by site: ``blocks.0.qkv``, or ``blocks.0.qkv.q`` where the adapter has a slice of the outputs."""
        name = f"{self.target.name}.{self.module}"
        adapters: dict[str, LowRank] = dict(self.adapted.adapters.items())
        return {name if key == self.module else f"{name}.{key}": adapter for key, adapter in adapters.items()}

    def remove(self, adapter: LowRank) -> None:
        """Take an adapter away; with the last one the backbone's own layer is back in its block."""
        key = next(key for key, value in self.adapted.adapters.items() if value is adapter)
        del self.adapted.adapters[key]
        if not self.adapted.adapters:
            self.target.replace(self.module, self.adapted.base)


@torch.no_grad()
def add_update(base: nn.Linear, adapter: LowRank, matrix: Tensor, offset: Tensor | None = None) -> None:
    """W ← W + s·B·M·A and b ← b + s·B·c on the adapter's slice of the outputs, in float64.

    Args:
        matrix: M, (r, r).
        offset: c, (r,), or None for zero. A layer without a bias gets one.
    """
    down, up = adapter.down.double(), adapter.up.double()
    rows = adapter.reached
    weight = base.weight[rows].double() + adapter.scale * (up @ matrix.to(up) @ down)
    base.weight[rows] = weight.to(base.weight.dtype)
    if offset is None or (base.bias is None and not offset.any()):
        return
    if base.bias is None:
        base.bias = nn.Parameter(base.weight.new_zeros(base.out_features), requires_grad=False)
    bias = base.bias[rows].double() + adapter.scale * (up @ offset.to(up))
    base.bias[rows] = bias.to(base.bias.dtype)


@torch.no_grad()
def fold_layers(layers: Iterable[Layer]) -> MergeReport:
    """Replace each layer by the one that it folds itself into, ``folded()``."""
    done = MergeReport()
    for layer in layers:
        layer.target.replace(layer.module, layer.adapted.folded())
        name, parts = f"{layer.target.name}.{layer.module}", getattr(layer.adapted, "adapters", [layer.module])
        done.folded += [name if part == layer.module else f"{name}.{part}" for part in parts]
    return done


def fold_exactly(layers: Sequence[Layer]) -> MergeReport:
    """Fold what is linear per token, in place."""
    done = MergeReport()
    for layer in layers:
        for site, adapter in layer.adapters().items():
            core: Any = adapter.core
            if core is None:
                add_update(layer.adapted.base, adapter, torch.eye(len(adapter.down)))
            else:
                linear = core.linear_part()
                add_update(layer.adapted.base, adapter, linear)
                if core.drop_linear_part():
                    if linear.any():
                        done.partly.append(site)
                    done.left[site] = "operations that look at neighbours or are not linear"
                    continue
            layer.remove(adapter)
            done.folded.append(site)
    return done


class LeastSquares:
    """Normal equations of y ≈ M z + c, accumulated in float64.

    Args:
        rank: r, the width of z and of y.
        device: where to accumulate.
        affine: fit c too, else it is zero.
    """

    def __init__(self, rank: int, *, device: torch.device, affine: bool) -> None:
        self.affine = affine
        self.gram = torch.zeros(rank + 1, rank + 1, dtype=torch.float64, device=device)
        self.moment = torch.zeros(rank + 1, rank, dtype=torch.float64, device=device)

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """Inputs and targets (…, r) of the same tokens."""
        flat = inputs.flatten(0, -2).double()
        flat = torch.cat([flat, flat.new_full((len(flat), 1), self.affine)], dim=1)
        self.gram += flat.T @ flat
        self.moment += flat.T @ targets.flatten(0, -2).double()

    def watch(self, core: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """As a forward hook of a core: add what goes in and what comes out."""
        self.add(inputs[0], output)

    def solve(self) -> tuple[Tensor, Tensor]:
        """M (r, r) and c (r,), on the CPU. Where the tokens do not determine all directions, the solution of least norm."""
        solution = torch.linalg.pinv(self.gram.cpu(), hermitian=True, rtol=1e-10) @ self.moment.cpu()
        return solution[:-1].T, solution[-1] if self.affine else torch.zeros_like(solution[-1])


@torch.no_grad()
def fit_cores(
    segmenter: nn.Module, layers: Sequence[Layer], calibration: Sequence[Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """The affine map (M, c) of the bottleneck nearest to each core, by site; the identity where there is no core. Where
    the layer has no bias (DINOv3's qkv) c has nowhere to go; it is then zero, and M is fitted without it.

    Args:
        segmenter: run in evaluation mode; its mode is then restored.
        layers: the adapted layers.
        calibration: batches (B, 3, H, W) of training images.

    Raises:
        MethodError: no image reaches a core.
    """
    adapters = {site: adapter for layer in layers for site, adapter in layer.adapters().items()}
    ranks = {site: len(adapter.down) for site, adapter in adapters.items()}
    cores = {site: adapter.core for site, adapter in adapters.items() if adapter.core is not None}
    biased = {site: layer.adapted.base.bias is not None for layer in layers for site in layer.adapters()}
    fits = {site: LeastSquares(ranks[site], device=adapters[site].down.device, affine=biased[site]) for site in cores}
    with ExitStack() as watched:
        for site, core in cores.items():
            watched.callback(core.register_forward_hook(fits[site].watch).remove)
        training = segmenter.training
        segmenter.eval()
        for batch in calibration if cores else ():
            segmenter.encoder(batch)  # type: ignore[operator]  # where all cores are
        segmenter.train(training)
    if idle := [site for site, fit in fits.items() if not fit.gram.any()]:
        raise MethodError(
            f"no calibration image passes the core at {', '.join(idle[:3])}, so no map can be fitted: pass calibration=[batch, …]"
        )
    plain = {site: (torch.eye(rank), torch.zeros(rank)) for site, rank in ranks.items()}
    return plain | {site: fit.solve() for site, fit in fits.items()}


@torch.no_grad()
def fold_calibrated(segmenter: nn.Module, layers: Sequence[Layer], calibration: Sequence[Tensor]) -> MergeReport:
    """Replace every core by its least-squares affine map and fold that, in place; see `fit_cores`."""
    fitted = fit_cores(segmenter, layers, calibration)
    done = MergeReport()
    for layer in layers:
        for site, adapter in layer.adapters().items():
            add_update(layer.adapted.base, adapter, *fitted[site])
            layer.remove(adapter)
            done.folded.append(site)
    return done


@dataclass(frozen=True, kw_only=True)
class AffineUpdate:
    """What adapters add to one linear layer, as an affine map of rank r: y ← y + B A x + c.

    Args:
        layer: path of the layer in the encoder, such as ``blocks.0.attn.qkv``, or in the segmenter (``mask_decoder.…``).
        down: A, (r, inputs).
        up: B, (outputs, r), the scale in it.
        offset: c, (outputs,).
    """

    layer: str
    down: Tensor
    up: Tensor
    offset: Tensor
