"""The precision of a pass: autocast, and products in bf16 on a CPU that has no instructions for them.

Such a CPU (AVX2 only, say) multiplies bf16 matrices ten to a hundred times slower than fp32 ones. There a product is
computed in fp32 and rounded to bf16 once, which is what the instructions do elsewhere: they add up in fp32 too.
``SAM_PEFT_BF16=native`` leaves the products to torch.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from harness.models.attention import multiplies_bf16
from harness.protocols.card import Protocol

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
SWITCH = "SAM_PEFT_BF16"

_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_PRODUCTS = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.baddbmm.default,
    torch.ops.aten.convolution.default,
    torch.ops.aten.convolution_backward.default,
    _ATTENTION,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
}


def without_tf32() -> None:
    """Make ``precision: fp32`` mean it on a GPU: torch's convolutions round to TF32's ten bits there by default and its matrix products do
    not, so that methods with convolutions would be compared at another precision than those without."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


class WideProducts(TorchDispatchMode):
    """Products with a bf16 operand are computed in fp32, their results rounded to bf16."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func not in _PRODUCTS or not any(_is_half(value) for value in args):
            return func(*args, **(kwargs or {}))
        named = {name: _widened(value) for name, value in (kwargs or {}).items()}  # attention's bias is one
        result = func(*(_widened(value) for value in args), **named)
        if not isinstance(result, tuple):
            return result.bfloat16()
        # Attention gives the logarithm of its sums beside its output, for its backward pass; that is fp32 everywhere.
        halves = result[:1] if func is _ATTENTION else result
        return (*(_rounded(value) for value in halves), *result[len(halves) :])


def _is_half(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype is torch.bfloat16


def _widened(value: Any) -> Any:
    return value.float() if _is_half(value) else value


def _rounded(value: Any) -> Any:
    return value.bfloat16() if isinstance(value, Tensor) else value


def products(protocol: Protocol, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """A context for forward and backward passes (see this module); it acts for bf16 on a CPU without its instructions alone."""
    native = protocol.precision != "bf16" or device.type != "cpu" or os.environ.get(SWITCH) == "native"
    return contextlib.nullcontext() if native or multiplies_bf16() else WideProducts()


@contextlib.contextmanager
def autocast(protocol: Protocol, device: torch.device) -> Iterator[None]:
    """A forward pass in the protocol's precision; fp32 is torch's own. The backward pass goes under `products`."""
    if protocol.precision == "fp32":
        yield
        return
    with products(protocol, device), torch.autocast(device.type, dtype=DTYPES[protocol.precision]):
        yield
