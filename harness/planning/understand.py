"""Turn the words of a command line (``lora[rank=6],all``, ``--seeds 5``, ``NAME=DIR``) into a `Request`; settings stand in where
the command line says nothing. No torch here."""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.archive.schema import Run
from harness.check import parse_assignments
from harness.datasets.own import any_folder
from harness.methods import TUNERS
from harness.models.catalog import resolve_backbone
from harness.models.checkpoint import checkpoint_paths
from harness.models.published import is_word, published_file
from harness.planning.data import data_options
from harness.planning.request import PlannedRow, Request, split_overrides
from harness.planning.tuning import Tuning, parse_tune, tried_fields
from harness.protocols.load import load_protocol, resolve
from harness.registry import BENCHMARKS, METHODS, Registry, dataset_name, is_own, method_config_class
from harness.settings import Settings, named_table
from harness.studies import MOST_SEEDS, choices_of, grid_of, is_rule, load_study
from harness.system.errors import UsageError
from harness.system.files import require_text


def usable(registry: Registry) -> list[str]:
    """What ``all`` stands for; installed plug-ins that are broken are named on stderr and left out."""
    names, broken = registry.usable_names()
    for line in broken:
        print(line, file=sys.stderr)
    return names


def all_methods() -> list[str]:
    """What ``all`` stands for: those that train something. The others need a whole pretrained segmenter, which not every
    backbone has, and are chosen by name."""
    return [name for name in usable(METHODS) if method_config_class(name).trains]


def expand(text: str, everything: list[str]) -> list[str]:
    """Comma-separated words, commas inside brackets kept; ``all`` stands for ``everything``. Raises UsageError: a bracket is not
    closed."""
    if text.count("[") != text.count("]"):
        raise UsageError(f"{text!r}: a bracket is not closed")
    # An option may be a list, in brackets itself.
    words = re.findall(r"(?:[^,\[]|\[(?:[^\[\]]|\[[^\[\]]*\])*\])+", text)
    several = {"all": everything, "peft/all": list(TUNERS)}
    return [name for word in map(str.strip, words) if word for name in several.get(word, [word])]


def parse_row(word: str) -> PlannedRow:
    """``lora[rank=6,alpha=12]`` as a row; a value with a comma is put in quotes: ``lora[sites='q,v']``. Raises UsageError: not
    of this form, or an unknown method."""
    match = re.fullmatch(r"([^\[\]]+)(?:\[(.*)\])?", word)
    if not match:
        raise UsageError(f"--methods: {word!r} is not NAME or NAME[option=value,…]")
    items = re.findall(r"""((?:[^,'"]|'[^']*'|"[^"]*")+)""", match[2] or "")
    example = "lora[rank=6]; a value with a comma is put in quotes: lora[sites='q,v']"
    assigned = parse_assignments([item.strip() for item in items], option=f"--methods {match[1]}:", example=example)
    options = {key: value.strip("'\"") if isinstance(value, str) else value for key, value in assigned.items()}
    return PlannedRow(method=match[1], options=options)


def require_rows(options: Mapping[str, Mapping[str, Any]], rows: Sequence[PlannedRow]) -> None:
    """Raises UsageError where options of ``--set METHOD.FIELD=VALUE`` are of no row.

    Args:
        options: method -> field -> value.
    """
    named = sorted({row.method for row in rows})
    for method, fields in options.items():
        if method not in named:
            raise UsageError(
                f"--set {method}.… has no effect: {method} is none of the methods here ({', '.join(named)})"
            )
        own = [row.options for row in rows if row.method == method]
        if fixed := [field for field in fields if all(field in options for options in own)]:
            raise UsageError(f"--set {method}.{fixed[0]} has no effect: every row of {method} sets {fixed[0]} itself")


