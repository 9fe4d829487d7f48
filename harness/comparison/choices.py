"""The choice of an option within each seed of a row (``choose`` of a study): of the runs that differ in it alone, validation chooses one.

The choice is part of a replicate, so that intervals over seeds hold its noise, which tuning on one seed leaves out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.archive.schema import Record, content_hash
from harness.comparison.names import metric
from harness.protocols.keys import hashed_rules
from harness.registry import recorded_option
from harness.system.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

ANSWERS = ("OK", "DIVERGED", "BLANK")
"""Codes of runs that count in a choice; one that failed for another reason has to run again first."""


def choose_runs(frame: pd.DataFrame, grid: Mapping[str, Sequence[Any]], *, within: Sequence[str]) -> pd.DataFrame:
    """Of each group of runs the one with the best score; of equals the one with the lowest values of the options.

    A group whose grid is incomplete has no choice and no line. One with a run that has to run again has that run's line, whose code says
    why there is no score; one without any score has the line of its lowest values.

    Args:
        frame: a line a run of one row, with a column for each option of ``grid`` and each of ``within``, ``code`` (OK or why the run
            failed) and ``validation`` (the score at the end of its schedule, higher is better; NaN for none).
        grid: option -> every value that ran.
        within: columns whose values the runs of a group share, such as benchmark and seed.
    """
    options, chosen = list(grid), []
    size = math.prod(len(values) for values in grid.values())
    for _, runs in frame.groupby(list(within), sort=False, dropna=False):
        ordered = runs.sort_values(options)
        again = ordered[~ordered["code"].isin(ANSWERS)]
        if len(ordered.drop_duplicates(options)) < size:
            continue
        if len(again):
            chosen.append(again.index[0])
        else:  # the first of equals
            chosen.append(ordered["validation"].fillna(-math.inf).idxmax())
    return frame.loc[chosen]


def chosen_of(runs: pd.DataFrame, grid: Mapping[str, Sequence[Any]]) -> pd.DataFrame:
    """`choose_runs` of the runs of one row (``Archive.frame("runs")``), by benchmark and seed, each under its own rules, data and weights.

    Raises:
        UsageError: a finished run does not hold the validation score of its last state, as an earlier version wrote it.
    """
    if runs.empty:
        return runs
    method = runs["method"].iloc[0]
    values = {name: [recorded_option(method, name, value) for value in grid[name]] for name in grid}
    in_grid = [all(run.method_config.get(name) in values[name] for name in grid) for run in runs["run"]]
    runs = runs[in_grid].reset_index(drop=True)
    frame = runs.assign(
        validation=[math.nan if record is None else _validation(record) for record in runs["record"]],
        rules=[content_hash(hashed_rules(run.rules)) for run in runs["run"]],
    )
    for name in grid:
        frame[name] = [_orderable(run.method_config[name]) for run in runs["run"]]
    within = ["backbone", "checkpoint", "protocol_hash", "rules", "manifest", "benchmark", "seed"]
    return runs.loc[choose_runs(frame, grid, within=within).index]


def _validation(record: Record) -> float:
    """The validation score of the last state, higher is better; NaN where the run failed or its score is not a number."""
    if record.code != "OK":
        return math.nan
    scores = record.scores.get("last", {}).get("val", {})
    if not scores:
        raise UsageError(
            f"run {record.key} has no validation score of its last state, which 'choose' needs: an earlier version wrote it; move its "
            "record away to run it again"
        )
    name, value = next(iter(scores.items()))  # validation computes one metric
    return metric(name).sign * value


def _orderable(value: Any) -> Any:
    """Numbers as they are, all else as text."""
    return value if isinstance(value, int | float) else str(value)
