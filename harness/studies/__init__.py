"""Studies: each is a named grid of runs that fills one table, in a YAML file to copy and change (docs/tables.md). No torch here."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, PlainValidator, StrictInt
from pydantic import Field as Bound

from harness.check import from_mapping
from harness.evaluation.conventions import LABEL_METRICS, METRICS
from harness.models.known import KNOWN, TIMM
from harness.registry import BENCHMARKS, METHODS, option_names, trains
from harness.system.errors import UsageError, did_you_mean
from harness.system.files import checked_name
from harness.system.yaml_files import read_yaml

STUDIES_FOLDER = Path(__file__).parent
MOST_SEEDS = 1000


def _several(value: Any) -> Any:
    """A single value as a list with one entry; anything else as it is."""
    return [value] if isinstance(value, str | int | float) else value


def _as_seeds(value: Any) -> Any:
    """A number of seeds as the list of those from 0 on; a list as it is."""
    if isinstance(value, int) and value > MOST_SEEDS:
        raise ValueError(f"is too many: at most {MOST_SEEDS} seeds")
    seeds = list(range(value)) if isinstance(value, int) else value
    if not isinstance(seeds, list | tuple) or not seeds or len(set(map(str, seeds))) < len(seeds):
        raise ValueError("must be a number of seeds, or a list of different whole numbers")
    return seeds


def _as_decoders(value: Any) -> Any:
    """Names of decoders as a mapping from each to an empty table."""
    return {name: {} for name in _several(value)} if isinstance(value, str | list | tuple) else value


def _as_metrics(value: Any) -> Any:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError("must be paper, or a list of metrics' names")
    for name in () if value == "paper" else names:
        if name not in (*METRICS, *LABEL_METRICS):
            raise ValueError(f"unknown metric {name!r}{did_you_mean(name, (*METRICS, *LABEL_METRICS))}")
    return value if value == "paper" else tuple(names)


def _as_row(value: Any) -> Any:
    return {"method": value} if isinstance(value, str) else value


def _labelled(row: Row) -> Row:
    return replace(row, label=row.label or row.method)


def _different(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(values) < 2 or len({str(value) for value in values}) < len(values):
        raise ValueError("must be at least two different values")
    return values


def with_methods(grids: Mapping[str, Any]) -> dict[str, Any]:
    """Grids by field, with each method (``lora.lr``) under its canonical name. Raises UsageError: an unknown method."""
    parts = {name: name.rpartition(".") for name in grids}
    return {
        f"{METHODS.resolve(whose)}.{option}" if dot else option: grids[n] for n, (whose, dot, option) in parts.items()
    }


Texts = Annotated[tuple[str, ...], BeforeValidator(_several)]
MethodName = Annotated[str, AfterValidator(METHODS.resolve)]
BenchmarkName = Annotated[str, AfterValidator(BENCHMARKS.resolve)]
BenchmarkNames = Annotated[tuple[BenchmarkName, ...], BeforeValidator(_several)]
ScoredModel = Literal["best", "last", "merged-exact", "merged-conv", "merged-calibrated", "decoded"]
ScoredModels = Annotated[tuple[ScoredModel, ...], BeforeValidator(_several)]
Seeds = Annotated[tuple[Annotated[StrictInt, Bound(ge=0)], ...], BeforeValidator(_as_seeds)]
Values = Annotated[tuple[Any, ...], BeforeValidator(_several), AfterValidator(_different)]
Fields = Annotated[dict[str, Values], AfterValidator(with_methods)]
Prompt = Literal["none", "box", "points"]
PromptValues = Annotated[tuple[Prompt, ...], BeforeValidator(_several)]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a comparison, from the request to the table: a method with options.

    Args:
        method: canonical name of the method.
        label: name of the row in progress and prices, and in a study's table where it is not just the method's name; unique in a study.
        options: configuration fields of the method that differ from the protocol's.
        scores: which models of its runs are scored, instead of the table's own list.
    """

    method: MethodName
    label: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    scores: ScoredModels = ()

    @property
    def name(self) -> str:
        """The label, else the method with its options, so that two rows of one method have different names."""
        options = ",".join(f"{name}={value}" for name, value in self.options.items())
        return self.label or (f"{self.method}[{options}]" if options else self.method)


@dataclass(frozen=True, kw_only=True)
class TableLayout:
    """The layout of a study's table.

    Args:
        kind: ``grid`` (scores by method and benchmark), ``leaderboard`` (one number per benchmark against the baseline, and costs) or
            ``cost`` (cost records, no runs).
        metrics: ``paper`` (those by which the paper reports each benchmark) or the names of metrics to show for every benchmark.
        scores: which models are scored, one row each (`ScoredModel`).
        splits: benchmark -> test splits to show, where it has more than one.
        baseline: label of the entry that the others are compared with, empty for none.
        paper: show papers' values next to ours.
        spread: the spread between seeds that a leaderboard's intervals use: ``pooled`` over all rows, or each row's own, ``shrunk``
            towards the pooled one (docs/metrics.md).
    """

    kind: Literal["grid", "leaderboard", "cost"] = "grid"
    metrics: Annotated[str | tuple[str, ...], PlainValidator(_as_metrics)] = "paper"
    scores: ScoredModels = ("best",)
    splits: dict[BenchmarkName, Texts] = field(default_factory=dict)
    baseline: str = ""
    paper: bool = False
    spread: Literal["pooled", "shrunk"] = "pooled"


