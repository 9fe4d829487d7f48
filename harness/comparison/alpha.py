"""What α chose, from records: whether it could and did leave the uniform mixture, and whether benchmarks differ in it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from harness.archive.archive import Archive, Shares
from harness.archive.schema import Record
from harness.registry import never_reached
from harness.statistics import ALPHA, Test

AlphaCode = Literal["", "ALPHA_STUCK", "ALPHA_UNIFORM"]

NEAR_UNIFORM = 1.1
"""Shares up to this multiple of 1/n count as uniform: our choice. α ~ N(0, 0.001²) alone gives 1.003."""

MEANINGS: Mapping[str, str] = {
    "ALPHA_STUCK": "α could not move: its rate summed over its updates allows no operation more than"
    f" {NEAR_UNIFORM:g} times its uniform share (α's start and what Adam steps beyond the rate not counted);"
    " more α updates or a higher alpha_lr would",
    "ALPHA_UNIFORM": f"α stayed uniform: no operation at any site got more than {NEAR_UNIFORM:g} times its uniform share",
}
"""Code -> what a table says below."""


def search_start(record: Record) -> int | None:
    """T_B, the last epoch before α's updates begin; None where a run has no such stage."""
    config = record.run.method_config
    start = config.get("search_start_epoch")
    searched = config.get("stagewise") and isinstance(start, int) and 0 < start < len(record.history)
    return start if searched else None


def without_search(record: Record) -> str:
    """What a table says of a run that ends before its search would begin; empty for others."""
    run, epochs = record.run, record.run.rules.get("epochs")
    return never_reached(run.method, run.method_config, epochs=int(epochs)) if epochs else ""


MOST_ARRANGEMENTS = 20_000
"""Permutations are enumerated up to this many and drawn beyond (`scipy.stats.permutation_test`)."""


def alpha_code(record: Record, last: Shares) -> AlphaCode:
    """The flag of a run whose mixture says nothing of what α would choose; empty where it does, has no α, or is a control without a
    search. ``last`` is softmax(α) at the end of training; older records do not know how far α could go."""
    sizes = [len(shares) for shares in last.values() if len(shares) > 1]
    if not sizes or without_search(record):
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
    """Mean over sites of the total variation distance ½ Σ |p − q|, in [0, 1]. Raises ValueError: other sites, or other
    operations."""
    if first.keys() != second.keys():
        raise ValueError("not the same sites")
    return math.fsum(
        0.5 * math.fsum(abs(p - q) for p, q in zip(shares, second[site], strict=True)) for site, shares in first.items()
    ) / len(first)


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Where α ends when its gradient is noise alone: what a share must leave to show that anything was learnt.

    Args:
        spread: SD of the logarithms of a site's shares about their mean, over all runs.
        largest_spread: that SD of one run stays below this in 97.5 of 100 runs.
        largest: the largest share of any operation at any site stays below this in 97.5 of 100 runs.
        mean_share: between these lies one operation's share, averaged over sites, in 95 of 100 runs.
    """

    spread: float
    largest_spread: float
    largest: float
    mean_share: tuple[float, float]

    def exceeded(self, shares: Shares) -> bool:
        """Whether a run's shares spread more than those of 97.5 % of runs on noise."""
        return spread(shares) > self.largest_spread

    @property
    def in_words(self) -> str:
        low, high = self.mean_share
        return (
            f"under noise alone (Adam on random gradients at the same rates) log-shares have SD {self.spread:.2f}, in 97.5 % of"
            f" runs below {self.largest_spread:.2f}; an operation's mean share lies in [{low:.3f}, {high:.3f}] in 95 %, and the"
            f" largest share of a run below {self.largest:.2f} in 97.5 %"
        )


def spread(shares: Shares) -> float:
    """SD of the logarithms of the shares about their mean, within sites."""
    logs = [[math.log(max(p, 1e-12)) for p in of_site] for of_site in shares.values() if len(of_site) > 1]
    squares = [(value - math.fsum(of_site) / len(of_site)) ** 2 for of_site in logs for value in of_site]
    return math.sqrt(math.fsum(squares) / sum(len(of_site) - 1 for of_site in logs))


DARTS_BETAS = (0.5, 0.999)


def noise(record: Record, last: Shares) -> Noise | None:
    """The null of a run: its α's optimiser, rates and sizes, on gradients that are normal numbers of sum zero in a site.

    Their sum is zero as softmax does not see what all operations share. Adam divides by the gradient's size, so the noise
    needs none, unless α has a weight decay, whose pull adds to the gradient as it is.
    None then, and where the record does not tell α's rates.
    """
    sizes = {len(shares) for shares in last.values()}
    rates = alpha_rates(record)
    if len(sizes) != 1 or not rates or _decays(record):
        return None
    betas = DARTS_BETAS if _as_darts(record) else record.run.rules.get("betas") or (0.9, 0.999)
    init = float(record.run.method_config.get("alpha_std") or 0.0)
    return _under_noise(rates, len(last), sizes.pop(), (float(betas[0]), float(betas[1])), init)


