"""The data of a run: the options that its rules set, the pairs of its splits, and whether the files have changed. Also the
generated images of protocols with ``data: sample``, and the images of finished runs for pages that show masks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from harness.archive.schema import CONTENT, Origin, Record, Run, TestImages, content_hash
from harness.datasets.base import Benchmark, DataOptions, DatasetError, Pair, Splits
from harness.datasets.preparing.checking import first_look, groups_apart
from harness.planning.request import Request
from harness.protocols.load import from_rules, resolve
from harness.protocols.protocol import Protocol
from harness.registry import BENCHMARKS, add_own_of, dataset_name
from harness.settings import load_settings, named_table
from harness.system.errors import UsageError, os_reason
from harness.system.files import own_folder
from harness.system.hashes import file_hashes
from harness.system.text import limited_to


class ImageCounts(NamedTuple):
    """Numbers of images for training, validation and testing."""

    train: int
    val: int
    test: int


def data_options(rules: Protocol, benchmark: str) -> DataOptions:
    """The options of a benchmark that a protocol sets."""
    with_cod10k = benchmark == "camo" and rules.quirks.camo_train == "released"
    return DataOptions(
        split_seed=rules.split_seed,
        split_follows_seed=rules.split_follows_seed,
        split_rule="camo+cod10k" if with_cod10k else rules.split_rule,
        group=rules.group,
        category=rules.category,
        invert=rules.invert,
        mask_255_only=rules.quirks.mask_decoding == "released",
    )


def benchmark_of(name: str, rules: Protocol) -> Benchmark:
    """A benchmark with the options that a protocol sets."""
    benchmark: Benchmark = BENCHMARKS.get(name)(data_options(rules, name))
    return benchmark


def register_own(names: Iterable[str], folders: Mapping[str, Path], protocol: Protocol) -> dict[str, Path]:
    """Register the user's own data sets, and return where they are. The protocol's group pattern and category help to recognise one."""
    from harness.datasets.own import any_folder

    found = {}
    for name in names:
        benchmark, found[name] = any_folder(name, folders[name], data_options(resolve(protocol, name), name))
        BENCHMARKS.add(name, benchmark)
    return found


def selects_by(run: Run) -> str:
    """The metric that chooses on a run's validation images: its rules' own, else its benchmark's."""
    return str(run.rule("select_by") or BENCHMARKS.get(run.benchmark).selection_metric)


def manifest_hash(splits: Splits, *, folds: bool = False) -> str:
    """Hash of the stems of every split. Two runs with the same hash used the same pairs; with ``folds`` they drew from the
    same pairs."""
    if folds:
        return content_hash([p.stem for p in _every(splits)])
    stems = {"train": [p.stem for p in splits.train], "val": [p.stem for p in splits.val]}
    tests = {name: [p.stem for p in pairs] for name, pairs in splits.test.items()}
    return content_hash([stems, tests])


def _every(splits: Splits) -> list[Pair]:
    """All pairs, in an order that is independent of the splits."""
    return sorted((pair for part in splits.parts.values() for pair in part), key=lambda pair: pair.stem)


def data_fingerprint(splits: Splits, *, folds: bool = False) -> str:
    """``content-``, a hash of the stems and contents of every image and mask, and one of stems and sizes in bytes, which is all that
    older records know (`harness.archive.older.same_data` compares both). Each file is read once (`file_hashes`).

    Args:
        folds: of all pairs together, whatever the split.

    Raises:
        DatasetError: a file is gone or cannot be read, or changes while it is read.
    """
    named = {"train": splits.train, "val": splits.val, **{f"test {name}": pairs for name, pairs in splits.test.items()}}
    if folds:
        named = {"all": tuple(_every(splits))}
    paths = (path for pairs in named.values() for pair in pairs for path in (pair.image, pair.mask))
    try:
        digests = file_hashes(paths, what="images and masks")
    except OSError as error:
        raise DatasetError(f"{error.filename} cannot be read ({error.strerror}); unpack the data again") from error
    hashes = [
        content_hash({name: [[p.stem, of[p.image], of[p.mask]] for p in pairs] for name, pairs in named.items()})
        for of in (digests, {path: path.stat().st_size for path in digests})
    ]
    return f"{CONTENT}{'-'.join(hashes)}"


