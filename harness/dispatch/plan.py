"""From a request to frozen jobs: every name resolved, every rule validated, every missing thing known, before anything starts.

No torch here, unless there is a checkpoint to look into: planning a thousand runs takes a second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from datasets.base import DataOptions, DatasetError, Splits
from harness.dispatch.earlier import data_fingerprint, earlier, under_short_fingerprints
from harness.dispatch.job import Job
from harness.dispatch.work import Images
from harness.errors import UsageError, did_you_mean
from harness.models.catalog import backbone_shape, resolve_backbone
from harness.models.fingerprints import fingerprint, short_fingerprint
from harness.protocols.card import Protocol
from harness.protocols.load import as_rules, load_protocol, protocol_hash, resolve
from harness.records.schema import Run, content_hash
from harness.registry import BENCHMARKS, METHODS, method_config, method_config_class
from methods.placement import MethodError


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A row of the comparison: a method with configuration overrides, under the name that tables show."""

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a user asks for.

    Args:
        entries: methods with their options.
        benchmarks: names, canonical or aliases.
        protocol: card name or path of a YAML file.
        overrides: dotted protocol fields from ``--set``.
        backbones: override the card's, if given.
        seeds: one run a seed.
        data_root: folder that holds the benchmarks' folders, None if none was given.
        dataset_roots: benchmark -> its own folder.
        checkpoints: backbone -> its pretrained weights; the key "" serves every backbone, the path ``none`` means random weights.
        results: results folder.
        plugins: plug-in files that the worker must load too.
        skip_missing: leave out benchmarks that are not on disk instead of refusing.
    """

    entries: tuple[Entry, ...]
    benchmarks: tuple[str, ...]
    protocol: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    backbones: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    data_root: Path | None = None
    dataset_roots: Mapping[str, Path] = field(default_factory=dict)
    checkpoints: Mapping[str, Path] = field(default_factory=dict)
    results: Path = Path("runs")
    plugins: tuple[str, ...] = ()
    skip_missing: bool = False


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What would happen.

    Args:
        jobs: every run of the grid once, finished ones included, in grid order.
        finished: keys with an ``OK`` record already.
        failed: key -> reason code of an earlier attempt; these run again.
        missing: what keeps runs from starting, one line each.
        problems: one line each: records that cannot be read, whose runs are started again; rules that cannot give good masks.
        protocol: the card.
        images: benchmark -> the images of its splits on disk, before the protocol's limits.
        request: identity of the grid that was asked for, which a budget does not change.
    """

    jobs: tuple[Job, ...]
    finished: frozenset[str]
    failed: Mapping[str, str]
    missing: tuple[str, ...]
    protocol: Protocol
    images: Mapping[str, Images] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    request: str = ""

    @property
    def pending(self) -> tuple[Job, ...]:
        return tuple(job for job in self.jobs if job.run.key not in self.finished)


@dataclass(frozen=True, kw_only=True)
class _Weights:
    """A checkpoint: its path, its fingerprint and the short one that older records name it by; empty for random weights."""

    path: str = ""
    fingerprint: str = ""
    short: str = ""


@dataclass(frozen=True, kw_only=True)
class _Data:
    """What a run says of a benchmark's files; empty where they are not on disk."""

    root: Path = Path()
    manifest: str = ""
    fingerprint: str = ""
    split_rule: str = ""
    note: str = ""


