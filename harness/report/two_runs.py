"""Two runs beside each other, from their records: in what they differ, and their scores and costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

from harness.archive.schema import Record, hashed_options
from harness.comparison.rules import NOT_THERE, differences

ASKED = ("method", "benchmark", "backbone", "checkpoint", "protocol", "seed", "manifest", "data_fingerprint")
MADE_WITH = ("commit", "torch", "device", "numbers")
Pair = tuple[Any, Any]


def compared(first: Record, second: Record) -> dict[str, dict[str, Pair]]:
    """``differences`` of what was asked and made with; ``scores`` in % and ``cost``, of what either of the two has."""
    one, other = first.run, second.run
    asked = {name: (getattr(one, name), getattr(other, name)) for name in ASKED}
    options = _beside(hashed_options(one.method_config), hashed_options(other.method_config))
    made = {name: (first.environment.get(name), second.environment.get(name)) for name in MADE_WITH}
    return {
        "differences": {
            **_unequal({"outcome": (first.code, second.code), **asked}),
            **_unequal({f"option {name}": pair for name, pair in options.items()}),
            **{f"rule {name}": pair for name, pair in differences(one.rules, other.rules).items()},
            **_unequal(made),
        },
        "scores": _beside(_scores(first), _scores(second), missing=None),
        "cost": _beside(first.cost, second.cost, missing=None),
    }


def compared_in_terminal(first: Record, second: Record) -> str:
    """The two as A and B, with B − A where both are numbers."""
    content = compared(first, second)
    lines = [
        f"{name}: {one.key}, {one.run.variant} on {one.run.benchmark}, seed {one.run.seed}: {one.code}"
        for name, one in (("A", first), ("B", second))
    ]
    rows = [[name, _short(a), _short(b)] for name, (a, b) in content["differences"].items()]
    lines += [
        "",
        tabulate(rows, headers=["differs in", "A", "B"], disable_numparse=True)
        if rows
        else "no difference in what was asked",
    ]
    for title, form in (("scores", ".2f"), ("cost", ".4g")):
        numbers = [[name, *_numbers(pair, form)] for name, pair in content[title].items()]
        heading = "scores (%)" if title == "scores" else title
        if numbers:
            align = ("left", "right", "right", "right")
            lines += [
                "",
                tabulate(numbers, headers=[heading, "A", "B", "B − A"], disable_numparse=True, colalign=align),
            ]
    return "\n".join(lines) + "\n"


def _scores(record: Record) -> dict[str, float]:
    return {
        f"{variant} {split} {metric}": 100 * value
        for variant, splits in record.scores.items()
        for split, values in splits.items()
        for metric, value in values.items()
    }


def _beside(first: Mapping[str, Any], second: Mapping[str, Any], *, missing: Any = NOT_THERE) -> dict[str, Pair]:
    return {name: (first.get(name, missing), second.get(name, missing)) for name in {**first, **second}}


def _unequal(pairs: Mapping[str, Pair]) -> dict[str, Pair]:
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _numbers(pair: Pair, form: str) -> list[str]:
    first, second = pair
    difference = "" if first is None or second is None else f"{second - first:+{form}}"
    return [*("–" if value is None else f"{value:{form}}" for value in pair), difference]


def _short(value: Any) -> str:
    text = "none" if value in (None, "") else str(value)
    return text if len(text) <= 24 else f"{text[:23]}…"
