"""Merging low-rank updates s · B · core(A x) into the linear layer that they adapt.

``fold_exactly`` folds what is linear per token. LoRA has no core, and its whole update is. A core may split itself: it
then offers ``linear_part()``, an r×r matrix M, and ``drop_linear_part()``, which takes M out of the core and says
whether anything is left. Then W0 + s·B·M·A replaces W0, and the rest of the core stays beside it.

``fold_calibrated`` replaces any core by the affine map of the bottleneck that is nearest to it on given images: with
z = A x and y = core(z) over all tokens, (M, c) minimises Σ ‖M z + c − y‖², solved by normal equations accumulated in
float64. W0 + s·B·M·A and b0 + s·B·c then replace W0 and b0, and nothing is left. All sites are fitted in one pass over
the unmerged model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from harness.methods.parts.folding import Folding
from harness.methods.parts.lowrank import AdaptedLinear, LowRank
from harness.methods.parts.placement import MethodError
from harness.methods.parts.sites import BlockSite, DecoderSite


@runtime_checkable
class Splittable(Protocol):
    """A core with a part that is linear per token."""

    def linear_part(self) -> Tensor:
        """M, (r, r)."""
        ...

    def drop_linear_part(self) -> bool:
        """Take M out of the core; whether anything is left."""
        ...


@dataclass(kw_only=True)
class Layer:
    """An adapted linear layer and where it stands.

    Args:
        place: its block, or its part of the mask decoder.
        module: its role in the block, such as ``qkv``.
        adapted: the layer.
    """

    place: BlockSite | DecoderSite
    module: str
    adapted: AdaptedLinear

    def adapters(self) -> dict[str, LowRank]:
        """Adapters by site: ``blocks.0.qkv``, or ``blocks.0.qkv.q`` where the adapter has a slice of the outputs."""
        name = f"{self.place.name}.{self.module}"
        adapters: dict[str, LowRank] = dict(self.adapted.adapters.items())  # type: ignore[arg-type]
        return {name if key == self.module else f"{name}.{key}": adapter for key, adapter in adapters.items()}

    def remove(self, adapter: LowRank) -> None:
        """Take an adapter away; with the last one the backbone's own layer is back in its block."""
        key = next(key for key, value in self.adapted.adapters.items() if value is adapter)
        del self.adapted.adapters[key]
        if not self.adapted.adapters:
            self.place.replace(self.module, self.adapted.base)


@torch.no_grad()
def add_update(base: nn.Linear, adapter: LowRank, matrix: Tensor, offset: Tensor | None = None) -> None:
    """W ← W + s·B·M·A and b ← b + s·B·c on the adapter's slice of the outputs, in float64.

    Args:
        matrix: M, (r, r).
        offset: c, (r,), or None for zero.
    """
    down, up = (factor.double() for factor in adapter.factors())
    rows = adapter.reached
    weight = base.weight[rows].double() + adapter.scale * (up @ matrix.to(up) @ down)
    base.weight[rows] = weight.to(base.weight.dtype)
    if offset is None or (base.bias is None and not offset.any()):
        return
    if base.bias is None:
        base.bias = nn.Parameter(base.weight.new_zeros(base.out_features), requires_grad=False)
    bias = base.bias[rows].double() + adapter.scale * (up @ offset.to(up))
    base.bias[rows] = bias.to(base.bias.dtype)


def fold_exactly(layers: Sequence[Layer]) -> Folding:
    """Fold what is linear per token, in place."""
    done = Folding()
    for layer in layers:
        for site, adapter in layer.adapters().items():
            core = adapter.core
            if core is None:
                add_update(layer.adapted.base, adapter, torch.eye(len(adapter.factors()[0])))
            elif not isinstance(core, Splittable):
                done.left[site] = f"{type(core).__name__} is not linear"
                continue
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
        """M (r, r) and c (r,), on the CPU. Where the tokens leave directions open, the solution of least norm."""
        solution = torch.linalg.pinv(self.gram.cpu(), hermitian=True, rtol=1e-10) @ self.moment.cpu()
        return solution[:-1].T, solution[-1] if self.affine else torch.zeros_like(solution[-1])


