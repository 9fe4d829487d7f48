"""The candidate operations of a cell, by name: DARTS's eight (1806.09055). Free of torch, since the parser of older
records needs them.

``style`` says what an operation is made of:

- ``darts``: as DARTS searches. A convolution is (ReLU, depthwise k×k, pointwise, batch norm), applied twice in
  ``sep_conv``; pooling is followed by batch norm; batch norm has no affine parameters.
- ``linear``: the same weights without ReLU and batch norm, zero padding once at the cell's input, average pooling
  divides by 9 everywhere. Maximum pooling is not linear, so this style leaves it out (seven operations). The whole
  cell then equals one convolution, borders included.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.methods.parts.placement import MethodError


@dataclass(frozen=True, kw_only=True)
class Separable:
    """A depthwise k×k convolution followed by a pointwise one, ``stages`` times over.

    Args:
        kernel: side k.
        dilation: spacing of the taps.
        stages: how many times.
    """

    kernel: int
    dilation: int
    stages: int

    @property
    def span(self) -> int:
        """Side of the square of inputs that one stage sees."""
        return self.dilation * (self.kernel - 1) + 1

    @property
    def reach(self) -> int:
        """Side of the square of inputs that all stages together see."""
        return self.stages * (self.span - 1) + 1

    def weights(self, channels: int) -> int:
        return self.stages * (channels * self.kernel**2 + channels**2)


CONVOLUTIONS = {
    "sep_conv_3x3": Separable(kernel=3, dilation=1, stages=2),
    "sep_conv_5x5": Separable(kernel=5, dilation=1, stages=2),
    "dil_conv_3x3": Separable(kernel=3, dilation=2, stages=1),
    "dil_conv_5x5": Separable(kernel=5, dilation=2, stages=1),
}
POOLS = ("max_pool_3x3", "avg_pool_3x3")
OPERATIONS = ("none", *POOLS, "skip_connect", *CONVOLUTIONS)
"""DARTS's, in its order."""


STYLES = ("darts", "linear")


def parse_operations(spec: str, *, style: str) -> tuple[str, ...]:
    """Operation names in DARTS's order, for ``all``, ``no-conv``, ``no-pool``, or names separated by commas.

    Raises:
        MethodError: unknown style or operation, a non-linear operation in a linear cell, or nothing that lets a signal
            pass.
    """
    if style not in STYLES:
        raise MethodError(f"style={style!r} is unknown; choose from {', '.join(STYLES)}")
    allowed = tuple(name for name in OPERATIONS if style == "darts" or name != "max_pool_3x3")
    named = {
        "all": allowed,
        "no-conv": tuple(name for name in allowed if name not in CONVOLUTIONS),
        "no-pool": tuple(name for name in allowed if name not in POOLS),
    }
    word = str(spec).replace(" ", "")
    if word in named:
        return named[word]
    parts = word.split(",")
    for part in parts:
        if part not in OPERATIONS:
            choices = f"{', '.join(named)}, or names of {', '.join(OPERATIONS)}"
            raise MethodError(f"operations={spec!r}: {part!r} is unknown; choose from {choices}")
        if part not in allowed:
            raise MethodError(
                f"operations={spec!r}: {part} is not linear, and style=linear cannot contain it; use style=darts"
            )
    if set(parts) == {"none"}:
        raise MethodError(f"operations={spec!r}: none alone lets nothing pass; name at least one other operation")
    return tuple(name for name in OPERATIONS if name in parts)


def cell_parameters(operations: tuple[str, ...], *, channels: int) -> int:
    """Trainable parameters of one cell: its convolutions, and one architecture weight per operation where there is a
    choice."""
    architecture = len(operations) if len(operations) > 1 else 0
    return architecture + sum(CONVOLUTIONS[name].weights(channels) for name in operations if name in CONVOLUTIONS)


def normed(operations: tuple[str, ...]) -> int:
    """How many norms the operations have in the style of DARTS: one per pooling, and one per stage of a convolution."""
    stages = (CONVOLUTIONS[name].stages for name in operations if name in CONVOLUTIONS)
    return sum(name in POOLS for name in operations) + sum(stages)
