"""A user's request, the rows of the comparison that it resolves to, and the resulting jobs, which hold all that a worker
needs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.archive.older import with_label
from harness.archive.schema import Run
from harness.protocols.protocol import Protocol
from harness.registry import METHODS
from harness.settings import CACHE_GIB
from harness.studies import Row, Study


@dataclass(frozen=True, kw_only=True)
class PlannedRow(Row):
    """A row of a request, with the results of tuning.

    Args:
        method: any name of it; the row has the canonical one.
        benchmarks: only there; everywhere if empty.
        segmenters: only on these, each a backbone and a decoder; on all if empty.
        trial_rules: rules of the protocol that hold for its runs alone.
        tuning: see `harness.archive.schema.Run`.

    Raises:
        UsageError: an unknown method.
    """

    benchmarks: tuple[str, ...] = ()
    segmenters: tuple[tuple[str, str], ...] = ()
    trial_rules: Mapping[str, Any] = field(default_factory=dict)
    tuning: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "method", METHODS.resolve(self.method))


@dataclass(frozen=True, kw_only=True)
class Request:
    """A user's request for a grid of runs.

    Args:
        rows: methods with their options.
        benchmarks: names, canonical or aliases.
        protocol: with all overrides.
        protocols: it under every decoder and every prompt, where there are several; empty where it stands alone.
        chosen_rules: what tuning chose for every row: (benchmark, backbone, decoder) -> rule -> value.
        backbones: override the protocol's, if given.
        seeds: one run per seed.
        study: what the command names, whose table is shown at its end.
        data_root: folder that holds the benchmarks' folders, None if none was given.
        dataset_roots: benchmark -> its own folder.
        checkpoints: backbone -> its pretrained weights; the key "" serves every backbone, the path ``none`` means random weights.
        plugins: plug-in files that the worker must load too.
        cache, cache_gib: see `Job`.
        skip_missing: leave out benchmarks that are not on disk instead of refusing.
        leave_out_unfit: leave out rows that do not fit a backbone, since nobody named them one by one.
    """

    rows: tuple[PlannedRow, ...]
    benchmarks: tuple[str, ...]
    protocol: Protocol
    protocols: tuple[Protocol, ...] = ()
    chosen_rules: Mapping[tuple[str, str, str], Mapping[str, Any]] = field(default_factory=dict)
    backbones: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    study: Study | None = None
    data_root: Path | None = None
    dataset_roots: Mapping[str, Path] = field(default_factory=dict)
    checkpoints: Mapping[str, Path] = field(default_factory=dict)
    results: Path = Path("runs")
    plugins: tuple[str, ...] = ()
    cache: str = ""
    cache_gib: float = CACHE_GIB
    skip_missing: bool = False
    leave_out_unfit: bool = False


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

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Job:
        return cls(**{**data, "run": Run(**with_label(data["run"])), "plugins": tuple(data.get("plugins", ()))})
