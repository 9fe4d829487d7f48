"""Rates that are tuned: trials of every value first, the choice by validation, then the runs with what was chosen.

A trial is a run like any other, so that a chosen trial is also the run of its seed and is not trained twice. Which runs
were trials, what was chosen and what the others scored are labels of the runs: no key depends on them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from harness.archive.files import SIDECARS
from harness.archive.schema import is_from_more
from harness.archive.store import RecordStore
from harness.evaluation.conventions import higher_is_better
from harness.planning.data import selects_by
from harness.planning.plan import Found, Plan, benchmarks_of, earlier, plan
from harness.planning.request import PlannedRow, Request
from harness.registry import option_names
from harness.studies import RULES_BY, Study, grid_of, is_rule, with_methods
from harness.system.errors import UsageError, did_you_mean

TUNABLE_RULES = (
    "decoder_lr", "weight_decay", "eps", "warmup", "clip", "schedule", "flip", "batch_size", "accumulate", "epochs",
)  # fmt: skip
"""Rules of the protocol that can be tuned: none that changes which images are there, or how they are scored."""

NO_VALUE = ("DIVERGED", "BLANK")
"""Failures that count as a result: such a value is not chosen, and its trial does not restart."""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """The values to try, and the benchmarks and seeds to try them on.

    Args:
        grids: field of a method's configuration -> values to try. ``lr`` is for every method that is compared,
            ``naslora.lr`` for one, in place of ``lr``. Or a rule of the protocol (`TUNABLE_RULES`), such as ``decoder_lr``: the
            decoder alone tries it, and the choice holds for every row.
        seeds: of the trials; a value's score is the mean over them.
        on: benchmarks whose validation chooses one value for all benchmarks; empty where each benchmark chooses its own.
        known: the grids of all steps, and ``decoder_lr`` where a rule sets it; `grid_of` needs them to leave out an ``lr`` that would
            train nothing.
    """

    grids: Mapping[str, Sequence[Any]]
    seeds: tuple[int, ...] = (0,)
    on: tuple[str, ...] = ()
    known: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    @property
    def steps(self) -> tuple[Tuning, ...]:
        """Rules first, then every row's options under the rules that were chosen."""
        rules = {name: values for name, values in self.grids.items() if is_rule(name)}
        options = {name: values for name, values in self.grids.items() if name not in rules}
        return tuple(
            replace(self, grids=grids, known={**self.known, **self.grids}) for grids in (rules, options) if grids
        )

    def of_row(self, row: PlannedRow) -> dict[str, list[Any]]:
        """What this step tries for one row: field -> values. Raises UsageError: see `harness.studies.grid_of`."""
        rules = any(map(is_rule, self.grids))
        grid = grid_of(row.method, row.options, {**self.known, **self.grids})
        return {name: values for name, values in grid.items() if (name in self.grids if is_rule(name) else not rules)}


class TrialGroup(NamedTuple):
    """The trials of one row on one segmenter, on the benchmarks that choose together.

    Args:
        grid: its own grids, by field.
        benchmarks: whose validation chooses.
        segmenter: its backbone and decoder.
        runs: values -> the keys of its runs.
        recorded: what a run records about its tuning (`harness.archive.schema.Run`): the choice, or the grid alone until all trials ended.
    """

    row: PlannedRow
    grid: Mapping[str, Sequence[Any]]
    benchmarks: tuple[str, ...]
    segmenter: tuple[str, str]
    runs: Mapping[tuple[Any, ...], Sequence[str]]
    recorded: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Step:
    """Runs that are planned together: the trials of a tuning, or the runs with the chosen values.

    Args:
        request: with what earlier steps chose; the first value of a grid stands in for a choice that is still open.
        planned: its runs; a trial that failed for a reason in `NO_VALUE` counts as finished.
        trials: of ``tuning``.
    """

    request: Request
    planned: Plan
    tuning: Tuning | None = None
    trials: tuple[TrialGroup, ...] = ()

    @property
    def heading(self) -> str:
        if self.tuning is None:
            return "the runs (where trials are still open, with the first value of the grid)"
        return f"trials of {', '.join(self.tuning.grids)}"

    @property
    def left(self) -> list[str]:
        """Keys of the trials that have no result yet."""
        return [job.run.key for job in self.planned.pending] if self.tuning else []

    def with_results(self) -> Step:
        """The step after its trials ran. Raises UsageError: no value of a row has a score."""
        assert self.tuning is not None
        results = self.request.results
        finished, failed, _ = earlier(results, {job.run.key: job for job in self.planned.jobs})
        planned = _ended_without_value(replace(self.planned, finished=finished, failed=failed))
        return replace(self, planned=planned, trials=_with_choices(self.trials, self.tuning, planned, results))

    def chosen(self) -> Request:
        """The request with each row's choice in place of its grids, and with the rules that were chosen for all rows. Where trials have
        not all ended, the first value of a grid stands in, so that the runs after them can be priced."""
        everywhere, rules = benchmarks_of(self.request), dict(self.request.chosen_rules)
        rows: list[list[PlannedRow]] = [[] for _ in self.request.rows]
        for group in self.trials:
            values = group.recorded.get("chosen") or {name: values[0] for name, values in group.grid.items()}
            where = everywhere if self.tuning and self.tuning.on else group.benchmarks
            for_all = {option: value for option, value in values.items() if is_rule(option)}
            if for_all:  # the trials of the next step run under them too
                for name in dict.fromkeys((*where, *group.benchmarks)):
                    rules[name, *group.segmenter] = {**rules.get((name, *group.segmenter), {}), **for_all}
            if group.row in self.request.rows:
                row = _with(group.row, group.grid, tuple(values.values()))
                row = replace(row, label=group.row.name, tuning=group.recorded)
                row = replace(row, benchmarks=where, segmenters=(group.segmenter,))
                rows[self.request.rows.index(group.row)].append(row)
        tuned = tuple(each for row, own in zip(self.request.rows, rows, strict=True) for each in own or [row])
        return replace(self.request, rows=tuned, chosen_rules=rules)


