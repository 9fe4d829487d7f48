"""Records that somebody sends for a row of a study: which rows they hold, and whether a table may show them.

Nothing that was sent is executed here. The code of a plug-in is compared only if its file was named with ``--plugin``.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from harness.archive.archive import Archive, Joined, weights_of
from harness.archive.older import same_data
from harness.archive.schema import Record, Run
from harness.comparison.names import benchmark_title
from harness.comparison.rows import ANSWERS, is_of_grid, is_row, row_name
from harness.comparison.tables import has_rules_of
from harness.protocols.compare import differing_in_words, from_protocol
from harness.protocols.load import protocol_rules
from harness.registry import METHODS, recorded_option
from harness.studies import Row, Study, choices_of
from harness.system.text import printable_line

YOURS = " (yours)"
"""Follows the name of a row whose records are from the user's folder."""
PARTLY_YOURS = " (partly yours)"
"""The same if the other folder also has runs of the row."""


def rows_of(run: Run, runs: Sequence[Run], study: Study) -> list[Row]:
    """The rows of a study that a run belongs to; if there are none, the row that it adds (`further_row`)."""
    fitting = [
        row
        for row in study.entries
        if row.method == run.method and is_row(run, row.options, choices_of(row.method, row.options, study.choose))
    ]
    return fitting or [further_row(run, runs, study)]


def further_row(run: Run, runs: Sequence[Run], study: Study) -> Row:
    """The row of a run that the study does not list; an option that the study chooses stays open where its ``runs`` differ in it."""
    values = [other.method_config for other in runs if other.label == run.label]
    choices = choices_of(run.method, {}, study.choose)
    free = {name for name in choices if len({str(config.get(name)) for config in values}) > 1}
    options = {name: value for name, value in run.changed.items() if name not in free}
    return Row(label=row_name(run, tuned=free), method=run.method, options=options)


def with_own_rows(study: Study, archive: Joined) -> Study:
    """The study with the rows that the first folder adds; rows from it are marked (`YOURS`)."""
    runs = {is_own: [r.run for r in archive.records if archive.is_own(r) == is_own] for is_own in (True, False)}
    own = [run for run in runs[True] if has_rules_of(run, study)]
    theirs = {row.label for run in runs[False] if has_rules_of(run, study) for row in rows_of(run, runs[False], study)}
    added = {row.label: row for run in own for row in rows_of(run, own, study)}
    counted = [r for r in own if r.seed in study.seeds and not [*_other_data([r], study), *_other_weights([r], study)]]
    rows = ((run, row) for run in counted for row in rows_of(run, own, study))
    chosen_from = {row.label for run, row in rows if is_of_grid(run, choices_of(row.method, row.options, study.choose))}
    marked = {label: label + YOURS for label in added if label not in theirs}
    marked |= {label: label + PARTLY_YOURS for label in chosen_from & theirs}
    listed = {row.label: row for row in study.entries}
    entries = tuple(replace(row, label=marked.get(row.label, row.label)) for row in {**added, **listed}.values())
    baseline = study.table.baseline
    return replace(study, entries=entries, table=replace(study.table, baseline=marked.get(baseline, baseline)))


class CheckedLine(NamedTuple):
    """One line of a check: what was looked at, and what is wrong with it or, if nothing is, what was found."""

    what: str
    wrong: bool
    message: str


def check_rows(root: Path, study: Study, *, changed: Callable[[Record], bool] | None = None) -> list[CheckedLine]:
    """Whether the records below ``root`` are whole rows of a study under its rules, from its data and its weights.

    Args:
        changed: whether the code of a plug-in's method differs from the code that ran for a record; None where no plug-in was given.
    """
    archive = Archive(root)
    scores = _finding("scores", _wrong_scores(archive, study), right="recomputed from the scores by image")
    if scores.wrong:  # nothing else in such files can be trusted
        return [scores]
    runs = [record.run for record in archive.records]
    under = [record for record in archive.records if has_rules_of(record.run, study)]
    rows: dict[str, tuple[Row, list[Record]]] = {}
    for record in under:
        for row in rows_of(record.run, runs, study):
            rows.setdefault(row.label, (row, []))[1].append(record)
    failed = Counter(record.code for record in under if record.code != "OK")
    codes = ", ".join(f"{count} {code}" for code, count in sorted(failed.items()))
    again = (f"{code} is not a result; run it again" for code in sorted(failed) if code not in ANSWERS)
    return [
        _finding("rules", _other_rules(runs, study), right=f"{study.protocol}, {len(under)} runs of {', '.join(rows)}"),
        _finding(
            "data",
            _other_data([record.run for record in under], study),
            right="the study's files" if study.data else "the study names none",
        ),
        _finding(
            "weights",
            _other_weights([record.run for record in under], study),
            right="the study's" if study.weights else "the study names none",
        ),
        _finding("replicates", _missing_replicates([*rows.values()], study), right=", ".join(map(str, study.seeds))),
        _finding("rates", _missing_rates([*rows.values()], study), right="every value that the study chooses from"),
        scores,
        _finding("code", _missing_code(under, changed), right=_code_in_words(under)),
        _finding("failed runs", again, right=codes or "none"),
    ]


def _finding(what: str, wrong: Iterable[str], *, right: str) -> CheckedLine:
    faults = list(dict.fromkeys(wrong))
    more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
    return CheckedLine(what=what, wrong=bool(faults), message=printable_line("; ".join(faults[:3]) + more or right))