def plan(request: Request, *, prepare_samples: Callable[[str], Path] | None = None) -> Plan:
    """Resolve a request.

    Args:
        request: what the user asks for.
        prepare_samples: writes the generated stand-in of a benchmark and returns its folder; used by cards with ``data: sample``.

    Raises:
        UsageError, MethodError: an unknown name, a wrong value, a checkpoint that does not fit, data that changed since a
            finished run. Missing data and checkpoints are in `Plan.missing`.
    """
    protocol_overrides, method_overrides = split_overrides(request.overrides)
    protocol = load_protocol(request.protocol, protocol_overrides)
    _check_tables(protocol)
    backbones = [resolve_backbone(name) for name in request.backbones or (protocol.backbone,)]
    missing: list[str] = []
    weights = {backbone: _checkpoint(request, backbone, protocol, missing) for backbone in backbones}
    rows = [
        (backbone, *method_row(entry, protocol, method_overrides, backbone))
        for backbone in backbones
        for entry in request.entries
    ]
    jobs: dict[str, Job] = {}
    images: dict[str, Images] = {}
    absent: dict[str, str] = {}
    one_mask: list[str] = []
    digest = protocol_hash(protocol)
    for name in dict.fromkeys(BENCHMARKS.resolve(benchmark) for benchmark in request.benchmarks):
        rules = resolve(protocol, name)
        try:
            data, images[name] = _data(name, rules, request, prepare_samples)
        except DatasetError as error:
            absent[name] = str(error)
            if request.skip_missing:
                continue
            data = _Data()
        if rules.mask_tokens == 1 and BENCHMARKS.get(name).task == "multiclass":
            one_mask.append(name)
        plain = as_rules(rules)
        # A budget of updates is one of epochs for whoever spares none, so that both share their runs.
        of_epochs = {**plain, "budget": "epochs"}
        for backbone, method, config, label, changed in rows:
            for seed in request.seeds:
                run = Run(
                    method=method,
                    method_config=asdict(config),
                    variant=label,
                    benchmark=name,
                    backbone=backbone,
                    checkpoint=weights[backbone].fingerprint,
                    protocol=protocol.name,
                    protocol_hash=digest,
                    rules=plain if config.spares_weight_updates else of_epochs,
                    seed=seed,
                    manifest=data.manifest,
                    split_rule=data.split_rule,
                    data_note=data.note,
                    data_fingerprint=data.fingerprint,
                    changed=changed,
                )
                job = Job(
                    run=run,
                    dataset_root=str(data.root),
                    checkpoint=weights[backbone].path,
                    results=str(request.results.absolute()),
                    plugins=request.plugins,
                )
                jobs.setdefault(run.key, job)  # two words may name one run: naslora,all
    if absent and not (request.skip_missing and jobs):
        missing.append(_absent_line(absent, request))
    asked = content_hash(sorted(jobs))
    shorts = {one.fingerprint: one.short for one in weights.values() if one.short}
    jobs, unverified = under_short_fingerprints(request.results, jobs, shorts)
    before = earlier(request.results, jobs)
    return Plan(
        jobs=tuple(jobs.values()),
        finished=before.finished,
        failed=before.failed,
        missing=tuple(missing),
        protocol=protocol,
        images=images,
        problems=(*before.problems, *unverified, *map(_one_mask_line, one_mask)),
        request=asked,
    )


