"""Where α ends when its gradient is noise alone, beside where it ended: what a share must leave to show that anything was learnt.

``python results/analysis/alpha_null.py results --protocol mobile`` prints, for every run with an α history, the SD of the logarithms of its
shares within a site beside that of 400 simulated runs: the same optimiser, rates and sizes on normal gradients of sum zero in a site. Adam
divides by the gradient's size, so the noise needs none, unless α has a weight decay.
"""

from __future__ import annotations

import argparse
import math
from functools import lru_cache
from pathlib import Path

import numpy as np

from harness.archive.archive import Archive
from harness.archive.schema import Record

RUNS = 400


def spread(logs: np.ndarray) -> np.ndarray:
    """SD of log-shares (…, sites, operations) about their mean within a site."""
    left = logs - logs.mean(axis=-1, keepdims=True)
    sites, operations = left.shape[-2:]
    return np.asarray(np.sqrt((left**2).sum(axis=(-2, -1)) / (sites * (operations - 1))))


def alpha_rates(record: Record) -> tuple[float, ...]:
    """α's rate at each of its updates, by the protocol's schedule; empty where their sum is not what the record counted."""
    config, rules, budget = record.run.method_config, record.run.rules, record.budget
    weights, updates = (int(budget.get(name, 0)) for name in ("weight_updates", "alpha_updates"))
    total = weights + updates * (config.get("alternate") in ("iteration", "epoch"))
    if not updates or not total or not config.get("alpha_lr"):
        return ()
    start = int(config.get("search_start_epoch") or 0) * bool(config.get("stagewise"))
    planned = weights if rules.get("budget") == "updates" else total  # steps in `epochs`; more follow under "updates"
    first, warmup, schedule = (
        planned * start // int(rules.get("epochs", 1)),
        int(rules.get("warmup", 0)),
        rules.get("schedule"),
    )
    rates = []
    for number in range(updates):
        at = first + number * (total - first) / updates
        done = (at - warmup) / max(1, total - warmup)
        factor = {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}.get(str(schedule), 1.0)
        rates.append(float(config["alpha_lr"]) * ((at + 1) / warmup if at < warmup else factor))
    counted = budget.get("alpha_lr_sum", 0.0)
    return tuple(rates) if abs(math.fsum(rates) - counted) <= 0.01 * counted else ()


@lru_cache(maxsize=64)
def spread_of_noise(
    rates: tuple[float, ...], sites: int, operations: int, betas: tuple[float, float], init: float
) -> tuple[float, float]:
    """The spread of all runs together, and what 97.5 of 100 runs stay below."""
    generator = np.random.default_rng(0)
    shape = (RUNS, sites, operations)
    alpha = init * generator.standard_normal(shape, dtype=np.float32)
    first, second = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for step, rate in enumerate(rates, start=1):
        gradient = generator.standard_normal(shape, dtype=np.float32)
        gradient -= gradient.mean(axis=2, keepdims=True)
        first += (1 - betas[0]) * (gradient - first)
        second += (1 - betas[1]) * (gradient**2 - second)
        size = np.sqrt(second / (1 - betas[1] ** step)) + 1e-8
        alpha -= np.float32(rate / (1 - betas[0] ** step)) * first / size
    spreads = spread(alpha)
    return float(np.sqrt((spreads**2).mean())), float(np.quantile(spreads, 0.975))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--protocol", required=True)
    options = parser.parse_args()
    archive = Archive(options.results)
    print("| run | seed | spread | noise | 97.5 % of noise below |\n|---|---:|---:|---:|---:|")
    for record in archive.records:
        last = archive.mixture(record) if record.run.protocol == options.protocol else None
        if not last or len({len(shares) for shares in last.values()}) != 1:
            continue
        config, rules = record.run.method_config, record.run.rules
        betas = tuple(rules.get("betas") or (0.9, 0.999))
        logs = np.log(np.maximum(np.array(list(last.values())), 1e-12))
        rates, null = alpha_rates(record), ("–", "–")
        if rates and not config.get("alpha_weight_decay"):
            init = float(config.get("alpha_std") or 0.0)
            null = tuple(f"{value:.3f}" for value in spread_of_noise(rates, *logs.shape, betas, init))
        print(
            f"| {record.run.label} on {record.run.benchmark} | {record.run.seed} | {spread(logs):.3f} | {null[0]} | {null[1]} |"
        )


if __name__ == "__main__":
    main()
