"""The frozen linear layers of an encoder's blocks in 4 or 8 bits, through bitsandbytes, for whoever has less memory.

``nf4``: blocks of 64 weights share a scale (QLoRA, 2305.14314); ``int8``: a row shares one (LLM.int8(), 2208.07339, no outliers
apart). Everything else stays as it is: what trains, norms, biases, positions, convolutions, the decoder.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

Quantise = Literal["", "nf4", "int8"]


def quantise(segmenter: nn.Module, how: Quantise) -> int:
    """Quantise the blocks' frozen linear layers in place; returns how many. The segmenter is marked ``quantised``, and holds in
    ``packed_parameters`` how many parameters nobody can count in it any more.

    Args:
        segmenter: on the CPU, a method attached, its weights loaded.
    """
    layers = packed = 0
    for parent in list(segmenter.get_submodule("encoder.blocks").modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and not any(parameter.requires_grad for parameter in child.parameters()):
                before = child.weight.numel()
                made = _quantised(child, how).train(child.training)
                setattr(parent, name, made)
                layers, packed = layers + 1, packed + before - made.weight.numel()
    marked: Any = segmenter
    marked.quantised, marked.packed_parameters = how, packed
    return layers


def _quantised(layer: nn.Linear, how: Quantise) -> Any:
    import bitsandbytes

    sizes, weight = (layer.in_features, layer.out_features), layer.weight.detach().clone()
    if how == "nf4":

        class Packed(bitsandbytes.nn.Linear4bit):
            """Linear4bit that gives what autocast has linear layers give: its own answer is of its input's kind, which behind a norm
            is float32, and twice the memory."""

            def forward(self, tokens: Tensor) -> Tensor:
                kind = tokens.device.type
                mixed = torch.is_autocast_enabled(kind)
                return super().forward(tokens.to(torch.get_autocast_dtype(kind)) if mixed else tokens)

        made = Packed(*sizes, bias=layer.bias is not None, quant_type="nf4")
        made.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
    else:

        class Rows(bitsandbytes.nn.Linear8bitLt):
            """Linear8bitLt on rows of tokens: on CPUs it misreads some maps (B, h, w, C)."""

            def forward(self, tokens: Tensor) -> Tensor:
                return super().forward(tokens.flatten(0, -2)).unflatten(0, tokens.shape[:-1])

            def _apply(self, fn: Any, recurse: bool = True) -> Any:  # noqa: FBT001, FBT002 - torch's signature
                """Moves the codes and their scales where a module above this one is moved: torch moves ``weight.data`` alone then, and
                the layer multiplies by what it holds besides."""
                super()._apply(fn, recurse)
                for holder in (self.weight, self.state):
                    if holder.CB is not None:
                        holder.CB, holder.SCB = self.weight.data, holder.SCB.to(self.weight.device)
                return self

        made = Rows(*sizes, bias=layer.bias is not None, has_fp16_weights=False, threshold=0.0)
        made.weight = bitsandbytes.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    made.bias = layer.bias
    return made.to(layer.weight.device)  # which is when it packs them
