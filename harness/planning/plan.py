"""From a request to frozen jobs. Names are resolved, rules validated and missing files found before anything starts.

`setting_of` finds what all steps of a command share: the card, checkpoints and data. `plan` expands rows under it and matches the runs with
earlier records. Torch is imported only to look into a checkpoint, so planning a thousand runs takes a second.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.archive.older import same_data
from harness.archive.schema import Origin, Run, TestImages, content_hash
from harness.archive.store import RecordStore
from harness.datasets.base import DatasetError
from harness.datasets.preparing.checking import first_look, groups_apart
from harness.models.catalog import backbone_shape, require_stands, resolve_backbone
from harness.models.fingerprints import fingerprint, known_to_fit, remember_fit
from harness.models.published import is_word, published_file
from harness.planning.data import Images, benchmark_of, data_fingerprint, manifest_hash, require_task
from harness.planning.request import ConfiguredRow, Job, Request, configured
from harness.protocols.card import Protocol
from harness.protocols.load import as_rules, for_backbone, load_protocol, protocol_hash, resolve, with_rules
from harness.registry import BENCHMARKS, METHODS, dataset_name, is_own
from harness.system.errors import UsageError
from harness.system.streams import stages
from harness.system.text import first_of


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A checkpoint: its path and its fingerprint, both empty for random weights. ``missing``: what to do if the file is not there,
    else empty."""

    path: str = ""
    fingerprint: str = ""
    missing: str = ""


def _checkpoint(request: Request, backbone: str) -> Path | None:
    return request.checkpoints.get(backbone, request.checkpoints.get(""))


def pretrained(request: Request, backbone: str, protocol: Protocol) -> Pretrained:
    """The checkpoint that a request gives a backbone. Raises UsageError: it does not fit, or its numbers are not finite."""
    path = _checkpoint(request, backbone)
    if path is None and protocol.data == "files":
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
    digest = fingerprint(path)
    if not known_to_fit(digest, backbone):
        from harness.models import build, checkpoint  # import torch, which other plans need not wait for

        build.require_checkpoint(backbone, path)
        checkpoint.read_tensors(path)  # refuses numbers that are not finite
        checked, digest = digest, fingerprint(path)
        if digest == checked:  # else it changed meanwhile
            remember_fit(digest, backbone)
    return Pretrained(path=str(path.absolute()), fingerprint=digest)


Keys = Mapping[tuple[int, str, str, str], Sequence[str]]
"""(number of the row in the request, benchmark, backbone, decoder) -> the keys of its runs, one a seed and prompt."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The runs of a command, and what keeps them from starting.

    Args:
        jobs: every run of the grid once, finished ones included, in grid order.
        finished: keys with an ``OK`` record already.
        failed: key -> reason code of an earlier attempt; these restart.
        missing: what keeps runs from starting, one line each.
        problems: one line each: records that cannot be read, whose runs are restarted; rules that cannot give good masks.
        images: benchmark -> the images of its splits on disk, before the protocol's limits.
        request: identity of the whole grid, which a budget does not change.
    """

    jobs: tuple[Job, ...]
    finished: frozenset[str]
    failed: Mapping[str, str]
    missing: tuple[str, ...]
    protocol: Protocol
    images: Mapping[str, Images] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    request: str = ""
    keys: Keys = field(default_factory=dict)

    @property
    def pending(self) -> tuple[Job, ...]:
        return tuple(job for job in self.jobs if job.run.key not in self.finished)