@dataclass(frozen=True, kw_only=True)
class Files:
    """What a run records about a benchmark's files.

    Args:
        absent: why they are not on disk, and where to get them; the other fields are empty then.
        images: how many there are, before the protocol's limits.
        odd: a line for each thing that looks wrong in their masks.
    """

    absent: str = ""
    images: ImageCounts | None = None
    root: Path = Path()
    manifest: str = ""
    fingerprint: str = ""
    origin: Origin = "files"
    split: TestImages = ""
    split_rule: str = ""
    note: str = ""
    odd: tuple[str, ...] = ()


def files_of(name: str, rules: Protocol, request: Request, *, samples: Path | None = None) -> Files:
    """The files of a benchmark under the protocol's rules for it; generated ones as `write_sample` says. Raises DatasetError: data of the
    user's own cannot be used."""
    benchmark: Any = benchmark_of(name, rules)
    generated, folds = rules.data == "sample" and name not in request.dataset_roots, rules.split_follows_seed
    root: Any = None
    try:
        if name in request.dataset_roots:
            root = benchmark.locate(Path(request.dataset_roots[name]))
        elif generated:
            root = benchmark.locate(write_sample(name, request.results, instead=samples))
        elif request.data_root is None:
            raise DatasetError(f"{name}: no --data folder was given; {benchmark.source}")
        else:
            root = benchmark.locate(request.data_root)
        splits = benchmark.splits(root)
        contents = data_fingerprint(splits, folds=folds)
        look = first_look if benchmark.own and benchmark.task != "classification" else groups_apart
        odd = look(benchmark, splits, root)
    except DatasetError as error:
        if benchmark.own or (
            root is not None and request.skip_missing
        ):  # the message says what to correct, not what to get
            raise
        return Files(absent=str(error))
    return Files(
        images=ImageCounts(train=len(splits.train), val=len(splits.val), test=sum(map(len, splits.test.values()))),
        root=root.absolute(),
        manifest=manifest_hash(splits, folds=folds),
        fingerprint=contents,
        origin="generated" if generated else "generated-files" if splits.generated else "files",
        split=splits.tested,
        split_rule=splits.rule,
        note="generated samples" if generated else splits.note,
        odd=odd,
    )


def rules_for(name: str, protocol: Protocol) -> Protocol:
    """The protocol's rules for a benchmark, with the classes of a user's own data set, which a worker has from the run alone. Raises
    UsageError: a rule that is not for this benchmark."""
    rules = resolve(protocol, name)
    if rules.own_classes:
        raise UsageError("own_classes is read from the folder of the data; it cannot be set")
    if BENCHMARKS.get(name).own:
        return replace(rules, own_classes=BENCHMARKS.get(name).class_names)
    for rule in ("group", "category", "invert"):
        if getattr(rules, rule) not in ("", None):
            raise UsageError(
                f"{rule} is for data of your own, and {name} has its own rule; --set benchmarks.NAME.{rule}=… sets it for one"
            )
    return rules


def rules_on_files(name: str, protocol: Protocol, files: Files) -> Protocol:
    """`rules_for` without ``test_untrained`` where a user's own data has a test split: nothing else is tested then. Raises UsageError:
    the protocol sets it for these data by name."""
    rules = rules_for(name, protocol)
    if not (BENCHMARKS.get(name).own and rules.test_untrained and files.split != "carved"):
        return rules
    if "test_untrained" in protocol.benchmarks.get(name, {}):
        raise UsageError(f"benchmarks.{name}.test_untrained=true: {name} has its own test split; leave it out")
    return replace(rules, test_untrained=False)


