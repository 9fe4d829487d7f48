"""The candidate operations of a cell, by name: DARTS's eight (1806.09055), and three beyond them. Free of torch, as
the reader of older records needs them.

``style`` says what an operation is made of:

- ``darts``: as DARTS searches. A convolution is (ReLU, depthwise k×k, pointwise, batch norm), applied twice in
  ``sep_conv``; pooling is followed by batch norm; batch norm has no affine parameters.
- ``linear``: the same weights without ReLU and batch norm, zero padding once at the cell's input, average pooling
  divides by 9 everywhere. Maximum pooling is not linear, so this style leaves it out (seven operations). The whole
  cell then equals one convolution, borders included.

Beyond DARTS's, ours, for the paper's open question on the set (``wide`` names all eleven): ``dw_conv_7x7``, a depthwise
convolution alone, as in ConvNeXt (2201.03545); ``conv_1x3_3x1``, two dense ones in a row, as DARTS writes its 1×7 and 7×1;
``low_pass``, the frequencies of the map up to half of the largest along both axes. In the style of DARTS a ReLU stands before
the convolutions and a norm after each of the three. ``low_pass`` is linear, but reaches over the whole map, which no kernel of
the linear style does.
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


@dataclass(frozen=True, kw_only=True)
class Beyond:
    """An operation beyond those of DARTS.

    Args:
        taps: weights a channel that act on that channel alone.
        mixing: weights a pair of channels.
        reach: side of the square of inputs that it sees, 0 for the whole map.
    """

    taps: int = 0
    mixing: int = 0
    reach: int = 0

    def weights(self, channels: int) -> int:
        return channels * self.taps + channels**2 * self.mixing


BEYOND = {
    "dw_conv_7x7": Beyond(taps=49, reach=7),
    "conv_1x3_3x1": Beyond(mixing=6, reach=3),
    "low_pass": Beyond(),
}
STYLES = ("darts", "linear")
_NOT_LINEAR = {"max_pool_3x3": "is not linear", "low_pass": "is not a convolution with a small kernel"}


def parse_operations(spec: str, *, style: str) -> tuple[str, ...]:
    """Operation names, DARTS's first and in its order, for ``all`` (DARTS's), ``no-conv``, ``no-pool``, ``wide`` (`BEYOND`
    too), or names separated by commas.

    Raises:
        MethodError: unknown style or operation, a non-linear operation in a linear cell, or nothing that lets a signal
            pass.
    """
    if style not in STYLES:
        raise MethodError(f"style={style!r} is unknown; choose from {', '.join(STYLES)}")
    known = (*OPERATIONS, *BEYOND)
    allowed = tuple(name for name in known if style == "darts" or name not in _NOT_LINEAR)
    darts = tuple(name for name in allowed if name not in BEYOND)
    named = {
        "all": darts,
        "no-conv": tuple(name for name in darts if name not in CONVOLUTIONS),
        "no-pool": tuple(name for name in darts if name not in POOLS),
        "wide": allowed,
    }
    word = str(spec).replace(" ", "")
    if word in named:
        return named[word]
    parts = word.split(",")
    for part in parts:
        if part not in known:
            choices = f"{', '.join(named)}, or names of {', '.join(known)}"
            raise MethodError(f"operations={spec!r}: {part!r} is unknown; choose from {choices}")
        if part not in allowed:
            raise MethodError(
                f"operations={spec!r}: {part} {_NOT_LINEAR[part]}, and style=linear cannot contain it; use style=darts"
            )
    if set(parts) == {"none"}:
        raise MethodError(f"operations={spec!r}: none alone lets nothing pass; name at least one other operation")
    return tuple(name for name in known if name in parts)


def cell_parameters(operations: tuple[str, ...], *, channels: int) -> int:
    """Trainable parameters of one cell: its convolutions, and one architecture weight per operation where there is a
    choice."""
    architecture = len(operations) if len(operations) > 1 else 0
    weighted: dict[str, Separable | Beyond] = {**CONVOLUTIONS, **BEYOND}
    return architecture + sum(weighted[name].weights(channels) for name in operations if name in weighted)


def normed(operations: tuple[str, ...]) -> int:
    """How many norms the operations have in the style of DARTS: one per pooling, per stage of a convolution, and per operation
    beyond DARTS's."""
    stages = (CONVOLUTIONS[name].stages for name in operations if name in CONVOLUTIONS)
    return sum(name in POOLS or name in BEYOND for name in operations) + sum(stages)
