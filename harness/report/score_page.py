"""The page of scores: a table for each protocol hash, backbone and checkpoint, and published numbers beside ours.

The same records give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from harness.archive.archive import Archive
from harness.archive.schema import Record, Run
from harness.comparison.cells import Cell, Grid
from harness.comparison.contrasts import Contrasts
from harness.comparison.judging import judge
from harness.comparison.papers import PARAMETERS, Papers, Published, against, shortly
from harness.comparison.rows import Row, is_entry, placeholder
from harness.report.against_baseline import agreement_tables, contrast_tables, elsewhere_table
from harness.report.answers import RANKS_NOTHING, answers
from harness.report.page import Line, Page, Table, heads
from harness.report.score_tables import footnotes, numbers_of, score_tables, tuning_tables
from harness.report.titles import Titled, titled_grids
from harness.studies import Study

TOLERANCE = 1.0
"""Percentage points around a published score that count as the same: our choice, no paper states one."""

FOOTNOTES = (
    f"Verdict: reproduced if the 95 % interval of the difference lies inside ± {TOLERANCE:g} points, not reproduced if"
    " wholly outside, inconclusive where it reaches over an edge; parameters must agree in every printed digit.",
    "95 % CI: of the difference, over our seeds and the paper's runs (Welch); without a printed spread the paper's runs"
    " (one, if it names no number) are taken to vary as ours do.",
    "Not judged: another card or rule, backbone, checkpoint or other images than the paper's numbers were made with.",
    "Marks of sources: P a public page about the paper, S quoted by third parties that had it (a typo is possible).",
)


def score_page(
    records: Iterable[Record],
    archive: Archive,
    *,
    papers: Papers,
    study: Study | None = None,
    runs: Iterable[Run] | None = None,
    metrics: Sequence[str] = (),
) -> Page:
    """One page, what says most first.

    Args:
        records: of the archive, any order.
        papers: whose numbers a study with ``table.paper`` shows beside ours.
        study: rows, benchmarks and seeds to show; without one, everything there is.
        runs: show these planned runs and nothing else, under their own labels; those without a record show as missing.
        metrics: columns of these instead of the study's or the papers' choice.
    """
    chosen = list(records) if runs is None else of_runs(records, runs)
    title = study.title if study else ", ".join(sorted({record.run.protocol for record in chosen})) or "no records"
    titled = titled_grids(chosen, archive, study=study, metrics=metrics)
    tables: list[Table] = []
    said: list[tuple[str, list[str]]] = []
    numbers = []
    for titled_grid in titled:
        scores = score_tables(titled_grid)
        if study and study.note:
            scores[0] = replace(scores[0], above=[study.note, *scores[0].above])
        tables += [*scores, *tuning_tables(titled_grid)]
        contrasts = Contrasts.of(titled_grid.grid, study.table.baseline) if study else None
        numbers += numbers_of(titled_grid, contrasts)
        if not titled_grid.grid.is_generated and (sentences := answers(titled_grid.grid)):
            said.append((titled_grid.title, sentences))
        tables += contrast_tables(contrasts, title=titled_grid.title) if contrasts else []
        if study and study.table.paper and titled_grid.grid.sheet.protocol in {study.protocol, *papers.cards}:
            tables += _published_tables(titled_grid, papers)
    if not tables:
        tables = [Table(heading=study.name if study else title, above=["No record of this table yet."])]
    if study is not None:
        tables += agreement_tables(titled, title=study.title)
        if study.table.ranking:
            tables.append(elsewhere_table(titled, study))
    lead = [f"{name}: {line}" if len(said) > 1 else line for name, sentences in said for line in sentences]
    generated = bool(titled) and all(titled_grid.grid.is_generated for titled_grid in titled)
    return Page(
        title=title + (": generated images, whose numbers rank nothing" if generated else ""),
        lead=lead, tables=tables, foot=footnotes([titled_grid.grid for titled_grid in titled]), numbers=numbers, grids=titled,
        note=RANKS_NOTHING if generated else "",
    )  # fmt: skip


def of_runs(records: Iterable[Record], runs: Iterable[Run]) -> list[Record]:
    """The records of ``runs`` under the labels of ``runs`` (one may serve several sweeps); placeholders else."""
    known = {record.key: record for record in records}
    return [_under_label(known[run.key], run) if run.key in known else placeholder(run) for run in runs]


def _under_label(record: Record, run: Run) -> Record:
    """What is said of data and checkpoint stays the record's own: it was made from those."""
    made_from = ("split_rule", "data_note", "data_fingerprint", "checkpoint")
    return replace(record, run=replace(run, **{name: getattr(record.run, name) for name in made_from}))


