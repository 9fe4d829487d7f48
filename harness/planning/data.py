"""The data behind a run: which switches its rules set, which pairs its splits name, and whether the files are still the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.archive.schema import content_hash
from harness.datasets.base import DataOptions, DatasetError, Pair, Splits
from harness.models.decoders import LABELLING
from harness.protocols.card import Protocol
from harness.system.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Images:
    """How many images a run trains on, validates on and tests on."""

    train: int
    val: int
    test: int


def data_options(rules: Protocol, benchmark: str) -> DataOptions:
    """The switches of a benchmark that a protocol sets."""
    with_cod10k = benchmark == "camo" and rules.quirks.camo_train == "released"
    return DataOptions(
        split_seed=rules.split_seed,
        split_rule="camo+cod10k" if with_cod10k else rules.split_rule,
        road_missing_ignore=rules.road_missing_ignore,
        group=rules.group,
        images=rules.images,
        masks=rules.masks,
        category=rules.category,
        mask_255_only=rules.quirks.mask_decoding == "released",
    )


def require_task(benchmark: str, task: str, rules: Protocol) -> None:
    """Raises UsageError where benchmark, decoder and the rules' task do not fit each other.

    Args:
        benchmark: canonical name.
        task: its `Benchmark.task`.
        rules: resolved for it.
    """
    labels, names = task == "classification", " or ".join(f"decoder={name}" for name in LABELLING)
    if labels and rules.task != "classification":
        raise UsageError(
            f"{benchmark} has one label an image and no masks; --set task=classification with {names} learns labels"
        )
    if not labels and rules.task == "classification":
        raise UsageError(
            f"task=classification needs one label an image, and {benchmark} has masks; take --datasets origin, or NAME=DIR "
            "with a folder of images a class"
        )
    if labels and rules.decoder not in LABELLING:
        raise UsageError(f"task=classification: decoder={rules.decoder} draws masks; take {names}")
    if not labels and rules.decoder in LABELLING:
        raise UsageError(
            f"decoder={rules.decoder} gives an image one label, and {benchmark} has masks; take another decoder"
        )


def manifest_hash(splits: Splits, *, folds: bool = False) -> str:
    """Hash of the stems of every split: two runs with one hash saw the same pairs, or with ``folds`` drew from the same."""
    if folds:
        return content_hash([p.stem for p in _every(splits)])
    stems = {"train": [p.stem for p in splits.train], "val": [p.stem for p in splits.val]}
    tests = {name: [p.stem for p in pairs] for name, pairs in splits.test.items()}
    return content_hash([stems, tests])


def _every(splits: Splits) -> list[Pair]:
    """All pairs, in an order that no split has a say in."""
    pairs = (*splits.train, *splits.val, *(pair for part in splits.test.values() for pair in part))
    return sorted(pairs, key=lambda pair: pair.stem)


def data_fingerprint(splits: Splits, *, folds: bool = False) -> str:
    """Hash of the stems and the sizes in bytes of every image and mask: one stat a file, nothing is read.

    Args:
        folds: of all pairs together, whatever the split.

    Raises:
        DatasetError: a file is gone.
    """
    named = {"train": splits.train, "val": splits.val, **{f"test {name}": pairs for name, pairs in splits.test.items()}}
    if folds:
        named = {"all": tuple(_every(splits))}
    return content_hash(
        {name: [[pair.stem, _size(pair.image), _size(pair.mask)] for pair in pairs] for name, pairs in named.items()}
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror}); unpack the data again") from error


def limited(images: Images, rules: Mapping[str, object]) -> Images:
    """The protocol's limits applied."""

    def least(count: int, limit: object) -> int:
        return min(count, int(str(limit))) if limit else count

    train = least(images.train, rules.get("train_limit"))
    test = images.test + (images.train - train if rules.get("test_untrained") else 0)
    return Images(train=train, val=least(images.val, rules.get("val_limit")), test=least(test, rules.get("test_limit")))
