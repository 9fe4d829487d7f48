"""A user's request, the rows of the comparison that it resolves to, and the resulting jobs, which hold all that a worker
needs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from harness.archive.older import with_label
from harness.archive.schema import Run
from harness.methods.parts.placement import MethodError
from harness.planning.memory import trained_in_encoder
from harness.protocols.card import Protocol
from harness.registry import METHODS, method_config, option_names
from harness.settings import CACHE_GIB
from harness.studies import Row
from harness.system.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class PlannedRow(Row):
    """A row of a request, with the results of tuning.

    Args:
        method: any name of it; the row has the canonical one.
        benchmarks: only there; everywhere if empty.
        models: only under these, each a backbone and a decoder; under all if empty.
        rules: rules of the protocol that hold for its runs alone: those of a trial.
        tuning: see `harness.archive.schema.Run`.

    Raises:
        UsageError: an unknown method.
    """

    benchmarks: tuple[str, ...] = ()
    models: tuple[tuple[str, str], ...] = ()
    rules: Mapping[str, Any] = field(default_factory=dict)
    tuning: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "method", METHODS.resolve(self.method))

    def is_for(self, benchmark: str, backbone: str, decoder: str) -> bool:
        return (not self.benchmarks or benchmark in self.benchmarks) and (
            not self.models or (backbone, decoder) in self.models
        )


@dataclass(frozen=True, kw_only=True)
class Request:
    """A user's request for a grid of runs.

    Args:
        rows: methods with their options.
        benchmarks: names, canonical or aliases.
        protocol: card name or path of a YAML file.
        overrides: dotted protocol fields from ``--set``; options of methods are in the rows.
        rules: what tuning chose for every row: (benchmark, backbone, decoder) -> rule -> value.
        backbones: override the card's, if given.
        decoders: override the card's, if given: name -> what else the card says under it.
        prompts: override the card's, if given.
        seeds: one run a seed.
        data_root: folder that holds the benchmarks' folders, None if none was given.
        dataset_roots: benchmark -> its own folder.
        checkpoints: backbone -> its pretrained weights; the key "" serves every backbone, the path ``none`` means random weights.
        plugins: plug-in files that the worker must load too.
        cache, cache_gib: see `Job`.
        skip_missing: leave out benchmarks that are not on disk instead of refusing.
    """

    rows: tuple[PlannedRow, ...]
    benchmarks: tuple[str, ...]
    protocol: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    rules: Mapping[tuple[str, str, str], Mapping[str, Any]] = field(default_factory=dict)
    backbones: tuple[str, ...] = ()
    decoders: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    prompts: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    data_root: Path | None = None
    dataset_roots: Mapping[str, Path] = field(default_factory=dict)
    checkpoints: Mapping[str, Path] = field(default_factory=dict)
    results: Path = Path("runs")
    plugins: tuple[str, ...] = ()
    cache: str = ""
    cache_gib: float = CACHE_GIB
    skip_missing: bool = False


def split_overrides(overrides: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """``lora.rank`` goes to the method ``lora``; every other key to the protocol."""
    protocol: dict[str, Any] = {}
    methods: dict[str, dict[str, Any]] = {}
    names = set(METHODS.names())
    own_tables = {f.name for f in fields(Protocol)}
    for key, value in overrides.items():
        head, dot, rest = key.partition(".")
        if dot and head not in own_tables:
            methods.setdefault(METHODS.resolve(head), {})[rest] = value
        elif dot or key in own_tables:
            protocol[key] = value
        elif having := [name for name in names if key in option_names(name)]:
            whose = "lora" if "lora" in having else min(having)
            raise UsageError(
                f"--set {key}={value}: {key} is an option of methods; name the method, as in {whose}.{key}={value}"
            )
        else:
            protocol[key] = value
    return protocol, methods


def with_options(rows: Iterable[PlannedRow], options: Mapping[str, Mapping[str, Any]]) -> tuple[PlannedRow, ...]:
    """The rows with the options of their methods (method -> field -> value). Options that a row sets itself are kept."""
    return tuple(replace(row, options={**options.get(row.method, {}), **row.options}) for row in rows)


@dataclass(frozen=True, kw_only=True)
class ConfiguredRow(PlannedRow):
    """A row under a protocol; it has a label.

    Args:
        config: the method's whole configuration.
        changed: the fields of it that differ from the card's own.
    """

    config: Any
    changed: Mapping[str, Any]

    def require_fit(self, backbone: str, *, image_size: int) -> None:
        """Check while planning, not on a worker, that the placement fits the backbone.

        Raises:
            MethodError: it does not.
            UsageError: the closed form of a plug-in fails.
        """
        try:
            trained_in_encoder(self.method, asdict(self.config), backbone, image_size=image_size)
        except (UsageError, MethodError):
            raise
        except Exception as error:  # a plug-in may raise anything
            raise UsageError(
                f"method {self.method}: its encoder_parameters fails: {type(error).__name__}: {error}; mend it until "
                f"sam-peft doctor --methods {self.method} passes"
            ) from error


def configured(row: PlannedRow, protocol: Protocol) -> ConfiguredRow:
    """A row with its configuration: the card's switches and its table for the method, then the row's options. Raises UsageError: an
    unknown field."""
    switches = {
        "gate": protocol.quirks.moe_gate,
        "init": protocol.quirks.ssf_init,
        "patch_embedding": protocol.quirks.samadapter_embedding,
    }
    values: dict[str, Any] = {key: value for key, value in switches.items() if key in option_names(row.method)}
    values |= protocol.methods.get(row.method, {})
    base = method_config(row.method, values)
    config = method_config(row.method, {**values, **row.options})
    changed = {name: value for name, value in asdict(config).items() if value != getattr(base, name)}
    return ConfiguredRow(**{**vars(row), "label": row.name}, config=config, changed=changed)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run to execute.

    Args:
        checkpoint: path of the pretrained weights, empty for random weights.
        plugins: plug-in files to load first.
        cache: folder of decoded images and embeddings; variables such as ``$TMPDIR`` are those of where the run is. Empty for one in
            the results.
        cache_gib: bound on its size.
    """

    run: Run
    dataset_root: str
    checkpoint: str
    results: str
    plugins: tuple[str, ...] = ()
    cache: str = ""
    cache_gib: float = CACHE_GIB

    @property
    def cache_folder(self) -> Path:
        """The folder of ``cache`` on this machine; the one in the results where a variable in it is not set here."""
        folder = os.path.expandvars(os.path.expanduser(self.cache))
        return Path(folder) if folder and "$" not in folder else Path(self.results) / "cache"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Job:
        return cls(**{**data, "run": Run(**with_label(data["run"])), "plugins": tuple(data.get("plugins", ()))})
