"""From a request to frozen jobs. Names are resolved, rules validated and missing files found before anything starts.

`find` looks for what all steps of a command share: checkpoints and data. `plan` expands the rows of one step and matches the runs with
earlier records.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from harness.archive.older import same_data
from harness.archive.schema import Run, content_hash
from harness.archive.store import RecordStore
from harness.evaluation.conventions import OF_TASK
from harness.methods.parts.placement import MethodError
from harness.models.catalog import backbone_shape, require_stands, resolve_backbone
from harness.models.decoders import LABELLING
from harness.models.published import fingerprint, is_word, published_file
from harness.planning.data import Files, ImageCounts, files_of, rules_for, rules_on_files
from harness.planning.request import Job, PlannedRow, Request
from harness.planning.work import trained_in_encoder
from harness.protocols.load import as_rules, for_backbone, protocol_hash, with_rules
from harness.protocols.protocol import Protocol
from harness.registry import BENCHMARKS, METHODS, dataset_name, method_config, method_config_class
from harness.system.errors import UsageError
from harness.system.progress import spinner
from harness.system.text import first_of


class Pretrained(NamedTuple):
    """A checkpoint: its path and its fingerprint, both empty for random weights. ``missing``: what to do if the file is not there,
    else empty."""

    path: str = ""
    fingerprint: str = ""
    missing: str = ""


def _checkpoint(request: Request, backbone: str) -> Path | None:
    return request.checkpoints.get(backbone, request.checkpoints.get(""))


def pretrained(request: Request, backbone: str) -> Pretrained:
    """The checkpoint that a request gives a backbone. Raises UsageError: it does not fit, or its numbers are not finite."""
    path = _checkpoint(request, backbone)
    if path is None and request.protocol.data == "files":
        return Pretrained(
            missing=f"no checkpoint of {backbone} is given or set: give its pretrained file with --checkpoint FILE "
            "('published' downloads it where anybody may), or --checkpoint none to start from random weights"
        )
    if path is None or str(path) == "none":
        return Pretrained()
    if is_word(path):
        try:
            path = published_file(backbone)
        except UsageError as error:  # a plan names it with all else that is missing
            return Pretrained(path=str(path), fingerprint="missing", missing=str(error))
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is not a file" if path.exists() else "does not exist"
        missing = f"checkpoint {path} {what}; give the path of the pretrained {backbone} file"
        return Pretrained(path=str(path), fingerprint="missing", missing=missing)

    from harness.models.build import require_checkpoint  # imports torch, which other plans need not wait for

    require_checkpoint(backbone, path)
    return Pretrained(path=str(path.absolute()), fingerprint=fingerprint(path))


@dataclass(frozen=True, kw_only=True)
class ConfiguredRow(PlannedRow):
    """A row under a protocol; it has a label.

    Args:
        config: the method's whole configuration.
        changed: the fields of it that differ from the protocol's own.
    """

    config: Any
    changed: Mapping[str, Any]


def configured(row: PlannedRow, protocol: Protocol) -> ConfiguredRow:
    """A row with its configuration: the protocol's switches and its table for the method, then the row's options. Raises UsageError: an
    unknown field."""
    quirks: Mapping[str, str] = method_config_class(row.method).quirks
    values = {option: getattr(protocol.quirks, quirk) for option, quirk in quirks.items()}
    values |= protocol.methods.get(row.method, {})
    base = method_config(row.method, values)
    config = method_config(row.method, {**values, **row.options})
    changed = {name: value for name, value in asdict(config).items() if value != getattr(base, name)}
    return ConfiguredRow(**{**vars(row), "label": row.name}, config=config, changed=changed)


Keys = Mapping[tuple[int, str, str, str], Sequence[str]]
"""(number of the row in the request, benchmark, backbone, decoder) -> the keys of its runs, one a seed and prompt."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The runs of a command, and what prevents them from starting.

    Args:
        jobs: every run of the grid once, finished ones included, in grid order.
        finished: keys with an ``OK`` record already.
        failed: key -> reason code of an earlier attempt; these restart, on a cluster where ``--retry`` names the code.
        missing: what prevents runs from starting, one line each.
        problems: one line each: what is left out, odd data and records, rules and parts of methods that have no effect.
        images: benchmark -> the images of its splits on disk, before the protocol's limits.
        grid: identity of the grid, finished runs included.
    """

    jobs: tuple[Job, ...]
    finished: frozenset[str]
    failed: Mapping[str, str]
    missing: tuple[str, ...]
    protocol: Protocol
    images: Mapping[str, ImageCounts] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    grid: str = ""
    keys: Keys = field(default_factory=dict)

    @property
    def pending(self) -> tuple[Job, ...]:
        return tuple(job for job in self.jobs if job.run.key not in self.finished)

    def without(self, keys: Collection[str]) -> Plan:
        """The plan with fewer runs."""
        jobs = tuple(job for job in self.jobs if job.run.key not in keys)
        failed = {key: code for key, code in self.failed.items() if key not in keys}
        return replace(self, jobs=jobs, finished=self.finished.difference(keys), failed=failed)


class Found(NamedTuple):
    """What all steps of a command share: backbone -> its pretrained weights, and benchmark -> its files."""

    pretrained: Mapping[str, Pretrained]
    files: Mapping[str, Files]


def find(request: Request, *, also_on: Sequence[str] = (), samples: Path | None = None) -> Found:
    """The checkpoints and the data of a request.

    Args:
        also_on: further benchmarks, on which something is tuned.
        samples: see `files_of`.

    Raises:
        UsageError: as `plan`.
        DatasetError: the user's own data cannot be used.
    """
    protocol, names, files = request.protocol, benchmarks_of(request, *also_on), dict[str, Files]()
    for registry, named in ((METHODS, protocol.methods), (BENCHMARKS, protocol.benchmarks)):
        for name in named:
            registry.resolve(name)
    backbones = dict.fromkeys(resolve_backbone(name) for name in request.backbones or (protocol.backbone,))
    with spinner() as report:
        if any(str(path) != "none" for path in request.checkpoints.values()):
            report("loading torch to look into checkpoints")
        checkpoints = {backbone: pretrained(request, backbone) for backbone in backbones}
        for number, name in enumerate(names, start=1):
            rules = rules_for(name, protocol)
            writes = rules.data == "sample" and name not in request.dataset_roots
            doing = f"writing the {rules.name}'s images" if writes else "looking through images"
            report(f"{doing}: {name} ({number}/{len(names)})")
            files[name] = files_of(name, rules, request, samples=samples)
    return Found(checkpoints, files)


def plan(request: Request, found: Found) -> Plan:
    """Every run of a request, matched with earlier records.

    Args:
        found: by `find`, with all benchmarks of the request.

    Raises:
        UsageError, MethodError: an unknown name, a wrong value, a checkpoint that does not fit, data that changed since a
            finished run. Missing data and checkpoints are in `Plan.missing`.
    """
    with spinner() as report:
        report("planning")
        rows = [configured(row, request.protocol) for row in request.rows]
        unfit, left_out = _unfit(rows, found.pretrained, request, report)
        jobs, keys, problems = expand(rows, found, request, unfit=unfit)
    missing = [checkpoint.missing for checkpoint in found.pretrained.values() if checkpoint.missing]
    names = benchmarks_of(request)
    absent = {name: found.files[name].absent for name in names if found.files[name].absent}
    if absent and not (request.skip_missing and jobs):
        missing += _absent_lines(absent, request)
    finished, failed, unreadable = earlier(request.results, jobs)
    return Plan(
        jobs=tuple(jobs.values()),
        finished=finished,
        failed=failed,
        missing=tuple(missing),
        protocol=request.protocol,
        images={name: images for name in names if (images := found.files[name].images) is not None},
        problems=(*left_out, *unreadable, *problems),
        grid=content_hash(sorted(jobs)),
        keys=keys,
    )


def _unfit(
    rows: Sequence[ConfiguredRow], backbones: Iterable[str], request: Request, report: Callable[[str], None]
) -> tuple[set[tuple[int, str]], list[str]]:
    """The rows, by number, whose placement does not fit a backbone, where the request leaves these out, and a line for each: found while
    planning, not on a worker. Raises MethodError: where it does not, or where no row fits; UsageError: a plug-in's closed form fails."""
    unfit, lines = set[tuple[int, str]](), dict[str, None]()
    pairs = list(itertools.product(enumerate(rows), backbones))
    for (number, row), backbone in pairs:
        report(f"counting parameters of {row.label} on {backbone}")  # which takes minutes for some of peft's, once
        try:
            trained_in_encoder(row.method, asdict(row.config), backbone, image_size=request.protocol.image_size)
        except MethodError as error:
            unfit.add((number, backbone))
            if not request.leave_out_unfit or len(unfit) == len(pairs):
                raise
            lines[f"{row.label} is left out on {backbone}: {error}"] = None
        except UsageError:
            raise
        except Exception as error:  # a plug-in may raise anything
            failed = f"{type(error).__name__}: {error}"
            raise UsageError(f"method {row.method}: its encoder_parameters fails: {failed}") from error
    return unfit, list(lines)


