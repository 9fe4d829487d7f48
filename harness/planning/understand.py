"""Turn a command line (``lora[rank=6],all``, ``--seeds 5``, ``NAME=DIR``) into a `Request`; settings stand in where
the command line says nothing. No torch here."""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.archive.schema import Run
from harness.check import parse_assignments
from harness.datasets.own import any_folder
from harness.methods import TUNERS
from harness.models.catalog import resolve_backbone
from harness.models.published import checkpoint_paths, is_word, published_file
from harness.planning.data import data_options
from harness.planning.request import PlannedRow, Request, split_overrides, with_options
from harness.planning.tuning import Tuning, parse_tune, tried_fields
from harness.protocols.card import Protocol
from harness.protocols.load import load_protocol, resolve
from harness.registry import BENCHMARKS, METHODS, Registry, dataset_name, is_own, trains
from harness.settings import Settings, named_table
from harness.studies import MOST_SEEDS, Study, choices_of, grid_of, is_rule, load_study
from harness.system.errors import UsageError
from harness.system.files import require_text


def usable(registry: Registry) -> list[str]:
    """The names that ``all`` stands for; broken plug-ins are named on stderr and left out."""
    names, broken = registry.usable_names()
    for line in broken:
        print(line, file=sys.stderr)
    return names


def all_methods() -> list[str]:
    """The methods that ``all`` stands for: those that train something. The others need a whole pretrained segmenter, which not
    every backbone has, so they must be named."""
    return [name for name in usable(METHODS) if trains(name) != "nothing"]


def split_words(text: str, everything: list[str]) -> list[str]:
    """Split text at commas that are not inside brackets; ``all`` stands for ``everything``. Raises UsageError: a bracket is not
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
    """Raises UsageError if an option of ``--set METHOD.FIELD=VALUE`` applies to no row.

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
    """``5`` means seeds 0 to 4, ``0,3,7`` these three, and ``7,`` seed 7 alone. Raises UsageError: not whole numbers of at
    most nine digits, none, a duplicate, or more than `MOST_SEEDS`."""
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
    """The request of a command line, and what goes with it.

    Args:
        cluster_overrides: ``--set cluster.KEY=VALUE``.
        tuning: the tuning that comes first, None without one.
        note: a line about a default that was chosen, else empty.
    """

    request: Request
    cluster_overrides: Mapping[str, Any]
    tuning: Tuning | None = None
    note: str = ""


def understand(arguments: argparse.Namespace, settings: Settings) -> Understood:
    """Turn the arguments of ``run`` into a request; settings fill in what they leave open.

    Args:
        arguments: of `harness.run`'s parser, its plug-ins loaded.

    Raises:
        UsageError: an argument or a setting is missing or malformed.
    """
    study = load_study(arguments.study) if arguments.study else None
    typed = parse_assignments(arguments.set)
    of_cluster = {key.removeprefix("cluster."): typed.pop(key) for key in list(typed) if key.startswith("cluster.")}
    rules, options = split_overrides(typed)
    rows, of_study = _rows(arguments.methods, study, options, backbone=arguments.backbone)
    benchmarks, folders, own = study.benchmarks if study else (), dict[str, Path](), list[str]()
    if arguments.datasets:
        benchmarks, folders, own = _benchmarks(arguments.datasets, settings)
    for given, example in ((rows, "--methods lora,naslora"), (benchmarks, "--datasets all")):
        if not given:
            raise UsageError(f"give {example} (or --study NAME for a whole table; --help lists everything)")
    checkpoints = _checkpoints(arguments.checkpoint, settings)
    has_data = bool(arguments.data or folders or settings.data or settings.datasets)
    has_files = has_data or any(str(path) != "none" for path in checkpoints.values())
    chosen = arguments.protocol or (study.card or study.protocol if study else "")
    protocol, note = _card(chosen, settings, has_files=has_files)
    card = load_protocol(protocol, {**of_study, **rules})
    _add_own(own, folders, card)
    request = Request(
        rows=rows,
        benchmarks=benchmarks,
        protocol=protocol,
        overrides={**of_study, **rules},
        backbones=(arguments.backbone,) if arguments.backbone else study.backbones if study else (),
        prompts=study.prompts if study and "prompt" not in rules else (),
        decoders=study.decoders
        if study and "decoder" not in rules
        else {},  # the command line's word instead of several
        seeds=parse_seeds(arguments.seeds) if arguments.seeds is not None else study.seeds if study else (0,),
        checkpoints=checkpoints,
        **_places(arguments, settings, folders, card),
    )
    _require_texts(request)
    tuning = tuning_of(
        request,
        card,
        study=study,
        of_rows=bool(arguments.methods or arguments.set),
        grids=arguments.tune,
        seeds=arguments.tune_seeds,
        on=arguments.tune_on,
    )
    _require_benchmarks(rules, {*request.benchmarks, *(tuning.on if tuning else ())})
    return Understood(request=request, cluster_overrides=of_cluster, tuning=tuning, note=note)


