"""Turns plain data into typed objects; an error says in one line what is wrong.

Their form is a frozen dataclass. What people write in YAML, TOML and on the command line is converted (`from_mapping`). Text becomes
the type of its field, and an unknown key is refused with the nearest name. What programs wrote as JSON is not converted (`from_json`):
types must match, and fields that a later version added are ignored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from harness.system.errors import UsageError, did_you_mean, shortened
from harness.system.files import read_regular
from harness.system.text import printable, printable_line

T = TypeVar("T")

_LARGEST = 32 << 20
"""Bound on the bytes of a file about an attempt or a sweep."""
_MOST = 10**12
"""Bound on every number in such a file: seconds since the epoch, process numbers, clock ticks."""
_ESCAPES = re.compile(rb"\\[bfnrtu]")


def from_mapping(cls: type[T], values: Mapping[str, Any], *, where: str) -> T:
    """An instance of the dataclass ``cls``; strings such as ``"1e-3"`` become the field's type.

    Args:
        cls: a frozen keyword-only dataclass, possibly with dataclasses inside.
        values: field -> value.
        where: what is being read, for messages ("protocol demo", "method lora").

    Raises:
        UsageError: unknown key (with the nearest name), wrong type, value out of range.
    """
    _check_keys(cls, values, where=where, path="")
    try:
        instance: T = _adapter(cast("Any", cls)).validate_python(dict(values))
    except ValueError as error:
        field, message, value, _ = _first(error)
        of_table = isinstance(value, Mapping)  # whose message names the field in it
        what = f"{field}: " if of_table else f"{field}={shortened(repr(value))} "
        raise UsageError(f"{where}: {what if field else ''}{message}") from error
    for key, value in values.items():
        if _is_coerced(value, made := getattr(instance, key)):
            raise UsageError(f"{where}: {key}={shortened(repr(value))} must not be true or false")
        if (number := _unusable(made)) is not None:
            raise UsageError(f"{where}: {key}={shortened(number)} must be a finite number")
    return instance


def from_json(kind: type[T], data: bytes) -> T:
    """``data`` as a dataclass, every value of the type that its field has.

    Raises:
        ValueError: it is not JSON, or holds something else.
    """
    try:
        made: T = _adapter(cast("Any", kind)).validate_json(data, strict=True)
    except ValueError as error:
        field, message, _, is_syntax = _first(error)
        if is_syntax:
            raise ValueError(f"truncated or not JSON ({message})") from error
        raise ValueError(printable_line(f"{field}: {message}".removeprefix(": "))) from error
    return made


def read_as(path: Path, kind: type[T]) -> T:
    """A small file about attempts or sweeps as a dataclass; control characters are escaped. Another user or version may have written it.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is not a regular file, is too large, is not JSON, or holds something other than ``kind``.
    """
    try:
        data = read_regular(path, largest=_LARGEST)
    except ValueError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise error.__cause__ from None
        raise
    content = from_json(kind, data)
    if _unusable(content, whole=_MOST, real=_MOST) is not None:
        raise ValueError("a number in it is far out of range")
    return content if is_plain(data) else escaped(content)


def escaped(value: T) -> T:
    """``value`` with control characters escaped, in dataclasses, mappings, lists and tuples."""
    result: Any = value
    if isinstance(value, str):
        result = printable_line(value)
    elif value is None or isinstance(value, int | float):  # most of a record
        pass
    elif isinstance(value, dict):
        result = {escaped(key): escaped(item) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        result = type(value)(map(escaped, value))
    elif is_dataclass(value) and not isinstance(value, type):
        result = replace(value, **{field.name: escaped(getattr(value, field.name)) for field in fields(value)})
    return cast("T", result)


def is_plain(data: bytes) -> bool:
    """Whether no string of this JSON holds a control character, so that `escaped` would change nothing."""
    if b"\\" in data and _ESCAPES.search(data):
        return False
    if data.isascii():
        return b"\x7f" not in data
    text = data.decode(errors="replace")
    return printable(text) == text


def parse_assignments(
    items: list[str], *, option: str = "--set", example: str = "--set lr=3e-4 or --set lora.rank=6"
) -> dict[str, Any]:
    """``["lr=1e-3", "lora.rank=6", "merge=[exact]"]`` as a mapping; a value in brackets is a list. Raises UsageError, with the
    ``option`` that has the items and an ``example``: an item without ``=``, or the same key twice."""
    assignments: dict[str, Any] = {}
    for item in items:
        key, equals, value = item.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UsageError(f"{option} {item!r} is not KEY=VALUE, such as {example}")
        if key in assignments:
            raise UsageError(f"{option} {key} is given twice")
        assignments[key] = value.strip()
        if assignments[key].startswith("[") and assignments[key].endswith("]"):
            assignments[key] = [part.strip() for part in assignments[key][1:-1].split(",") if part.strip()]
    return assignments


def _first(error: Any) -> tuple[str, str, Any, bool]:
    """The first thing that pydantic's ValidationError refused: field, reason and value; and whether the text is not JSON at all."""
    first = error.errors(include_url=False, include_context=False)[0]
    message = first["msg"].removeprefix("Value error, ").removeprefix("Invalid JSON: ")
    message = message.split(", unable to ")[0].replace("Input should be", "must be")
    message = message.replace("a valid boolean", "true or false")
    message = re.sub(r"a valid dictionary|a dictionary or an instance of \w+|an object", "a mapping", message)
    message = message.replace("Field required", "is missing").replace("a valid string", "text")
    message = re.sub("a valid (tuple|list)", "a list", message)
    field = ".".join(str(part)[:60] for part in first["loc"])
    return field, message, first["input"], first["type"] == "json_invalid"


