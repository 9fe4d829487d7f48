"""From the bytes of a record's file to a `Record`, or to the reason why they are not a record.

Every read checks types, ranges, names, `Run.key` and the seal. `harness.archive.merge.checked` also checks the sidecar files.
"""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Required, TypeVar

from pydantic import AfterValidator, ConfigDict, Field
from typing_extensions import TypedDict  # the only one that pydantic reads below Python 3.12

from harness.archive.files import LARGEST_RECORD, seal_holds
from harness.archive.older import RowLabel, filled
from harness.archive.schema import SCHEMA_VERSION, Record, Run, largest
from harness.check import escaped, from_json, is_plain
from harness.system.errors import UsageError, os_reason
from harness.system.files import checked_name, read_regular

_MOST = 10**12
"""Bound on every count of images, parameters or epochs."""


@lru_cache(maxsize=4096)
def _name(text: str) -> str:
    """A name of a method, a benchmark, a split …, which can be part of a path."""
    try:
        return checked_name(text, what="name")
    except UsageError:
        raise ValueError(f"{_short(text)} is not a name") from None


def _method_name(text: str) -> str:
    """A name, or one within a family (``peft/miss``); no file is named after a method."""
    family, slash, member = text.partition("/")
    _name(member if slash else family)
    _name(family)
    return text


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it holds characters that cannot be printed")
    return text


def _scores(metrics: dict[str, float]) -> dict[str, float]:
    for metric, value in metrics.items():
        if not 0 <= value <= 1 and not 0 <= value <= largest(metric):
            raise ValueError(f"{metric} is {_short(value)}, not between 0 and {largest(metric):g}")
    return metrics


def _choice(tuning: dict[str, Any]) -> dict[str, Any]:
    if "chosen" in tuning and (missing := set(OF_A_CHOICE) - tuning.keys()):
        raise ValueError(f"{', '.join(sorted(missing))} is missing")
    return tuning


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:40]}…"


AtLeastOne = Annotated[int, Field(ge=1, le=_MOST)]
Natural = Annotated[int, Field(ge=0, le=_MOST)]
Amount = Annotated[float, Field(ge=0, le=1e18, allow_inf_nan=False)]
Name = Annotated[str, AfterValidator(_name)]
RecordedMethod = Annotated[str, AfterValidator(_method_name)]
Printable = Annotated[str, AfterValidator(_printable)]
Options = dict[str, Any]


class _Rules(TypedDict, total=False):
    """Rules that reports compute with; training checks every rule."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    image_size: AtLeastOne
    batch_size: AtLeastOne
    accumulate: AtLeastOne
    epochs: AtLeastOne
    select_every: AtLeastOne
    mask_tokens: AtLeastOne
    decoder: str
    own_classes: list[str]
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

    epoch: Required[AtLeastOne]
    loss: float
    lr: float
    seconds: float
    val: dict[str, float]
    updates: dict[str, Natural]


class _Trial(TypedDict):
    """A value that tuning tried."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    options: Options
    score: float | None
    keys: list[str]


class _Tuning(TypedDict, total=False):
    """The tuning of a run."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    grid: dict[str, list[Any]]
    chosen: Options
    edge: list[str]
    trials: list[_Trial]
    metric: str
    on: list[str]
    seeds: list[int]
    hours: float


OF_A_CHOICE = ("grid", "edge", "trials", "metric", "on", "hours")
"""The fields that `_Tuning` must have where it has ``chosen``."""


@dataclass(frozen=True, kw_only=True)
class _Run(Run):
    method: RecordedMethod
    label: RowLabel
    benchmark: Name
    backbone: Printable
    checkpoint: Printable
    protocol: Name
    rules: _Rules  # type: ignore[assignment]
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    manifest: Printable
    tuning: Annotated[_Tuning, AfterValidator(_choice)] = field(default_factory=lambda: _Tuning())  # type: ignore[assignment]

    def plain(self) -> Run:
        return Run(**vars(self))


@dataclass(frozen=True, kw_only=True)
class _File(Record):
    run: _Run
    sidecars: Annotated[dict[str, str], Field(alias="beside")] = field(default_factory=dict, compare=False)
    scores: dict[Name, dict[Name, Annotated[dict[Name, float], AfterValidator(_scores)]]] = field(default_factory=dict)
    selected_epoch: AtLeastOne | None = None
    parameters: dict[str, Natural] = field(default_factory=dict)
    cost: dict[str, Amount] = field(default_factory=dict)
    history: list[_Epoch] = field(default_factory=list)  # type: ignore[assignment]
    budget: dict[str, Amount] = field(default_factory=dict)
    counts: dict[str, Natural] = field(default_factory=dict)
    available: dict[str, Natural] = field(default_factory=dict)
    ignored: dict[str, Natural] = field(default_factory=dict)
    foreground: dict[str, Amount] = field(default_factory=dict)
    attempts: AtLeastOne = 1

    def plain(self) -> Record:
        return Record(**{**vars(self), "run": self.run.plain()})


T = TypeVar("T")

_NOTHING_IN_THE_WAY = (None, errno.ENOENT)
"""Numbers of system errors that say nothing about the content; image decoders raise such errors without a number."""


class Unread(UsageError):
    """The system did not let us read an existing file. It may be intact, so it must not be taken for damaged."""


def refuse_unread(path: Path, error: Exception) -> None:
    """Return where ``error``, or its cause, is about the content of a file or its absence. Raises Unread: permissions, a server or a
    disk prevented reading."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__
    if cause is not None and cause.errno not in _NOTHING_IN_THE_WAY:
        raise Unread(
            f"{path} cannot be read ({os_reason(cause)}) and may be whole; repair its permissions (a shared folder needs"
            " umask 002), or repeat the command once the disk answers"
        ) from cause


def load_record(path: Path) -> Record:
    """The record in one file; the α history of schema 2 stays in its sidecar file. Raises ValueError: it cannot be read as a record, was
    edited, or is a copy under a name that is not its key."""
    record = parse(read_regular(path, largest=LARGEST_RECORD))
    if path.name.partition(".")[0] != record.key:
        raise ValueError(f"a copy: the record in it belongs to {record.key}.json")
    return record


def parse(data: bytes) -> Record:
    """The record in ``data``. Raises ValueError: it is not a record of a schema that this code reads (2 to `SCHEMA_VERSION`)."""
    record = validated(_File, data, versions=range(2, SCHEMA_VERSION + 1)).plain()
    if record.scores and record.code != "OK":
        raise ValueError(f"it has scores, and ended with {record.code}")
    if record.parameters and "trainable" not in record.parameters:
        raise ValueError("parameters: trainable is missing")
    if record.run.key != record.key:
        raise ValueError(
            "its key is not the hash of its run: a rule, the seed, the split hash or the like was edited, or a later"
            " version of this code made it"
        )
    if seal_holds(data) is False:
        raise ValueError("its seal does not fit: a score or another field was edited after it was written")
    record = filled(record)
    if is_plain(data):
        return record
    # The key is a hash of these, so they stay as they are.
    run = replace(escaped(record.run), method_config=record.run.method_config, rules=record.run.rules)
    return replace(escaped(record), run=run)


def validated(kind: type[T], data: bytes, *, versions: range) -> T:
    """The content of a file as a dataclass with a ``schema_version`` among ``versions``. Raises ValueError, with one line: not JSON,
    another kind, another schema, or a field of a wrong type."""
    found = re.search(rb'"schema_version":\s*(\d+)', data)
    if found and int(found[1]) not in versions:
        raise ValueError(f"schema_version {int(found[1])}; this code reads {versions[0]} to {versions[-1]}")
    return from_json(kind, data)
