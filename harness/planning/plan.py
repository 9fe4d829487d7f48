"""From a request to frozen jobs: every name resolved, every rule validated, every missing thing known, before anything starts.

No torch here, unless there is a checkpoint to look into: planning a thousand runs takes a second.

Earlier records say which planned runs are finished, failed, damaged, or were made from other data.
"""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from harness.archive.checkpoints import noted
from harness.archive.schema import Record, Run, content_hash
from harness.archive.store import RecordStore
from harness.datasets.base import DatasetError
from harness.datasets.preparing.checking import first_look
from harness.models.catalog import backbone_shape, require_stands, resolve_backbone
from harness.models.checkpoint import require_finite
from harness.models.fingerprints import fingerprint, is_remembered, short_fingerprint
from harness.planning.data import Images, data_fingerprint, data_options, manifest_hash, require_task
from harness.planning.job import Job
from harness.planning.needs import weights
from harness.planning.request import Request, require_countable
from harness.planning.rows import method_row, split_overrides
from harness.protocols.card import Protocol
from harness.protocols.load import as_rules, for_backbone, load_protocol, protocol_hash, resolve, with_rules
from harness.registry import BENCHMARKS, METHODS, dataset_name, is_own
from harness.system.errors import UsageError
from harness.system.streams import stages


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A checkpoint: its path, its fingerprint and the short one that older records name it by; empty for random weights."""

    path: str = ""
    fingerprint: str = ""
    short: str = ""


def pretrained(request: Request, backbone: str, protocol: Protocol, missing: list[str]) -> Pretrained:
    """The checkpoint that a request gives a backbone; one that is not there is a line in ``missing``.

    Raises:
        UsageError: it does not fit, or its numbers are not finite.
    """
    path = request.checkpoints.get(backbone, request.checkpoints.get(""))
    if path is None:
        if protocol.data == "files":
            missing.append(
                f"no checkpoint of {backbone} is given or set: give {weights(backbone)} with --checkpoint FILE, "
                "or --checkpoint none to start from random weights"
            )
        return Pretrained()
    if str(path) == "none":
        return Pretrained()
    if not path.is_file():
        missing.append(f"checkpoint {path} does not exist; give the path of the pretrained {backbone} file")
        return Pretrained(path=str(path), fingerprint="missing")
    from harness.models.build import require_checkpoint  # imports torch, which other plans need not wait for

    require_checkpoint(backbone, path)
    if not is_remembered(path):  # all of it is read once, for its numbers and for its fingerprint
        require_finite(path)
    return Pretrained(path=str(path.absolute()), fingerprint=fingerprint(path), short=short_fingerprint(path))


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """What there is below a results folder.

    Args:
        finished: keys with an ``OK`` record.
        failed: key -> reason code.
        problems: a line for every record that cannot be read; its run counts as not started.
    """

    finished: frozenset[str]
    failed: Mapping[str, str]
    problems: tuple[str, ...]


def earlier(results: Path, jobs: Mapping[str, Job]) -> Earlier:
    """Look up the records of ``jobs`` (by key).

    Raises:
        UsageError: a finished record was made from other files than the benchmark has now, or a record that may be a
            finished one cannot be read for now.
    """
    store = RecordStore(results)
    finished: set[str] = set()
    failed: dict[str, str] = {}
    problems: list[str] = []
    outdated: dict[str, list[Path]] = {}
    for key, record in store.surely_ended(jobs.keys()).items():
        job = jobs[key]
        if isinstance(record, str):
            problems.append(_damaged(store.path(key), record))
        elif record.code != "OK":
            failed[key] = record.code
        else:
            finished.add(key)
            then, now = record.run.data_fingerprint, job.run.data_fingerprint
            if then and now and then != now:
                outdated.setdefault(job.run.benchmark, []).append(store.path(key))
    if outdated:
        raise UsageError(_outdated(outdated, jobs))
    return Earlier(finished=frozenset(finished), failed=failed, problems=tuple(problems))


def under_short_fingerprints(
    results: Path, jobs: Mapping[str, Job], shorts: Mapping[str, str]
) -> tuple[dict[str, Job], list[str]]:
    """``jobs`` with the runs that older records finished under a checkpoint's short fingerprint named as there, where
    `harness.archive.checkpoints` says that the file is theirs; and a line for each checkpoint where it does not.

    Args:
        shorts: fingerprint of every byte -> short fingerprint of the same file.

    Raises:
        UsageError: the notes are damaged, or a record that may be a finished one cannot be read for now.
    """
    notes = noted(results)
    olders = {
        key: replace(job.run, checkpoint=shorts[whole])
        for key, job in jobs.items()
        if (whole := job.run.checkpoint) in shorts
    }
    asked = [*olders, *(older.key for older in olders.values())]
    ended = RecordStore(results).surely_ended(asked)
    finished = {key for key, record in ended.items() if isinstance(record, Record) and record.code == "OK"}
    found: dict[str, Job] = {}
    others: dict[tuple[str, str], int] = {}
    for key, job in jobs.items():
        older = olders.get(key, job.run)
        if older.key in finished and key not in finished and older.key != key:
            if notes.get(older.checkpoint) == job.run.checkpoint:
                job = replace(job, run=older)
            else:
                place = (job.checkpoint, older.checkpoint)
                others[place] = others.get(place, 0) + 1
        found[job.run.key] = job
    return found, [_unverified(count, *place, results, notes) for place, count in others.items()]


def _unverified(count: int, path: str, short: str, results: Path, notes: Mapping[str, str]) -> str:
    whose = f"{count} finished records" if count > 1 else "1 finished record"
    if short in notes:
        return (
            f"{whose} of these runs below {results} came from another checkpoint than {path} ({notes[short]}, which shares"
            f" the short fingerprint {short} with it) and count as not started"
        )
    return (
        f"{whose} of these runs below {results} know their checkpoint by size, beginning and end alone ({short}) and count"
        f" as not started; if {path} is the file they came from, note it: sam-peft records verify-checkpoint "
        f"{shlex.quote(path)} {shlex.quote(str(results))}"
    )


def _damaged(path: Path, reason: str) -> str:
    return (
        f"{path} is not a readable record ({reason}): its run counts as not started, and the file stays as "
        f"{path.name}.unreadable once the run has a new record"
    )


def _outdated(outdated: Mapping[str, list[Path]], jobs: Mapping[str, Job]) -> str:
    name, paths = next(iter(outdated.items()))
    root = jobs[paths[0].stem].dataset_root
    whose = (
        f"{len(paths)} finished records, such as {paths[0]}" if len(paths) > 1 else f"the finished record {paths[0]}"
    )
    others = f" (so do {', '.join(list(outdated)[1:])})" if len(outdated) > 1 else ""
    return (
        f"{name}: its files below {root} differ from those behind {whose}{others}; "
        "take another --results folder for the new files, or move those records away to run them again"
    )


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
    digests = {
        (card.decoder, backbone): protocol_hash(for_backbone(card, backbone))
        for card in under or (protocol,)
        for backbone in backbones
    }
    planned = list(dict.fromkeys(BENCHMARKS.resolve(benchmark) for benchmark in request.benchmarks))
    for number, name in enumerate(planned, start=1):
        rules = _own_rules(name, resolve(protocol, name))
        doing = f"writing the {protocol.name}'s images" if rules.data == "sample" else "looking through images"
        tell(f"{doing}: {name} ({number}/{len(planned)})")
        try:
            data, images[name] = _data(name, rules, request, prepare_samples)
        except DatasetError as error:
            if is_own(name):  # there is nothing to get: the message says what to mend
                raise
            absent[name] = str(error)
            if request.skip_missing:
                continue
            data = _Data()
        odd += data.odd
        benchmark = BENCHMARKS.get(name)
        if rules.mask_tokens == 1 and rules.decoder == "sam" and benchmark.task == "multiclass":
            one_mask.append(name)
        resolved = [(card, _own_rules(name, resolve(card, name))) for card in under or (protocol,)]
        grid = [
            (card, backbone, full := for_backbone(own, backbone), as_rules(full))
            for card, own in resolved
            for backbone in backbones
        ]
        for (card, beneath, rules, plain), row in itertools.product(grid, rows):
            entry, backbone, method, config, label, changed = row
            if backbone != beneath:
                continue
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
            if not config.trains:
                _require_pretrained_decoder(label, backbone, rules, benchmark.task, request)
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
                    protocol_hash=digests[card.decoder, backbone],
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


def _require_pretrained_decoder(label: str, backbone: str, rules: Protocol, task: str, request: Request) -> None:
    """Refuse a row that trains nothing where parts of the segmenter start from random numbers, but on generated images, whose
    numbers rank nothing anyway."""
    weights = str(request.checkpoints.get(backbone, request.checkpoints.get("", "")))
    reason = ""
    if rules.decoder != "sam" or not backbone_shape(backbone).neck_dim:
        reason = f"no decoder is pretrained with {backbone}; take a SAM, such as --backbone mobile_sam"
    elif task != "binary":
        reason = "the class head is not pretrained; take a benchmark with one foreground"
    elif weights == "none" and rules.data == "files":
        reason = f"{backbone} has random weights; give its file with --checkpoint"
    if reason:
        raise UsageError(f"{label} trains nothing, and {reason}")


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
        lines.append(f"{what}: {', '.join(shared)}; sam-peft data list says where to get each")
    hint = "; or try python -m harness.run --protocol demo, which needs no data"  # said once, by the verb
    return lines + [text.removesuffix(hint) for name, text in absent.items() if name not in shared]
