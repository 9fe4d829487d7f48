"""What a label of tuning was asked: one record holds one label, and several studies may tune the same row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def chosen_from(tuning: Mapping[str, Any], *, grid: Mapping[str, Iterable[Any]], on: Sequence[str]) -> bool:
    """Whether a label holds the choice from these values by these benchmarks; numbers may be text, as on a command line."""
    asked = {name: _plain(values) for name, values in grid.items()}
    told = {name: _plain(values) for name, values in tuning.get("grid", {}).items()}
    return "chosen" in tuning and told == asked and sorted(tuning.get("on", ())) == sorted(on)


def _plain(values: Iterable[Any]) -> list[str]:
    return sorted(_as_text(value) for value in values)


def _as_text(value: Any) -> str:
    try:
        return str(float(value))
    except (TypeError, ValueError):
        return str(list(value) if isinstance(value, tuple) else value)
