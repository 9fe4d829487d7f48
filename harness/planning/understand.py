"""Turn a command line (``lora[rank=6],all``, ``--seeds 5``, ``NAME=DIR``) into a `Request`; settings stand in where
the command line says nothing."""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from harness.archive.schema import Run
from harness.check import parse_assignments
from harness.methods import PEFT_METHODS
from harness.models.catalog import resolve_backbone
from harness.models.published import checkpoint_paths, is_word, published_file
from harness.planning.data import register_own
from harness.planning.request import PlannedRow, Request
from harness.planning.tuning import Tuning, tuning_of
from harness.protocols.load import load_protocol
from harness.protocols.protocol import Protocol
from harness.registry import BENCHMARKS, METHODS, dataset_name, is_own, option_names, trains
from harness.settings import Settings, named_table
from harness.studies import MOST_SEEDS, Study, choices_of, load_study
from harness.system.errors import UsageError
from harness.system.files import require_text
from harness.system.streams import say


def all_methods() -> list[str]:
    """The methods that ``all`` stands for: those that train something. The others need a whole pretrained segmenter, which not
    every backbone has, so they must be named."""
    return [name for name in METHODS.names() if trains(name) != "nothing"]


def split_words(text: str) -> list[str]:
    """Split text at commas that are not inside brackets. Raises UsageError: a bracket is not closed."""
    if text.count("[") != text.count("]"):
        raise UsageError(f"{text!r}: a bracket is not closed")
    # An option may be a list, in brackets itself.
    words = re.findall(r"(?:[^,\[]|\[(?:[^\[\]]|\[[^\[\]]*\])*\])+", text)
    return [word for word in map(str.strip, words) if word]


def parse_rows(text: str, everything: Sequence[str] | None = None) -> tuple[PlannedRow, ...]:
    """Rows such as ``lora[rank=6,alpha=12],all``: ``all`` stands for ``everything`` (default: `all_methods`), ``peft/all`` for all of
    peft's tuners. Raises UsageError: see `parse_row`."""
    several = {"all": everything or all_methods(), "peft/all": list(PEFT_METHODS)}
    return tuple(parse_row(name) for word in split_words(text) for name in several.get(word, [word]))


def parse_row(word: str) -> PlannedRow:
    """``lora[rank=6,alpha=12]`` as a row; a value with a comma is put in quotes: ``lora[sites='q,v']``. Raises UsageError: not
    of this form, or an unknown method."""
    match = re.fullmatch(r"([^\[\]]+)(?:\[(.*)\])?", word)
    if not match:
        raise UsageError(f"--methods: {word!r} is not NAME or NAME[option=value,…]")
    items = re.findall(r"""((?:[^,'"\[]|'[^']*'|"[^"]*"|\[[^\]]*\])+)""", match[2] or "")
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
    for method, given in options.items():
        if method not in named:
            raise UsageError(
                f"--set {method}.… has no effect: {method} is not among the compared methods ({', '.join(named)})"
            )
        own = [row.options for row in rows if row.method == method]
        if fixed := [field for field in given if all(field in options for options in own)]:
            raise UsageError(f"--set {method}.{fixed[0]} has no effect: every row of {method} sets {fixed[0]} itself")


