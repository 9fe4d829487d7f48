"""Studies: a named grid of runs that fills one table. Each is a YAML file to copy and change; no torch here.

``load_study("rank")`` finds a study of this folder, ``load_study("my/rank.yaml")`` a file. ``docs/tables.md`` has the
fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from harness.errors import UsageError, did_you_mean
from harness.file_names import checked_name
from harness.registry import BENCHMARKS, METHODS
from harness.studies.design import Field, Point, label_of, options_of, parse_fields, points
from harness.yaml_files import read_yaml

FOLDER = Path(__file__).parent
MOST_SEEDS = 1000


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One row of the table: a method with configuration overrides.

    Args:
        label: what the table calls the row; unique within the study.
        method: canonical name of the method.
        options: configuration fields of the method that differ from the protocol's.
        scores: which of its models are scored, instead of the table's own list.
    """

    label: str
    method: str
    options: dict[str, Any] = field(default_factory=dict)
    scores: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the table of a study looks.

    Args:
        kind: ``grid`` (scores by method and benchmark) or ``cost`` (cost records, no runs).
        metrics: ``paper`` (what the paper reports a benchmark by) or the names of metrics to show for every benchmark.
        scores: which model is scored, one row each: ``best``, ``last``, ``merged-exact``, ``merged-conv``,
            ``merged-calibrated``, ``decoded``.
        splits: benchmark -> test splits to show, where it has more than one.
        baseline: label of the entry that the others are compared with, empty for none.
        paper: print the published value, ours, their difference, its interval and a verdict below the table.
    """

    kind: str = "grid"
    metrics: str | tuple[str, ...] = "paper"
    scores: tuple[str, ...] = ("best",)
    splits: dict[str, tuple[str, ...]] = field(default_factory=dict)
    baseline: str = ""
    paper: bool = False


@dataclass(frozen=True, kw_only=True)
class Readings:
    """Many readings of one method.

    Args:
        method: canonical name.
        fields: what is open.
        points: the readings, in the order of their rows.
    """

    method: str
    fields: tuple[Field, ...]
    points: tuple[Point, ...]

    def entries(self) -> tuple[Entry, ...]:
        """A row a reading."""
        return tuple(
            Entry(label=label_of(point, self.fields), method=self.method, options=options_of(point, self.fields))
            for point in self.points
        )


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of a programme: another study, with what differs here.

    Args:
        study: name of the study.
        title: what the phase is for.
        set: overrides of the card and of methods, after the study's own.
        benchmarks, seeds: in place of the study's, where given.
    """

    study: str
    title: str
    set: dict[str, Any] = field(default_factory=dict)
    benchmarks: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Study:
    """A grid: entries x benchmarks x backbones x decoders x seeds under one protocol.

    Args:
        name: the study's name, and its table's.
        title: one line over the table.
        note: what a reader must know about the grid, empty where there is nothing to say.
        protocol: name of the protocol card.
        set: overrides of the card, by dotted name (``merge: [exact]``), as ``--set`` takes them.
        backbones: names in the backbone catalogue, empty for the card's own.
        decoders: names that the card's ``decoder`` takes, one table each; empty for the card's own.
        benchmarks: canonical names.
        entries: the rows, in order.
        readings: ``method`` and ``fields`` (question that a paper leaves open -> plausible values, the default first);
            `harness.studies.design` adds a row for each reading, and ``python -m harness.readings`` reports on them.
        phases: of a programme, which has no rows of its own: studies that are planned, priced and run one after another.
        seeds: every run is made once a seed.
        budget: what the rows share, instead of what the card says: ``epochs``, or ``updates`` of the weights.
        tune: field of the methods' configurations -> values to try before, as ``--tune`` takes them (``lr``,
            ``naslora.lr``); then every row has what validation chose.
        tune_seeds: seeds of the trials.
        tune_on: benchmarks that choose for all; empty where each chooses its own.
        table: how the table looks.
    """

    name: str
    title: str
    note: str = ""
    protocol: str = "nas-lora"
    set: dict[str, Any] = field(default_factory=dict)
    backbones: tuple[str, ...] = ()
    decoders: tuple[str, ...] = ()
    benchmarks: tuple[str, ...] = ()
    entries: tuple[Entry, ...] = ()
    readings: Readings | None = None
    phases: tuple[Phase, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    budget: str = ""
    tune: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    tune_seeds: tuple[int, ...] = (0,)
    tune_on: tuple[str, ...] = ()
    table: Layout = field(default_factory=Layout)


def study_names() -> list[str]:
    """The studies that come with the harness, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_study(name: str) -> Study:
    """Read a study by name, or from a YAML file.

    Raises:
        UsageError: no such study, broken YAML, an unknown key, method or benchmark, or two rows of one label.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise UsageError(f"unknown study {name!r}{did_you_mean(name, study_names())}; a path to a YAML file works too")
    return study_from_dict(read_yaml(path, what="study"), name=checked_name(path.stem, what="study"))


def study_from_dict(data: Any, *, name: str) -> Study:
    """Validate the content of a study file; ``name`` is the file's stem.

    Raises:
        UsageError: see `load_study`.
    """
    where = f"study {name!r}"
    content = dict(_checked(data, Study, where=where, without=("name",)))
    for name_of_text in ("title", "note", "protocol"):
        if not isinstance(content.get(name_of_text, ""), str):
            raise UsageError(f"{where}: {name_of_text} must be text, not {content[name_of_text]!r}")
    overrides = content["set"] = content.get("set") or {}
    if not isinstance(overrides, Mapping) or not all(isinstance(key, str) for key in overrides):
        raise UsageError(f"{where}: set must be a mapping of a card's fields to values, not {overrides!r}")
    if content.get("budget", "") not in ("", "epochs", "updates"):
        raise UsageError(f"{where}: budget={content['budget']!r}: choose epochs or updates")
    entries = tuple(_entry(item, where=where) for item in _sequence(content.pop("entries", ()), f"{where}: entries"))
    readings = _readings(content.pop("readings", None), where=where)
    entries += readings.entries() if readings else ()
    labels = [entry.label for entry in entries]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise UsageError(f"{where}: two entries are labelled {twice[0]!r}; give one of them another label")
    table = dict(_checked(content.pop("table", None) or {}, Layout, where=f"{where}: table"))
    if "metrics" in table and table["metrics"] != "paper":
        table["metrics"] = _texts(table["metrics"], f"{where}: table.metrics")
    if "scores" in table:
        table["scores"] = _texts(table["scores"], f"{where}: table.scores")
    if "splits" in table:
        table["splits"] = _splits(table["splits"], f"{where}: table.splits")
    if table.get("baseline") and _text(table["baseline"], f"{where}: table.baseline") not in labels:
        raise UsageError(
            f"{where}: table.baseline {table['baseline']!r} is no entry{did_you_mean(table['baseline'], labels)}"
        )
    return Study(
        name=name,
        table=Layout(**table),
        entries=entries,
        readings=readings,
        phases=tuple(_phase(item, where=where) for item in _sequence(content.pop("phases", ()), f"{where}: phases")),
        seeds=_seeds(content.pop("seeds", 3), f"{where}: seeds"),
        tune=_grids(content.pop("tune", None) or {}, f"{where}: tune"),
        tune_seeds=_seeds(content.pop("tune_seeds", 1), f"{where}: tune_seeds"),
        tune_on=_benchmarks(content.pop("tune_on", ()), f"{where}: tune_on"),
        benchmarks=_benchmarks(content.pop("benchmarks", ()), f"{where}: benchmarks"),
        backbones=_texts(content.pop("backbones", ()), f"{where}: backbones"),
        decoders=_texts(content.pop("decoders", ()), f"{where}: decoders"),
        **content,
    )


def _checked(data: Any, kind: type, *, where: str, without: tuple[str, ...] = ()) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise UsageError(f"{where}: expected a mapping of fields, found {type(data).__name__}")
    described = [f for f in fields(kind) if f.name not in without]
    known = [f.name for f in described]
    for key in data:
        if key not in known:
            raise UsageError(f"{where}: unknown key {key!r}{did_you_mean(str(key), known)}")
    for needed in described:
        if needed.name not in data and needed.default is MISSING and needed.default_factory is MISSING:
            raise UsageError(f"{where}: {needed.name!r} is missing")
    return data


def _entry(item: Any, *, where: str) -> Entry:
    if isinstance(item, str):
        name = METHODS.resolve(item)
        return Entry(label=name, method=name)
    content = dict(
        _checked({"label": "", **item} if isinstance(item, Mapping) else item, Entry, where=f"{where}: entry")
    )
    method = METHODS.resolve(str(content["method"]))
    options = content.get("options") or {}
    if not isinstance(options, Mapping):
        raise UsageError(f"{where}: options of {method!r} must be a mapping, found {type(options).__name__}")
    scores = _texts(content.get("scores", ()), f"{where}: scores of {method!r}")
    label = _text(content["label"] or method, f"{where}: label of {method!r}")
    return Entry(label=label, method=method, options=dict(options), scores=scores)


def _phase(item: Any, *, where: str) -> Phase:
    content = dict(_checked(item, Phase, where=f"{where}: phase"))
    inside = f"{where}: phase {content['study']!r}"
    if not isinstance(content.get("set", {}), Mapping):
        raise UsageError(f"{inside}: set must be a mapping of a card's fields to values, not {content['set']!r}")
    seeds = _seeds(content["seeds"], f"{inside}: seeds") if "seeds" in content else ()
    return Phase(
        study=_text(content["study"], inside),
        title=_text(content["title"], inside),
        set=dict(content.get("set", {})),
        benchmarks=_benchmarks(content.get("benchmarks", ()), f"{inside}: benchmarks"),
        seeds=seeds,
    )


def _readings(data: Any, *, where: str) -> Readings | None:
    if data is None:
        return None
    if not isinstance(data, Mapping) or set(data) != {"method", "fields"}:
        raise UsageError(f"{where}: readings: expected a mapping with method and fields, found {data!r}")
    asked = parse_fields(data["fields"], where=f"{where}: readings.fields")
    method = METHODS.resolve(_text(data["method"], f"{where}: readings.method"))
    return Readings(method=method, fields=asked, points=tuple(points(asked)))


def _seeds(value: Any, where: str) -> tuple[int, ...]:
    if isinstance(value, int) and value > MOST_SEEDS:
        raise UsageError(f"{where}: at most {MOST_SEEDS} seeds, not {value}")
    chosen = tuple(range(value)) if isinstance(value, int) else _sequence(value, where)
    if not chosen or not all(isinstance(seed, int) and seed >= 0 for seed in chosen) or len(set(chosen)) < len(chosen):
        raise UsageError(f"{where} must be a number of seeds, or a list of different whole numbers, not {value!r}")
    return chosen


def _grids(value: Any, where: str) -> dict[str, tuple[Any, ...]]:
    if not isinstance(value, Mapping):
        raise UsageError(f"{where}: expected a mapping of fields to values, such as lr: [1e-4, 1e-3], found {value!r}")
    grids = {_text(name, where): _sequence(values, f"{where}.{name}") for name, values in value.items()}
    for name, values in grids.items():
        if len(values) < 2 or len({str(one) for one in values}) < len(values):
            raise UsageError(f"{where}.{name}: at least two different values, not {list(values)!r}")
    return grids


def _benchmarks(value: Any, where: str) -> tuple[str, ...]:
    return tuple(BENCHMARKS.resolve(item) for item in _texts(value, where))


def _splits(value: Any, where: str) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, Mapping):
        raise UsageError(f"{where}: expected a mapping of benchmarks to test splits, found {value!r}")
    return {BENCHMARKS.resolve(_text(key, where)): _texts(splits, where) for key, splits in value.items()}


def _texts(value: Any, where: str) -> tuple[str, ...]:
    return tuple(_text(item, where) for item in _sequence(value, where))


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{where}: {value!r} is no text; a number that is meant as text needs quotes")
    return value


def _sequence(value: Any, where: str) -> tuple[Any, ...]:
    if isinstance(value, str | int | float):
        return (value,)
    if not isinstance(value, list | tuple):
        raise UsageError(f"{where}: expected a list, found {type(value).__name__}")
    return tuple(value)
