"""Kernels of convolutions spread, chained and widened, so that several become one. All of it is differentiable."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def spread(kernels: Tensor, dilation: int) -> Tensor:
    """Taps (…, k, k) set apart by ``dilation``, zeros between: (…, span, span) with span = dilation · (k − 1) + 1."""
    span = dilation * (kernels.shape[-1] - 1) + 1
    apart = kernels.new_zeros(*kernels.shape[:-2], span, span)
    apart[..., ::dilation, ::dilation] = kernels
    return apart


def chain(first: Tensor, second: Tensor) -> Tensor:
    """n kernels of ``second`` after ``first`` where nothing pads in between: K[o, i] = Σ_m second[o, m] * first[m, i].

    Args:
        first: (n, M, I, k, k).
        second: (n, O, M, l, l).

    Returns:
        (n, O, I, k + l − 1, k + l − 1).
    """
    count = len(first)
    # Correlations in a row compose by the full convolution of their kernels, which a transposed convolution computes.
    maps = first.permute(2, 0, 1, 3, 4).flatten(1, 2)
    weights = second.transpose(1, 2).flatten(0, 1)
    full = F.conv_transpose2d(maps, weights, groups=count)
    return full.unflatten(1, (count, -1)).permute(1, 2, 0, 3, 4)


def widen(kernel: Tensor, side: int) -> Tensor:
    """Zeros around a kernel (…, k, k) up to (…, side, side); with "same" padding it convolves alike."""
    return F.pad(kernel, [(side - kernel.shape[-1]) // 2] * 4)
