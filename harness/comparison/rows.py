"""The rows of tables: which runs share a method configuration, which of their chosen options count, and the name of their row.

`rows` and `rows_of_study` take the frame of runs (``Archive(root).frame("runs")``, one line per run) and return it with the column
``row``, the first also with ``table``; pandas' groupby does the rest. A choice within a seed (``choose`` of a study) is part of a
replicate: intervals over seeds hold its noise, which tuning on one seed leaves out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from harness.archive.archive import row_identity
from harness.archive.older import fullest_fingerprints, options_with_later
from harness.archive.schema import Record, Run, chosen_from, plain_values
from harness.comparison.names import SCORE_TITLES, method_rank, method_title, sign
from harness.protocols.keys import content_hash, first_names, hashed_options, hashed_rules
from harness.registry import recorded_option
from harness.studies import Row, Study, choices_of, grid_of
from harness.system.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

SAME_RULES = ["protocol", "protocol_hash", "backbone", "checkpoint"]
"""Columns that the runs of one table share, so that no column of scores can mix two protocols."""
ANSWERS = ("OK", "DIVERGED", "BLANK")
"""Codes of runs that count in a choice; one that failed for another reason has to run again first."""
WITHIN = ["backbone", "checkpoint", "protocol_hash", "rules", "manifest", "files", "benchmark", "seed"]
"""What the runs among which validation chooses share."""


def rows(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with ``table`` (equal for runs under the same rules) and ``row`` (its name, unique within a table), in the order of the
    table.

    A row is a method configuration, whatever label its sweeps gave it. Tuned options do not distinguish rows. Where a benchmark has runs of
    two choices of one row, the choice from more trials is the row (`from_most_trials`); the other has its options in its name.
    """
    tables: list[int] = list(runs.groupby(SAME_RULES, sort=True).ngroup())
    own: list[Run] = list(runs["run"])
    choices = [(table, row_identity(run), run.benchmark) for table, run in zip(tables, own, strict=True)]
    groups, names = list[RowKey](), list[str]()
    for (table, identity, _), run, counts in zip(choices, own, from_most_trials(own, choices), strict=True):
        hashed = content_hash([run.method, hashed_options(run.method, run.method_config)])
        groups.append((table, identity if counts else hashed))
        names.append(row_name(run, tuned=run.tuning.get("grid", {}) if counts else ()))
    unique = _unique(groups, names, [bool(run.tuning) for run in own])
    runs = runs.assign(table=tables, row=[unique[group] for group in groups])
    order = ["table", "rank", "row", "key"]
    ranked = runs.assign(rank=runs["method"].map(method_rank)).sort_values(order, ignore_index=True)
    return ranked.drop(columns="rank")


def rows_of_study(runs: pd.DataFrame, study: Study) -> pd.DataFrame:
    """The runs of a study's rows under its labels, on its benchmarks and with its seeds; a run of several rows is there for each."""
    import pandas as pd

    parts = []
    runs = runs[runs["benchmark"].isin(study.benchmarks) & runs["seed"].isin(study.seeds)]
    for row in study.entries:
        free = choices_of(row.method, row.options, study.choose)
        here = of_runs(runs[runs["method"] == row.method], partial(is_row, options=row.options, free=free))
        if free:
            here = chosen_of(here, free)
        elif grid := grid_of(row.method, row.options, study.tune):
            here = _tuned(of_runs(here, lambda run: "chosen" in run.tuning), study, grid)
        else:  # an option that a row names is not tuned, even where another study has tuned it
            alone = here.loc[[run.changed.keys() <= row.options.keys() for run in here["run"]]]
            here = pd.concat([alone, here[~here["protocol_hash"].isin(alone["protocol_hash"])]])
        parts += [here.assign(row=name) for name in lines_of(row, study)]
    return pd.concat(parts, ignore_index=True)


def _tuned(chosen: pd.DataFrame, study: Study, grid: Mapping[str, Sequence[Any]]) -> pd.DataFrame:
    """Of the choices of one row under the same rules, on each benchmark (or on all, where they choose together): the study's own, else the
    one from most trials. A run of another study may have the same options."""
    runs: list[Run] = list(chosen["run"])
    own = [chosen_from(run.tuning, grid=grid, on=study.tune_on or (run.benchmark,)) for run in runs]
    together = bool(study.tune_on) and any(own)
    groups = [
        (run.backbone, run.checkpoint)
        + (
            (run.protocol_hash,)
            if together
            else (run.benchmark, run.manifest, files, content_hash(hashed_rules(run.rules)))
        )
        for run, files in zip(runs, fullest_fingerprints(runs), strict=True)
    ]
    return chosen.loc[from_most_trials(runs, groups, own=own)]


