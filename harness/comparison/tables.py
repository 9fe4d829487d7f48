"""Which runs share a table: those with equal rules, weights and data; for a study, those with its rules."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from harness.archive.archive import MISSING, Archive, weights_of
from harness.archive.older import fullest_fingerprints, same_data
from harness.archive.schema import UNTRAINED, Record, Run, content_hash
from harness.comparison.grid import ALL, CONFLICT, Column, Grid
from harness.comparison.names import SPLITS_APART, TESTED_TOGETHER, benchmark_rank, benchmark_title, shown_metrics
from harness.comparison.rows import SAME_RULES, lines_of, of_runs, rows, rows_of_study
from harness.protocols.compare import HEADED, from_protocol, headed, overrides_in_words, shared
from harness.protocols.keys import hashed_rules, with_later
from harness.protocols.load import protocol_rules
from harness.studies import Row

if TYPE_CHECKING:
    import pandas as pd

    from harness.studies import Study


def grids(
    archive: Archive,
    *,
    protocol: str = "",
    study: Study | None = None,
    runs: pd.DataFrame | None = None,
) -> list[Grid]:
    """The tables of a results folder: one for each protocol's hash, backbone, checkpoint and copy of the data. Real images come before
    generated ones, many rows before few. No two tables have the same title.

    Args:
        protocol: only tables of this protocol.
        study: its rows, benchmarks and seeds, with or without records; of runs whose rules are those that the study sets and its protocol
            has, whatever their protocol's hash.
        runs: only these, whatever their rules, in place of all that are not trials.
    """
    given = runs is not None
    if runs is None:  # a row of a study that names a value also shows runs that were trials of a tuning
        runs = archive.frame("runs", trials=study is not None)
    runs = runs[runs["protocol"] == protocol] if protocol and len(runs) else runs
    if runs.empty:
        return []
    runs = runs.assign(checkpoint=[weights_of(name) for name in runs["checkpoint"]])
    if study is None:
        runs, alike = rows(runs), ["table"]
    else:
        runs = rows_of_study(runs if given else of_runs(runs, partial(has_rules_of, study=study)), study)
        apart = {rule: [with_later(run.rules)[rule] for run in runs["run"]] for rule in ("decoder", "prompt")}
        hashes = [run.protocol_hash if given or _protocol_of(study, run) is None else "" for run in runs["run"]]
        runs, alike = runs.assign(**apart, hash=hashes), ["backbone", "checkpoint", *apart, "hash"]
    tables = [
        _grid(copy, archive, study=study)
        for _, here in runs.groupby(alike, sort=False)
        for _, copy in here.groupby(_copies(list(here["run"])))
    ]
    tables.sort(key=lambda grid: (grid.is_generated, -len(grid.rows), -len(grid.runs)))
    for telling_apart in (_rules_and_weights, _data):
        count = Counter(grid.title for grid in tables)
        tables = [replace(grid, title=grid.title + telling_apart(grid) * (count[grid.title] > 1)) for grid in tables]
    return tables


def _protocol_of(study: Study, run: Run) -> Mapping[str, Any] | None:
    return protocol_rules(study.protocol_file or study.protocol, run.benchmark)


def has_rules_of(run: Run, study: Study) -> bool:
    """Whether a run is of the study's protocol and backbones, and its rules are the protocol's with what the study sets there. Rules that
    the study tunes are free. Where the protocol is not known, only what the study sets is compared."""
    if run.protocol != study.protocol or (
        study.backbones and run.backbone not in {*study.backbones, *study.by_backbone}
    ):
        return False
    decoder, prompt = (with_later(run.rules)[rule] for rule in ("decoder", "prompt"))
    if (study.decoders and decoder not in study.decoders) or (study.prompts and prompt not in study.prompts):
        return False
    own = f"benchmarks.{run.benchmark}."
    of_study = {
        name.removeprefix(own): value
        for name, value in {**study.set, **study.by_backbone.get(run.backbone, {})}.items()
        if not name.startswith("benchmarks.") or name.startswith(own)
    }
    of_study |= {"decoder": decoder, **study.decoders[decoder]} if study.decoders else {}
    of_study |= {"prompt": prompt} if study.prompts else {}
    of_protocol = _protocol_of(study, run)
    wanted = {**(run.rules if of_protocol is None else of_protocol), **of_study}
    free = {"budget", *(name for name in study.tune if "." not in name)}
    return not from_protocol(run.rules, wanted).keys() - free


def _copies(runs: Sequence[Run]) -> list[int]:
    """Which copy of its benchmark's data each run is of: 0 is that of most runs. A copy is a split and its files, as far as records have
    them; a run that failed before it read any is of the first."""
    kinds = [(run.benchmark, run.manifest, files) for run, files in zip(runs, fullest_fingerprints(runs), strict=True)]
    counts = Counter(kind for kind in kinds if kind[1])
    order = sorted(counts, key=lambda kind: (-counts[kind], kind))
    return [[other for other in order if other[0] == kind[0]].index(kind) if kind[1] else 0 for kind in kinds]


def _grid(runs: pd.DataFrame, archive: Archive, *, study: Study | None) -> Grid:
    """The table of these runs, under a title that another may have too. A title names what differs from the protocol, and files and weights
    other than the study's."""
    import pandas as pd

    planned: Mapping[tuple[str, str], set[int]]
    if study is None:
        benchmarks = sorted(runs["benchmark"].unique(), key=benchmark_rank)
        names = runs.drop_duplicates("row")[["row", "run"]].itertuples(index=False)
        lines = {name: Row(label=name, method=run.method, options=run.changed, scores=("best",)) for name, run in names}
        planned = _planned(runs)
    else:
        benchmarks = list(study.benchmarks)
        lines = {name: line for row in study.entries for name, line in lines_of(row, study).items()}
        planned = {(name, benchmark): set(study.seeds) for name in lines for benchmark in benchmarks}
    by_benchmark = {name: runs[runs["benchmark"] == name].drop_duplicates("key") for name in benchmarks}
    columns = tuple(column for name, here in by_benchmark.items() for column in _columns(name, here, study=study))
    firsts: list[Run] = list(runs.sort_values("key").drop_duplicates("benchmark")["run"])
    known = [protocol_rules(run.protocol, run.benchmark) for run in firsts]
    changed = {run.benchmark: from_protocol(run.rules, own or {}) for run, own in zip(firsts, known, strict=True)}
    is_known = None not in known
    everywhere = shared(list(changed.values())) if is_known else {}
    words = headed([name for name in HEADED if name in everywhere], firsts[0].rules) if everywhere else ""
    same = {name: str(runs[name].mode().iloc[0]) for name in SAME_RULES}
    title = " · ".join(
        filter(None, [same["protocol"], same["backbone"], words, *_other_inputs(list(runs["run"]), study)])
    )
    scores = pd.DataFrame(_scores(runs, lines, columns, planned))
    common = {name: same[name] for name in ("protocol", "backbone", "checkpoint")}
    return Grid(
        **same, title=title, overrides=overrides_in_words(changed) if is_known else None, columns=columns,
        rows=lines, scores=scores.assign(**common), runs=runs, archive=archive,
    )  # fmt: skip


