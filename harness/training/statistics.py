"""Batch norm over the images of all workers, so that a cell's statistics do not depend on how a batch is shared out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class SharedStatistics(TorchFunctionMode):
    """While active, every ``torch.nn.functional.batch_norm`` in training mode uses mean and variance over all workers.

    Works for any module that normalises through that function, torch's own layers included. All workers must run the
    same layers in the same order, in backward passes too.

    Args:
        counts: False for a worker that runs an image along which is not its own: it takes part, its values do not
            count.
    """

    def __init__(self, *, counts: bool) -> None:
        super().__init__()
        self._counts = counts

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.batch_norm:
            return self._batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _batch_norm(
        self,
        maps: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,  # noqa: FBT001, FBT002 - the signature of the function that it stands for
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not training:
            return torch.batch_norm(
                maps, weight, bias, running_mean, running_var, False, momentum, eps, torch.backends.cudnn.enabled
            )
        places = [0, *range(2, maps.ndim)]
        shape = [1, -1, *[1] * (maps.ndim - 2)]
        factor = float(self._counts)
        number = maps.new_full((1,), maps.numel() / maps.shape[1] * factor)
        sums = _SumOverWorkers.apply(torch.cat([factor * maps.sum(places), number]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = maps - mean.view(shape)
        # Two passes instead of E[x²] − E[x]²: no cancellation.
        variance = _SumOverWorkers.apply(factor * centred.square().sum(places)) / count
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                unbiased = variance * count / (count - 1).clamp(min=1)
                running_var.lerp_(unbiased.to(running_var.dtype), momentum)
        normal = centred * (variance + eps).rsqrt().view(shape)
        if weight is not None:
            normal = normal * weight.view(shape)
        return normal if bias is None else normal + bias.view(shape)


class _SumOverWorkers(torch.autograd.Function):
    """The sum over workers; its gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        summed = value.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        summed = gradients[0].contiguous().clone()
        dist.all_reduce(summed)
        return summed