def _places(
    arguments: argparse.Namespace, settings: Settings, folders: Mapping[str, Path], card: Protocol
) -> dict[str, Any]:
    """Where a request reads and writes. ``folders``: those of benchmarks that the command line names."""
    generated = card.data == "sample"
    if generated and arguments.data:
        raise UsageError(
            f"--data has no effect with the protocol {card.name}, whose images are generated; take another"
            " --protocol, or say which folders count with --datasets NAME=DIR"
        )
    of_settings = {} if arguments.data or generated else named_table(settings, "datasets", dataset_name)
    return {
        "data_root": arguments.data or settings.data,
        "dataset_roots": {**of_settings, **folders},  # a folder of the command line beats all that settings say of data
        "results": arguments.results or settings.results,
        "plugins": tuple(str(path.absolute()) for path in arguments.plugin),
        "cache": settings.cache,
        "cache_gib": settings.cache_gib,
        "skip_missing": arguments.skip_missing,
    }


def _rows(
    methods: str | None, study: Study | None, options: Mapping[str, Mapping[str, Any]], *, backbone: str | None
) -> tuple[tuple[PlannedRow, ...], dict[str, Any]]:
    """The rows with the options of ``--set``, which appear in row names and are not tuned; and the rules that a study sets.

    Args:
        options: of ``--set``: method -> field -> value.
        backbone: of the command line; a study may have rules of its own under it.
    """
    words = split_words(methods, all_methods()) if methods else ()
    if study is None:
        if not words:
            return (), {}
        rows = tuple(map(parse_row, words))
        require_rows(options, rows)
        return with_options(rows, options), {}
    if not study.entries:
        raise UsageError(f"study {study.name} has no runs of its own; measure it with sam-peft cost")
    under = study.by_backbone.get(resolve_backbone(backbone), {}) if backbone else {}
    rules, of_study = split_overrides({**study.set, **under, **({"budget": study.budget} if study.budget else {})})
    rows = tuple(map(parse_row, words)) or tuple(PlannedRow(**vars(row)) for row in study.entries)
    require_rows(options, rows)
    rows = with_options(with_options(rows, options), of_study)
    return tuple(each for row in rows for each in _with_choices(row, study.choose)), rules


def _checkpoints(words: list[str], settings: Settings) -> dict[str, Path]:
    """Backbone -> its file. A file for every backbone on the command line takes precedence over the settings."""
    files = checkpoint_paths(words)
    return files if "" in files else {**named_table(settings, "checkpoints", resolve_backbone), **files}


def _add_own(names: Iterable[str], folders: dict[str, Path], card: Protocol) -> None:
    """Register the user's own data sets. The card's group pattern and category help to recognise a folder."""
    for name in names:
        benchmark, folders[name] = any_folder(name, folders[name], data_options(resolve(card, name), name))
        BENCHMARKS.add(name, benchmark)


def _require_texts(request: Request) -> None:
    """Refuse paths that are not valid text, since a sweep's files could not store them."""
    files = [file for file in request.checkpoints.values() if str(file) != "none" and not is_word(Path(file))]
    named: dict[str, Iterable[Path | str | None]] = {
        "--data": [request.data_root],
        "--datasets": request.dataset_roots.values(),
        "--checkpoint": files,
        "--plugin": request.plugins,
        "--results": [request.results],
        "cache": [request.cache],
    }
    for what, paths in named.items():
        for path in paths:
            if path:
                require_text(path, what=what)


def _require_benchmarks(rules: Mapping[str, Any], runs_on: Collection[str]) -> None:
    """Refuse a rule of ``--set`` for a benchmark on which nothing runs."""
    for name in (key.split(".")[1] for key in rules if key.startswith("benchmarks.")):
        if dataset_name(name) not in runs_on:
            raise UsageError(
                f"--set benchmarks.{name}.… has no effect, because nothing runs on {name}; add it to --datasets, or leave this out"
            )


def _with_choices(row: PlannedRow, choose: Mapping[str, Sequence[Any]]) -> list[PlannedRow]:
    """One copy of the row for every value that its seeds choose from, all under the row's name."""
    grid = choices_of(row.method, row.options, choose)
    return [
        replace(row, label=row.name, options={**row.options, **dict(zip(grid, values, strict=True))}) if grid else row
        for values in itertools.product(*grid.values())
    ]


def _benchmarks(words: str, settings: Settings) -> tuple[tuple[str, ...], dict[str, Path], list[str]]:
    """Parse ``--datasets``: the benchmark names; their folders, where ``NAME=DIR`` or the settings give one; and the names of
    the user's own data sets.

    Raises:
        UsageError: an unknown name, or two folders for one.
    """
    names: list[str] = []
    folders: dict[str, Path] = {}
    known = [name for name in usable(BENCHMARKS) if not is_own(name)]
    for word in split_words(words, known):
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
            raise UsageError(f"--datasets {word!r}: {name} is given two folders; give one of them")
        folders[name] = Path(folder).expanduser()
    return tuple(names), folders, [name for name in folders if name not in known and not BENCHMARKS.is_fixed(name)]


