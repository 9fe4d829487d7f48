"""What the figures of α share: the rows that have one, their histories, and how operations look."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.archive.schema import Record
from harness.comparison import names
from harness.comparison.alpha import Shares, alpha_code
from harness.comparison.grid import Row
from harness.registry import operation_names
from harness.report.figures.material import Material, NothingToDrawError

COLOURS: Mapping[str, str] = {
    "none": "#1b1b1b", "skip_connect": "#7f7f7f", "max_pool_3x3": "#f28e2b", "avg_pool_3x3": "#edc948",
    "sep_conv_3x3": "#4e79a7", "sep_conv_5x5": "#8cb6d9", "dil_conv_3x3": "#8c2d8f", "dil_conv_5x5": "#d4a6c8",
}  # fmt: skip
MARKERS: Mapping[str, str] = {
    "none": "x", "skip_connect": "s", "max_pool_3x3": "^", "avg_pool_3x3": "v",
    "sep_conv_3x3": "o", "sep_conv_5x5": "D", "dil_conv_3x3": "P", "dil_conv_5x5": "X",
}  # fmt: skip
"""Each operation in every figure of α; one that is not named here is grey with a star."""


@dataclass(frozen=True, kw_only=True)
class RowMixture:
    """The runs of one row on one benchmark that have an α history, and the names of what it weighs; ``shown`` is the row's
    label where room is short."""

    row: Row
    shown: str
    benchmark: str
    operations: tuple[str, ...]
    runs: tuple[Record, ...]

    @property
    def n(self) -> int:
        return len(self.operations)


def mixtures(material: Material) -> list[RowMixture]:
    """Those of a row with other operations among its runs are told apart by their first.

    Raises:
        NothingToDrawError: no run has an α history.
    """
    found = []
    for index, row in material.rows():
        for benchmark in material.benchmarks:
            runs = [material.whole(one.key) for one in material.members(index, benchmark) if _mixes(one)]
            runs = [one for one in runs if one.architecture and one.architecture[-1]]
            if not runs:
                continue
            operations = _operations(runs[0])
            alike = tuple(one for one in runs if _operations(one) == operations)
            found.append(
                RowMixture(
                    row=row, shown=material.short(row.label), benchmark=benchmark, operations=operations, runs=alike
                )
            )
    if not found:
        raise NothingToDrawError("no run here has an α history (NAS-LoRA and NAS-PC-LoRA have)")
    return found


def _mixes(record: Record) -> bool:
    return len(operation_names(record.run.method, record.run.method_config)) > 1


def _operations(record: Record) -> tuple[str, ...]:
    names = operation_names(record.run.method, record.run.method_config)
    width = len(next(iter(record.architecture[-1].values())))
    return names if len(names) == width else tuple(f"operation {place}" for place in range(width))


def mean_shares(shares: Shares) -> list[float]:
    """Over sites, an entry an operation."""
    return [statistics.fmean(column) for column in zip(*shares.values(), strict=True)]


def end_by_site(runs: Sequence[Record]) -> dict[str, list[float]]:
    """Site -> shares at the end, mean over seeds, blocks in order."""
    sites = sorted(runs[0].architecture[-1], key=site_order)
    return {
        site: [
            statistics.fmean(column)
            for column in zip(
                *(one.architecture[-1][site] for one in runs if site in one.architecture[-1]), strict=True
            )
        ]
        for site in sites
    }


def site_order(site: str) -> tuple[int, str]:
    number = re.search(r"\d+", site)
    return (int(number[0]) if number else 0, site)


def cap(runs: Sequence[Record]) -> float | None:
    """The largest share that the rate allowed, if every run knows it; see `harness.archive.schema.share_cap`."""
    caps = [one.budget.get("share_cap") for one in runs]
    known = [one for one in caps if one is not None and math.isfinite(one)]
    return max(known) if known and len(known) == len(caps) else None


def title(operation: str) -> str:
    return operation.replace("_connect", "").replace("_", " ").replace("3x3", "3×3").replace("5x5", "5×5")


def heading(mixture: RowMixture, *more: str) -> str:
    """Row, benchmark, and the code of runs whose α says nothing, in lines that fit a narrow panel."""
    codes = sorted({code for run in mixture.runs if (code := alpha_code(run, run.architecture[-1]))})
    return f"{mixture.shown}\n" + ", ".join([names.benchmark_title(mixture.benchmark), *more, *codes])
