"""What α chose, from records: whether it could and did leave the uniform mixture, and whether benchmarks differ in it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.records.architecture import read_architecture
from harness.records.schema import Record
from harness.records.store import RecordStore
from harness.registry import operation_names
from harness.reporting.statistics import ALPHA, Test

Shares = Mapping[str, Sequence[float]]
"""site -> softmax(α) over its operations, of one epoch."""

AlphaCode = Literal["", "ALPHA_STUCK", "ALPHA_UNIFORM"]
AlphaOf = Callable[[Record], AlphaCode]

NEAR_UNIFORM = 1.1
"""Shares up to this multiple of 1/n count as uniform: our choice. α ~ N(0, 0.001²) alone gives 1.003."""

MEANINGS: Mapping[str, str] = {
    "ALPHA_STUCK": "α could not move: its rate summed over its updates allows no operation more than"
    f" {NEAR_UNIFORM:g} times its uniform share, whatever it learns; more α updates or a higher alpha_lr would",
    "ALPHA_UNIFORM": f"α stayed uniform: no operation at any site got more than {NEAR_UNIFORM:g} times its uniform share",
}
"""Code -> what a table says below."""


def search_start(record: Record) -> int | None:
    """T_B, the last epoch before α's updates begin; None where a run has no such stage."""
    config = record.run.method_config
    start = config.get("search_start_epoch")
    searched = config.get("stagewise") and isinstance(start, int) and 0 < start < len(record.history)
    return start if searched else None


def no_alpha(record: Record) -> AlphaCode:
    """For pages that look at no α history."""
    return ""


MOST_ARRANGEMENTS = 20_000
"""Permutations are enumerated up to this many and drawn beyond."""


def alpha_code(record: Record, last: Shares) -> AlphaCode:
    """The flag of a run whose mixture says nothing of what α would choose; empty where it does, or has no α.

    Args:
        record: of which the budget tells how far α could go (older records do not know).
        last: softmax(α) at the end of training.
    """
    sizes = [len(shares) for shares in last.values() if len(shares) > 1]
    if not sizes:
        return ""
    cap = record.budget.get("share_cap")
    if record.budget.get("alpha_updates") == 0 or (cap is not None and cap * max(sizes) <= NEAR_UNIFORM):
        return "ALPHA_STUCK"
    largest = max(len(shares) * max(shares) for shares in last.values() if len(shares) > 1)
    return "ALPHA_UNIFORM" if largest <= NEAR_UNIFORM else ""


def alpha_codes_below(root: Path) -> AlphaOf:
    """`alpha_code` with the histories beside the records; methods without an α cost nothing."""
    store = RecordStore(root)
    known: dict[str, AlphaCode] = {}

    def code(record: Record) -> AlphaCode:
        if record.key not in known:
            known[record.key] = _read(record)
        return known[record.key]

    def _read(record: Record) -> AlphaCode:
        if record.code != "OK" or len(operation_names(record.run.method, record.run.method_config)) < 2:
            return ""
        try:
            history = record.architecture or read_architecture(store.architecture_path(record.key))
        except ValueError:
            return ""
        return alpha_code(record, history[-1]) if history else ""

    return code


def entropy(shares: Shares) -> float:
    """Mean over sites of −Σ p log p / log n: 1 is uniform, 0 one operation alone."""
    values = [
        -math.fsum(p * math.log(p) for p in one if p > 0) / math.log(len(one))
        for one in shares.values()
        if len(one) > 1
    ]
    return math.fsum(values) / len(values)


def distance(first: Shares, second: Shares) -> float:
    """Mean over sites of the total variation distance ½ Σ |p − q|, in [0, 1].

    Raises:
        ValueError: other sites, or other operations.
    """
    if first.keys() != second.keys():
        raise ValueError("not the same sites")
    return math.fsum(
        0.5 * math.fsum(abs(p - q) for p, q in zip(shares, second[site], strict=True)) for site, shares in first.items()
    ) / len(first)


@dataclass(frozen=True, kw_only=True)
class Domains:
    """Whether benchmarks choose different mixtures.

    Args:
        between: mean distance of two runs of different benchmarks.
        within: mean distance of two runs of one benchmark that differ by the seed.
        test: of ``between − within`` by permuting the benchmarks within each seed.
    """

    between: float
    within: float
    test: Test

    @property
    def verdict(self) -> str:
        if self.test.p is None:
            return "inconclusive: " + self.test.text
        different = self.test.p < ALPHA and self.between > self.within
        return f"{'they do' if different else 'not shown'}: {self.test.text}"


def domains(ends: Mapping[str, Mapping[int, Shares]], *, seed: int = 0) -> Domains | None:
    """Distance between benchmarks against distance between seeds, one-sided, with a permutation test.

    Runs of one seed share the initial α, so benchmarks change places within a seed only.

    Args:
        ends: benchmark -> seed -> softmax(α) at the end; seeds that some benchmark lacks are left out.

    None with fewer than two benchmarks or two common seeds.
    """
    import numpy as np

    seeds = sorted(set.intersection(*(set(runs) for runs in ends.values()))) if ends else []
    benchmarks = sorted(ends)
    if len(benchmarks) < 2 or len(seeds) < 2:
        return None
    runs = [(place, one) for one in seeds for place in range(len(benchmarks))]
    shares = [ends[benchmarks[place]][one] for place, one in runs]
    table = np.array([[distance(first, second) for second in shares] for first in shares])
    other_seed = np.array([[a[1] != b[1] for b in runs] for a in runs])
    upper = np.triu(np.ones_like(other_seed), k=1).astype(bool)

    def means(labels: Sequence[int]) -> tuple[float, float]:
        mine = np.asarray(labels)
        same = mine[:, None] == mine[None, :]
        return float(table[~same & upper].mean()), float(table[same & other_seed & upper].mean())

    count = len(benchmarks)
    orders = list(itertools.permutations(range(count))) if count <= 7 else []
    arrangements = math.factorial(count) ** (len(seeds) - 1)  # the first seed may stay: only who is together counts
    smallest = 1 / arrangements
    between, within = means([place for place, _ in runs])
    if smallest > ALPHA:
        return Domains(
            between=between,
            within=within,
            test=Test(p=None, statistic=between - within, n=len(seeds), smallest=smallest),
        )
    if arrangements <= MOST_ARRANGEMENTS:
        drawn = [
            [*range(count), *itertools.chain.from_iterable(one)]
            for one in itertools.product(orders, repeat=len(seeds) - 1)
        ]
        extra = 0
    else:
        generator = np.random.default_rng(seed)
        drawn = [
            [place for _ in seeds for place in map(int, generator.permutation(count))]
            for _ in range(MOST_ARRANGEMENTS // 4)
        ]
        extra = 1
    gaps = [first - second for first, second in map(means, drawn)]
    hits = sum(gap >= between - within - 1e-12 for gap in gaps)
    p = (hits + extra) / (len(drawn) + extra)
    return Domains(
        between=between, within=within, test=Test(p=p, statistic=between - within, n=len(seeds), smallest=smallest)
    )
