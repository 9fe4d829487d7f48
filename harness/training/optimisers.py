"""One optimiser per role, with the protocol's settings, and the update that one or several of them make."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from harness.methods.base import ParameterGroup, Role
from harness.protocols.protocol import Protocol
from harness.system.errors import UsageError


def build_optimisers(groups: Iterable[ParameterGroup], protocol: Protocol) -> dict[Role, torch.optim.Optimizer]:
    """One Adam or AdamW for each role that has parameters.

    The protocol's weight decay spares norms and biases (parameters with fewer than two dimensions); a group's own
    weight decay applies to all its parameters, and the protocol's ``decoder_lr`` for whatever is not in the encoder.
    On a GPU an update is one fused kernel; on a CPU it is torch's own.
    Each optimiser group keeps its undecayed rate as ``base_lr`` for `set_learning_rate`.

    Raises:
        UsageError: no parameter to train, or a parameter in two groups.
    """
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    prepared: dict[Role, list[dict]] = {}
    seen: set[str] = set()
    for group in groups:
        if twice := seen & group.named.keys():
            raise UsageError(f"{min(twice)} is in two parameter groups; each parameter has one optimiser")
        seen |= group.named.keys()
        rate = protocol.lr if group.lr is None else group.lr
        parts: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in group.named.items():
            lr = rate if protocol.decoder_lr is None or name.startswith("encoder.") else protocol.decoder_lr
            decay = group.weight_decay
            if decay is None:
                decay = protocol.weight_decay if parameter.ndim > 1 else 0.0
            parts.setdefault((lr, decay), []).append(parameter)
        prepared.setdefault(group.role, []).extend(
            {"params": parameters, "lr": lr, "base_lr": lr, "weight_decay": decay}
            for (lr, decay), parameters in parts.items()
        )
    optimisers: dict[Role, torch.optim.Optimizer] = {
        role: kinds[protocol.optimizer](
            parts, lr=protocol.lr, betas=protocol.betas, eps=protocol.eps, fused=_on_gpu(parts)
        )
        for role, parts in prepared.items()
        if parts
    }
    if not optimisers:
        raise UsageError("the method trains no parameter: neither its own nor the mask decoder's")
    return optimisers


def _on_gpu(parts: Iterable[dict]) -> bool | None:
    """Whether all parameters are on a GPU; None where not, for torch's own choice."""
    return all(parameter.is_cuda for part in parts for parameter in part["params"]) or None


def set_learning_rate(optimiser: torch.optim.Optimizer, factor: float) -> float:
    """Scale every group's own rate; returns the rate of the first group."""
    for group in optimiser.param_groups:
        group["lr"] = group["base_lr"] * factor
    return float(optimiser.param_groups[0]["lr"])


def parameters_of(optimiser: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]


def update(
    optimisers: Iterable[torch.optim.Optimizer],
    *,
    clip: float,
    scaler: torch.amp.GradScaler,
) -> Tensor:
    """One step of the given optimisers from the current gradients, which are kept: `Method.after_update` reads them.

    Args:
        clip: largest norm over all their gradients together, 0 for none.
        scaler: scaler of fp16 autocast, disabled for other precisions. Where a scaled gradient of any optimiser overflowed, none of
            them steps (alone it would skip only the one that overflowed), and its scale falls.

    Returns:
        The gradients' norm before clipping, a scalar.
    """
    active = list(optimisers)
    for optimiser in active:
        scaler.unscale_(optimiser)
    parameters = [parameter for optimiser in active for parameter in parameters_of(optimiser)]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if clip:
        nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    skipped = scaler.is_enabled() and not bool(norm.isfinite())
    for optimiser in active:
        if not skipped:
            scaler.step(optimiser)
    scaler.update()
    return norm
