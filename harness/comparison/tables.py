"""Which runs share a table: those with equal rules, weights and data; for a study, those with its rules."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from harness.archive.archive import Archive, weights_of
from harness.archive.older import same_data
from harness.archive.schema import Record, Run, content_hash
from harness.comparison.cells import ALL, CONFLICT, Column, outcome, under_other_rules
from harness.comparison.grid import Grid
from harness.comparison.names import benchmark_rank, benchmark_title, shown_metrics
from harness.comparison.rows import SAME_RULES, rows, rows_of_study, study_lines, where
from harness.protocols.compare import HEADED, card, from_card, headed, overrides_in_words, shared
from harness.protocols.keys import with_later
from harness.studies import Row

if TYPE_CHECKING:
    import pandas as pd

    from harness.studies import Study


UNTRAINED = "untrained"
"""The test split of images of the training part on which nothing trained (a card's ``test_given_first``)."""


def grids(
    archive: Archive,
    *,
    protocol: str = "",
    study: Study | None = None,
    runs: pd.DataFrame | None = None,
    metrics: Sequence[str] = (),
) -> list[Grid]:
    """The tables of a results folder: one for each protocol's hash, backbone, checkpoint and copy of the data. Real images come before
    generated ones, many rows before few. No two tables have the same title.

    Args:
        protocol: only tables of this protocol.
        study: its rows, benchmarks and seeds, with or without records; of runs whose rules are those that the study sets and its card
            has, whatever their protocol's hash.
        runs: only these, whatever their rules, in place of all that are not trials.
        metrics: the columns of every benchmark, in place of the study's or the papers' choice.
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
        runs = rows_of_study(runs if given else where(runs, partial(has_rules_of, study=study)), study)
        apart = {rule: [with_later(run.rules)[rule] for run in runs["run"]] for rule in ("decoder", "prompt")}
        hashes = [run.protocol_hash if given or _card_of(study, run) is None else "" for run in runs["run"]]
        runs, alike = runs.assign(**apart, hash=hashes), ["backbone", "checkpoint", *apart, "hash"]
    tables = [
        _content(copy, archive, study=study, metrics=metrics)
        for _, here in runs.groupby(alike, sort=False)
        for _, copy in here.groupby(_copies(list(here["run"])))
    ]
    tables.sort(key=lambda content: (_is_generated(content["runs"]), -len(content["rows"]), -len(content["runs"])))
    return [Grid(**content, **title) for content, title in zip(tables, _titles(tables, study), strict=True)]


def _is_generated(runs: pd.DataFrame) -> bool:
    return all(run.is_generated for run in runs["run"])


def _card_of(study: Study, run: Run) -> Mapping[str, Any] | None:
    return card(study.card or study.protocol, run.benchmark)


def has_rules_of(run: Run, study: Study) -> bool:
    """Whether a run is of the study's protocol and backbones, and its rules are the card's with what the study sets there. Rules that the
    study tunes are free. Where the card is not known, only what the study sets is compared."""
    if run.protocol != study.protocol or (
        study.backbones and run.backbone not in {*study.backbones, *study.by_backbone}
    ):
        return False
    own = f"benchmarks.{run.benchmark}."
    of_study = {
        name.removeprefix(own): value
        for name, value in {**study.set, **study.by_backbone.get(run.backbone, {})}.items()
        if not name.startswith("benchmarks.") or name.startswith(own)
    }
    if study.decoders:
        decoder = with_later(run.rules)["decoder"]
        if decoder not in study.decoders:
            return False
        of_study |= {"decoder": decoder, **study.decoders[decoder]}
    if study.prompts:
        prompt = with_later(run.rules)["prompt"]
        if prompt not in study.prompts:
            return False
        of_study |= {"prompt": prompt}
    of_card = _card_of(study, run)
    wanted = {**(run.rules if of_card is None else of_card), **of_study}
    free = {"budget", *(name for name in study.tune if "." not in name)}
    return not from_card(run.rules, wanted).keys() - free


def _copies(runs: Sequence[Run]) -> list[int]:
    """Which copy of its benchmark's data each run is of: 0 is that of most runs. A copy is a split and the contents of its files, as far
    as records have them; a run that failed before it read any is of the first."""
    counts = Counter((run.benchmark, run.manifest, run.data_fingerprint) for run in runs if run.manifest)
    copies: dict[
        tuple[str, str], list[str]
    ] = {}  # (benchmark, manifest) -> a fingerprint of each copy, those that say most first
    for benchmark, manifest, mark in sorted(counts, key=lambda kind: (-len(kind[2]), kind)):
        marks = copies.setdefault((benchmark, manifest), [])
        if not any(same_data(mark, other) for other in marks):
            marks.append(mark)

    def copy(benchmark: str, manifest: str, mark: str) -> tuple[str, str, str]:
        return benchmark, manifest, next(other for other in copies[benchmark, manifest] if same_data(mark, other))

    sizes: Counter[tuple[str, str, str]] = Counter()
    for kind, count in counts.items():
        sizes[copy(*kind)] += count
    order: dict[str, list[tuple[str, str, str]]] = {}
    for kind in sorted(sizes, key=lambda kind: (-sizes[kind], kind)):
        order.setdefault(kind[0], []).append(kind)
    return [
        order[run.benchmark].index(copy(run.benchmark, run.manifest, run.data_fingerprint)) if run.manifest else 0
        for run in runs
    ]


def _content(runs: pd.DataFrame, archive: Archive, *, study: Study | None, metrics: Sequence[str]) -> dict[str, Any]:
    """The arguments of a `Grid` except its title."""
    if study is None:
        benchmarks = sorted(runs["benchmark"].unique(), key=benchmark_rank)
        order = runs.drop_duplicates("row")
        names = zip(order["row"], order["run"], order["model"], strict=True)
        lines = [
            (str(row), Row(label=str(row), method=run.method, options=run.changed), str(model))
            for row, run, model in names
        ]
    else:
        benchmarks, lines = list(study.benchmarks), study_lines(study)
    by_benchmark = {name: list(runs[runs["benchmark"] == name].drop_duplicates("key")["run"]) for name in benchmarks}
    records = {name: [r for r in runs[runs["benchmark"] == name]["record"] if r is not None] for name in benchmarks}
    columns = tuple(
        column
        for name in benchmarks
        for column in _columns(name, by_benchmark[name], records[name], study=study, metrics=metrics)
    )
    import pandas as pd

    planned = _planned(runs)
    if study is not None:
        planned = {(row, name): set(study.seeds) for row, _, _ in lines for name in benchmarks}
    scores = pd.DataFrame(_scores(runs, {row: model for row, _, model in lines}, columns, planned))
    return {
        **{name: str(runs[name].mode().iloc[0]) for name in SAME_RULES},
        "rows": {row: entry for row, entry, _ in lines}, "columns": columns, "scores": scores, "runs": runs, "archive": archive,
    }  # fmt: skip


Seeds = Mapping[tuple[str, str], set[int]]
"""(row, benchmark) -> seeds"""


def _planned(runs: pd.DataFrame) -> Seeds:
    """The seeds that the sweeps of a row's runs planned, and those that ran. Of a trial only its own seed is known."""
    planned: dict[tuple[str, str], set[int]] = {}
    for row, run in zip(runs["row"], runs["run"], strict=True):
        planned.setdefault((row, run.benchmark), set()).update((run.seed, *run.planned_seeds))
        for benchmark in run.planned_benchmarks if run.seed not in run.tuning.get("seeds", ()) else ():
            planned.setdefault((row, benchmark), set()).update(run.planned_seeds)
    return planned


def _scores(
    runs: pd.DataFrame, models: Mapping[str, str], columns: Sequence[Column], planned: Seeds
) -> Iterator[dict[str, Any]]:
    """A line for each planned seed of each cell (`Grid.scores`); ``models``: row -> which model is scored."""
    on: dict[tuple[str, str], list[Record]] = {}
    for row, benchmark, record in zip(runs["row"], runs["benchmark"], runs["record"], strict=True):
        if record is not None:
            on.setdefault((row, benchmark), []).append(record)
    others = {cell: under_other_rules([r for r in records if r.code == "OK"]) for cell, records in on.items()}
    manifests = {name: manifest for name, manifest in zip(runs["benchmark"], runs["manifest"], strict=True) if manifest}
    for column in columns:
        for row, model in models.items():
            cell = (row, column.benchmark)
            for seed in sorted(planned.get(cell, ())):
                here = [record for record in on.get(cell, ()) if record.run.seed == seed]
                value, code, record = outcome(here, column, model)
                conflicting = value is not None and seed in others.get(cell, ())
                yield {
                    "row": row, "model": model, "benchmark": column.benchmark, "split": column.split, "metric": column.metric,
                    "seed": seed, "value": math.nan if value is None else value, "code": CONFLICT if conflicting else code,
                    "blank": any(r.foreground.get(split, 1.0) < 0.1 for r in here for split in column.parts(r)),
                    "test_share": max((_test_share(r, column) for r in here), default=0.0),
                    "protocol_hash": record.run.protocol_hash if record else "",
                    "manifest": manifests.get(column.benchmark, ""),
                }  # fmt: skip


def _test_share(record: Record, column: Column) -> float:
    """Images tested over images trained on where every seed has its own split, else 0."""
    trained = record.counts.get("train") if record.run.rules.get("split_follows_seed") else 0
    return sum(record.tested.get(split, 0) for split in column.parts(record)) / trained if trained else 0.0


def _columns(
    benchmark: str, runs: Sequence[Run], records: Sequence[Record], *, study: Study | None, metrics: Sequence[str]
) -> Iterator[Column]:
    """The columns of one benchmark by split and metric. Where images that nothing trained on are tested beside the given ones, all of them
    lead, and the official ones follow."""
    scored: dict[str, set[str]] = {}
    for record in records:
        for split, scores in record.scores.get("best", {}).items():
            if split != "val":
                scored.setdefault(split, set()).update(scores)
    known = set().union(*scored.values())
    if metrics:
        names = tuple(name for name in metrics if name in known or not known)
    elif study is not None and study.table.metrics != "paper":
        names = tuple(study.table.metrics)
    else:
        names = shown_metrics(benchmark, runs, scored=known)
    parts: Mapping[str, str] = {"test": ""}
    if study is not None and benchmark in study.table.splits:
        splits = study.table.splits[benchmark]
    elif UNTRAINED in scored:
        splits = (ALL, *sorted(scored.keys() - {ALL, UNTRAINED}))
        parts = {"test": "official"}
    elif ALL in scored or (not scored and benchmark == "trans10k_v1"):
        splits = (ALL,)
    else:
        splits = tuple(sorted(scored)) or ("test",)
    title = benchmark_title(benchmark, runs)
    note = ", ".join(sorted({run.data_note for run in runs if run.data_note}))
    for split in splits:
        for name in names:
            part = parts.get(split, split)
            yield Column(benchmark=benchmark, split=split, metric=name, note=note, title=title, part=part)


def _titles(tables: Sequence[Mapping[str, Any]], study: Study | None) -> list[dict[str, Any]]:
    """``title`` and ``overrides`` of each table. A title names what differs from the card, and files and weights other than the study's;
    equal ones also have what tells them apart."""
    titles, said = [], []
    for table in tables:
        runs = list(table["runs"].sort_values("key")["run"])
        changed = _overrides(runs)
        everywhere = shared(list((changed or {}).values()))
        words = headed([name for name in HEADED if name in everywhere], runs[0].rules) if everywhere else ""
        titles.append(
            f"{table['protocol']} · {table['backbone']}"
            + (f" · {words}" if words else "")
            + (_other_inputs(runs, study) if study else "")
        )
        said.append(None if changed is None else overrides_in_words(changed or {}))
    for apart in (_rules_and_weights, _data):
        twice = {title for title in titles if titles.count(title) > 1}
        titles = [
            title + apart(table) if title in twice else title for title, table in zip(titles, tables, strict=True)
        ]
    return [{"title": title, "overrides": words} for title, words in zip(titles, said, strict=True)]


def _other_inputs(runs: Sequence[Run], study: Study) -> str:
    """What a title says of files and weights that are not the study's."""
    other = {run.benchmark for run in runs if not same_data(run.data_fingerprint, study.data.get(run.benchmark, ""))}
    words = [f"other files of {benchmark_title(name, runs)}" for name in sorted(other, key=benchmark_rank)]
    wanted = {weights_of(study.weights.get(run.backbone, run.checkpoint)) for run in runs}
    words += ["other weights"] if wanted != {weights_of(run.checkpoint) for run in runs} else []
    return "".join(f" · {each}" for each in words)


def _overrides(runs: Sequence[Run]) -> dict[str, Mapping[str, Any]] | None:
    """Benchmark -> how its runs' rules differ from their card's; None where their card is not known."""
    changed: dict[str, Mapping[str, Any]] = {}
    for run in runs:
        if run.benchmark in changed:
            continue
        rules = card(run.protocol, run.benchmark)
        if rules is None:
            return None
        changed[run.benchmark] = from_card(run.rules, rules)
    return changed


def _rules_and_weights(table: Mapping[str, Any]) -> str:
    return f" · rules {table['protocol_hash'][:8]}, weights {weights_in_words(table['checkpoint'])}"


def _data(table: Mapping[str, Any]) -> str:
    return f" · data {content_hash(sorted({(r.benchmark, r.manifest, r.data_fingerprint) for r in table['runs']['run']}))[:6]}"


def weights_in_words(checkpoint: str) -> str:
    """The name of a checkpoint on a page."""
    return checkpoint.removeprefix("sha256-")[:12] or "random"
