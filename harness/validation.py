"""Mappings from YAML and the command line into frozen dataclasses: unknown keys and wrong types are one line each."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from harness.system.errors import UsageError, did_you_mean, shown

T = TypeVar("T")


def from_mapping(cls: type[T], values: Mapping[str, Any], *, where: str, endless: Collection[str] = ()) -> T:
    """An instance of the dataclass ``cls``; strings such as ``"1e-3"`` become the field's type.

    Args:
        cls: a frozen keyword-only dataclass, possibly with dataclasses inside.
        values: field values.
        where: what is being read, for messages ("protocol demo", "method lora").
        endless: fields that may be infinite.

    Raises:
        UsageError: unknown key (with the nearest name), wrong type, value out of range.
    """
    _check_keys(cls, values, where=where, path="")
    try:
        found: T = _adapter(cast("Any", cls)).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        message = message.split(", unable to parse")[0].replace("Input should be", "must be")
        message = re.sub(r"a valid dictionary|a dictionary or an instance of \w+", "a mapping", message)
        message = message.replace("Field required", "is missing").replace("a valid string", "text")
        if not key:
            raise UsageError(f"{where}: {message}") from error
        if isinstance(first["input"], Mapping):  # a whole table; the message names the field in it
            raise UsageError(f"{where}: {key}: {message}") from error
        raise UsageError(f"{where}: {key}={shown(repr(first['input']))} {message}") from error
    for key, value in values.items():
        if _is_coerced(value, getattr(found, key)):
            raise UsageError(f"{where}: {key}={shown(repr(value))} has true or false where something else belongs")
    for key in (name for name in values if name not in endless):
        if (number := _unusable(getattr(found, key))) is not None:
            raise UsageError(f"{where}: {key}={shown(number)} is no number to compute with")
    return found


def _is_coerced(given: Any, made: Any) -> bool:
    """Whether a ``yes`` of YAML became a number."""
    if isinstance(given, bool):
        return not isinstance(made, bool)
    if isinstance(given, Mapping):
        inside = made if isinstance(made, Mapping) else getattr(made, "__dict__", {})
        return any(_is_coerced(value, inside.get(key, value)) for key, value in given.items())
    if isinstance(given, list | tuple) and isinstance(made, list | tuple) and len(given) == len(made):
        return any(map(_is_coerced, given, made))
    return False


def _unusable(value: Any) -> int | float | None:
    """A number that is infinite, none, or beyond 64 bits, in ``value`` or in a table or list that it is."""
    if isinstance(value, Mapping | list | tuple):
        parts = value.values() if isinstance(value, Mapping) else value
        return next((number for part in parts if (number := _unusable(part)) is not None), None)
    if isinstance(value, float) and not math.isfinite(value):
        return value
    if isinstance(value, int) and abs(value) >= 2**63:
        return value
    return None


def _check_keys(cls: Any, values: Mapping[str, Any], *, where: str, path: str) -> None:
    """Unknown keys, of the tables inside and of lists of tables too; pydantic would pass over them."""
    hints = get_type_hints(cls)
    known = {field.name for field in fields(cls)}
    for key, value in values.items():
        if key not in known:
            raise UsageError(f"{where}: unknown key {path + str(key)!r}{did_you_mean(str(key), known)}")
        listed = get_origin(hints[key]) is tuple and isinstance(value, list)
        if inner := next((kind for kind in (hints[key], *get_args(hints[key])) if is_dataclass(kind)), None):
            for part in value if listed else [value] if inner is hints[key] else []:
                if isinstance(part, Mapping):
                    _check_keys(inner, part, where=where, path=f"{path}{key}.")


@lru_cache(maxsize=32)
def _adapter(cls: Any) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def parse_assignments(items: list[str]) -> dict[str, Any]:
    """``["lr=1e-3", "lora.rank=6", "merge=[exact]"]`` as a mapping; a value in brackets is a list.

    Raises:
        UsageError: an item without ``=``, or one key twice.
    """
    found: dict[str, Any] = {}
    for item in items:
        key, equals, value = item.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UsageError(f"--set {item!r} is not KEY=VALUE, such as --set lr=3e-4 or --set lora.rank=6")
        if key in found:
            raise UsageError(f"--set {key} is given twice")
        found[key] = value.strip()
        if found[key].startswith("[") and found[key].endswith("]"):
            found[key] = [part.strip() for part in found[key][1:-1].split(",") if part.strip()]
    return found