def split_overrides(overrides: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """``lora.rank`` goes to the method ``lora``; every other key to the protocol."""
    protocol: dict[str, Any] = {}
    methods: dict[str, dict[str, Any]] = {}
    names = set(METHODS.names())
    own_tables = {f.name for f in fields(Protocol)}
    for key, value in overrides.items():
        head, dot, rest = key.partition(".")
        if dot and head not in own_tables:
            if head.replace("-", "_") not in names and METHODS.resolve(head) not in names:
                raise UsageError(f"--set {key}: unknown method {head!r}{did_you_mean(head, names)}")
            methods.setdefault(METHODS.resolve(head), {})[rest] = value
        else:
            protocol[key] = value
    return protocol, methods


def data_options(rules: Protocol, benchmark: str) -> DataOptions:
    """The switches of a benchmark that a protocol sets."""
    with_cod10k = benchmark == "camo" and rules.quirks.camo_train == "released"
    return DataOptions(
        split_seed=rules.split_seed,
        split_rule="camo+cod10k" if with_cod10k else rules.split_rule,
        road_missing_ignore=rules.road_missing_ignore,
        mask_255_only=rules.quirks.mask_decoding == "released",
    )


def manifest_hash(splits: Splits) -> str:
    """Hash of the stems of every split: two runs with one hash saw the same pairs."""
    stems = {"train": [p.stem for p in splits.train], "val": [p.stem for p in splits.val]}
    tests = {name: [p.stem for p in pairs] for name, pairs in splits.test.items()}
    return content_hash([stems, tests])


def method_row(
    entry: Entry, protocol: Protocol, overrides: Mapping[str, Mapping[str, Any]], backbone: str
) -> tuple[str, Any, str, dict[str, Any]]:
    """Canonical name, configuration, what tables call it, and the fields in which it differs from the card's own configuration.

    Raises:
        UsageError: unknown method or field.
        MethodError: the placement does not fit the backbone.
    """
    method = METHODS.resolve(entry.method)
    config_class = method_config_class(method)
    known = {f.name for f in fields(config_class)}
    switches = {"fused": protocol.fused_cell, "gate": protocol.quirks.moe_gate, "init": protocol.quirks.ssf_init}
    values: dict[str, Any] = {key: value for key, value in switches.items() if key in known}
    values |= protocol.methods.get(method, {})
    base = method_config(method, values)
    asked = {**overrides.get(method, {}), **entry.options}
    config = method_config(method, {**values, **asked})
    changed = {name: value for name, value in asdict(config).items() if value != getattr(base, name)}
    # A placement or an image size that does not fit the backbone is found now, not on a worker.
    shape = backbone_shape(backbone, protocol.image_size)
    try:
        config.encoder_parameters(shape)
    except (UsageError, MethodError):
        raise
    except Exception as error:  # a plug-in may raise anything
        raise UsageError(
            f"method {method}: its encoder_parameters fails: {type(error).__name__}: {error}; mend it until "
            f"python -m harness.doctor --methods {method} passes"
        ) from error
    label = entry.label or (f"{method}[{','.join(f'{k}={v}' for k, v in asked.items())}]" if asked else method)
    return method, config, label, changed


def _check_tables(protocol: Protocol) -> None:
    for name in protocol.methods:
        METHODS.resolve(name)
    for name in protocol.benchmarks:
        BENCHMARKS.resolve(name)


def _checkpoint(request: Request, backbone: str, protocol: Protocol, missing: list[str]) -> _Weights:
    path = request.checkpoints.get(backbone, request.checkpoints.get(""))
    if path is None:
        if protocol.data == "files":
            missing.append(
                f"no --checkpoint: {backbone} would start from random weights; give the pretrained file, or --checkpoint none to mean it"
            )
        return _Weights()
    if str(path) == "none":
        return _Weights()
    if not path.is_file():
        missing.append(f"checkpoint {path} does not exist; give the path of the pretrained {backbone} file")
        return _Weights(path=str(path), fingerprint="missing")
    from harness.models.build import require_checkpoint  # imports torch, which other plans need not wait for

    require_checkpoint(backbone, path)
    return _Weights(path=str(path.absolute()), fingerprint=fingerprint(path), short=short_fingerprint(path))


def _data(
    name: str, rules: Protocol, request: Request, prepare_samples: Callable[[str], Path] | None
) -> tuple[_Data, Images]:
    benchmark = BENCHMARKS.get(name)(data_options(rules, name))
    if name in request.dataset_roots:
        root = benchmark.locate(Path(request.dataset_roots[name]))
    elif rules.data == "sample":
        assert prepare_samples is not None
        root = benchmark.locate(prepare_samples(name))
    elif request.data_root is None:
        raise DatasetError(f"{name}: no --data folder was given; {benchmark.source}")
    else:
        root = benchmark.locate(request.data_root)
    splits = benchmark.splits(root)
    note = "generated samples" if rules.data == "sample" else splits.note
    tests = sum(map(len, splits.test.values()))
    images = Images(train=len(splits.train), val=len(splits.val), test=tests)
    data = _Data(
        root=root.absolute(),
        manifest=manifest_hash(splits),
        fingerprint=data_fingerprint(splits),
        split_rule=splits.rule,
        note=note,
    )
    return data, images


def _one_mask_line(benchmark: str) -> str:
    return (
        f"{benchmark}: mask_tokens is 1, so every pixel of an image gets the same class (quirk 10); "
        f"--set benchmarks.{benchmark}.mask_tokens=10 gives each image ten masks"
    )


def _absent_line(absent: Mapping[str, str], request: Request) -> str:
    first = next(iter(absent.values()))
    if len(absent) == 1:
        return f"{first}; or try the harness without data: --protocol demo"
    where = f"below {request.data_root}" if request.data_root else "(no --data folder was given)"
    return (
        f"{len(absent)} benchmarks are not usable {where}: {', '.join(absent)} (first: {first}); "
        "name those that are with --datasets, add --skip-missing, or try --protocol demo"
    )
