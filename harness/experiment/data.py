"""The data of a run, opened as the run saw them: for training, testing, exporting and predicting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.archive.schema import Run
from harness.datasets.base import Benchmark, DatasetError, Pair
from harness.planning.data import data_fingerprint, data_options, manifest_hash
from harness.protocols.load import from_rules
from harness.registry import BENCHMARKS, add_own_of
from harness.training.batches import subset
from harness.training.images import ImageSource


@dataclass(frozen=True, kw_only=True)
class RunData:
    """A run's images by split, the protocol's limits applied.

    Args:
        tests: by the name of the test split.
    """

    benchmark: Benchmark
    train: ImageSource
    val: ImageSource
    tests: dict[str, ImageSource]

    @property
    def counts(self) -> dict[str, int]:
        """Images by split."""
        return {"train": len(self.train), "val": len(self.val)} | {
            name: len(source) for name, source in self.tests.items()
        }

    def groups(self, split: str) -> dict[str, str]:
        """Test image -> what it shares with others of its split (`Benchmark.group`); empty where each stands alone."""
        groups = {pair.stem: self.benchmark.group(pair) for pair in self.tests[split].pairs}
        return groups if len(set(groups.values())) < len(groups) else {}


def open_data(run: Run, root: Path, *, cache: Path | None = None) -> RunData:
    """Open the benchmark below ``root``.

    Args:
        run: says which images of which split, and their size.
        root: the benchmark's folder, as `Benchmark.locate` finds it.
        cache: folder of decoded images; None decodes each time.

    Raises:
        DatasetError: the files are not those that the run was planned with.
    """
    rules = from_rules(run.rules)
    add_own_of(run.benchmark, run.rules)
    benchmark: Benchmark = BENCHMARKS.get(run.benchmark)(data_options(rules, run.benchmark))
    splits = benchmark.splits(root)
    known, folds = run.data_fingerprint, rules.split_follows_seed
    if manifest_hash(splits, folds=folds) != run.manifest or (known and data_fingerprint(splits, folds=folds) != known):
        raise DatasetError(
            f"the files of {run.benchmark} below {root} are not those of run {run.key}; give the same data, or plan it again"
        )

    def chosen(pairs: Sequence[Pair], limit: int, split: str) -> list[Pair]:
        return [pairs[index] for index in subset(len(pairs), limit, seed=rules.split_seed, split=split)]

    def source(pairs: Sequence[Pair]) -> ImageSource:
        return ImageSource(benchmark, pairs, image_size=rules.image_size, cache=cache if rules.cache_images else None)

    train, val = chosen(splits.train, rules.train_limit, "train"), chosen(splits.val, rules.val_limit, "val")
    tests = dict(splits.test)
    if rules.test_untrained:
        seen = {benchmark.group(pair) for pair in (*train, *val)}
        name = next(iter(tests))
        tests[name] = (*tests[name], *(pair for pair in splits.train if benchmark.group(pair) not in seen))
    return RunData(
        benchmark=benchmark,
        train=source(train),
        val=source(val),
        tests={name: source(chosen(pairs, rules.test_limit, name)) for name, pairs in tests.items()},
    )