@dataclass(frozen=True, kw_only=True)
class Study:
    """A grid: entries x benchmarks x backbones x decoders x seeds under one protocol.

    Args:
        name: name of the study and its table.
        title: one line over the table.
        note: what a reader must know about the grid, empty for nothing.
        protocol: name of a protocol; in a user's own file also a path, from the study's folder.
        protocol_file: that path, set by `load_study`; ``protocol`` is then its name, as records have it.
        set: overrides of the protocol, by dotted name (``merge: [exact]``), as ``--set`` takes them.
        backbones: names in the backbone catalogue, empty for the protocol's own.
        by_backbone: further overrides under a backbone that ``--backbone`` names in place of the study's own.
        decoders: values of the protocol's ``decoder``, one table each: a list, or a mapping to further overrides under each
            (``mask-transformer: {decoder_lr: 1.0e-4}``); empty for the protocol's own.
        prompts: values of the protocol's ``prompt``, one table each; empty for the protocol's own.
        benchmarks: canonical names.
        entries: the rows, in order.
        seeds: every run is made once per seed.
        budget: the protocol's field of this name, overridden; empty for the protocol's own.
        tune: field of the methods' configurations, or a rule -> values to try first, as ``--tune`` takes them (``lr``, ``naslora.lr``);
            every row then has what validation chose.
        tune_seeds: seeds of the trials.
        tune_on: benchmarks on which values are chosen for all; empty where each benchmark has its own choice.
        choose: field of the methods' configurations -> values. Every value runs under every seed; when tables are made, each seed counts
            with the run that validated best (`choices_of`, docs/tables.md).
        weights: backbone -> fingerprint of the weights of its rows, as records have it; runs with other weights go to a table of their own.
        data: benchmark -> fingerprint of its files, as `sam-peft data check` prints it; runs on other files go to a table of their own.
        table: how the table looks.
    """

    name: str
    title: str
    note: str = ""
    protocol: str = "nas-lora"
    protocol_file: str = ""
    set: dict[str, Any] = field(default_factory=dict)
    backbones: Texts = ()
    by_backbone: dict[str, dict[str, Any]] = field(default_factory=dict)
    decoders: Annotated[dict[str, dict[str, Any]], BeforeValidator(_as_decoders)] = field(default_factory=dict)
    prompts: PromptValues = ()
    benchmarks: BenchmarkNames = ()
    entries: tuple[Annotated[Row, BeforeValidator(_as_row), AfterValidator(_labelled)], ...] = ()
    seeds: Seeds = (0, 1, 2)
    budget: Literal["", "epochs", "updates"] = ""
    tune: Fields = field(default_factory=dict)
    tune_seeds: Seeds = (0,)
    tune_on: BenchmarkNames = ()
    choose: Fields = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    data: dict[BenchmarkName, str] = field(default_factory=dict)
    table: TableLayout = field(default_factory=TableLayout)


def study_names() -> list[str]:
    """Names of the built-in studies, sorted."""
    return sorted(path.stem for path in STUDIES_FOLDER.glob("*.yaml"))


def load_study(name: str) -> Study:
    """Read a study by name, or from a YAML file.

    Raises:
        UsageError: no such study, a file with the name of a built-in study or of a protocol, broken YAML, an unknown key, method or
            benchmark, or two rows with the same label.
    """
    is_path = name.endswith((".yaml", ".yml"))
    path = Path(name) if is_path else STUDIES_FOLDER / f"{name}.yaml"
    if not path.is_file() and is_path:
        raise UsageError(f"study {path}: no such file; the names of built-in studies do not end in .yaml")
    if not path.is_file():
        raise UsageError(f"unknown study {name!r}{did_you_mean(name, study_names())}; a path to a YAML file works too")
    study = study_from_dict(read_yaml(path, what="study"), name=checked_name(path.stem, what="study"))
    protocols = [file.stem for file in (*(STUDIES_FOLDER.parent / "protocols").glob("*.yaml"), Path(study.protocol))]
    own = path.resolve().parent != STUDIES_FOLDER.resolve()
    for what, names in (("study", study_names()), ("protocol", protocols)):
        if own and path.stem in names:
            raise UsageError(
                f"study {path}: there is a {what} of this name, whose page this would overwrite; rename the file"
            )
    if not study.protocol.endswith((".yaml", ".yml")):
        return study
    file = path.parent / study.protocol
    return replace(study, protocol=file.stem, protocol_file=os.path.normpath(file))


