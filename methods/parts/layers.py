"""Layers that methods add, their initial weights, and what they remember when activations are recomputed."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


def recomputing() -> bool:
    """Whether this forward pass recomputes an earlier one inside a backward pass (activation checkpointing). What a layer remembers of a
    step must not count it twice."""
    return torch._C._current_graph_task_id() != -1


def kaiming_uniform(shape: tuple[int, ...], *, fan_in: int, generator: torch.Generator) -> Tensor:
    """U(−b, b) with b = 1/√fan_in: what PyTorch's layers start from (Kaiming-uniform with a = √5)."""
    return (torch.rand(shape, generator=generator) * 2 - 1) / math.sqrt(fan_in)


def started(kind: type[nn.Module], *shape: int, generator: torch.Generator, **options: int) -> nn.Module:
    """A layer as PyTorch starts it, weight and bias U(−b, b) with b = 1/√fan_in, but from ``generator``."""
    layer = nn.utils.skip_init(kind, *shape, **options)
    fan_in = layer.weight[0].numel()
    for name, parameter in list(layer.named_parameters()):
        value = kaiming_uniform(tuple(parameter.shape), fan_in=fan_in, generator=generator)
        layer.register_parameter(name, nn.Parameter(value))
    return layer


def started_linear(inputs: int, outputs: int, generator: torch.Generator, *, bias: bool = True) -> nn.Linear:
    """A linear layer with the weights of `kaiming_uniform` and zero bias."""
    return linear(kaiming_uniform((outputs, inputs), fan_in=inputs, generator=generator), bias=bias)


def linear(weight: Tensor, *, bias: bool = True) -> nn.Linear:
    """A linear layer with ``weight`` (outputs, inputs) and zero bias; PyTorch's global generator is left as it is."""
    outputs, inputs = weight.shape
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias)
    layer.weight = nn.Parameter(weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class Bottleneck(nn.Module):
    """up(activation(down(x))).

    Args:
        down: initial weight (hidden, dim).
        up: initial weight (dim, hidden).
        activation: between the two.

    Shape: (…, dim) to the same.
    """

    def __init__(self, *, down: Tensor, up: Tensor, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.down = linear(down)
        self.up = linear(up)
        self.activation = activation

    def forward(self, tokens: Tensor) -> Tensor:
        return self.up(self.activation(self.down(tokens)))
