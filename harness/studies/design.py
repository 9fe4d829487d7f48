"""Which values a study tries: the grids that a row is tuned over, one rule for whoever plans the trials and whoever reads their
results; and screening designs over what a paper leaves open: many readings of one method from few runs. Free of torch.

A field has a default and one other level in a two-level design (Plackett and Burman, 1946, from pyDOE3); every further
value is one run of its own beside the default. A design of resolution III tells main effects from one another, but not
from interactions of two other fields: `aliases` says how much of which each effect carries.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from harness.registry import METHODS, method_config_class
from harness.system.errors import UsageError, did_you_mean

Level = Mapping[str, Any]
"""Options of one value; a field such as the make of a cell may set several."""


@dataclass(frozen=True, kw_only=True)
class Field:
    """One question that a paper leaves open.

    Args:
        name: what it is called; where values are no mappings, also the option that they set.
        levels: the default, the other level of the design, then further values.
    """

    name: str
    levels: tuple[Level, ...]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One reading: which level of each field, in the order of the fields.

    Args:
        levels: 0 the default, 1 the other level of the design, from 2 on further values.
        screening: whether it is of the two-level design; the default and the further values are not.
    """

    levels: tuple[int, ...]
    screening: bool = False


def parse_fields(data: Any, *, where: str) -> tuple[Field, ...]:
    """``{scale: [1, 10.667], cell: [{style: darts}, {style: linear}]}`` as fields.

    Raises:
        UsageError: no mapping, or a field with fewer than two different values.
    """
    if not isinstance(data, Mapping) or len(data) < 2:
        raise UsageError(f"{where}: expected a mapping of at least two fields to their values, found {data!r}")
    fields = []
    for name, values in data.items():
        if not isinstance(values, list) or len(values) < 2 or len({str(value) for value in values}) < len(values):
            raise UsageError(f"{where}.{name}: expected a list of at least two different values, found {values!r}")
        levels = tuple(dict(value) if isinstance(value, Mapping) else {str(name): value} for value in values)
        fields.append(Field(name=str(name), levels=levels))
    options = [option for field in fields for option in {key for level in field.levels for key in level}]
    if twice := sorted({option for option in options if options.count(option) > 1}):
        raise UsageError(f"{where}: two fields set {twice[0]!r}; let one field have mappings of both as its values")
    return tuple(fields)


def points(fields: Sequence[Field]) -> list[Point]:
    """The default, the screening design, and further values one at a time; none twice."""
    import pyDOE3  # half a second: only where a design is wanted

    signs = pyDOE3.pbdesign(len(fields))
    design = [Point(levels=(0,) * len(fields))]
    design += [Point(levels=tuple(int(sign > 0) for sign in row), screening=True) for row in signs]
    for place, field in enumerate(fields):
        for level in range(2, len(field.levels)):
            alone = [0] * len(fields)
            alone[place] = level
            design.append(Point(levels=tuple(alone)))
    return design


def options_of(point: Point, fields: Sequence[Field]) -> dict[str, Any]:
    """What the method is configured with; options at their default level are named too."""
    return {
        key: value
        for level, field in zip(point.levels, fields, strict=True)
        for key, value in field.levels[level].items()
    }


def label_of(point: Point, fields: Sequence[Field]) -> str:
    """``default``, or what differs from it: ``scale=10.667, residual=True``."""
    words = []
    for level, field in zip(point.levels, fields, strict=True):
        if level:
            words.append(", ".join(f"{key}={value}" for key, value in field.levels[level].items()))
    return "; ".join(words) or "default"


def aliases(fields: Sequence[Field]) -> dict[str, dict[tuple[str, str], float]]:
    """Field -> interaction of two others -> how much of it the field's effect carries (1: the two are one)."""
    import numpy as np

    signs = np.array([point.levels for point in points(fields) if point.screening]) * 2 - 1
    names = [field.name for field in fields]
    carried: dict[str, dict[tuple[str, str], float]] = {name: {} for name in names}
    for first, second in itertools.combinations(range(len(names)), 2):
        product = signs[:, first] * signs[:, second]
        shares = signs.T @ product / len(signs)
        for place, share in enumerate(shares):
            if place not in (first, second) and abs(share) > 1e-9:
                carried[names[place]][names[first], names[second]] = float(share)
    return carried


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
    if "decoder_lr" in rules and ("encoder_lr" in of_method or options.get("encoder_lr") is not None):
        of_method.pop("lr", None)  # what it trains in the encoder has this rate, all else the decoder's
    return of_method
