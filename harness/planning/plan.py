"""From a request to frozen jobs: every name resolved, every rule validated, every missing thing known, before anything starts.

No torch here, unless there is a checkpoint to look into: planning a thousand runs takes a second.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from harness.archive.schema import Run, content_hash
from harness.datasets.base import DatasetError
from harness.datasets.preparing.checking import first_look
from harness.models.catalog import require_stands, resolve_backbone
from harness.planning.data import Images, data_fingerprint, data_options, manifest_hash, require_task
from harness.planning.finished import earlier, under_short_fingerprints
from harness.planning.job import Job
from harness.planning.pretrained import pretrained
from harness.planning.request import Request, require_countable
from harness.planning.rows import method_row, split_overrides
from harness.protocols.card import Protocol
from harness.protocols.load import as_rules, load_protocol, protocol_hash, resolve, with_rules
from harness.registry import BENCHMARKS, METHODS, dataset_name, is_own
from harness.system.errors import UsageError
from harness.system.progress import stages


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
        keys: (variant, benchmark) -> its runs, one a backbone, decoder and seed.
    """

    jobs: tuple[Job, ...]
    finished: frozenset[str]
    failed: Mapping[str, str]
    missing: tuple[str, ...]
    protocol: Protocol
    images: Mapping[str, Images] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    request: str = ""
    keys: Mapping[tuple[str, str], Sequence[str]] = field(default_factory=dict)

    @property
    def pending(self) -> tuple[Job, ...]:
        return tuple(job for job in self.jobs if job.run.key not in self.finished)


@dataclass(frozen=True, kw_only=True)
class _Data:
    """What a run says of a benchmark's files; empty where they are not on disk."""

    root: Path = Path()
    manifest: str = ""
    fingerprint: str = ""
    split_rule: str = ""
    note: str = ""
    odd: tuple[str, ...] = ()


def plan(request: Request, *, prepare_samples: Callable[[str], Path] | None = None) -> Plan:
    """Resolve a request.

    Args:
        request: what the user asks for.
        prepare_samples: writes the generated stand-in of a benchmark and returns its folder; used by cards with ``data: sample``.

    Raises:
        UsageError, MethodError: an unknown name, a wrong value, a checkpoint that does not fit, data that changed since a
            finished run. Missing data and checkpoints are in `Plan.missing`.
    """
    with stages() as tell:
        return _plan(request, prepare_samples, tell)


def _plan(request: Request, prepare_samples: Callable[[str], Path] | None, tell: Callable[[str], None]) -> Plan:
    require_countable(request.runs)
    tell("planning")
    protocol_overrides, method_overrides = split_overrides(request.overrides)
    protocol = load_protocol(request.protocol, protocol_overrides)
    _check_tables(protocol)
    backbones = [resolve_backbone(name) for name in request.backbones or (protocol.backbone,)]
    under = [
        load_protocol(request.protocol, {**protocol_overrides, **own, "decoder": name})
        for name, own in request.decoders.items()
    ]
    missing: list[str] = []
    if any(str(path) != "none" for path in request.checkpoints.values()):
        tell("loading torch to look into checkpoints")
    weights = {backbone: pretrained(request, backbone, protocol, missing) for backbone in backbones}
    rows = [
        (entry, backbone, *method_row(entry, protocol, method_overrides, backbone))
        for backbone in backbones
        for entry in request.entries
    ]
    jobs: dict[str, Job] = {}
    keys: dict[tuple[str, str], list[str]] = {}
    images: dict[str, Images] = {}
    absent: dict[str, str] = {}
    one_mask: list[str] = []
    odd: list[str] = []
    unreached: dict[str, None] = {}
    digests = {card.decoder: protocol_hash(card) for card in under or (protocol,)}
    planned = list(dict.fromkeys(BENCHMARKS.resolve(benchmark) for benchmark in request.benchmarks))
    for number, name in enumerate(planned, start=1):
        rules = _own_rules(name, resolve(protocol, name))
        doing = f"writing the {protocol.name}'s images" if rules.data == "sample" else "looking through images"
        tell(f"{doing}: {name} ({number}/{len(planned)})")
        try:
            data, images[name] = _data(name, rules, request, prepare_samples)
        except DatasetError as error:
            absent[name] = str(error)
            if request.skip_missing:
                continue
            data = _Data()
        odd += data.odd
        benchmark = BENCHMARKS.get(name)
        if rules.mask_tokens == 1 and rules.decoder == "sam" and benchmark.task == "multiclass":
            one_mask.append(name)
        resolved = [(card, _own_rules(name, resolve(card, name))) for card in under or (protocol,)]
        grid = [(card, rules, as_rules(rules)) for card, rules in resolved]
        for (card, rules, plain), (entry, backbone, method, config, label, changed) in itertools.product(grid, rows):
            if entry.benchmarks and name not in entry.benchmarks:
                continue
            if entry.models and (backbone, rules.decoder) not in entry.models:
                continue
            if chosen := {**request.rules.get((name, backbone, rules.decoder), {}), **entry.rules}:
                rules = with_rules(rules, chosen)
                plain = as_rules(rules)
            require_task(name, benchmark.task, rules)
            require_stands(rules.decoder, backbone)
            if config.freezes_decoder and rules.decoder != "sam":
                raise UsageError(
                    f"{label}: only SAM's mask decoder is adapted, not decoder={rules.decoder}; use decoder=sam"
                )
            if config.freezes_decoder and rules.decoder_lr is not None:
                raise UsageError(
                    f"{label}: its decoder is frozen, and decoder_lr would be the adapters'; leave it away"
                )
            # A budget of updates is one of epochs for whoever spares none, so that both share their runs.
            budget = {} if config.spares_weight_updates else {"budget": "epochs"}
            options, row_rules = asdict(config), {**plain, **budget}  # seeds share them, and what pricing makes of them
            benchmarks = [one for one in planned if one in (entry.benchmarks or planned)]
            for seed in request.seeds:
                run = Run(
                    method=method,
                    method_config=options,
                    variant=label,
                    benchmark=name,
                    backbone=backbone,
                    checkpoint=weights[backbone].fingerprint,
                    protocol=protocol.name,
                    protocol_hash=digests[card.decoder],
                    rules={**row_rules, "split_seed": seed} if rules.split_follows_seed else row_rules,
                    seed=seed,
                    manifest=data.manifest,
                    split_rule=data.split_rule,
                    data_note=data.note,
                    data_fingerprint=data.fingerprint,
                    tuning=dict(entry.tuning),
                    changed=changed,
                    planned_seeds=list(request.seeds),
                    planned_benchmarks=list(benchmarks),
                    benchmark_title=str(getattr(benchmark, "title", "")),  # a plug-in may have left it out
                    benchmark_metrics=list(map(str, getattr(benchmark, "metrics", ()))),
                )
                job = Job(
                    run=run,
                    dataset_root=str(data.root),
                    checkpoint=weights[backbone].path,
                    results=str(request.results.absolute()),
                    plugins=request.plugins,
                )
                jobs.setdefault(run.key, job)  # two words may name one run: naslora,all
                keys.setdefault((label, name), []).append(run.key)
            if words := config.never_reached(rules.epochs):
                unreached.setdefault(f"{label}: {words}; more --set epochs, or an earlier search_start_epoch")
    if absent and not (request.skip_missing and jobs):
        missing += _absent_lines(absent, request)
    asked = content_hash(sorted(jobs))
    shorts = {one.fingerprint: one.short for one in weights.values() if one.short}
    named = list(jobs)
    jobs, unverified = under_short_fingerprints(request.results, jobs, shorts)
    names = dict(zip(named, jobs, strict=True))
    before = earlier(request.results, jobs)
    return Plan(
        jobs=tuple(jobs.values()),
        finished=before.finished,
        failed=before.failed,
        missing=tuple(missing),
        protocol=protocol,
        images=images,
        problems=(*before.problems, *unverified, *map(_one_mask_line, one_mask), *odd, *unreached),
        request=asked,
        keys={place: tuple(names[key] for key in mine) for place, mine in keys.items()},
    )