@torch.no_grad()
def fit_cores(
    segmenter: nn.Module, layers: Sequence[Layer], calibration: Sequence[Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """The affine map (M, c) of the bottleneck nearest to each core, by site; the identity where there is no core. Where
    the layer has no bias (DINOv3's qkv) there is no place for c, which is then zero, and M is fitted without it.

    Args:
        segmenter: in evaluation mode.
        layers: the adapted layers.
        calibration: batches (B, 3, H, W) of training images.
    """
    adapters = {site: adapter for layer in layers for site, adapter in layer.adapters().items()}
    ranks = {site: len(adapter.factors()[0]) for site, adapter in adapters.items()}
    cores = {site: adapter.core for site, adapter in adapters.items() if adapter.core is not None}
    biased = {site: layer.adapted.base.bias is not None for layer in layers for site in layer.adapters()}
    fits = {site: LeastSquares(ranks[site], device=adapters[site].down.device, affine=biased[site]) for site in cores}
    with ExitStack() as watched:
        for site, core in cores.items():
            watched.callback(core.register_forward_hook(fits[site].watch).remove)
        in_decoder = any(isinstance(layer.place, DecoderSite) for layer in layers)
        passed = segmenter if in_decoder else segmenter.encoder
        for batch in calibration if cores else ():
            passed(batch)  # type: ignore[operator]
    if idle := [site for site, fit in fits.items() if calibration and not fit.gram.any()]:
        raise MethodError(
            f"no token of the calibration images passes the core at {', '.join(idle[:3])}, so no map can be fitted to it"
        )
    plain = {site: (torch.eye(rank), torch.zeros(rank)) for site, rank in ranks.items()}
    return plain | {site: fit.solve() for site, fit in fits.items()}


@torch.no_grad()
def fold_calibrated(segmenter: nn.Module, layers: Sequence[Layer], calibration: Sequence[Tensor]) -> Folding:
    """Replace every core by its least-squares affine map and fold that, in place; see `fit_cores`."""
    fitted = fit_cores(segmenter, layers, calibration)
    done = Folding()
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


@runtime_checkable
class Affine(Protocol):
    """A method whose updates are affine maps of low rank, or are fitted by such."""

    def affine_updates(self, calibration: Sequence[Tensor]) -> list[AffineUpdate]:
        """One update a layer; see `affine_updates`.

        Raises:
            MethodError: a core must be fitted, and there are no images; or it is merged already.
        """
        ...


@runtime_checkable
class PeftAdapter(Protocol):
    """A method whose adapter Hugging Face peft loads as it is."""

    def adapter(self, rename: Callable[[str], str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Its configuration and tensors, layers named by ``rename`` of their names in the encoder."""
        ...


@torch.no_grad()
def affine_updates(segmenter: nn.Module, layers: Sequence[Layer], calibration: Sequence[Tensor]) -> list[AffineUpdate]:
    """s · B · (M A x + c) of every layer with what `fit_cores` gives, the adapters of one layer side by side."""
    fitted = fit_cores(segmenter, layers, calibration)
    updates = []
    for layer in layers:
        downs, ups = [], []
        offset = torch.zeros(layer.adapted.base.out_features, dtype=torch.float64)
        for site, adapter in layer.adapters().items():
            matrix, shift = (tensor.double() for tensor in fitted[site])
            up = adapter.spread_up(len(offset)).double().cpu()
            downs.append(matrix @ adapter.factors()[0].double().cpu())
            ups.append(up)
            offset += up @ shift
        updates.append(
            AffineUpdate(
                layer=f"{layer.place.name}.{layer.place.path(layer.module)}",
                down=torch.cat(downs).float(),
                up=torch.cat(ups, dim=1).float(),
                offset=offset.float(),
            )
        )
    return updates