def _planned(runs: pd.DataFrame) -> dict[tuple[str, str], set[int]]:
    """(row, benchmark) -> the seeds that the sweeps of its runs planned, and those that ran; a trial says nothing of other benchmarks."""
    planned: dict[tuple[str, str], set[int]] = {}
    for row, run in zip(runs["row"], runs["run"], strict=True):
        planned.setdefault((row, run.benchmark), set()).update((run.seed, *run.planned_seeds))
        for benchmark in run.planned_benchmarks if run.seed not in run.tuning.get("seeds", ()) else ():
            planned.setdefault((row, benchmark), set()).update(run.planned_seeds)
    return planned


def _scores(
    runs: pd.DataFrame,
    lines: Mapping[str, Row],
    columns: Sequence[Column],
    planned: Mapping[tuple[str, str], set[int]],
) -> Iterator[dict[str, Any]]:
    """A line for each planned seed of each cell (`Grid.scores`), but for what all lines share."""
    there = runs[runs["record"].notna()]
    on: dict[Any, list[Record]] = {cell: list(r) for cell, r in there.groupby(["row", "benchmark"])["record"]}
    others = {cell: _under_other_rules([r for r in records if r.code == "OK"]) for cell, records in on.items()}
    manifests = {name: manifest for name, manifest in zip(runs["benchmark"], runs["manifest"], strict=True) if manifest}
    for column in columns:
        for name, row in lines.items():
            cell, (model,) = (name, column.benchmark), row.scores
            options = ", ".join(f"{option}={value}" for option, value in sorted(row.options.items()))
            for seed in sorted(planned.get(cell, ())):
                here = [record for record in on.get(cell, ()) if record.run.seed == seed]
                value, code, record = _outcome(here, column, model)
                conflicting = value is not None and seed in others.get(cell, ())
                yield {
                    "row": name, "method": row.method, "model": model, "options": options, "benchmark": column.benchmark,
                    "split": column.split, "metric": column.metric, "seed": seed,
                    "value": math.nan if value is None else value, "code": CONFLICT if conflicting else code,
                    "empty": any(
                        r.foreground.get(split, 1.0) < 0.1 for r in here if r.scores.get(model) == r.scores.get("best")
                        for split in column.splits_of(r)
                    ),
                    "protocol_hash": record.run.protocol_hash if record else "",
                    "manifest": manifests.get(column.benchmark, ""),
                }  # fmt: skip


