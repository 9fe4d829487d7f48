"""Floating-point operations as executed, and what the counter does not know.

A multiply-add counts as two. Matrix products, convolutions and fused attention are counted, recomputation included,
because it is executed, and SAM's positions where they are columns of a product (`harness.models.attention`: bf16 on some CPUs);
norms, activations, softmax and sums are not, and are listed.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from harness.models.attention import RelativeAttention, widened_attention

_aten = torch.ops.aten
_FURTHER = {  # of the shapes of query, key and value; of the gradient's first
    _aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *shapes, **_: sdpa_backward_flop_count(
        *shapes[:4]
    ),
}


class _Names(TorchDispatchMode):
    """Names of operations that compute something and have no formula."""

    def __init__(self) -> None:
        super().__init__()
        self.not_counted: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func._overloadpacket
        if packet not in flop_registry and packet not in _FURTHER and not _only_views(func):
            self.not_counted[str(packet)] += 1
        return func(*args, **(kwargs or {}))


def _only_views(func: Any) -> bool:
    returns = func._schema.returns
    return bool(returns) and all(entry.alias_info is not None and not entry.alias_info.is_write for entry in returns)


class FlopCount:
    """Use as a context manager around what is to be counted; one may be entered again and adds up.

    ``total`` are operations so far, ``not_counted`` the names of uncounted ones with how often they ran.
    """

    def __init__(self) -> None:
        self.total = 0
        self.attention: Counter[str] = Counter()
        self.not_counted: Counter[str] = Counter()

    def __enter__(self) -> FlopCount:
        self._names = _Names()
        self._names.__enter__()
        self._counter = FlopCounterMode(display=False, custom_mapping=_FURTHER)
        self._counter.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._counter.__exit__(*error)
        self._names.__exit__(*error)
        self.total += self._counter.get_total_flops()
        for module, counts in self._counter.get_flop_counts().items():
            self.attention[module] += sum(flops for name, flops in counts.items() if "attention" in str(name))
        self.not_counted += self._names.not_counted


def useful(forward: FlopCount, backward: FlopCount, model: nn.Module) -> float:
    """Both totals without what widened heads compute more than attention's own products (`widened_attention`).

    Args:
        forward: of a call of ``model``; which module computed what is known there alone, and backward is in proportion.
    """
    more = 0.0
    for name, module in model.named_modules():
        if isinstance(module, RelativeAttention) and module.kernel(module.rel_pos_h) is widened_attention:
            positions = (len(module.rel_pos_h) + len(module.rel_pos_w) + 2) // 2
            width = module.rel_pos_h.shape[1] + positions
            more += forward.attention[f"{type(model).__name__}.{name}"] * positions / width
    share = more / max(1, forward.attention["Global"])
    return forward.total + backward.total - share * (forward.attention["Global"] + backward.attention["Global"])
