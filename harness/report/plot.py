"""Curves in a terminal: bars of block characters, one an epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping

WIDTH = 60
"""Columns of the bars at most; with the labels before them a curve fits into 80."""
WIDEST = 6
"""Columns of one epoch at most."""
EIGHTHS = " ▁▂▃▄▅▆▇█"


def curve(values: Mapping[int, float], *, epochs: int, height: int, mark: int | None = None) -> list[str]:
    """Lines of a curve from its smallest value (one eighth of a row) to its largest; empty without a finite value.

    Args:
        values: epoch (1-based) -> value; epochs without one stay blank. More epochs than fit are averaged in groups.
        epochs: how many there are.
        height: rows of the bars.
        mark: an epoch that is marked below the bars with ``T_B``.
    """
    group = -(-epochs // WIDTH)
    columns = -(-epochs // group)
    means: list[float | None] = []
    for column in range(columns):
        members = range(column * group + 1, min(epochs, (column + 1) * group) + 1)
        mine = [values[epoch] for epoch in members if math.isfinite(values.get(epoch, math.nan))]
        means.append(math.fsum(mine) / len(mine) if mine else None)
    known = [value for value in means if value is not None]
    if not known:
        return []
    low, high = min(known), max(known)
    cells = max(1, min(WIDEST, WIDTH // columns))
    full = 8 * height
    levels = [
        0 if v is None else full if high == low else 1 + round((full - 1) * (v - low) / (high - low)) for v in means
    ]
    labels = {0: f"{high:.4g}", height - 1: f"{low:.4g}"} if height > 1 and high > low else {0: f"{high:.4g}"}
    lines = []
    for row in range(height):
        below = 8 * (height - 1 - row)
        bars = "".join(EIGHTHS[max(0, min(8, level - below))] * cells for level in levels)
        lines.append(f"{labels.get(row, ''):>10} │{bars}".rstrip())
    if mark is not None and 1 <= mark <= epochs:
        lines.append(f"{'':>10} │{' ' * ((mark - 1) // group * cells + cells - 1)}↑ T_B")
    return lines