def study_from_dict(data: Any, *, name: str) -> Study:
    """Validate the content of a study file; ``name`` is the file's stem.

    Raises:
        UsageError: see `load_study`.
    """
    where = f"study {name!r}"
    if not isinstance(data, Mapping):
        raise UsageError(f"{where}: expected a mapping of fields, found {type(data).__name__}")
    if made := sorted({"name", "protocol_file"} & data.keys()):
        raise UsageError(f"{where}: {made[0]!r} is set by the harness; leave it out")
    written = {key: value for key, value in data.items() if value is not None}
    study = from_mapping(Study, {**written, "name": name}, where=where)
    labels = [entry.label for entry in study.entries]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise UsageError(f"{where}: two entries are labelled {twice[0]!r}; give one of them another label")
    for backbone in study.by_backbone:  # under a name that no run has, the overrides would never apply
        if not backbone.startswith(TIMM) and backbone not in KNOWN:
            raise UsageError(f"{where}: by_backbone: unknown backbone {backbone!r}{did_you_mean(backbone, KNOWN)}")
    if both := sorted(study.by_backbone.keys() & set(study.backbones)):
        raise UsageError(f"{where}: by_backbone: {both[0]} is one of the study's own backbones; put its rules in 'set'")
    if study.prompts and (study.tune or study.choose):
        raise UsageError(f"{where}: prompts: options are chosen under one prompt; set it, or leave out tune and choose")
    if study.choose and any(not is_rule(name) for name in study.tune):
        raise UsageError(f"{where}: tune and choose are two ways to choose options; give one of them")
    for name in study.choose:
        _check_choice(name, where=where)
    baseline = study.table.baseline
    if baseline and baseline not in labels:
        raise UsageError(f"{where}: table.baseline {baseline!r} is not an entry{did_you_mean(baseline, labels)}")
    return study


def _check_choice(name: str, *, where: str) -> None:
    """Raises UsageError: what is to be chosen is not an option of a method."""
    whose, dot, option = name.rpartition(".")
    if is_rule(name):
        raise UsageError(
            f"{where}: choose: {name} is not an option of a method; a rule is chosen with tune, or set for all"
        )
    known = option_names(whose) if dot else [option]
    if option not in known:
        raise UsageError(f"{where}: choose: {whose} has no field {option!r}{did_you_mean(option, known)}")


RULES_BY = "decoder"
"""Rules of the protocol are tuned by running this method, which trains the mask decoder alone, so that no compared method is favoured."""


def is_rule(name: str) -> bool:
    """Whether a grid varies a rule of the protocol, such as ``decoder_lr``: it has no dot, and no known method has such an option."""
    return "." not in name and not any(name in option_names(method) for method in METHODS.names())


def grid_of(method: str, options: Mapping[str, Any], grids: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """The grids of one row, by canonical names: those of its method override those for all; a field that the row sets has none. Rules
    of the protocol are tuned on `RULES_BY` and hold for every row.

    Raises:
        UsageError: a grid for a field that its method does not have.
    """
    rules = {name: list(values) for name, values in grids.items() if is_rule(name)}
    if rules and method == RULES_BY:
        return rules  # this method tries the rules; its own lr is then not tuned
    if trains(method) == "nothing":
        return {}
    known = option_names(method)
    of_method: dict[str, list[Any]] = {}
    for name, values in sorted(grids.items(), key=lambda item: "." in item[0]):
        whose, dot, option = name.rpartition(".")
        if dot and whose != method:
            continue
        if option in known and option not in options:
            of_method[option] = list(values)
        elif dot and option not in known:
            raise UsageError(f"--tune {name}: {whose} has no field {option!r}{did_you_mean(option, known)}")
    if "decoder_lr" in rules and ("encoder_lr" in of_method or options.get("encoder_lr") is not None):
        of_method.pop("lr", None)  # it would apply to nothing: the encoder has encoder_lr, everything else decoder_lr
    return of_method


def choices_of(method: str, options: Mapping[str, Any], choose: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """Option -> the values that each seed of a row chooses from; nothing for a row whose own parts do not train.

    A method that ``choose`` names (``full.encoder_lr``) has only the grids under its name; any other has those without a method (``lr``),
    as has a plug-in's method that is not loaded because only its records are read. An option that the row sets is not chosen.
    """
    if method not in METHODS:
        return {name: list(values) for name, values in choose.items() if "." not in name and name not in options}
    if trains(method) != "own":
        return {}
    named = {name.rpartition(".")[2]: list(values) for name, values in choose.items() if name.startswith(f"{method}.")}
    plain = {name: list(values) for name, values in choose.items() if "." not in name}
    known = option_names(method)
    return {name: values for name, values in (named or plain).items() if name in known and name not in options}
