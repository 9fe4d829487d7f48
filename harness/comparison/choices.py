"""Which values of chosen options count: of a row's runs within each seed (``choose`` of a study), or of several trials of tuning.

The choice within a seed is part of a replicate, so that intervals over seeds hold its noise, which tuning on one seed leaves out.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.archive.schema import Record, Run, content_hash
from harness.comparison.names import sign
from harness.protocols.keys import hashed_rules
from harness.registry import recorded_option
from harness.system.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

ANSWERS = ("OK", "DIVERGED", "BLANK")
"""Codes of runs that count in a choice; one that failed for another reason has to run again first."""
WITHIN = ["backbone", "checkpoint", "protocol_hash", "rules", "manifest", "benchmark", "seed"]
"""What the runs among which validation chooses share."""


def chosen_of(runs: pd.DataFrame, grid: Mapping[str, Sequence[Any]]) -> pd.DataFrame:
    """Of the runs of one row (``Archive.frame("runs")``), by benchmark and seed, each under its own rules, data and weights, the one with
    the best validation score at the end of its schedule; of equals the one with the lowest values.

    A group whose grid is incomplete chooses nothing and has no line. If one of its runs has to run again, the line is that run's, whose
    code says why there is no score. If no run has a score, the line is that of the lowest values.

    Args:
        grid: option -> every value that was to run.

    Raises:
        UsageError: a finished run does not hold the validation score of its last state, as an earlier version wrote it.
    """
    if runs.empty:
        return runs
    method = runs["method"].iloc[0]
    values = {name: [recorded_option(method, name, value) for value in grid[name]] for name in grid}
    runs = runs.loc[[all(run.method_config.get(name) in values[name] for name in grid) for run in runs["run"]]]
    frame = runs.assign(
        order=runs["run"].map(lambda run: tuple(_orderable(run.method_config[name]) for name in grid)),
        validation=[-math.inf if record is None else _validation(record) for record in runs["record"]],
        rules=[content_hash(hashed_rules(run.rules)) for run in runs["run"]],
    )
    chosen = []
    for _, group in frame.groupby(WITHIN, sort=False, dropna=False):
        ordered = group.sort_values("order")
        again = ordered[~ordered["code"].isin(ANSWERS)]
        if ordered["order"].nunique() == math.prod(map(len, values.values())):
            chosen.append(again.index[0] if len(again) else ordered["validation"].idxmax())  # the first of equals
    return runs.loc[chosen]


def _validation(record: Record) -> float:
    """The validation score of the last state, higher is better; the lowest where the run failed or its score is not a number."""
    if record.code != "OK":
        return -math.inf
    scores = record.scores.get("last", {}).get("val", {})
    if not scores:
        raise UsageError(
            f"run {record.key} has no validation score of its last state, which 'choose' needs: an earlier version wrote it; move its "
            "record away to run it again"
        )
    name, value = next(iter(scores.items()))  # validation computes one metric
    return -math.inf if math.isnan(value) else sign(name) * value


def _orderable(value: Any) -> Any:
    """Numbers as they are, all else as text."""
    return value if isinstance(value, int | float) else str(value)


def from_most_trials(
    runs: Sequence[Run], groups: Sequence[Hashable], *, own: Sequence[bool] | None = None
) -> list[bool]:
    """Whether a run has the choice that counts among those of its group: the one from most trials, and one of them where several have as
    many. Choices that are ``own`` come before all others."""
    tried = [
        (
            is_own,
            run.trial_runs,
            content_hash({name: run.method_config.get(name) for name in run.tuning.get("grid", {})}),
        )
        for run, is_own in zip(runs, own or [False] * len(runs), strict=True)
    ]
    best: dict[Hashable, tuple[bool, int, str]] = {}
    for group, each in zip(groups, tried, strict=True):
        best[group] = max(best.get(group, each), each)
    return [best[group][2] == choice for group, (*_, choice) in zip(groups, tried, strict=True)]