def earlier(results: Path, jobs: Mapping[str, Job]) -> tuple[frozenset[str], dict[str, str], list[str]]:
    """Match ``jobs`` (by key) with records: the finished keys, the reason codes of failed ones, and a line for each unreadable
    record, whose run counts as not started. Raises UsageError: a finished record was made from other files than the benchmark
    has now, or a record that may be a finished one cannot be read for now."""
    store = RecordStore(results)
    finished: set[str] = set()
    failed: dict[str, str] = {}
    problems: list[str] = []
    outdated: dict[str, list[Path]] = {}
    for key, record in store.ended(jobs.keys(), surely=True).items():
        job = jobs[key]
        if isinstance(record, str):
            path = store.path(key)
            problems.append(
                f"{path} is not a readable record ({record}): its run counts as not started; once it has a new record, this file "
                f"is renamed to {path.name}.unreadable"
            )
        elif record.code != "OK":
            failed[key] = record.code
        else:
            finished.add(key)
            then, now = record.run.data_fingerprint, job.run.data_fingerprint
            if not same_data(then, now):
                outdated.setdefault(job.run.benchmark, []).append(store.path(key))
    if outdated:
        paths = next(iter(outdated.values()))
        raise UsageError(
            f"{', '.join(outdated)}: the files below {jobs[paths[0].stem].dataset_root} differ from those of finished records, "
            f"such as {paths[0]}; take another --results folder for the new files, or move those records away to run them again"
        )
    return frozenset(finished), failed, problems