def plan_steps(request: Request, tunings: Sequence[Tuning], found: Found) -> list[Step]:
    """The trials of each tuning, then the runs. Raises UsageError: see `plan_step`."""
    steps = list[Step]()
    for tuning in (*tunings, None):
        steps.append(plan_step(request, tuning, found))
        request = steps[-1].chosen()
    return steps


def plan_step(request: Request, tuning: Tuning | None, found: Found) -> Step:
    """The trials of ``tuning``: every row with every value of its grids; the runs where it is None. A row without any of these fields has
    no trials.

    Raises:
        UsageError: a value that the field does not take, or none of a row's has a score; see also `harness.planning.plan.plan`.
    """
    if tuning is None:
        return Step(request=request, planned=plan(request, found))
    compared = request.rows
    if any(map(is_rule, tuning.grids)):
        plain = [row for row in compared if row.method == RULES_BY and not row.options]
        compared = tuple(plain[:1]) or (PlannedRow(method=RULES_BY),)
    rows = [(row, tuning.of_row(row)) for row in compared]
    benchmarks = benchmarks_of(replace(request, benchmarks=tuning.on or request.benchmarks))
    tried = [(row, grid, values) for row, grid in rows if grid for values in itertools.product(*grid.values())]
    here = replace(request, rows=tuple(_with(*trial) for trial in tried), benchmarks=benchmarks, seeds=tuning.seeds)
    planned = _ended_without_value(plan(here, found))
    metrics = {job.run.benchmark: selects_by(job.run) for job in planned.jobs}
    if tuning.on and len(set(map(higher_is_better, metrics.values()))) > 1:
        named = ", ".join(f"{metric} of {name}" for name, metric in metrics.items())
        raise UsageError(
            f"--tune-on: of {named} some are better when higher and others when lower, so their mean cannot choose; name "
            "benchmarks of one kind"
        )
    segmenters = dict.fromkeys((backbone, decoder) for _, _, backbone, decoder in planned.keys)
    trials = []
    for row, grid in rows:
        own = {values: number for number, (of, _, values) in enumerate(tried) if of == row}
        for on, segmenter in itertools.product(
            [benchmarks] if tuning.on else [(name,) for name in benchmarks], segmenters
        ):
            runs = {
                values: [key for name in on for key in planned.keys.get((number, name, *segmenter), ())]
                for values, number in own.items()
            }
            if any(runs.values()):  # none of a benchmark that is left out
                trials.append(
                    TrialGroup(row=row, grid=grid, benchmarks=on, segmenter=segmenter, runs=runs, recorded={})
                )
    choices = _with_choices(trials, tuning, planned, request.results)
    return Step(request=request, planned=planned, tuning=tuning, trials=choices)


