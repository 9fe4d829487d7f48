"""Tables that only the report has: what was compared, every number, every gap, and the papers' claims."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from harness import statistics as stats
from harness.archive.schema import Record
from harness.comparison.cells import Cell, Column, Grid
from harness.comparison.judging import Finding
from harness.comparison.names import benchmark_title
from harness.comparison.rows import MISSING, Row, is_run, quoted
from harness.report.html.headline import RATES
from harness.report.page import Line, Table, heads
from harness.report.score_tables import updates_in_words
from harness.report.titles import Titled

NOTES = (
    "SD over seeds (ddof = 1). 95 % CI: Student's t over the seeds, of this row alone: rows are compared by their paired"
    " differences. Rank: by mean among the rows of the column without a gap, 1 is best.",
    "Updates: of the weights, + those of α. Rows with different updates differ in their scores for this reason too.",
)


def compared_table(titled: Sequence[Titled]) -> Table:
    """Rules, what they were run on, and where; a line a set of rules."""
    lines = []
    for titled_grid in titled:
        grid = titled_grid.grid
        codes = Counter(str(record.code) for record in grid.records)
        devices = sorted({record.environment.get("device", "") for record in grid.records} - {""})
        days = [record.finished[:10] for record in grid.records if record.finished]
        words = (
            titled_grid.title,
            "card not known" if titled_grid.overrides is None else titled_grid.overrides or "none",
            ", ".join(map(benchmark_title, grid.benchmarks)),
            ", ".join(dict.fromkeys(quoted(row.label) for row in grid.rows)),
            ", ".join(map(str, grid.seeds)),
            ", ".join(f"{count} {code}" for code, count in sorted(codes.items())),
            ", ".join(devices) or "–",
            " to ".join(dict.fromkeys((min(days), max(days)))) if days else "–",
        )
        lines.append(Line.of(words, titled_grid))
    columns = heads(
        *("rules", "differences to the card", "benchmarks", "methods", "seeds", "runs", "on", "finished"),
        words=("differences to the card", "benchmarks", "methods", "on"),
    )
    return Table(heading="What was compared", columns=columns if lines else (), rows=lines)


def numbers_table(titled: Sequence[Titled]) -> Table:
    """A line a number that was planned."""
    lines = []
    for titled_grid in titled:
        grid = titled_grid.grid
        for column in grid.columns:
            ranks = _ranks(grid, column)
            for cell in (cell for cell in grid.below(column) if cell.planned):
                made = _made(cell.row.runs_on(column.benchmark))
                codes = "; ".join(_messages(cell).values()) or "OK"
                words = (
                    cell.row.shown, benchmark_title(column.benchmark), column.within, *_numbers(cell),
                    ranks.get(cell.row, "–"), *made, codes, titled_grid.title,
                )  # fmt: skip
                lines.append(
                    Line.of(words, cell, label=cell.row.label, method=cell.row.label, benchmark=column.benchmark)
                )
    columns = heads(
        *("method", "benchmark", "metric", "mean (%)", "SD", "95 % CI", "n", "rank", "updates", "rate"),
        *("rate chosen by", "code", "rules"),
        words=("benchmark", "metric", "rate chosen by", "code", "rules"),
    )
    return Table(heading="Every number", columns=columns if lines else (), rows=lines, below=NOTES)


def gaps_table(titled: Sequence[Titled]) -> Table:
    """A line a planned run that gave no score."""
    lines: dict[tuple[str, ...], Line] = {}
    for titled_grid in titled:
        for cell in titled_grid.grid.cells.values():
            benchmark = cell.column.benchmark
            for seed, message in _messages(cell).items():
                words = (
                    cell.row.label, benchmark_title(benchmark), str(seed), cell.codes[seed], message, titled_grid.title
                )  # fmt: skip
                lines.setdefault(words, Line.of(words, cell, method=cell.row.label, benchmark=benchmark))
    columns = heads(
        *("method", "benchmark", "seed", "code", "message", "rules"), words=("benchmark", "code", "message", "rules")
    )
    return Table(heading="Gaps", columns=columns if lines else (), rows=list(lines.values()))


def claims_table(findings: Sequence[Finding]) -> Table:
    """The sentence, the verdict, and how many readings have data; every reading stands behind its cells."""
    lines = []
    for finding in findings:
        claim, readings = finding.claim, (*finding.readings, *finding.averages)
        measured = [reading for reading in readings if reading.estimate is not None]
        words = (
            claim.name, str(finding.verdict), f"{claim.text} [{claim.mark}: {claim.source}]", claim.expected,
            f"{len(measured)} of {len(readings)}",
        )  # fmt: skip
        lines.append(Line.of(words, finding))
    columns = heads("claim", "verdict", "sentence", "holds for", "readings with data", words=("verdict", "sentence"))
    return Table(heading="Claims of the papers", columns=columns if lines else (), rows=lines)


def _messages(cell: Cell) -> dict[int, str]:
    """Seed -> ``OOM (seed 2): asked for 90 GiB`` of every run that gave no score."""
    messages = {}
    for seed, code in sorted(cell.codes.items()):
        told = [
            record.message for record in cell.records if record.run.seed == seed and is_run(record) and record.message
        ]
        words = told[0] if told else "no record" if code == MISSING else ""
        messages[seed] = f"{code} (seed {seed})" + (f": {words}" if words else "")
    return messages


def _numbers(cell: Cell) -> list[str]:
    """Mean, SD, interval and n."""
    if not cell.complete:
        return ["–", "–", "–", f"{len(cell.seeds)} of {len(cell.planned)}"]
    spread, interval = cell.spread, cell.interval
    bounds = f"[{100 * interval.low:.2f}, {100 * interval.high:.2f}]" if interval else "–"
    return [f"{100 * cell.value:.2f}", "–" if spread is None else f"{100 * spread:.2f}", bounds, str(cell.n)]


def _ranks(grid: Grid, column: Column) -> dict[Row, str]:
    means = {cell.row: column.sign * cell.value for cell in grid.below(column) if cell.complete}
    if len(means) < 2:
        return {}
    ranks = stats.average_ranks([list(means.values())])
    return {row: f"{rank:g} of {len(means)}" for row, rank in zip(means, ranks, strict=True)}


def _made(runs: Sequence[Record]) -> list[str]:
    """Updates, rate and how it was chosen; of the runs of one row, which mostly share them."""
    if not runs:
        return ["–", "–", "–"]
    rates, chosen = (
        " or ".join(dict.fromkeys(filter(None, map(words, runs)))) or "–" for words in (_rate, _how_chosen)
    )
    return [updates_in_words(runs), rates, chosen]


def _rate(record: Record) -> str:
    """``5e-04, encoder 1e-05``: that of the weights first; others only where the configuration has them."""
    config = record.run.method_config
    rates = {name: config.get(name) for name in RATES}
    rates["lr"] = rates["lr"] if rates["lr"] is not None else record.run.rules.get("lr")
    return ", ".join(f"{RATES[name]}{value:.4g}" for name, value in rates.items() if isinstance(value, int | float))


def _how_chosen(record: Record) -> str:
    """Tuned, set for this row, set for the method by the card or by its own default, or the card's for all methods."""
    run = record.run
    if any(name in RATES for name in run.tuning.get("chosen", {})):
        return f"tuned, {len(run.tuning.get('trials', ()))} trials"
    if any(name in run.changed for name in RATES):
        return "this row"
    of_method = run.rules.get("methods", {}).get(run.method, {})
    if any(name in of_method for name in RATES):
        return "card, for this method"
    return "card" if run.method_config.get("lr") is None else "the method's default"
