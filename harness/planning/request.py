"""What a user asks for, before any name in it is resolved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.settings import CACHE_GIB
from harness.system.errors import UsageError

MOST_RUNS = 50_000
"""Of one plan; half as many take 4 s (docs/performance.md)."""


def require_countable(runs: int) -> None:
    """Raises UsageError where a plan would have more than `MOST_RUNS`."""
    if runs > MOST_RUNS:
        raise UsageError(
            f"that would be {runs:,} runs, and a plan has {MOST_RUNS:,} at most; ask for fewer values or in parts"
        )


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A row of the comparison: a method with configuration overrides, under the name that tables show.

    Args:
        benchmarks: only there; everywhere if empty.
        models: only under these, each a backbone and a decoder; under all if empty.
        rules: rules of the protocol that hold for its runs alone: those of a trial.
        tuning: see `harness.archive.schema.Run`.
    """

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""
    benchmarks: tuple[str, ...] = ()
    models: tuple[tuple[str, str], ...] = ()
    rules: Mapping[str, Any] = field(default_factory=dict)
    tuning: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The label, else the method with its options, so that two rows of one method have two names."""
        options = ",".join(f"{name}={value}" for name, value in self.options.items())
        return self.label or (f"{self.method}[{options}]" if options else self.method)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a user asks for.

    Args:
        entries: methods with their options.
        benchmarks: names, canonical or aliases.
        protocol: card name or path of a YAML file.
        overrides: dotted protocol fields from ``--set``.
        rules: what tuning chose for every row: (benchmark, backbone, decoder) -> rule -> value.
        backbones: override the card's, if given.
        decoders: override the card's, if given: name -> what else the card says under it.
        seeds: one run a seed.
        data_root: folder that holds the benchmarks' folders, None if none was given.
        dataset_roots: benchmark -> its own folder.
        checkpoints: backbone -> its pretrained weights; the key "" serves every backbone, the path ``none`` means random weights.
        plugins: plug-in files that the worker must load too.
        cache, cache_gib: see `harness.planning.job.Job`.
        skip_missing: leave out benchmarks that are not on disk instead of refusing.
    """

    entries: tuple[Variant, ...]
    benchmarks: tuple[str, ...]
    protocol: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    rules: Mapping[tuple[str, str, str], Mapping[str, Any]] = field(default_factory=dict)
    backbones: tuple[str, ...] = ()
    decoders: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    data_root: Path | None = None
    dataset_roots: Mapping[str, Path] = field(default_factory=dict)
    checkpoints: Mapping[str, Path] = field(default_factory=dict)
    results: Path = Path("runs")
    plugins: tuple[str, ...] = ()
    cache: str = ""
    cache_gib: float = CACHE_GIB
    skip_missing: bool = False

    @property
    def runs(self) -> int:
        """How many it asks for at most; a card's own backbone counts as one."""
        models = max(1, len(self.backbones)) * max(1, len(self.decoders))
        rows = sum((len(row.benchmarks) or len(self.benchmarks)) * (len(row.models) or models) for row in self.entries)
        return rows * len(self.seeds)