def parse_seeds(text: str, *, name: str = "--seeds") -> tuple[int, ...]:
    """``5`` is seeds 0 to 4; ``0,3,7`` is those; ``7,`` is seed 7 alone. Raises UsageError: not whole numbers of at most nine
    digits, none, one twice, or more than `MOST_SEEDS`."""
    listed = "," in text
    parts = [part.strip() for part in text.removesuffix(",").split(",")]
    if all(part.isascii() and part.isdigit() and len(part) <= 9 for part in parts):
        numbers = [int(part) for part in parts]
        if listed and len(set(numbers)) == len(numbers):
            return tuple(numbers)
        if not listed and 0 < numbers[0] <= MOST_SEEDS:
            return tuple(range(numbers[0]))
    raise UsageError(
        f"{name} {text!r}: give a number of seeds (5, at most {MOST_SEEDS}) or a list of different seeds (0,3,7)"
    )


WITH_DATA = "nas-lora"
WITHOUT_DATA = "demo"


@dataclass(frozen=True, kw_only=True)
class Understood:
    """A command line understood.

    Args:
        cluster_overrides: ``--set cluster.KEY=VALUE``.
        tuning: what is tuned before, None for nothing.
        note: a line on what was chosen by default, empty where nothing was.
    """

    request: Request
    cluster_overrides: Mapping[str, Any]
    tuning: Tuning | None = None
    note: str = ""


def understand(arguments: argparse.Namespace, settings: Settings) -> Understood:
    """The run verb's arguments as a request; settings fill in what they leave open.

    Args:
        arguments: of `harness.run`'s parser, its plug-ins loaded.

    Raises:
        UsageError: an argument or a setting is missing or malformed.
    """
    overrides = parse_assignments(arguments.set)
    of_cluster = {
        key.removeprefix("cluster."): overrides.pop(key) for key in list(overrides) if key.startswith("cluster.")
    }
    values: dict[str, Any] = _of_study(arguments.study, arguments.backbone) if arguments.study else {}
    if "decoder" in overrides:  # the command line's word instead of the study's several
        values.pop("decoders", None)
    typed = split_overrides(overrides)
    overrides = {**values.pop("set", {}), **overrides}
    choose = values.pop("choose", {})
    if arguments.methods:
        values["rows"] = tuple(parse_row(word) for word in expand(arguments.methods, all_methods()))
    if "rows" in values:
        require_rows(typed[1], values["rows"])
        values["rows"] = tuple(  # so that what is set is not tuned, and a row is called by it, too
            replace(row, options={**typed[1].get(row.method, {}), **row.options}) for row in values["rows"]
        )
        values["rows"] = tuple(each for row in values["rows"] for each in _with_choices(row, choose))
    folders: dict[str, Path] = {}
    own_names: list[str] = []
    if arguments.datasets:
        values["benchmarks"], folders, own_names = _benchmarks(arguments.datasets, settings)
    for needed, example in (("rows", "--methods lora,naslora"), ("benchmarks", "--datasets all")):
        if not values.get(needed):
            raise UsageError(f"give {example} (or --study NAME for a whole table; --help lists everything)")
    if arguments.backbone:
        values["backbones"] = (arguments.backbone,)
    if arguments.seeds is not None:
        values["seeds"] = parse_seeds(arguments.seeds)

    files = checkpoint_paths(arguments.checkpoint)
    checkpoints = files if "" in files else {**named_table(settings, "checkpoints", resolve_backbone), **files}
    has_data = bool(arguments.data or folders or settings.data or settings.datasets)
    has_files = has_data or any(str(path) != "none" for path in checkpoints.values())
    values["protocol"], note = _card(arguments.protocol or values.get("protocol", ""), settings, has_files=has_files)

    own_words = split_overrides(overrides)
    card = load_protocol(values["protocol"], own_words[0])
    for name in own_names:  # what a folder is, its patterns and its category say with it
        benchmark, folders[name] = any_folder(name, folders[name], data_options(resolve(card, name), name))
        BENCHMARKS.add(name, benchmark)
    generated = card.data == "sample"
    if generated and arguments.data:
        raise UsageError(
            f"--data has no effect with the protocol {values['protocol']}, whose images are generated; take another"
            " --protocol, or say which folders count with --datasets NAME=DIR"
        )
    roots = folders
    if not arguments.data and not generated:  # a folder of the command line beats all that settings say of data
        roots = {**named_table(settings, "datasets", dataset_name), **folders}
    request = Request(
        **values,
        overrides=overrides,
        data_root=arguments.data or settings.data,
        dataset_roots=roots,
        checkpoints=checkpoints,
        results=arguments.results or settings.results,
        plugins=tuple(str(path.absolute()) for path in arguments.plugin),
        cache=settings.cache,
        cache_gib=settings.cache_gib,
        skip_missing=arguments.skip_missing,
    )
    named: dict[str, Iterable[Path | str | None]] = {
        "--data": [request.data_root],
        "--datasets": roots.values(),
        "--checkpoint": [file for file in checkpoints.values() if str(file) != "none" and not is_word(Path(file))],
        "--plugin": request.plugins,
        "--results": [request.results],
        "cache": [request.cache],
    }
    for what, paths in named.items():
        for path in (each for each in paths if each):
            require_text(path, what=what)
    tuning = tuning_of(arguments, request)
    runs_on = {*request.benchmarks, *(tuning.on if tuning else ())}
    for name in (key.split(".")[1] for key in typed[0] if key.startswith("benchmarks.")):
        if dataset_name(name) not in runs_on:
            raise UsageError(
                f"--set benchmarks.{name}.… has no effect, nothing runs on {name}; add it to --datasets, or leave this out"
            )
    return Understood(request=request, cluster_overrides=of_cluster, tuning=tuning, note=note)