def _other_rules(runs: Sequence[Run], study: Study) -> Iterator[str]:
    if not runs:
        yield "there are no records"
    for run in runs:
        if has_rules_of(run, study):
            continue
        if run.protocol != study.protocol:
            yield f"protocol {run.protocol} instead of {study.protocol}"
        elif study.backbones and run.backbone not in {*study.backbones, *study.by_backbone}:
            yield f"backbone {run.backbone} instead of {', '.join(study.backbones)}"
        else:
            rules = protocol_rules(study.protocol_file or study.protocol, run.benchmark) or {}
            yield f"{differing_in_words(from_protocol(run.rules, {**rules, **study.set}))}; other rules make another table"


def _other_data(runs: Sequence[Run], study: Study) -> Iterator[str]:
    for run in runs:
        wanted = study.data.get(run.benchmark, "")
        if run.benchmark not in study.benchmarks:
            yield f"{run.benchmark} is not a benchmark of the study"
        elif wanted and not (run.data_fingerprint and same_data(run.data_fingerprint, wanted)):
            files = run.data_fingerprint or "files without a fingerprint"
            yield f"{benchmark_title(run.benchmark)}: {files} instead of {wanted}; other files make another table"


def _other_weights(runs: Sequence[Run], study: Study) -> Iterator[str]:
    for run in runs:
        wanted = study.weights.get(run.backbone, run.checkpoint)
        if weights_of(run.checkpoint) != weights_of(wanted):
            yield f"{run.checkpoint or 'random'} instead of {wanted or 'random'}; other weights make another table"


Rows = Sequence[tuple[Row, list[Record]]]


def _missing_replicates(rows: Rows, study: Study) -> Iterator[str]:
    for row, records in rows:
        for benchmark in study.benchmarks:
            seeds = {record.run.seed for record in records if record.run.benchmark == benchmark}
            if not seeds:
                yield f"{row.label} has no run on {benchmark}"
            elif missing := [str(seed) for seed in study.seeds if seed not in seeds]:
                yield f"{row.label} on {benchmark} lacks {', '.join(missing)}"
            if beyond := sorted(seeds - {*study.seeds}):
                yield f"{row.label} on {benchmark}: {', '.join(map(str, beyond))} not among the study's seeds"


def _missing_rates(rows: Rows, study: Study) -> Iterator[str]:
    """Rates that are missing for the seeds that ran; values that a row sets itself were chosen elsewhere."""
    for row, records in rows:
        is_listed = any(row.label == listed.label for listed in study.entries)
        for name in choices_of(row.method, {}, study.choose).keys() & row.options.keys() if not is_listed else ():
            yield f"{row.label} sets {name}, which the study chooses"
        grid = choices_of(row.method, row.options, study.choose)
        wanted = {
            tuple(str(recorded_option(row.method, name, value)) for name, value in zip(grid, values, strict=True))
            for values in itertools.product(*grid.values())
        }
        ran: dict[tuple[str, int], set[tuple[str, ...]]] = {}
        for run in (record.run for record in records if record.code in ANSWERS):
            values = tuple(str(run.method_config.get(name)) for name in grid)
            ran.setdefault((run.benchmark, run.seed), set()).add(values)
        for (benchmark, seed), there in sorted(ran.items()):
            if missing := sorted(wanted - there):
                words = " and ".join(",".join(f"{n}={v}" for n, v in zip(grid, each, strict=True)) for each in missing)
                yield f"{row.label} on {benchmark}, seed {seed}, lacks {words}"


def _wrong_scores(archive: Archive, study: Study) -> Iterator[str]:
    from harness.archive.merge import checked

    for path in archive.store.files():
        try:
            record = checked(path)
        except ValueError as error:
            yield f"{path.name}: {error}"
            continue
        held = {(scored, split) for scored, split, _, _ in record.each_score()}
        ranks = itertools.product(study.table.scores, study.table.splits.get(record.run.benchmark, ()))
        for which in sorted(set(ranks) - held) if record.code == "OK" else ():
            yield f"{path.name}: no score of {' on '.join(which)}"
        for model, split, metric, _ in record.each_score():
            if model not in study.table.scores or split == "val" or metric not in study.table.metrics:
                continue
            table = archive.image_table(record, model, split)
            scores = table.scores.get(metric) if table else None
            if scores is None:
                yield f"{path.name}: no {metric} by image of {split}"


def _missing_code(records: Sequence[Record], changed: Callable[[Record], bool] | None) -> Iterator[str]:
    for method in dict.fromkeys(record.run.method for record in records):
        if METHODS.is_fixed(method):
            continue
        if not all(r.environment.get("numbers_method") for r in records if r.run.method == method and r.code == "OK"):
            yield f"{method}: a record does not say which code ran"
        elif changed is None:
            yield f"{method} comes from a plug-in; name its file with --plugin"
        elif any(changed(r) for r in records if r.run.method == method and r.code == "OK"):
            yield f"{method}: the file that was given is not the code that ran"


def _code_in_words(records: Sequence[Record]) -> str:
    plugins = dict.fromkeys(r.run.method for r in records if not METHODS.is_fixed(r.run.method))
    return "; ".join(f"{method}: the file that was given is what ran" for method in plugins) or "built in"