def plan(
    request: Request, *, setting: Setting | None = None, prepare_samples: Callable[[str], Path] | None = None
) -> Plan:
    """Every run of a request, matched with earlier records.

    Args:
        setting: of `setting_of`, whose benchmarks include the request's; made here if None.
        prepare_samples: see `setting_of`.

    Raises:
        UsageError, MethodError: an unknown name, a wrong value, a checkpoint that does not fit, data that changed since a
            finished run. Missing data and checkpoints are in `Plan.missing`.
    """
    setting = setting or setting_of(request, prepare_samples=prepare_samples)
    with stages() as report:
        report("planning")
        rows = [configured(row, setting.protocol) for row in request.rows]
        for backbone, row in itertools.product(setting.checkpoints, rows):
            report(f"counting parameters of {row.label} on {backbone}")  # which takes minutes for some of peft's, once
            row.require_fit(backbone, image_size=setting.protocol.image_size)
        jobs, keys, problems = expand(rows, setting, request)
    files = {name: setting.files[name] for name in benchmarks_of(request)}
    missing = [checkpoint.missing for checkpoint in setting.checkpoints.values() if checkpoint.missing]
    absent = {name: of.absent for name, of in files.items() if of.absent}
    if absent and not (request.skip_missing and jobs):
        missing += _absent_lines(absent, request)
    finished, failed, unreadable = earlier(request.results, jobs)
    return Plan(
        jobs=tuple(jobs.values()),
        finished=finished,
        failed=failed,
        missing=tuple(missing),
        protocol=setting.protocol,
        images={name: of.images for name, of in files.items() if of.images is not None},
        problems=(*unreadable, *problems),
        request=content_hash(sorted(jobs)),
        keys=keys,
    )


def matched(planned: Plan, results: Path) -> Plan:
    """The plan, matched with the records that are there by now."""
    finished, failed, _ = earlier(results, {job.run.key: job for job in planned.jobs})
    return replace(planned, finished=finished, failed=failed)


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
                f"{path} is not a readable record ({record}): its run counts as not started, and the file stays as "
                f"{path.name}.unreadable once the run has a new record"
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


@dataclass(frozen=True, kw_only=True)
class Files:
    """What a run records about a benchmark's files.

    Args:
        absent: why they are not on disk, and where to get them; the other fields are empty then.
        images: how many there are, before the protocol's limits.
        odd: a line for each thing that looks wrong in their masks.
    """

    absent: str = ""
    images: Images | None = None
    root: Path = Path()
    manifest: str = ""
    fingerprint: str = ""
    origin: Origin = "files"
    split: TestImages = ""
    split_rule: str = ""
    note: str = ""
    odd: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all steps of a command share.

    Args:
        protocol: the card as it is.
        cards: the card under every decoder and every prompt that the request names; else the card alone.
        checkpoints: backbone -> its pretrained weights.
        files: benchmark -> its files.
    """

    protocol: Protocol
    cards: tuple[Protocol, ...]
    checkpoints: Mapping[str, Pretrained]
    files: Mapping[str, Files]


def setting_of(
    request: Request, *, also_on: Sequence[str] = (), prepare_samples: Callable[[str], Path] | None = None
) -> Setting:
    """The card of a request, its checkpoints and its data.

    Args:
        also_on: further benchmarks, on which something is tuned.
        prepare_samples: writes the generated stand-in of a benchmark and returns its folder; used by cards with ``data: sample``.

    Raises:
        UsageError: as `plan`.
        DatasetError: data of one's own that cannot be used.
    """
    protocol = load_protocol(request.protocol, request.overrides)
    for name in protocol.methods:
        METHODS.resolve(name)
    for name in protocol.benchmarks:
        BENCHMARKS.resolve(name)
    backbones = dict.fromkeys(resolve_backbone(name) for name in request.backbones or (protocol.backbone,))
    by_decoder = [{**overrides, "decoder": name} for name, overrides in request.decoders.items()]
    by_prompt = [{"prompt": name} for name in request.prompts]
    cards = [
        load_protocol(request.protocol, {**request.overrides, **of_decoder, **of_prompt})
        for of_decoder, of_prompt in itertools.product(by_decoder or [{}], by_prompt or [{}])
    ]
    with stages() as report:
        if any(str(path) != "none" for path in request.checkpoints.values()):
            report("loading torch to look into checkpoints")
        checkpoints = {backbone: pretrained(request, backbone, protocol) for backbone in backbones}
        names, files = benchmarks_of(request, *also_on), {}
        for number, name in enumerate(names, start=1):
            rules = _own_rules(name, resolve(protocol, name))
            writes = rules.data == "sample" and name not in request.dataset_roots
            doing = f"writing the {rules.name}'s images" if writes else "looking through images"
            report(f"{doing}: {name} ({number}/{len(names)})")
            files[name] = _files(name, rules, request, prepare_samples)
    return Setting(protocol=protocol, cards=tuple(cards), checkpoints=checkpoints, files=files)


def benchmarks_of(request: Request, *further: str) -> tuple[str, ...]:
    """The canonical names of a request's benchmarks, each once."""
    return tuple(dict.fromkeys(BENCHMARKS.resolve(name) for name in (*request.benchmarks, *further)))


