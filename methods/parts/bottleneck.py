"""The bottleneck of the adapter family: up(activation(down(x))), with biases."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


def linear(weight: Tensor, *, bias: bool = True) -> nn.Linear:
    """A linear layer with ``weight`` (outputs, inputs) and zero bias; draws nothing from PyTorch's global generator."""
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
