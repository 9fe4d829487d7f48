"""``check``: can these files be trusted?"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from harness.datasets.base import Benchmark, DatasetError, Pair, Splits
from harness.datasets.preparing.fingerprints import Fingerprint, border_share, class_shares, fingerprint_pair
from harness.datasets.preparing.progress import TellProgress
from harness.datasets.preparing.verdicts import (
    Verdict,
    enough_tests,
    image_and_mask_size,
    mask_polarity,
    one_class_masks,
    verdicts_on,
)
from harness.datasets.reading.folder_benchmark import FolderBenchmark
from harness.datasets.reading.opening import stored_size

_GLANCES = 24
"""Masks of a split that are looked at before a run."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """All verdicts on one benchmark's folder."""

    benchmark: str
    root: Path
    splits: Splits | None
    verdicts: tuple[Verdict, ...]

    @property
    def passed(self) -> bool:
        return all(verdict.status != "failed" for verdict in self.verdicts)


def check(benchmark: Benchmark, root: Path, *, workers: int = 0, progress: TellProgress) -> Check:
    """Read everything below ``root`` (as `Benchmark.locate` returned it) and judge it.

    Args:
        benchmark: what should be there.
        root: its folder.
        workers: processes; 0 for one a core that this process may use.
        progress: told of every image.
    """
    try:
        splits = benchmark.splits(root)
    except DatasetError as error:
        verdict = Verdict(rule="pairing", status="failed", message=str(error))
        return Check(benchmark=benchmark.name, root=root, splits=None, verdicts=(verdict,))
    prints = _fingerprints(benchmark, splits, workers or available_cores(), progress)
    verdicts = verdicts_on(benchmark, splits, prints, root)
    return Check(benchmark=benchmark.name, root=root, splits=splits, verdicts=verdicts)


def first_look(benchmark: FolderBenchmark, splits: Splits, root: Path) -> tuple[str, ...]:
    """What is odd about masks of one's own, a line each, from some of them: for `run`, before it trains on them.

    Args:
        benchmark: as it will be trained on.
        splits: its pairs.
        root: its folder.

    Raises:
        DatasetError: masks that cannot be read, or a training or test split without one object.
    """
    parts = {"train": splits.train, **splits.test}
    looked = {split: [_glance(benchmark, split, pair) for pair in _spread(pairs)] for split, pairs in parts.items()}
    prints = [found for mine in looked.values() for found in mine]
    whole = f"sam-peft data check {benchmark.name}={root} looks at all of them"
    broken = [found for found in prints if found.error]
    if broken:
        raise DatasetError(
            f"{benchmark.name}: {len(broken)} of {len(prints)} pairs that were looked at cannot be read; the first: "
            f"{broken[0].error}; mend or remove them ({whole})"
        )
    for split, mine in looked.items():
        rest = (_glance(benchmark, split, pair) for pair in parts[split])
        if not any(_shows_something(found) for found in itertools.chain(mine, rest)):
            raise DatasetError(
                f"{benchmark.name}: every mask of the {split} split is background, so there is nothing to learn and every score "
                f"would be perfect; give masks of what is looked for ({whole})"
            )
    odd = [enough_tests(splits), image_and_mask_size(benchmark, prints, root)]
    odd += [mask_polarity(prints)] if benchmark.task == "binary" else []
    odd += [one_class_masks(prints, root)] if 2 * sum(map(_is_of_one_class, prints)) > len(prints) else []
    return tuple(f"{benchmark.name}: {found.rule}: {found.message}" for found in odd if found.status != "passed")


def _glance(benchmark: FolderBenchmark, split: str, pair: Pair) -> Fingerprint:
    """The mask's classes and both sizes; the image is decoded only where they differ, as they may be no pair."""
    try:
        mask, size = benchmark.mask_of(pair), stored_size(pair.image)
        mask_size = (mask.shape[1], mask.shape[0])
        if sorted(size) == sorted(mask_size):  # as stored or turned upright
            size = mask_size
        else:
            benchmark.read(pair)
    except DatasetError as error:
        return Fingerprint(split=split, pair=pair, error=str(error))
    return Fingerprint(
        split=split,
        pair=pair,
        image_size=size,
        mask_size=mask_size,
        shares=class_shares(mask, benchmark.num_classes),
        border_share=border_share(mask),
    )


def _is_of_one_class(found: Fingerprint) -> bool:
    return max(found.shares, default=0.0) >= 1.0


def _shows_something(found: Fingerprint) -> bool:
    return any(found.shares[1:])


def _spread(pairs: Sequence[Pair]) -> list[Pair]:
    """Some of them, from first to last."""
    step = max(1, len(pairs) // _GLANCES)
    return list(pairs[::step][:_GLANCES])


def _fingerprints(benchmark: Benchmark, splits: Splits, workers: int, progress: TellProgress) -> list[Fingerprint]:
    parts = {"train": splits.train, "val": splits.val, **splits.test}
    items = [(split, pair) for split, pairs in parts.items() for pair in pairs]
    describe = partial(_describe, benchmark)
    if workers == 1:
        return list(_counted(map(describe, items), len(items), progress))
    # Fresh processes: a fork would copy the locks of the display's thread. Ctrl-C is the parent's to handle.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
    )
    try:
        return list(_counted(pool.map(describe, items, chunksize=8), len(items), progress))
    finally:
        pool.shutdown(cancel_futures=True)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _describe(benchmark: Benchmark, item: tuple[str, Pair]) -> Fingerprint:
    return fingerprint_pair(benchmark, *item)


def _counted(found: Iterable[Fingerprint], total: int, progress: TellProgress) -> Iterable[Fingerprint]:
    for number, one in enumerate(found, 1):
        progress("reading", number, total)
        yield one