def benchmarks_of(request: Request, *further: str) -> tuple[str, ...]:
    """The canonical names of a request's benchmarks, each once."""
    return tuple(dict.fromkeys(BENCHMARKS.resolve(name) for name in (*request.benchmarks, *further)))


def expand(
    rows: Sequence[ConfiguredRow], found: Found, request: Request, *, unfit: Collection[tuple[int, str]] = ()
) -> tuple[dict[str, Job], Keys, list[str]]:
    """Every run of the request: benchmarks by protocols by backbones by rows by seeds.

    Args:
        unfit: rows, by number, and backbones that are left out.

    Returns:
        The jobs by key, each once, in grid order; the keys of every row; a line for each problem of the rules or the data.

    Raises:
        UsageError: a row, a benchmark and a decoder do not fit each other.
    """
    jobs, keys = dict[str, Job](), dict[tuple[int, str, str, str], list[str]]()
    runs_on = dict[tuple[int, str, str], list[str]]()
    problems, left_out = dict[str, None](), dict[str, None]()
    on_backbones = [
        (protocol, backbone, protocol_hash(for_backbone(protocol, backbone)))
        for protocol, backbone in itertools.product(request.protocols or [request.protocol], found.pretrained)
    ]
    for name in benchmarks_of(request):
        files, task = found.files[name], BENCHMARKS.get(name).task
        if files.absent and request.skip_missing:
            problems[f"{name} is left out: {files.absent}"] = None
            continue
        problems |= dict.fromkeys(files.odd)
        for protocol, backbone, digest in on_backbones:
            for_all = for_backbone(rules_on_files(name, protocol, files), backbone)
            problems |= dict.fromkeys(_one_mask(name, task, for_all))
            recorded, segmenter = as_rules(for_all), (backbone, for_all.decoder)  # once, since asdict is slow
            for number, row in enumerate(rows):
                if name not in (row.benchmarks or (name,)) or segmenter not in (row.segmenters or (segmenter,)):
                    continue
                if (number, backbone) in unfit:
                    continue
                chosen = {**request.chosen_rules.get((name, *segmenter), {}), **row.trial_rules}
                rules = with_rules(for_all, chosen) if chosen else for_all
                try:
                    _require_fit(row, name, task, backbone, rules, request)
                except Untestable as error:
                    if not request.leave_out_unfit:
                        raise
                    left_out[f"{row.label} is left out on {backbone}, {name}: {error}"] = None
                    continue
                of_row = as_rules(rules) if chosen else recorded
                runs_on.setdefault((number, *segmenter), []).append(name)
                for job in _jobs(row, name, backbone, found, request, recorded=of_row, digest=digest):
                    jobs.setdefault(job.run.key, job)  # two words may name one run: naslora,all
                    keys.setdefault((number, name, *segmenter), []).append(job.run.key)
    if left_out and not jobs:
        raise UsageError(next(iter(left_out)))
    for (number, _, backbone, decoder), of_seeds in keys.items():
        on = runs_on[number, backbone, decoder]
        jobs |= {key: replace(job := jobs[key], run=replace(job.run, planned_benchmarks=on)) for key in of_seeds}
    return jobs, keys, [*left_out, *problems, *_never_reached(job.run for job in jobs.values())]