def _outcome(runs: Sequence[Record], column: Column, model: str) -> tuple[float | None, str, Record | None]:
    """What the runs of one row and seed contribute to a cell: the score; OK, or why there is no score or why it does not count; and the run
    that it comes from. A run that finished takes precedence over one that failed."""
    ended = [record for record in runs if record.code == "OK"]
    values = [record.scores.get(model, {}).get(column.split, {}).get(column.metric, math.nan) for record in ended]
    scored = [(value, record) for value, record in zip(values, ended, strict=True) if math.isfinite(value)]
    if scored:
        value, record = scored[0]
        return value, "OK" if all(other == value for other, _ in scored) else CONFLICT, record
    if not runs:
        return None, MISSING, None
    return None, "NO_SCORE" if runs[-1].code == "OK" else str(runs[-1].code), (ended or list(runs))[0]


def _under_other_rules(records: Sequence[Record]) -> set[int]:
    """The seeds of a cell whose runs have other rules than most, or than any other where no rules are the most frequent; none where some
    rules have every seed. Rules that change no number do not count, nor does which fold of the data is a seed's."""
    kinds: list[str] = []
    for run in (record.run for record in records):
        folds = run.rule("split_follows_seed")
        rules = {name: value for name, value in run.rules.items() if not (folds and name == "split_seed")}
        kinds.append(content_hash(hashed_rules(rules)))
    seeds = {kind: {r.run.seed for r, own in zip(records, kinds, strict=True) if own == kind} for kind in kinds}
    everywhere = {record.run.seed for record in records}
    if not records or everywhere in seeds.values():
        return set()
    (first, most), *others = Counter(kinds).most_common()
    led = most > others[0][1]
    return {r.run.seed for r, kind in zip(records, kinds, strict=True) if not led or kind != first}


def _columns(benchmark: str, frame: pd.DataFrame, *, study: Study | None) -> Iterator[Column]:
    """The columns of one benchmark by split and metric. Where images that nothing trained on are tested with the given ones, all of them
    lead, and the official ones follow."""
    runs: list[Run] = list(frame["run"])
    scored: dict[str, set[str]] = {}
    for record in frame["record"].dropna():
        for split, scores in record.scores.get("best", {}).items():
            if split != "val":
                scored.setdefault(split, set()).update(scores)
    if study is not None and study.table.metrics != "paper":
        names = tuple(study.table.metrics)
    else:
        names = shown_metrics(benchmark, runs, scored=set().union(*scored.values()))
    by_val = any(run.rule("split_rule") == "val-as-test" for run in runs)
    of_given = {"test": "official validation" if by_val else "official", ALL: ""}
    split_titles = of_given if UNTRAINED in scored else {"test": ""}
    if study is not None and benchmark in study.table.splits:
        splits = study.table.splits[benchmark]
    elif UNTRAINED in scored:
        splits = (ALL, *sorted(scored.keys() - {ALL, UNTRAINED}))
    elif benchmark not in SPLITS_APART and (ALL in scored or (not scored and benchmark in TESTED_TOGETHER)):
        splits = (ALL,)
    else:
        splits = tuple(sorted(scored.keys() - {ALL})) or ("test",)
    title = benchmark_title(benchmark, runs)
    note = ", ".join(sorted({run.data_note for run in runs if run.data_note}))
    for split in splits:
        for name in names:
            split_title = split_titles.get(split, split)
            yield Column(benchmark=benchmark, split=split, metric=name, note=note, title=title, split_title=split_title)


def _other_inputs(runs: Sequence[Run], study: Study | None) -> list[str]:
    """What a title says of files and weights that are not the study's."""
    if study is None:
        return []
    other = {run.benchmark for run in runs if not same_data(run.data_fingerprint, study.data.get(run.benchmark, ""))}
    words = [f"other files of {benchmark_title(name, runs)}" for name in sorted(other, key=benchmark_rank)]
    wanted = {weights_of(study.weights.get(run.backbone, run.checkpoint)) for run in runs}
    return words + ["other weights"] * (wanted != {weights_of(run.checkpoint) for run in runs})


def _rules_and_weights(grid: Grid) -> str:
    return f" · rules {grid.protocol_hash[:8]}, weights {weights_in_words(grid.checkpoint)}"


def _data(grid: Grid) -> str:
    files = sorted({(run.benchmark, run.manifest, run.data_fingerprint) for run in grid.runs["run"]})
    return f" · data {content_hash(files)[:6]}"


def weights_in_words(checkpoint: str) -> str:
    """The name of a checkpoint on a page."""
    return checkpoint.removeprefix("sha256-")[:12] or "random"