def beside_noise(records: Iterable[Record], archive: Archive) -> str:
    """The spread of these runs' shares beside that of noise, in words: what every sentence on α's choice is to be read with."""
    ends = [(record, end) for record in records if (end := archive.mixture(record))]
    nulls = sorted({null for record, end in ends if (null := noise(record, end))}, key=lambda null: null.spread)
    spreads = [spread(end) for _, end in ends]
    if not spreads:
        return "no run has an α history"
    said = f"log-shares have SD {min(spreads):.2f} to {max(spreads):.2f}"
    if all(record.budget.get("alpha_updates") == 0 for record, _ in ends):
        return f"{said}; α was not trained, so these are the values that it began with"
    if not nulls:
        decayed = any(_decays(record) for record, _ in ends)
        why = (
            "α has a weight decay, whose pull depends on the gradient's size"
            if decayed
            else "the records do not tell α's rates"
        )
        return f"{said}; what noise alone would give is not known, as {why}"
    return f"{said}; " + "; ".join(null.in_words for null in nulls)


def _as_darts(record: Record) -> bool:
    """Whether α has an optimiser of its own, as `harness.methods.configs.naslora` says."""
    return record.run.method_config.get("alpha_optimizer") == "darts"


def _decays(record: Record) -> bool:
    return bool(record.run.method_config.get("alpha_weight_decay"))


def alpha_rates(record: Record) -> tuple[float, ...]:
    """α's rate at each of its updates, by the card's schedule; empty where their sum is not what the record counted."""
    config, rules, budget = record.run.method_config, record.run.rules, record.budget
    weights, updates = (int(budget.get(name, 0)) for name in ("weight_updates", "alpha_updates"))
    total = weights + updates * (config.get("alternate") in ("iteration", "epoch"))
    if not updates or not total or not config.get("alpha_lr"):
        return ()
    epochs, start = (
        int(rules.get("epochs", 1)),
        int(config.get("search_start_epoch") or 0) * bool(config.get("stagewise")),
    )
    planned = weights if rules.get("budget") == "updates" else total  # steps in `epochs`; more follow under "updates"
    first, warmup = planned * start // epochs, int(rules.get("warmup", 0))
    if _as_darts(record):  # a constant rate
        rules, warmup = {}, 0
    rates = []
    for number in range(updates):
        at = first + number * (total - first) / updates
        done = (at - warmup) / max(1, total - warmup)
        factor = {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}.get(str(rules.get("schedule")), 1.0)
        rates.append(float(config["alpha_lr"]) * ((at + 1) / warmup if at < warmup else factor))
    counted = budget.get("alpha_lr_sum", 0.0)
    return tuple(rates) if abs(math.fsum(rates) - counted) <= 0.01 * counted else ()


NOISE_RUNS = 400


@lru_cache(maxsize=64)
def _under_noise(
    rates: tuple[float, ...], sites: int, operations: int, betas: tuple[float, float], init: float
) -> Noise:
    import numpy as np

    generator = np.random.default_rng(0)
    shape = (NOISE_RUNS, sites, operations)
    alpha = init * generator.standard_normal(shape, dtype=np.float32)
    first, second = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for step, rate in enumerate(rates, start=1):
        gradient = generator.standard_normal(shape, dtype=np.float32)
        gradient -= gradient.mean(axis=2, keepdims=True)
        first += (1 - betas[0]) * (gradient - first)
        second += (1 - betas[1]) * (gradient**2 - second)
        size = np.sqrt(second / (1 - betas[1] ** step)) + 1e-8
        alpha -= np.float32(rate / (1 - betas[0] ** step)) * first / size
    logs = alpha - alpha.mean(axis=2, keepdims=True)
    shares = np.exp(logs) / np.exp(logs).sum(axis=2, keepdims=True)
    low, high = np.quantile(shares.mean(axis=1), [0.025, 0.975])
    variances = (logs**2).sum(axis=(1, 2)) / (sites * (operations - 1))
    return Noise(
        spread=float(np.sqrt(variances.mean())),
        largest_spread=float(np.sqrt(np.quantile(variances, 0.975))),
        largest=float(np.quantile(shares.max(axis=(1, 2)), 0.975)),
        mean_share=(float(low), float(high)),
    )


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
            return "no test: " + self.test.text
        different = self.test.p < ALPHA and self.between > self.within
        return f"{'they do' if different else 'not shown'}: {self.test.text}"


def domains(ends: Mapping[str, Mapping[int, Shares]]) -> Domains | None:
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
    shares = [ends[benchmark][seed] for benchmark in benchmarks for seed in seeds]
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
        permuted = permutation_test(
            tuple(runs), gap, permutation_type="samples", n_resamples=MOST_ARRANGEMENTS, alternative="greater",
            rng=np.random.default_rng(0),
        )  # fmt: skip
        p = float(permuted.pvalue)
    return Domains(
        between=between, within=within, test=Test(p=p, statistic=between - within, n=len(seeds), smallest=smallest)
    )
