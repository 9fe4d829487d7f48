"""Several workers on one run: each takes a slice of every batch, gradients are summed, and worker 0 alone writes.

Sums are explicit instead of DistributedDataParallel's, as roles change from step to step and the trained parameters are few. Losses are
shares that add up (see `losses`), so sums need no division. A cell's batch norm uses the images of all workers, so that its statistics do
not depend on how a batch is split.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from harness.system.errors import UsageError


class PeerGone(RuntimeError):
    """Another worker of the run has ended, so that nothing more can be summed; its own record says why."""


@contextlib.contextmanager
def _with_peers() -> Iterator[None]:
    """Raise `PeerGone` for the end of a peer, as gloo and NCCL report it; other errors pass."""
    try:
        yield
    except RuntimeError as error:
        if not re.search(
            "closed by peer|reset by peer|refused|timed out|timeout|remote process|broken pipe", str(error).lower()
        ):
            raise
        raise PeerGone(f"another worker of this run has ended: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Workers:
    """This worker among those of its run.

    Args:
        rank: 0 … size − 1; rank 0 writes.
        size: number of workers; 1 needs no process group.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def total(self, value: Tensor) -> Tensor:
        """The sum of ``value`` over all workers, without gradient."""
        summed = value.detach().clone()
        if self.size > 1:
            with _with_peers():
                dist.all_reduce(summed)
        return summed

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace gradients by their sums, in one message for each data type; a worker without an image adds zeros.

        A gradient that no worker has stays None: with a gradient of zero, momentum and decay would move the parameter.
        """
        if self.size == 1:
            return
        by_type: dict[torch.dtype, list[nn.Parameter]] = {}
        for parameter in parameters:
            by_type.setdefault(parameter.dtype, []).append(parameter)
        for same in by_type.values():
            parts = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in same]
            flat = torch.cat([*parts, parts[0].new_tensor([p.grad is not None for p in same])])
            with _with_peers():
                dist.all_reduce(flat)
            *sums, known = flat.split([*(p.numel() for p in same), len(same)])
            for parameter, part, count in zip(same, sums, known.tolist(), strict=True):
                parameter.grad = part.view_as(parameter).clone() if count else None

    def shared_statistics(self, *, counts: bool) -> contextlib.AbstractContextManager[Any]:
        """Batch norm over all workers' images while it lasts; see `SharedStatistics`."""
        return contextlib.nullcontext() if self.size == 1 else SharedStatistics(counts=counts)

    def from_leader(self, value: Any) -> Any:
        """Rank 0's ``value`` on every worker; the others' argument is ignored."""
        if self.size == 1:
            return value
        box = [value]
        with _with_peers():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def gathered(self, value: Any) -> list[Any]:
        """Every worker's ``value``, by rank, on the first of them; on the others their own."""
        if self.size == 1:
            return [value]
        boxes: list[Any] = [None] * self.size
        with _with_peers():
            dist.all_gather_object(boxes, value)
        return boxes if self.leads else [value]

    def any(self, flag: bool) -> bool:  # noqa: FBT001 - the value itself, not an option
        """Whether ``flag`` holds on at least one worker."""
        if self.size == 1:
            return flag
        counts = torch.tensor([float(flag)], device="cuda" if dist.get_backend() == "nccl" else "cpu")
        return bool(self.total(counts).item())


ALONE = Workers()
TIMEOUT = timedelta(minutes=30)
"""How long workers wait for one another, such as for the first to write or to decode images from a slow disk."""


def join(*, device: torch.device) -> Workers:
    """Join the process group of the environment: RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, or SLURM_PROCID and SLURM_NTASKS with
    MASTER_*. `ALONE` without a group, of one worker, or of SLURM tasks without MASTER_*.

    gloo on CPU, nccl on CUDA unless workers share a device, which nccl refuses.

    Raises:
        UsageError: the environment is incomplete.
    """
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    tasks = "1" if missing else os.environ.get("SLURM_NTASKS", "1")
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    size = int(os.environ.get("WORLD_SIZE", tasks))
    if size == 1:
        return ALONE
    if missing:
        names = " and ".join(missing)
        raise UsageError(f"{size} workers, but {names} is not set; start them with torchrun or through --cluster")
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > torch.cuda.device_count()
    backend = "nccl" if device.type == "cuda" and not sharing else "gloo"
    here = {"device_id": device} if backend == "nccl" else {}  # else NCCL guesses it from the rank
    dist.init_process_group(backend, rank=int(rank), world_size=size, timeout=TIMEOUT, **here)  # type: ignore[arg-type]
    return Workers(rank=int(rank), size=size)


def leave(workers: Workers) -> None:
    """Leave the process group that `join` joined."""
    if workers.size > 1 and dist.is_initialized():
        dist.destroy_process_group()


class SharedStatistics(TorchFunctionMode):
    """While active, every ``torch.nn.functional.batch_norm`` in training mode uses mean and variance over all workers.

    Works for any module that normalises through that function, torch's own layers included. All workers must run the
    same layers in the same order, in backward passes too.

    Args:
        counts: False for a worker without an image of its own: it takes part with another one that does not count.
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
        reduced = [0, *range(2, maps.ndim)]
        shape = [1, -1, *[1] * (maps.ndim - 2)]
        factor = float(self._counts)
        number = maps.new_full((1,), maps.numel() / maps.shape[1] * factor)
        sums = _SumOverWorkers.apply(torch.cat([factor * maps.sum(reduced), number]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = maps - mean.view(shape)
        # Two passes instead of E[x²] − E[x]²: no cancellation.
        variance = _SumOverWorkers.apply(factor * centred.square().sum(reduced)) / count
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
        with _with_peers():
            dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        summed = gradients[0].contiguous().clone()
        with _with_peers():
            dist.all_reduce(summed)
        return summed
