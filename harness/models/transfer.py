"""Between host and device without waiting: on a GPU a plain copy stops the host until all earlier work is done."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on the device: a host's goes to a GPU through pinned memory."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return (tensor if tensor.is_pinned() else tensor.pin_memory()).to(device, non_blocking=True)


def to_host(tensor: Tensor) -> Callable[[], Tensor]:
    """Starts the copy of a tensor; the function that is returned waits for it and gives it on the CPU."""
    if not tensor.is_cuda:
        return lambda: tensor
    copy = tensor.detach().to("cpu", non_blocking=True)  # into pinned memory, as torch makes for such copies
    event = torch.cuda.Event()
    event.record()

    def wait() -> Tensor:
        event.synchronize()
        return copy

    return wait


@lru_cache(maxsize=16)
def channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """(1, C, 1, 1) numbers of channels, moved there once."""
    return torch.tensor(values, device=device).view(1, -1, 1, 1)