def expand(rows: Sequence[ConfiguredRow], setting: Setting, request: Request) -> tuple[dict[str, Job], Keys, list[str]]:
    """Every run of the request: benchmarks by cards by backbones by rows by seeds.

    Returns:
        The jobs by key, each once, in grid order; the keys of every row; a line for each problem of the rules or the data.

    Raises:
        UsageError: a row, a benchmark and a decoder do not fit each other.
    """
    jobs: dict[str, Job] = {}
    keys: dict[tuple[int, str, str, str], list[str]] = {}
    one_mask, odd = list[str](), list[str]()
    unreached: dict[str, dict[str, None]] = {}
    cards = [
        (card, backbone, protocol_hash(for_backbone(card, backbone)))
        for card, backbone in itertools.product(setting.cards, setting.checkpoints)
    ]
    for name in benchmarks_of(request):
        files, task = setting.files[name], BENCHMARKS.get(name).task
        if files.absent and request.skip_missing:
            continue
        odd += files.odd
        one_mask += _one_mask(name, task, resolve(setting.protocol, name))
        for card, backbone, digest in cards:
            of_card = for_backbone(without_untrained(_own_rules(name, resolve(card, name)), name, files), backbone)
            plain = as_rules(of_card)  # runs share it, and what pricing makes of it
            for number, row in enumerate(rows):
                if not row.is_for(name, backbone, of_card.decoder):
                    continue
                chosen = {**request.rules.get((name, backbone, of_card.decoder), {}), **row.rules}
                rules = with_rules(of_card, chosen) if chosen else of_card
                _require_fit(row, name, task, backbone, rules, request)
                held = as_rules(rules) if chosen else plain
                for job in _jobs(row, name, backbone, setting, request, rules=held, digest=digest):
                    jobs.setdefault(job.run.key, job)  # two words may name one run: naslora,all
                    keys.setdefault((number, name, backbone, of_card.decoder), []).append(job.run.key)
                if words := row.config.never_reached(rules.epochs):
                    unreached.setdefault(words, {})[row.label] = None
    never = [f"{first_of(list(labels))}: {words}" for words, labels in unreached.items()]
    return jobs, keys, [*one_mask, *odd, *never]


def _one_mask(benchmark: str, task: str, rules: Protocol) -> list[str]:
    if rules.mask_tokens > 1 or rules.decoder != "sam" or task != "multiclass":
        return []
    return [
        f"{benchmark}: mask_tokens is 1, so every pixel of an image gets the same class (quirk 10); "
        f"--set benchmarks.{benchmark}.mask_tokens=10 gives each image ten masks"
    ]


def _require_fit(
    row: ConfiguredRow, benchmark: str, task: str, backbone: str, rules: Protocol, request: Request
) -> None:
    """Refuse a row, a benchmark and rules that do not fit each other."""
    require_task(benchmark, task, rules)
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
        raise UsageError(f"{row.label} trains nothing, and {reason}")