def split_overrides(overrides: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """``lora.rank`` goes to the method ``lora``; every other key to the protocol. Raises UsageError: an option without its method, or an
    unknown benchmark."""
    protocol: dict[str, Any] = {}
    methods: dict[str, dict[str, Any]] = {}
    own_tables = {f.name for f in fields(Protocol)}
    for key, value in overrides.items():
        head, dot, rest = key.partition(".")
        if dot and head not in own_tables:
            methods.setdefault(METHODS.resolve(head), {})[rest] = value
        elif head == "benchmarks":
            benchmark, _, rule = rest.partition(".")
            protocol[f"{head}.{dataset_name(benchmark)}.{rule}"] = value
        elif dot or key in own_tables:
            protocol[key] = value
        elif having := [name for name in METHODS.names() if key in option_names(name)]:
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


def understand(arguments: argparse.Namespace, settings: Settings) -> tuple[Request, Tuning | None, dict[str, Any]]:
    """What the arguments of ``run`` ask for; settings fill in what they leave open.

    Args:
        arguments: of `harness.run`'s parser, its plug-ins loaded.

    Returns:
        The request, the tuning that comes first, and ``--set cluster.KEY=VALUE`` as a mapping.

    Raises:
        UsageError: an argument or a setting is missing or malformed.
    """
    study = load_study(arguments.study) if arguments.study else None
    typed, files = parse_assignments(arguments.set), checkpoint_paths(arguments.checkpoint)
    of_cluster = {key.removeprefix("cluster."): typed.pop(key) for key in list(typed) if key.startswith("cluster.")}
    rules, options = split_overrides(typed)
    rows, of_study = _rows(arguments.methods, study, options, backbone=arguments.backbone)
    rows = tuple(row for at, row in enumerate(rows) if row not in rows[:at])  # such as lora of lora,all
    benchmarks, folders, own = study.benchmarks if study else (), dict[str, Path](), list[str]()
    if arguments.datasets:
        benchmarks, folders, own = _benchmarks(arguments.datasets, settings)
    for given, example in ((rows, "--methods lora,naslora"), (benchmarks, "--datasets all")):
        if not given:
            raise UsageError(f"give {example} (or --study NAME for a whole table; --help lists everything)")
    tune_on = tuple(_or_all(arguments.tune_on, benchmarks)) if arguments.tune_on else ()
    tune_seeds = parse_seeds(arguments.tune_seeds, name="--tune-seeds") if arguments.tune_seeds else ()
    seeds = parse_seeds(arguments.seeds) if arguments.seeds is not None else study.seeds if study else (0,)
    named_one_by_one = arguments.methods and not {"all", "peft/all"} & set(split_words(arguments.methods))
    _require_benchmarks(rules, {*benchmarks, *tune_on, *(study.tune_on if study else ())})
    # A file for every backbone on the command line takes precedence over the settings.
    checkpoints = files if "" in files else {**named_table(settings, "checkpoints", resolve_backbone), **files}
    has_files = folders or any(str(path) != "none" for path in checkpoints.values())
    name = arguments.protocol or (study.protocol_file or study.protocol if study else "")
    name = name or _default_protocol(settings, has_files=bool(has_files or arguments.data))
    protocols = _protocols(name, study, of_study, rules)
    folders |= register_own(own, folders, protocols[0])
    request = Request(
        rows=rows,
        benchmarks=benchmarks,
        protocol=protocols[0],
        protocols=protocols[1:],
        backbones=(arguments.backbone,) if arguments.backbone else study.backbones if study else (),
        seeds=seeds,
        study=study,
        checkpoints=checkpoints,
        leave_out_unfit=not named_one_by_one,
        **_inputs_and_outputs(arguments, settings, folders, protocols[0]),
    )
    of_weights = [path for path in files.values() if str(path) != "none" and not is_word(path)]
    _require_texts(request, {"--datasets": folders.values(), "--checkpoint": of_weights})
    of_rows, overrides = bool(arguments.methods or arguments.set), {**of_study, **rules}
    tuning = tuning_of(request, study, overrides, grids=arguments.tune, seeds=tune_seeds, on=tune_on, of_rows=of_rows)
    return request, tuning, of_cluster


def _protocols(
    name: str, study: Study | None, of_study: Mapping[str, Any], rules: Mapping[str, Any]
) -> tuple[Protocol, ...]:
    """The protocol under all overrides, then under every decoder and prompt that a study names and the command line does not set."""
    overrides = {**of_study, **rules}
    decoders = study.decoders if study and "decoder" not in rules else {}
    prompts = study.prompts if study and "prompt" not in rules else ()
    by_decoder = [{**further, "decoder": decoder} for decoder, further in decoders.items()] or [{}]
    by_prompt = [{"prompt": prompt} for prompt in prompts] or [{}]
    several = itertools.product(by_decoder, by_prompt) if decoders or prompts else ()
    changes = [{}, *({**of_decoder, **of_prompt} for of_decoder, of_prompt in several)]
    return tuple(load_protocol(name, {**overrides, **further}) for further in changes)


def _inputs_and_outputs(
    arguments: argparse.Namespace, settings: Settings, folders: Mapping[str, Path], protocol: Protocol
) -> dict[str, Any]:
    """Where a request reads and writes. ``folders``: those of benchmarks that the command line names."""
    generated = protocol.data == "sample"
    if generated and arguments.data:
        raise UsageError(
            f"--data has no effect with the protocol {protocol.name}, whose images are generated; take another"
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
    rows = parse_rows(methods) if methods else ()
    if study is None:
        if rows:
            require_rows(options, rows)
        return with_options(rows, options), {}
    if not study.entries:
        raise UsageError(f"study {study.name} has no runs of its own; measure it with sam-peft cost")
    under = study.by_backbone.get(resolve_backbone(backbone), {}) if backbone else {}
    rules, of_study = split_overrides({**study.set, **under, **({"budget": study.budget} if study.budget else {})})
    rows = rows or tuple(PlannedRow(**vars(row)) for row in study.entries)
    require_rows(options, rows)
    rows = with_options(with_options(rows, options), of_study)
    return tuple(each for row in rows for each in _one_per_choice(row, study.choose)), rules


def _require_texts(request: Request, given: Mapping[str, Iterable[Path | str]]) -> None:
    """Refuse paths that are not UTF-8, since a sweep's files could not name them; ``given``: option -> its paths."""
    single = {"--results": request.results, "--data": request.data_root, "cache": request.cache}
    named = {**given, "--plugin": request.plugins, **{what: [path] for what, path in single.items() if path}}
    for what, paths in named.items():
        for path in paths:
            require_text(path, what=what)


def _require_benchmarks(rules: Mapping[str, Any], runs_on: Collection[str]) -> None:
    """Refuse a rule of ``--set`` for a benchmark on which nothing runs."""
    for name in (key.split(".")[1] for key in rules if key.startswith("benchmarks.")):
        if name not in runs_on:
            raise UsageError(
                f"--set benchmarks.{name}.… has no effect, because nothing runs on {name}; add it to --datasets, or drop the option"
            )


def _one_per_choice(row: PlannedRow, choose: Mapping[str, Sequence[Any]]) -> list[PlannedRow]:
    """One copy of the row for every value that its seeds choose from, all under the row's name."""
    grid = choices_of(row.method, row.options, choose)
    return [
        replace(row, label=row.name, options={**row.options, **dict(zip(grid, values, strict=True))}) if grid else row
        for values in itertools.product(*grid.values())
    ]


def _or_all(text: str, everything: Sequence[str]) -> list[str]:
    return [name for word in split_words(text) for name in (everything if word == "all" else [word])]


def _benchmarks(words: str, settings: Settings) -> tuple[tuple[str, ...], dict[str, Path], list[str]]:
    """Parse ``--datasets``: the benchmark names; their folders, where ``NAME=DIR`` or the settings give one; and the names of
    the user's own data sets.

    Raises:
        UsageError: an unknown name, or two folders for one.
    """
    names: list[str] = []
    folders: dict[str, Path] = {}
    known = [name for name in BENCHMARKS.names() if BENCHMARKS.is_fixed(name) or not is_own(name)]
    for word in _or_all(words, known):
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


def _default_protocol(settings: Settings, *, has_files: bool) -> str:
    """The protocol where the command line names none; a line says which, unless the settings name it."""
    if settings.protocol:
        return settings.protocol
    if has_files or settings.data or settings.datasets:
        say(f"no --protocol is given: using {WITH_DATA}, the paper's rules")
        return WITH_DATA
    say(
        f"no data is set: using the protocol {WITHOUT_DATA} on generated images, whose scores do not rank methods; "
        "--data DIR for real ones (data in harness.toml remembers it)"
    )
    return WITHOUT_DATA


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