def _never_reached(runs: Iterable[Run]) -> list[str]:
    """A line for each part of a method that its runs never reach."""
    labels: dict[str, dict[str, None]] = {}
    for run in runs:
        if run.never_reached:
            labels.setdefault(run.never_reached, {})[run.label] = None
    return [f"{first_of(list(rows))}: {words}" for words, rows in labels.items()]


def _one_mask(benchmark: str, task: str, rules: Protocol) -> list[str]:
    if rules.mask_tokens > 1 or rules.decoder != "sam" or task != "multiclass":
        return []
    return [
        f"{benchmark}: mask_tokens is 1, so every pixel of an image gets the same class (quirk 10); "
        f"--set benchmarks.{benchmark}.mask_tokens=10 gives each image ten masks"
    ]


def _require_task(benchmark: str, task: str, rules: Protocol) -> None:
    """Raises UsageError where benchmark, decoder and the rules' task do not fit each other.

    Args:
        task: its `Benchmark.task`.
        rules: resolved for it.
    """
    labels, names = task == "classification", " or ".join(f"decoder={name}" for name in LABELLING)
    if labels != (rules.task == "classification"):
        has = "one label per image and no masks" if labels else "masks"
        raise UsageError(
            f"{benchmark} has {has}, and task={rules.task}; --set task=classification with {names} learns labels, of "
            "NAME=DIR with a folder of images a class"
        )
    if labels != (rules.decoder in LABELLING):
        takes = "labels" if rules.decoder in LABELLING else "masks"
        raise UsageError(f"{benchmark}: decoder={rules.decoder} learns {takes}; {names} learn labels, the others masks")
    if rules.select_by and rules.select_by not in OF_TASK[task]:
        raise UsageError(
            f"{benchmark}: select_by={rules.select_by} is not one of its metrics: {', '.join(OF_TASK[task])}"
        )


class Untestable(UsageError):
    """A row that trains nothing, on a segmenter that is not pretrained in all of its parts."""


