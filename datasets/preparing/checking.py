"""``check``: can these files be trusted?"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from harness.datasets.base import Benchmark, DatasetError, Pair, Splits
from harness.datasets.preparing.fingerprints import Fingerprint, fingerprint_pair
from harness.datasets.preparing.progress import TellProgress
from harness.datasets.preparing.verdicts import Verdict, verdicts_on


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