def tuning_of(
    request: Request,
    study: Study | None,
    overrides: Mapping[str, Any],
    *,
    grids: Sequence[str],
    seeds: tuple[int, ...],
    on: tuple[str, ...],
    of_rows: bool,
) -> Tuning | None:
    """What is tuned before the runs; None without tuning.

    Args:
        overrides: rules that the command line or the study sets.
        grids, seeds, on: of ``--tune``, ``--tune-seeds`` and ``--tune-on``; where they are empty, the study's.
        of_rows: keep only those of a study's grids that apply to a compared row.

    Raises:
        UsageError: malformed grids, one of a method that is not compared, or the protocol has none.
    """
    of_protocol = grids == ["protocol"]
    given: Mapping[str, Any] = study.tune if study else {}
    if grids:
        given = with_methods(request.protocol.tune) if of_protocol else parse_tune(grids)
    tried = _fitting(given, request.rows, required=not (of_protocol or (of_rows and not grids)))
    if of_protocol and not tried:
        raise UsageError(
            f"--tune protocol: the protocol {request.protocol.name} has no grids for these methods; give some, such as --tune lr=1e-4,1e-3"
        )
    if not tried:
        if seeds or on:
            raise UsageError("--tune-seeds and --tune-on need a grid to tune, such as --tune lr=1e-4,3e-4,1e-3")
        return None
    if study and study.choose and (options := [name for name in tried if not is_rule(name)]):
        raise UsageError(
            f"--tune {options[0]}: the study {study.name} chooses options for each seed ('choose'); leave out --tune"
        )
    fixed = [name for name in tried if name in overrides]  # lr too: it is a rule, and an option of every method
    if fixed and grids and not of_protocol:
        raise UsageError(f"--set {fixed[0]} and --tune {fixed[0]} contradict each other; give only one of them")
    decoder_lr = request.protocol.decoder_lr
    return Tuning(
        grids={name: values for name, values in tried.items() if name not in fixed},
        seeds=seeds or (study.tune_seeds if study else (0,)),
        on=on or (study.tune_on if study else ()),
        known={} if decoder_lr is None else {"decoder_lr": [decoder_lr]},
    )


def _fitting(
    grids: Mapping[str, Sequence[Any]], rows: Sequence[PlannedRow], *, required: bool
) -> Mapping[str, Sequence[Any]]:
    """The grids of a rule, or of an option of a compared row. Raises UsageError: one is neither, where all are ``required``."""
    tried_on = [*rows, PlannedRow(method=RULES_BY)] if any(map(is_rule, grids)) else rows
    used = {
        word
        for row in tried_on
        for name in grid_of(row.method, row.options, grids)
        for word in (name, f"{row.method}.{name}")
    }
    for name in grids if required else ():
        if name not in used or (is_rule(name) and name not in TUNABLE_RULES):
            options = {option for row in rows for option in option_names(row.method)}
            near = did_you_mean(name, (*options, *TUNABLE_RULES)) if is_rule(name) else ""
            raise UsageError(
                f"--tune {name}: this is not a rule that can be tuned, and no compared row is trained by it, or every row sets it "
                f"in brackets or by --set{near}"
            )
    return {name: values for name, values in grids.items() if name in used}


def parse_tune(items: Sequence[str]) -> dict[str, list[str]]:
    """``["lr=1e-4,3e-4", "naslora.alpha_lr=1e-3,1e-2"]`` as grids. Raises UsageError: no values, one value twice, one field twice."""
    grids: dict[str, list[str]] = {}
    for item in items:
        name, equals, text = item.partition("=")
        values = [value.strip() for value in text.split(",") if value.strip()]
        if not equals or not name.strip() or len(values) < 2 or len(set(map(_as_number, values))) < len(values):
            raise UsageError(
                f"--tune {item!r} is not FIELD=A,B,… with different values, such as --tune lr=1e-4,3e-4,1e-3"
            )
        if name.strip() in grids:
            raise UsageError(f"--tune {name.strip()} is given twice")
        grids[name.strip()] = values
    return with_methods(grids)


def _as_number(text: str) -> float | str:
    """Normalise a value, so that ``1e-3`` equals ``0.001``."""
    try:
        return float(text)
    except ValueError:
        return text


def _with_choices(trials: Iterable[TrialGroup], tuning: Tuning, planned: Plan, results: Path) -> tuple[TrialGroup, ...]:
    """The trials, each with the choice of its row where all have ended. Raises UsageError: no value of one has a score."""
    store, left = RecordStore(results), {job.run.key for job in planned.pending}
    is_open = [any(key in left for keys in each.runs.values() for key in keys) for each in trials]
    return tuple(
        each._replace(recorded={"grid": dict(each.grid)} if still else _choice(each, tuning, store))
        for each, still in zip(trials, is_open, strict=True)
    )