def tuning_of(
    request: Request,
    card: Protocol,
    *,
    study: Study | None,
    of_rows: bool,
    grids: Sequence[str],
    seeds: str | None,
    on: str | None,
) -> Tuning | None:
    """What is tuned before the runs; None without tuning.

    Args:
        card: the protocol with all overrides.
        of_rows: keep only those of a study's grids that apply to a compared row.
        grids, seeds, on: of ``--tune``, ``--tune-seeds`` and ``--tune-on``; None for the study's.

    Raises:
        UsageError: malformed grids, one of a method that is not compared, or the card has none.
    """
    tried = _grids(grids, request, card, study, of_rows=of_rows)
    if not tried:
        if seeds or on:
            raise UsageError("--tune-seeds and --tune-on need a grid to tune, such as --tune lr=1e-4,3e-4,1e-3")
        return None
    if study and study.choose and (options := [name for name in tried if not is_rule(name)]):
        raise UsageError(
            f"--tune {options[0]}: the study {study.name} chooses options for each seed ('choose'); leave out --tune"
        )
    fixed = [name for name in tried if is_rule(name) and name in request.overrides]
    if fixed and grids and grids != ["card"]:
        raise UsageError(f"--set {fixed[0]} and --tune {fixed[0]} set the same rule; give only one of them")
    return Tuning(
        grids={name: values for name, values in tried.items() if name not in fixed},
        seeds=parse_seeds(seeds, name="--tune-seeds") if seeds else study.tune_seeds if study else (0,),
        on=tuple(split_words(on, list(request.benchmarks))) if on else study.tune_on if study else (),
        known={} if card.decoder_lr is None else {"decoder_lr": [card.decoder_lr]},
    )


def _grids(
    words: Sequence[str], request: Request, card: Protocol, study: Study | None, *, of_rows: bool
) -> Mapping[str, Sequence[Any]]:
    """The grids of ``--tune``, of the card that it names, or of the study."""
    if words == ["card"]:
        if grids := _of_rows(card.tune, request.rows):
            return grids
        raise UsageError(
            f"--tune card: the protocol {request.protocol} has no grids of these methods; give some, such as --tune lr=1e-4,1e-3"
        )
    if words:
        return parse_tune(words)
    if study is None:
        return {}
    return _of_rows(study.tune, request.rows) if of_rows else study.tune


def _of_rows(grids: Mapping[str, Sequence[Any]], rows: Sequence[PlannedRow]) -> dict[str, Sequence[Any]]:
    """The grids of a card or a study that apply to a rule or to a compared row."""
    tried = tried_fields((row, grid_of(row.method, row.options, grids)) for row in rows)
    return {name: values for name, values in grids.items() if is_rule(name) or name in tried}


def _card(chosen: str, settings: Settings, *, has_files: bool) -> tuple[str, str]:
    """The protocol's name, and a line that says so if it is the default."""
    if chosen or settings.protocol:
        return chosen or settings.protocol, ""
    if has_files:
        return WITH_DATA, f"no --protocol, so the protocol {WITH_DATA}: the paper's rules"
    return WITHOUT_DATA, (
        f"no data is set, so the protocol {WITHOUT_DATA}: generated images, whose scores do not rank methods; "
        "--data DIR for real ones (data in harness.toml remembers it)"
    )


def checkpoint_of(run: Run, settings: Settings, *, given: Path | None = None) -> Path | None:
    """The pretrained weights of a finished run, downloaded if a word such as ``published`` stands for them. None if none are
    set, or the run used none.

    Args:
        given: the command line's checkpoint, which takes precedence over the settings.

    Raises:
        UsageError: a word for a run from random weights, or what `published_file` says.
    """
    if not run.checkpoint:
        if given is not None and is_word(given):
            raise UsageError(f"run {run.key} started from random weights; leave out --checkpoint {given}")
        return given
    path = given or named_table(settings, "checkpoints", resolve_backbone).get(run.backbone)
    if path is None or str(path) == "none":
        return None
    return published_file(run.backbone) if is_word(path) else path


def data_folder(run: Run, settings: Settings | None, *, given: Path | None, results: Path) -> Path | None:
    """The folder of a finished run's benchmark: ``given``; else the generated samples of a run on them, as far as they are still
    there; else what ``settings`` name."""
    if given is None and run.origin == "generated":
        samples = results / "sample-data" / run.benchmark
        return samples if samples.is_dir() else None
    if given is not None or settings is None:
        return given
    return named_table(settings, "datasets", dataset_name).get(run.benchmark) or settings.data
