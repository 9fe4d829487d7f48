"""Which rows of a session are the baselines that the command line names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.costing.session import Measured
from harness.planning.request import Variant
from harness.planning.rows import method_row
from harness.protocols.card import Protocol


def baselines_among(
    rows: Sequence[Measured],
    entries: Sequence[Variant],
    *,
    protocol: Protocol,
    overrides: Mapping[str, Mapping[str, Any]],
    backbone: str,
) -> tuple[list[str], list[str]]:
    """Variants among ``rows`` that ``entries`` name, and the names of entries that are not there.

    An entry is the row of its name, else those with its very configuration, else, without options, every row of its
    method.

    Raises:
        UsageError, MethodError: as `method_row`.
    """
    found: list[str] = []
    absent: list[str] = []
    for entry in entries:
        method, config, variant, _ = method_row(entry, protocol, overrides, backbone)
        fitting = (
            [row.variant for row in rows if row.variant == variant]
            or [row.variant for row in rows if (row.method, row.config) == (method, config)]
            or [row.variant for row in rows if row.method == method and not entry.options]
        )
        found += [name for name in fitting if name not in found]
        absent += [] if fitting else [variant]
    return found, absent