def _with_choices(row: PlannedRow, choose: Mapping[str, Sequence[Any]]) -> list[PlannedRow]:
    """A row under every value that its seeds choose from, each under the row's own name."""
    grid = choices_of(row.method, row.options, choose)
    return [
        replace(row, label=row.name, options={**row.options, **dict(zip(grid, values, strict=True))}) if grid else row
        for values in itertools.product(*grid.values())
    ]


def _benchmarks(words: str, settings: Settings) -> tuple[tuple[str, ...], dict[str, Path], list[str]]:
    """The words of ``--datasets`` as names; the folders of those that have one, by ``NAME=DIR`` or the settings; and the names of
    the user's own data sets.

    Raises:
        UsageError: an unknown name, or two folders for one.
    """
    names: list[str] = []
    folders: dict[str, Path] = {}
    known = [name for name in usable(BENCHMARKS) if not is_own(name)]
    for word in expand(words, known):
        name, equals, folder = word.partition("=")
        if not equals:
            name = dataset_name(word)
            there = {} if name in known else named_table(settings, "datasets", dataset_name)
            if name not in there:
                try:
                    names.append(BENCHMARKS.resolve(word))
                except UsageError as error:
                    raise UsageError(f"{error}; a folder of your own is --datasets {name}=DIR") from error
                continue
            folder = str(there[name])
        if not name.strip() or not folder:
            raise UsageError(f"--datasets {word!r} is not NAME=DIR, such as --datasets mine=/data/mine")
        names.append(name := dataset_name(name))
        if name in folders:
            raise UsageError(f"--datasets {word!r}: {name} has another folder on this command line; give one of them")
        folders[name] = Path(folder).expanduser()
    return tuple(names), folders, [name for name in folders if name not in known]


