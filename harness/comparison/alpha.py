"""What α chose, from records: whether it could and did leave the uniform mixture, and whether benchmarks differ in it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from harness.archive.archive import Archive, Shares
from harness.archive.schema import Record
from harness.statistics import ALPHA, Test

AlphaCode = Literal["", "ALPHA_STUCK", "ALPHA_UNIFORM"]

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


MOST_ARRANGEMENTS = 20_000
"""Permutations are enumerated up to this many and drawn beyond (`scipy.stats.permutation_test`)."""


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


def alpha_codes(records: Iterable[Record], archive: Archive) -> list[str]:
    """The codes of runs whose α says nothing, each once."""
    ends = ((record, archive.mixture(record)) for record in records)
    return sorted({code for record, end in ends if end and (code := alpha_code(record, end))})


def entropy(shares: Shares) -> float:
    """Mean over sites of −Σ p log p / log n: 1 is uniform, 0 one operation alone."""
    values = [
        -math.fsum(p * math.log(p) for p in of_site if p > 0) / math.log(len(of_site))
        for of_site in shares.values()
        if len(of_site) > 1
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
    from scipy.stats import permutation_test

    seeds = sorted(set.intersection(*(set(runs) for runs in ends.values()))) if ends else []
    benchmarks = sorted(ends)
    count = len(benchmarks)
    if count < 2 or len(seeds) < 2:
        return None
    shares = [ends[benchmark][one] for benchmark in benchmarks for one in seeds]
    table = np.array([[distance(first, second) for second in shares] for first in shares])
    runs = np.arange(len(shares)).reshape(count, len(seeds))
    pairs = np.triu(np.ones_like(table, dtype=bool), k=1)

    def means(*samples: Any) -> tuple[float, float]:
        """Between and within, for runs grouped as in ``samples``, one a benchmark; none holds two runs of one seed."""
        label = np.empty(len(shares), dtype=int)
        for place, sample in enumerate(samples):
            label[np.asarray(sample, dtype=int)] = place
        same = label[:, None] == label[None, :]
        return float(table[pairs & ~same].mean()), float(table[pairs & same].mean())

    def gap(*samples: Any) -> float:
        between, within = means(*samples)
        return round(between - within, 12)  # ties that differ in the last bit are ties

    between, within = means(*runs)
    smallest, p = math.factorial(count) ** (1.0 - len(seeds)), None  # one seed may stay: only who is together counts
    if smallest <= ALPHA:
        found = permutation_test(
            tuple(runs), gap, permutation_type="samples", n_resamples=MOST_ARRANGEMENTS, alternative="greater",
            rng=np.random.default_rng(seed),
        )  # fmt: skip
        p = float(found.pvalue)
    return Domains(
        between=between, within=within, test=Test(p=p, statistic=between - within, n=len(seeds), smallest=smallest)
    )