def _published_tables(titled: Titled, papers: Papers) -> list[Table]:
    """One line for every number that a paper has for a cell of the grid; none where there is no such number."""
    grid, lines = titled.grid, []
    for row in (row for row in grid.rows if row.score == "best"):
        for column in grid.columns:
            for number in papers.numbers_of(row.method, column.benchmark, column.split, column.metric):
                if _is_of(row, number):
                    lines.append(_score_line(grid.cells[row, column], number, papers))
        for number in papers.numbers_of(row.method, "", "", PARAMETERS):
            if _is_of(row, number):
                lines.append(_parameter_line(grid, row, number, papers))
    if not lines:
        return []
    columns = heads(
        *("method", "number", "paper", "source", "ours", "Δ", "95 % CI", "verdict"),
        words=("number", "source", "verdict"),
    )
    heading = f"{titled.title}: beside the papers"
    return [Table(heading=heading, level=3, columns=columns, rows=lines, below=FOOTNOTES)]


def _is_of(row: Row, number: Published) -> bool:
    """Whether a number is of this row: of the method with the options that the paper changed, and nothing else."""
    if row.records:
        return any(is_entry(record, number.settings) for record in row.records)
    return dict(row.options) == number.settings


@dataclass(frozen=True, kw_only=True, eq=False)
class BesidePaper:
    """Our cell, a paper's number for it, and how the two were made differently."""

    cell: Cell
    number: Published
    differs: Sequence[str]

    def why(self, archive: Archive) -> list[str]:
        lines = []
        if self.cell.complete:
            source = f"{self.number.cited}: {self.number.source}"
            lines = [f"  published: {self.number.text}, {source}"]
        lines += [f"  not the published set-up: {words}" for words in self.differs]
        return [*lines, *self.cell.why(archive)]


def _score_line(cell: Cell, number: Published, papers: Papers) -> Line:
    differs = papers.departures(number.paper, cell.records) if cell.complete else ()
    beside = BesidePaper(cell=cell, number=number, differs=differs)
    start = (cell.column.short, number.text, number.cited)
    if not cell.complete:
        return Line.of_row(cell.row, (*start, "–", "–", "–", "no data (no score)"), beside, on=cell.column)
    ours = [100 * value for value in cell.by_seed]
    difference = against(ours, number)
    interval = difference.interval()
    verdict: str = judge(interval, low=-TOLERANCE, high=TOLERANCE)
    verdict += " (n too small)" if interval is None else ""
    words = (
        f"{100 * cell.value:.1f} ({len(ours)})",
        f"{difference.mean:+.1f}",
        "–" if interval is None else f"{interval:+.1f}",
        f"not judged: {shortly(differs)}" if differs else verdict,
    )
    return Line.of_row(cell.row, (*start, *words), beside, on=cell.column)


def _parameter_line(grid: Grid, row: Row, number: Published, papers: Papers) -> Line:
    """A count is judged on the published backbone alone; weights, rules and data do not enter it."""
    assert number.number is not None
    counts = sorted({record.parameters["trainable"] for record in row.runs if record.parameters})
    start = ("params (M)", number.text, number.cited)
    if not counts:
        return Line.of_row(row, (*start, "–", "–", "–", "no data (no run)"), row)
    millions, setup, backbone = counts[0] / 1e6, papers.setup(number.paper), grid.sheet.backbone
    agrees = all(abs(count / 1e6 - number.number) <= number.half_digit for count in counts)
    verdict = "reproduced" if agrees else "not reproduced"
    if setup is None or setup.backbone != backbone:
        other = f"instead of {setup.backbone}" if setup else f"(what {number.paper} used is not known here)"
        verdict = f"not judged: backbone {backbone} {other}"
    return Line.of_row(row, (*start, f"{millions:.3f}", f"{millions - number.number:+.3f}", "exact", verdict), row)