def _ended_without_value(planned: Plan) -> Plan:
    """The plan where a trial that failed for a reason in `NO_VALUE` is finished: that is its result, and it does not restart."""
    lost = {key for key, code in planned.failed.items() if code in NO_VALUE}
    failed = {key: code for key, code in planned.failed.items() if key not in lost}
    return replace(planned, finished=planned.finished | lost, failed=failed)


def _with(row: PlannedRow, grid: Mapping[str, Sequence[Any]], values: Sequence[Any]) -> PlannedRow:
    chosen = dict(zip(grid, values, strict=True))
    options = {**row.options, **{name: value for name, value in chosen.items() if not is_rule(name)}}
    rules = {name: value for name, value in chosen.items() if is_rule(name)}
    words = ",".join(f"{name}={value}" for name, value in chosen.items())
    label = f"{row.label}[{words}]" if row.label else replace(row, options={**row.options, **chosen}).name
    return replace(
        row, options=options, trial_rules=rules, label=label, tuning={"grid": {name: list(grid[name]) for name in grid}}
    )


def _choice(group: TrialGroup, tuning: Tuning, store: RecordStore) -> dict[str, Any]:
    """What a run records about its tuning; see `harness.archive.schema.Run`."""
    tried: list[dict[str, Any]] = []
    metric = ""
    codes: dict[str, None] = {}
    for values, keys in group.runs.items():
        records = [record for key in keys if (record := store.find(key)) is not None]
        codes |= dict.fromkeys(record.code for record in records)
        metric = selects_by(records[0].run) if records else metric
        ended = [record for record in records if record.code == "OK"]
        reached = [record.scores.get("best", {}).get("val", {}).get(selects_by(record.run)) for record in ended]
        scores = [score for score in reached if score is not None]
        score = math.fsum(scores) / len(scores) if scores and len(scores) == len(keys) else None
        hours = sum(record.cost.get("wall_time_s", 0.0) for record in records) / 3600
        names = dict(zip(group.grid, values, strict=True))
        tried.append({"options": names, "score": score, "keys": list(keys), "hours": round(hours, 5)})
    known = [outcome for outcome in tried if outcome["score"] is not None]
    if not known:
        where = ", ".join(group.benchmarks)
        grids = ", ".join(f"{name}={','.join(map(str, values))}" for name, values in group.grid.items())
        raise UsageError(
            f"{group.row.name} on {where}: no value of {grids} has a score ({', '.join(codes)}); --tune other values"
        )
    sign = 1 if higher_is_better(metric) else -1
    best = max(known, key=lambda outcome: sign * outcome["score"])  # ties go to the value named first
    edge = [name for name, value in best["options"].items() if _at_edge(value, group.grid[name])]
    return {
        "grid": {name: list(values) for name, values in group.grid.items()},
        "chosen": best["options"],
        "edge": edge,
        "trials": tried,
        "metric": metric,
        "on": list(group.benchmarks),
        "seeds": list(tuning.seeds),
        "hours": round(sum(outcome["hours"] for outcome in tried), 5),
    }


def _at_edge(value: Any, grid: Sequence[Any]) -> bool:
    """Whether ``value`` is at an end of a grid of numbers, so that a better one may lie outside."""
    try:
        numbers = [float(number) for number in grid]
    except (TypeError, ValueError):
        return False
    return float(value) in (min(numbers), max(numbers))


def record_choices(step: Step) -> None:
    """Write what was chosen to the records of a step's finished runs. Chosen trials are results, the others are not; a choice among more
    runs, such as of a study's wider grid, stays."""
    runs = [job.run for job in step.planned.jobs if job.run.tuning and not step.trials]
    choices: list[tuple[str, Mapping[str, Any], str, bool]] = [(run.key, run.tuning, run.label, True) for run in runs]
    for group in step.trials:
        for values, keys in group.runs.items():
            is_chosen = dict(zip(group.grid, values, strict=True)) == group.recorded["chosen"]
            choices += [(key, group.recorded, group.row.name, is_chosen) for key in keys]
    store = RecordStore(step.request.results)
    for key, choice, label, is_chosen in choices:
        tuning = choice if is_chosen else {"grid": choice["grid"]}
        record = store.find(key)
        if record is None or record.code != "OK" or record.run.tuning == tuning:
            continue
        before = record.run
        run = replace(before, tuning=dict(tuning), label=label if is_chosen else before.label)
        # A run that was not chosen is only a trial, unless it is a row's plain run, which has no label, or another grid's choice.
        only_tried = before.is_trial or (bool(before.tuning) and is_from_more(choice, before.tuning))
        if before.trial_runs <= run.trial_runs if is_chosen else only_tried:
            store.write(replace(record, run=run), keep=SIDECARS)