def _require_fit(
    row: ConfiguredRow, benchmark: str, task: str, backbone: str, rules: Protocol, request: Request
) -> None:
    """Refuse a row, a benchmark and rules that do not fit each other. Raises UsageError, which is `Untestable` where it applies."""
    _require_task(benchmark, task, rules)
    require_stands(rules.decoder, backbone)
    if rules.prompt != "none" and (rules.decoder != "sam" or task != "binary"):
        unfit = f"not decoder={rules.decoder}" if rules.decoder != "sam" else f"{benchmark} has several classes"
        raise UsageError(f"prompt={rules.prompt} prompts SAM's decoder with one foreground, but {unfit}; leave it out")
    if row.config.freezes_decoder and rules.decoder != "sam":
        raise UsageError(
            f"{row.label}: only SAM's mask decoder is adapted, not decoder={rules.decoder}; use decoder=sam"
        )
    if row.config.freezes_decoder and rules.decoder_lr is not None:
        raise UsageError(
            f"{row.label}: its decoder is frozen, and decoder_lr would apply to the adapters; leave it out"
        )
    if row.config.trains:
        return
    # Parts of the segmenter must not start from random numbers, but on generated images, whose scores do not rank methods anyway.
    reason = ""
    if rules.decoder != "sam" or not backbone_shape(backbone).neck_dim:
        reason = f"no decoder is pretrained with {backbone}; take a SAM, such as --backbone mobile_sam"
    elif task != "binary":
        reason = "the class head is not pretrained; take a benchmark with one foreground"
    elif str(_checkpoint(request, backbone)) == "none" and rules.data == "files":
        reason = f"{backbone} has random weights; give its file with --checkpoint"
    if reason:
        raise Untestable(f"{row.label} trains nothing, and {reason}")


def _jobs(
    row: ConfiguredRow,
    name: str,
    backbone: str,
    found: Found,
    request: Request,
    *,
    recorded: Mapping[str, Any],
    digest: str,
) -> Iterator[Job]:
    """One job for every seed.

    Args:
        recorded: the rules as a record holds them.
        digest: hash of the protocol on this backbone.
    """
    checkpoint, files = found.pretrained[backbone], found.files[name]
    # For a method that spares no weight updates both budgets are the same, and so are its runs.
    budget = {} if row.config.spares_weight_updates else {"budget": "epochs"}
    shared = _of_row(row, name, request, epochs=recorded["epochs"])
    for seed in request.seeds:
        of_seed = {"split_seed": seed} if recorded.get("split_follows_seed") else {}
        run = Run(
            rules={**recorded, **budget, **of_seed},
            backbone=backbone,
            checkpoint=checkpoint.fingerprint,
            protocol_hash=digest,
            seed=seed,
            manifest=files.manifest,
            origin=files.origin,
            split=files.split,
            split_rule=files.split_rule,
            data_note=files.note,
            data_fingerprint=files.fingerprint,
            **shared,
        )
        yield Job(
            run=run,
            dataset_root=str(files.root),
            checkpoint=checkpoint.path,
            results=str(request.results.absolute()),
            plugins=request.plugins,
            cache=request.cache,
            cache_gib=request.cache_gib,
        )


def _of_row(row: ConfiguredRow, name: str, request: Request, *, epochs: int) -> dict[str, Any]:
    """The fields of a run that its method, its benchmark and the request decide."""
    benchmark = BENCHMARKS.get(name)
    return {
        "method": row.method,
        "method_config": asdict(row.config),
        "label": row.label,
        "benchmark": name,
        "protocol": request.protocol.name,
        "tuning": dict(row.tuning),
        "changed": dict(row.changed),
        "planned_seeds": list(request.seeds),
        "benchmark_title": str(getattr(benchmark, "title", "")),  # a plug-in may have left it out
        "benchmark_metrics": list(map(str, getattr(benchmark, "metrics", ()))),
        "label_note": row.config.label_note,
        "never_reached": row.config.never_reached(epochs),
        "operations": list(row.config.mixed_operations),
    }


def _absent_lines(absent: Mapping[str, str], request: Request) -> list[str]:
    """One line per missing benchmark, or a single one if there is no folder to search."""
    root = request.data_root
    elsewhere = {dataset_name(name) for name in request.dataset_roots}
    shared = [name for name in absent if name not in elsewhere and (root is None or not root.is_dir())]
    what = f"the data folder {root} {'is a file' if root and root.exists() else 'does not exist'}"
    what = what if root else "no data folder is given or set (--data DIR)"
    lines = [f"{what}: {', '.join(shared)}; sam-peft data list says where to get each"] if shared else []
    return lines + [text for name, text in absent.items() if name not in shared]