def _jobs(
    row: ConfiguredRow,
    name: str,
    backbone: str,
    setting: Setting,
    request: Request,
    *,
    rules: Mapping[str, Any],
    digest: str,
) -> Iterator[Job]:
    """One job for every seed.

    Args:
        rules: the protocol's, as a record holds them.
        digest: hash of the card on this backbone.
    """
    benchmark, files, checkpoint = BENCHMARKS.get(name), setting.files[name], setting.checkpoints[backbone]
    # For a method that spares no weight updates both budgets are the same, and so are its runs.
    budget = {} if row.config.spares_weight_updates else {"budget": "epochs"}
    options, row_rules = asdict(row.config), {**rules, **budget}  # seeds share them, and what pricing makes of them
    benchmarks = [planned for planned in benchmarks_of(request) if planned in (row.benchmarks or (planned,))]
    for seed in request.seeds:
        run = Run(
            method=row.method,
            method_config=options,
            label=row.label,
            benchmark=name,
            backbone=backbone,
            checkpoint=checkpoint.fingerprint,
            protocol=setting.protocol.name,
            protocol_hash=digest,
            rules={**row_rules, "split_seed": seed} if row_rules.get("split_follows_seed") else row_rules,
            seed=seed,
            manifest=files.manifest,
            origin=files.origin,
            split=files.split,
            split_rule=files.split_rule,
            data_note=files.note,
            data_fingerprint=files.fingerprint,
            tuning=dict(row.tuning),
            changed=dict(row.changed),
            planned_seeds=list(request.seeds),
            planned_benchmarks=list(benchmarks),
            benchmark_title=str(getattr(benchmark, "title", "")),  # a plug-in may have left it out
            benchmark_metrics=list(map(str, getattr(benchmark, "metrics", ()))),
            label_note=row.config.label_note,
            never_reached=row.config.never_reached(rules["epochs"]),
            operations=list(row.config.mixed_operations),
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


def _files(name: str, rules: Protocol, request: Request, prepare_samples: Callable[[str], Path] | None) -> Files:
    """A benchmark's files under the card's rules for it. Raises DatasetError: data of one's own that cannot be used."""
    benchmark: Any = benchmark_of(name, rules)
    generated, folds = rules.data == "sample" and name not in request.dataset_roots, rules.split_follows_seed
    try:
        if name in request.dataset_roots:
            root = benchmark.locate(Path(request.dataset_roots[name]))
        elif generated:
            assert prepare_samples is not None
            root = benchmark.locate(prepare_samples(name))
        elif request.data_root is None:
            raise DatasetError(f"{name}: no --data folder was given; {benchmark.source}")
        else:
            root = benchmark.locate(request.data_root)
        splits = benchmark.splits(root)
        contents = data_fingerprint(splits, folds=folds)
        look = groups_apart if not is_own(name) else first_look if benchmark.task != "classification" else None
        odd = look(benchmark, splits, root) if look else ()
    except DatasetError as error:
        if is_own(name):  # there is nothing to get: the message says what to correct
            raise
        return Files(absent=str(error))
    return Files(
        images=Images(train=len(splits.train), val=len(splits.val), test=sum(map(len, splits.test.values()))),
        root=root.absolute(),
        manifest=manifest_hash(splits, folds=folds),
        fingerprint=contents,
        origin="generated" if generated else "generated-files" if splits.generated else "files",
        split=splits.tested,
        split_rule=splits.rule,
        note="generated samples" if generated else splits.note,
        odd=odd,
    )


def without_untrained(rules: Protocol, name: str, files: Files) -> Protocol:
    """The rules without ``test_untrained`` where a user's own data has a test split: nothing else is tested then."""
    if is_own(name) and rules.test_untrained and files.split != "carved":
        return replace(rules, test_untrained=False)
    return rules


def _own_rules(name: str, rules: Protocol) -> Protocol:
    """The rules, with the classes of a user's own data set, which a worker has from the run alone. Raises UsageError: a rule that is
    not for this benchmark."""
    if rules.own_classes:
        raise UsageError("own_classes is read from the folder of the data; it cannot be set")
    if is_own(name):
        return replace(rules, own_classes=BENCHMARKS.get(name).class_names)
    for rule in ("group", "category", "invert"):
        if getattr(rules, rule) not in ("", None):
            raise UsageError(
                f"{rule} is for data of your own, and {name} has its own rule; --set benchmarks.NAME.{rule}=… sets it for one"
            )
    return rules


def _absent_lines(absent: Mapping[str, str], request: Request) -> list[str]:
    """One line per missing benchmark, or one for all if there is no folder to search."""
    root = request.data_root
    elsewhere = {dataset_name(name) for name in request.dataset_roots}
    shared = [name for name in absent if name not in elsewhere and (root is None or not root.is_dir())]
    what = f"the data folder {root} {'is a file' if root and root.exists() else 'does not exist'}"
    what = what if root else "no data folder is given or set (--data DIR)"
    lines = [f"{what}: {', '.join(shared)}; sam-peft data list says where to get each"] if shared else []
    return lines + [text for name, text in absent.items() if name not in shared]