def tuning_of(arguments: argparse.Namespace, request: Request) -> Tuning | None:
    """What is tuned before the runs, None for nothing. Raises UsageError: malformed grids, one of a method that is not compared, or
    the card has none."""
    chosen: dict[str, Any] = {"grids": {}}
    if arguments.study:
        study = load_study(arguments.study)
        grids = _of_rows(study.tune, request.rows) if arguments.methods or arguments.set else study.tune
        chosen = {"grids": grids, "seeds": study.tune_seeds, "on": study.tune_on}
    set_rules = split_overrides(request.overrides)[0]
    card = load_protocol(request.protocol, set_rules)
    if arguments.tune == ["card"]:
        chosen["grids"] = _of_rows(card.tune, request.rows)
        if not chosen["grids"]:
            raise UsageError(
                f"--tune card: the protocol {request.protocol} has no grids of these methods; give some, such as --tune lr=1e-4,1e-3"
            )
    elif arguments.tune:
        chosen["grids"] = parse_tune(arguments.tune)
    if not chosen["grids"]:
        if arguments.tune_seeds or arguments.tune_on:
            raise UsageError("--tune-seeds and --tune-on say how to tune; say what with --tune lr=1e-4,3e-4,1e-3")
        return None
    if arguments.study and study.choose and (options := [name for name in chosen["grids"] if not is_rule(name)]):
        raise UsageError(
            f"--tune {options[0]}: the study {study.name} chooses options for each seed ('choose'); leave --tune away"
        )
    fixed = [name for name in chosen["grids"] if is_rule(name) and name in set_rules]
    if fixed and arguments.tune and arguments.tune != ["card"]:
        raise UsageError(f"--set {fixed[0]} and --tune {fixed[0]} are of one rule; give one of them")
    chosen["grids"] = {name: values for name, values in chosen["grids"].items() if name not in fixed}
    if card.decoder_lr is not None:
        chosen["known"] = {"decoder_lr": [card.decoder_lr]}
    if arguments.tune_seeds:
        chosen["seeds"] = parse_seeds(arguments.tune_seeds, name="--tune-seeds")
    if arguments.tune_on:
        chosen["on"] = tuple(expand(arguments.tune_on, list(request.benchmarks)))
    return Tuning(**chosen)


def _of_rows(grids: Mapping[str, Sequence[Any]], rows: Sequence[PlannedRow]) -> dict[str, Sequence[Any]]:
    """The grids of a card or a study, as far as they are of rules or of a row that is compared."""
    tried = tried_fields((row, grid_of(row.method, row.options, grids)) for row in rows)
    return {name: values for name, values in grids.items() if is_rule(name) or name in tried}


def _of_study(name: str, backbone: str | None) -> dict[str, Any]:
    study = load_study(name)
    under = study.by_backbone.get(resolve_backbone(backbone), {}) if backbone else {}
    if not study.entries:
        raise UsageError(f"study {study.name} has no runs of its own; measure it with sam-peft cost")
    return {
        "rows": tuple(PlannedRow(**vars(row)) for row in study.entries),
        "benchmarks": study.benchmarks,
        "protocol": study.card or study.protocol,
        "seeds": study.seeds,
        "backbones": study.backbones,
        "decoders": study.decoders,
        "choose": study.choose,
        "set": {**study.set, **under, **({"budget": study.budget} if study.budget else {})},
    }


def _card(chosen: str, settings: Settings, *, has_files: bool) -> tuple[str, str]:
    """The card, and a line if it is a default."""
    if chosen or settings.protocol:
        return chosen or settings.protocol, ""
    if has_files:
        return WITH_DATA, f"no --protocol, so the protocol {WITH_DATA}: the paper's rules"
    return WITHOUT_DATA, (
        f"no data is set, so the protocol {WITHOUT_DATA}: generated images, numbers that rank nothing; "
        "--data DIR for real ones (data in harness.toml remembers it)"
    )


def checkpoint_of(run: Run, settings: Settings, *, given: Path | None = None) -> Path | None:
    """The pretrained weights of a finished run, those that a word stands for downloaded; None where none are set, or it used none.

    Args:
        given: on the command line, before what is set for the run's backbone.

    Raises:
        UsageError: a word for a run from random weights, or what `published_file` says.
    """
    if not run.checkpoint:
        if given is not None and is_word(given):
            raise UsageError(f"run {run.key} started from random weights; leave --checkpoint {given} away")
        return given
    path = given or named_table(settings, "checkpoints", resolve_backbone).get(run.backbone)
    if path is None or str(path) == "none":
        return None
    return published_file(run.backbone, str(path)) if is_word(path) else path


def data_folder(run: Run, settings: Settings | None, *, given: Path | None, results: Path) -> Path | None:
    """The folder of a finished run's benchmark: ``given``; else the generated samples of a run on them, as far as they are still
    there; else what ``settings`` name."""
    if given is None and run.is_generated:
        samples = results / "sample-data" / run.benchmark
        return samples if samples.is_dir() else None
    if given is not None or settings is None:
        return given
    return named_table(settings, "datasets", dataset_name).get(run.benchmark) or settings.data