def _check_tables(protocol: Protocol) -> None:
    for name in protocol.methods:
        METHODS.resolve(name)
    for name in protocol.benchmarks:
        BENCHMARKS.resolve(name)


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
    odd = first_look(benchmark, splits, root) if is_own(name) and benchmark.task != "classification" else ()
    generated = rules.data == "sample" and not rules.own_classes
    note = "generated samples" if generated else splits.note
    tests = sum(map(len, splits.test.values()))
    images = Images(train=len(splits.train), val=len(splits.val), test=tests)
    data = _Data(
        root=root.absolute(),
        manifest=manifest_hash(splits, folds=rules.split_follows_seed),
        fingerprint=data_fingerprint(splits, folds=rules.split_follows_seed),
        split_rule=splits.rule.replace(f"seed {rules.split_seed}", "the run's seed")
        if rules.split_follows_seed
        else splits.rule,
        note=note,
        odd=odd,
    )
    return data, images


def _own_rules(name: str, rules: Protocol) -> Protocol:
    """With what makes a data set of one's own known to whoever has the run alone.

    Raises:
        UsageError: a rule that is not for this benchmark.
    """
    if rules.own_classes:
        raise UsageError("own_classes is read from the folder of the data; it cannot be set")
    if is_own(name):
        return replace(rules, own_classes=BENCHMARKS.get(name).class_names)
    for rule in ("group", "images", "masks", "category"):
        if getattr(rules, rule):
            raise UsageError(
                f"{rule} is for data of your own, and {name} has its own rule; --set benchmarks.NAME.{rule}=… sets it for one"
            )
    return rules


def _one_mask_line(benchmark: str) -> str:
    return (
        f"{benchmark}: mask_tokens is 1, so every pixel of an image gets the same class (quirk 10); "
        f"--set benchmarks.{benchmark}.mask_tokens=10 gives each image ten masks"
    )


def _absent_lines(absent: Mapping[str, str], request: Request) -> list[str]:
    """One line a benchmark, or one for all of them where there is no folder to look into."""
    root = request.data_root
    elsewhere = {dataset_name(name) for name in request.dataset_roots}
    shared = [name for name in absent if name not in elsewhere and (root is None or not root.is_dir())]
    lines = []
    if shared:
        what = f"the data folder {root} does not exist" if root else "no data folder is given or set (--data DIR)"
        lines.append(f"{what}: {', '.join(shared)}; sam-peft datasets list says where to get each")
    hint = "; or try python -m harness.run --protocol demo, which needs no data"  # said once, by the verb
    return lines + [text.removesuffix(hint) for name, text in absent.items() if name not in shared]