def _is_coerced(given: Any, made: Any) -> bool:
    """Whether true or false, such as a ``yes`` of YAML, became a number."""
    if isinstance(given, bool):
        return not isinstance(made, bool)
    if isinstance(given, Mapping):
        inside = made if isinstance(made, Mapping) else getattr(made, "__dict__", {})
        return any(_is_coerced(value, inside.get(key, value)) for key, value in given.items())
    if isinstance(given, list | tuple) and isinstance(made, list | tuple) and len(given) == len(made):
        return any(map(_is_coerced, given, made))
    return False


def _unusable(value: Any, *, whole: int = 2**63, real: float = math.inf) -> int | float | None:
    """The first number that is NaN or not below the bound of its type: ``value`` itself, or one in the table, list or dataclass that it
    is. None if there is none."""
    if isinstance(value, int | float):
        return None if abs(value) < (whole if isinstance(value, int) else real) else value
    parts = vars(value) if is_dataclass(value) and not isinstance(value, type) else value
    if isinstance(parts, Mapping | list | tuple):
        parts = parts.values() if isinstance(parts, Mapping) else parts
        numbers = (_unusable(part, whole=whole, real=real) for part in parts)
        return next((number for number in numbers if number is not None), None)
    return None


def _check_keys(cls: Any, values: Mapping[str, Any], *, where: str, path: str) -> None:
    """Refuse unknown keys, also in nested tables and in lists of tables; pydantic would ignore them."""
    hints = _hints(cls)
    known = {field.name for field in fields(cls)}
    for key, value in values.items():
        if key not in known:
            raise UsageError(f"{where}: unknown key {path + str(key)!r}{did_you_mean(str(key), known)}")
        listed = get_origin(hints[key]) is tuple and isinstance(value, list)
        if inner := next((kind for kind in (hints[key], *get_args(hints[key])) if is_dataclass(kind)), None):
            for part in value if listed else [value] if inner is hints[key] else []:
                if isinstance(part, Mapping):
                    _check_keys(inner, part, where=where, path=f"{path}{key}.")


_hints = lru_cache(maxsize=64)(get_type_hints)


@lru_cache(maxsize=64)
def _adapter(kind: Any) -> Any:
    """pydantic's TypeAdapter, built once for each kind, and only when one is read: importing it takes half a second."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind)