def chosen_of(runs: pd.DataFrame, grid: Mapping[str, Sequence[Any]]) -> pd.DataFrame:
    """Of the runs of one row (``Archive.frame("runs")``), by benchmark and seed, each under its own rules, data and weights, the one with
    the best validation score at the end of its schedule; among equals the one with the lowest values.

    A group whose grid is incomplete chooses nothing and has no line. If one of its runs has to run again, the line is that run's, whose
    code says why there is no score. If no run has a score, the line is that of the lowest values.

    Args:
        grid: option -> every value that was to run.

    Raises:
        UsageError: a finished run does not hold the validation score of its last state.
    """
    if runs.empty:
        return runs
    runs = runs.loc[[is_of_grid(run, grid) for run in runs["run"]]]
    frame = runs.assign(
        order=runs["run"].map(lambda run: tuple(_orderable(run.method_config[name]) for name in grid)),
        validation=[-math.inf if record is None else _validation(record) for record in runs["record"]],
        rules=[content_hash(hashed_rules(run.rules)) for run in runs["run"]],
        files=fullest_fingerprints(list(runs["run"])),
    )
    chosen = []
    for _, group in frame.groupby(WITHIN, sort=False, dropna=False):
        ordered = group.sort_values("order")
        again = ordered[~ordered["code"].isin(ANSWERS)]
        if ordered["order"].nunique() == math.prod(map(len, grid.values())):
            chosen.append(again.index[0] if len(again) else ordered["validation"].idxmax())  # the first of equals
    return runs.loc[chosen]


def is_of_grid(run: Run, grid: Mapping[str, Sequence[Any]]) -> bool:
    """Whether a run's options have values that the grid (option -> values) lists."""
    values = {name: [recorded_option(run.method, name, value) for value in grid[name]] for name in grid}
    return all(run.method_config.get(name) in values[name] for name in grid)


def _validation(record: Record) -> float:
    """The validation score of the last state, higher is better; the lowest where the run failed or its score is not a number."""
    if record.code != "OK":
        return -math.inf
    scores = record.scores.get("last", {}).get("val", {})
    if not scores:
        raise UsageError(
            f"run {record.key} has no validation score of its last state, which 'choose' needs; move its record "
            "away to run it again"
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


def of_runs(runs: pd.DataFrame, holds: Callable[[Run], bool]) -> pd.DataFrame:
    return runs[runs["run"].map(holds).astype(bool)]


def lines_of(row: Row, study: Study) -> dict[str, Row]:
    """The lines of a study's row in its table, by name: one for each of its models that is scored, which is the line's only one."""
    models = row.scores or study.table.scores
    titles = {model: SCORE_TITLES.get(model, model) if len(models) > 1 else "" for model in models}
    return {
        name_of(row) + (f" ({title})" if title else ""): replace(row, scores=(model,))
        for model, title in titles.items()
    }


def name_of(row: Row) -> str:
    """The name of a row of a study: its label, or without one the name in any other table."""
    return row.label if row.label != row.method else _in_words(row.method, row.options)


def baseline_of(study: Study) -> str:
    """The row that a study compares the others with; empty without one."""
    return next((name_of(row) for row in study.entries if row.label == study.table.baseline), "")


def row_name(run: Run, *, tuned: Collection[str] = ()) -> str:
    """``LoRA``, ``NAS-LoRA (rank=6)``: the method's title with the options that its configuration changes, without ``tuned`` ones."""
    options = {name: value for name, value in run.changed.items() if name not in tuned}
    return _in_words(run.method, options, note=run.label_note or "")


def _in_words(method: str, options: Mapping[str, Any], *, note: str = "") -> str:
    values = {name: f"{value:.3g}" if isinstance(value, float) else value for name, value in options.items()}
    words = [*([note] if note else []), *(f"{name}={values[name]}" for name in sorted(values))]
    return method_title(method) + (f" ({', '.join(words)})" if words else "")


def is_row(run: Run, options: Mapping[str, Any], free: Collection[str] = ()) -> bool:
    """Whether a run's configuration is the protocol's with only ``options``, what tuning chose and ``free`` options changed."""
    config = plain_values(options_with_later(run.method, run.method_config))
    has_them = all(
        name in config and value == config[name] for name, value in plain_values(first_names(options)).items()
    )
    return has_them and run.changed.keys() <= {*options, *run.tuning.get("chosen", {}), *free}


RowKey = tuple[int, str]
"""A table, and the hash that the runs of one of its rows share."""


def _unique(groups: Sequence[RowKey], names: Sequence[str], tuned: Sequence[bool]) -> dict[RowKey, str]:
    """The name of each row; where two rows of a table have one name, with what distinguishes them."""
    unique: dict[RowKey, str] = {}
    for group, name in zip(groups, names, strict=True):
        unique.setdefault(group, name)
    of_tuning = {group for group, was in zip(groups, tuned, strict=True) if was}
    for apart in (lambda group: ", tuned" if group in of_tuning else "", lambda group: f" #{group[1][:6]}"):
        count = Counter((table, name) for (table, _), name in unique.items())
        unique = {group: name + (apart(group) if count[group[0], name] > 1 else "") for group, name in unique.items()}
    return unique
