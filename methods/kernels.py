"""Kernels of convolutions spread, chained and widened, so that several become one. All of it is differentiable."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def spread(kernel: Tensor, dilation: int) -> Tensor:
    """Taps (…, k, k) set apart by ``dilation``, zeros between: (…, span, span) with span = dilation · (k − 1) + 1."""
    if dilation == 1:
        return kernel
    span = dilation * (kernel.shape[-1] - 1) + 1
    apart = kernel.new_zeros(*kernel.shape[:-2], span, span)
    apart[..., ::dilation, ::dilation] = kernel
    return apart


def chain(first: Tensor, second: Tensor) -> Tensor:
    """The kernel of ``second`` after ``first`` where nothing pads in between: K[o, i] = Σ_m second[o, m] * first[m, i].

    Args:
        first: (M, I, k, k).
        second: (O, M, l, l).

    Returns:
        (O, I, k + l − 1, k + l − 1).
    """
    # Two correlations in a row compose by the full convolution of their kernels, which a transposed convolution
    # computes.
    return F.conv_transpose2d(first.transpose(0, 1), second.transpose(0, 1)).transpose(0, 1)


def widen(kernel: Tensor, side: int) -> Tensor:
    """Zeros around a kernel (…, k, k) up to (…, side, side); with "same" padding it convolves alike."""
    return F.pad(kernel, [(side - kernel.shape[-1]) // 2] * 4)
