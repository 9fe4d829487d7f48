"""What a label of tuning was asked: one record holds one label, and several studies may tune the same row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def chosen_from(tuning: Mapping[str, Any], *, grid: Mapping[str, Iterable[Any]], on: Sequence[str]) -> bool:
    """Whether a label holds the choice from these values by these benchmarks; numbers may be text, as on a command line."""
    asked = {name: _plain(values) for name, values in grid.items()}
    told = {name: _plain(values) for name, values in tuning.get("grid", {}).items()}
    return "chosen" in tuning and told == asked and sorted(tuning.get("on", ())) == sorted(on)


def is_from_more(later: Mapping[str, Any], earlier: Mapping[str, Any]) -> bool:
    """Whether the later of two choices by the same benchmarks had every value of the earlier one, so that it takes its place:
    the same command once more, or with a wider grid."""
    grids = [{name: set(_plain(values)) for name, values in one.get("grid", {}).items()} for one in (earlier, later)]
    same = grids[0].keys() == grids[1].keys() and sorted(earlier.get("on", ())) == sorted(later.get("on", ()))
    return same and all(values <= grids[1][name] for name, values in grids[0].items())


def _plain(values: Iterable[Any]) -> list[str]:
    return sorted(_as_text(value) for value in values)


def _as_text(value: Any) -> str:
    try:
        return str(float(value))
    except (TypeError, ValueError):
        return str(list(value) if isinstance(value, tuple) else value)