def limited(images: ImageCounts, rules: Mapping[str, object]) -> ImageCounts:
    """The protocol's limits applied."""

    def least(count: int, limit: object) -> int:
        return min(count, int(str(limit))) if limit else count

    train = least(images.train, rules.get("train_limit"))
    test = images.test + (images.train - train if rules.get("test_untrained") else 0)
    return ImageCounts(
        train=train, val=least(images.val, rules.get("val_limit")), test=least(test, rules.get("test_limit"))
    )


def limits_in_words(images: ImageCounts, rules: Mapping[str, object]) -> str:
    """``407 → 400 / 108 → 60 / 83 images``: of training, validation and tests, as the protocol limits them."""
    used = limited(images, rules)
    numbers = " / ".join(limited_to(getattr(images, part), getattr(used, part)) for part in ("train", "val", "test"))
    more = ", training images that nothing trains on are tested too" if rules.get("test_untrained") else ""
    return f"{numbers} images{more}"


def network_images(
    results: Path, *, data: Sequence[Path] = (), known: Callable[[str], Path | None] = lambda key: None
) -> Callable[[Record, str, str], Any]:
    """A function that returns images of a run's test split as the network sees them, or None without them. They come from the folder of
    ``data`` whose splits are the run's, from the folder of the settings, from that of the sweep, or from the generated samples.

    Args:
        known: key of a run -> the folder that it was trained on, None where that is not known.

    Raises:
        DatasetError: no folder of ``data`` holds the images of a run.
        UsageError: the settings name a benchmark that is not known.
    """
    settings = load_settings()
    folders = {} if data else named_table(settings, "datasets", dataset_name)

    @cache
    def tested(
        name: str, rules: str, manifest: str, trained_on: Path | None, *, generated: bool
    ) -> tuple[Benchmark, dict[tuple[str, str], Pair]] | None:
        roots: Sequence[Path | None] = data or [folders.get(name), settings.data, trained_on]
        for folder in [results / "sample-data" / name] if generated else roots:
            if folder is None or not folder.is_dir():
                continue
            with suppress(DatasetError, UsageError):  # other data, or a plug-in or a protocol that are unknown here
                add_own_of(name, json.loads(rules))
                resolved = from_rules(json.loads(rules))
                benchmark = benchmark_of(name, resolved)
                splits = benchmark.splits(benchmark.locate(folder))
                if generated or manifest_hash(splits, folds=resolved.split_follows_seed) == manifest:
                    return benchmark, {(split, p.stem): p for split, pairs in splits.test.items() for p in pairs}
        if data and not generated:
            raise DatasetError(f"{' and '.join(map(str, data))}: the images of the runs on {name} are not there")
        return None

    def picture_of(record: Record, split: str, stem: str) -> Any:
        run, rules = record.run, json.dumps(record.run.rules, sort_keys=True)
        opened = tested(run.benchmark, rules, run.manifest, known(run.key), generated=run.origin == "generated")
        if opened is None or (pair := opened[1].get((split, stem))) is None:
            return None
        side = int(run.rules["image_size"])
        image = Image.fromarray(opened[0].read(pair).image)
        return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))

    return picture_of


def write_sample(name: str, results: Path, *, instead: Path | None = None) -> Path:
    """Write a benchmark's generated sample below ``results/sample-data`` once, and return its folder.

    Args:
        instead: folder for samples that are not there yet, where nothing may be written to ``results``.
    """
    from harness.datasets import samples

    folder = results / "sample-data" / name
    folder = folder if folder.is_dir() else (instead or results) / "sample-data" / name
    try:
        samples.write_samples(name, own_folder(folder))
    except OSError as error:
        raise UsageError(
            f"sample data cannot be written to {folder} ({os_reason(error)}); choose another --results DIR"
        ) from error
    return folder
