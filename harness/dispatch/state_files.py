"""Small JSON files about attempts and sweeps, which another user or another version may have written: plain files of a
bounded size, checked against a dataclass before anything is done with them.

A field that this version does not know is left out, so that a lease of a later version is still a lease.
"""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from harness.system.files import read_regular
from harness.system.text import printable_line

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")

LARGEST = 16 << 20
"""Bytes; the largest chunk that SLURM takes (10,000 runs) has 4 MB."""
_MOST = 1e12
"""Bound on every number: seconds since the epoch, process numbers and clock ticks are below it."""


def read_as(path: Path, kind: type[T]) -> T:
    """The file as a dataclass; control characters in its texts are spelt out.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is no plain file, too large, no JSON, or holds something else than ``kind``; says which.
    """
    from pydantic import ValidationError

    try:
        data = read_regular(path, largest=LARGEST)
    except ValueError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise error.__cause__ from None
        raise
    try:
        found: T = _adapter(cast("Any", kind)).validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(printable_line(f"{place}: {first['msg']}" if place else first["msg"])) from error
    checked: T = _checked(found)
    return checked


@lru_cache(maxsize=16)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _checked(value: Any) -> Any:
    """Numbers bounded, texts printable, inside dataclasses and containers too."""
    if isinstance(value, str):
        return printable_line(value)
    if isinstance(value, int | float) and not (math.isfinite(value) and abs(value) < _MOST):
        raise ValueError("a number in it is out of all range")
    if isinstance(value, list | tuple):
        return type(value)(map(_checked, value))
    if isinstance(value, dict):
        return {_checked(key): _checked(one) for key, one in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _checked(getattr(value, field.name)) for field in fields(value)})
    return value
