"""The shape of a record's file where `Record` says no more than a mapping: what readers look at has its type."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter
from typing_extensions import TypedDict  # pydantic reads no other below Python 3.12

from harness.archive.schema import Record, Run

MOST = 10**12
"""Bound on every count: no run has so many images, parameters or epochs."""

Count = Annotated[int, Field(ge=1, le=MOST)]
Options = dict[str, Any]


class _Rules(TypedDict, total=False):
    """Training checks every rule."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    image_size: Count
    batch_size: Count
    accumulate: Count
    epochs: Count
    select_every: Count
    mask_tokens: Count
    precision: str
    activation_checkpointing: bool
    merge: list[str]
    quirks: dict[str, str]
    evaluation: Options
    methods: dict[str, Options]
    benchmarks: dict[str, Options]


class _Epoch(TypedDict, total=False):
    """An entry of the history."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    epoch: Count
    loss: float
    lr: float
    seconds: float
    val: dict[str, float]
    updates: dict[str, Annotated[int, Field(ge=0, le=MOST)]]


class _Trial(TypedDict):
    """A value that tuning tried."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    options: Options
    score: float | None


class _Tuning(TypedDict, total=False):
    """What tuning says of a run."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    grid: dict[str, list[Any]]
    chosen: Options
    edge: list[str]
    trials: list[_Trial]
    metric: str
    on: list[str]
    hours: float


OF_A_CHOICE = ("grid", "edge", "trials", "metric", "on", "hours")
"""What `_Tuning` must hold where it holds ``chosen``."""


@dataclass(frozen=True, kw_only=True)
class _Run(Run):
    rules: _Rules  # type: ignore[assignment]
    tuning: _Tuning = field(default_factory=lambda: _Tuning())  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class _File(Record):
    run: _Run
    history: list[_Epoch] = field(default_factory=list)  # type: ignore[assignment]


@lru_cache(maxsize=1)
def _adapter() -> TypeAdapter[_File]:
    """Built once and only where a record is read."""
    return TypeAdapter(_File)


def shaped(data: bytes) -> Record:
    """Raises pydantic's ValidationError where JSON has another shape."""
    found = _adapter().validate_json(data, strict=True)
    return Record(**{**vars(found), "run": Run(**vars(found.run))})
