"""Which grids a row is tuned over: one rule for whoever plans the trials and whoever reads their results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from harness.registry import METHODS, method_config_class
from harness.system.errors import UsageError, did_you_mean

RULES_BY = "decoder"
"""The method whose validation chooses the rules that are tuned: the decoder alone, so that no compared method has its way."""


def is_rule(name: str) -> bool:
    """Whether a grid is of a rule of the protocol, such as ``decoder_lr``, and not of an option of some method."""
    return "." not in name and not any(
        name == f.name for method in METHODS.names() for f in fields(method_config_class(method))
    )


def grid_of(method: str, options: Mapping[str, Any], grids: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """The grids of one row: those of its method before those of all, none for a field that the row itself sets. Rules of the
    protocol are tuned by the row that trains the decoder alone, and hold for every row.

    Raises:
        UsageError: an unknown method, or a grid of a field that its method has not.
    """
    rules = {name: list(values) for name, values in grids.items() if is_rule(name)}
    if rules and METHODS.resolve(method) == RULES_BY:
        return rules  # its own rate is the decoder's
    config_class = method_config_class(METHODS.resolve(method))
    if not config_class.trains:
        return {}
    known = {f.name for f in fields(config_class)}
    of_method: dict[str, list[Any]] = {}
    for name, values in sorted(grids.items(), key=lambda item: "." in item[0]):
        whose, dot, option = name.rpartition(".")
        if dot and METHODS.resolve(whose) != METHODS.resolve(method):
            continue
        if option in known and option not in options:
            of_method[option] = list(values)
        elif dot and option not in known:
            raise UsageError(f"--tune {name}: {whose} has no field {option!r}{did_you_mean(option, known)}")
    return of_method
