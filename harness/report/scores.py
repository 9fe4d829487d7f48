"""Pages of scores: a table for each set of rules, a study's differences to its baseline, published numbers with ours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from harness.archive.archive import MISSING, Archive, Shares
from harness.archive.schema import Record
from harness.comparison.differences import Difference
from harness.comparison.grid import COLLAPSE, CONFLICT, Column, Grid
from harness.comparison.names import benchmark_title, heading
from harness.comparison.papers import MARKS, Papers
from harness.comparison.rows import baseline_of
from harness.comparison.tables import grids, weights_in_words
from harness.protocols.keys import rule
from harness.report.formats import Number, Page, Score, Table, Value, heads
from harness.report.sentences import gain
from harness.studies import Study

if TYPE_CHECKING:
    import pandas as pd

CELLS = (
    "Cells: mean over seeds in % ± SD (ddof = 1) (n seeds). CODE (done/planned) says why a number is missing; no mean is taken over a gap."
    " –: not planned or not available."
)
CODES = {
    MISSING: "not run yet.",
    CONFLICT: "runs of the row differ in their rules, or a seed has two scores (sam-peft show KEY prints its rules).",
    "NO_SCORE": "the run ended without this score.",
    "EMPTY": "the masks are almost empty (their foreground is below a tenth of the truth's), so no metric ranks the row.",
    "COLLAPSED": f"a run scores more than {100 * COLLAPSE:.0f} points below the median of its row; it counts in the mean, and the row"
    " has no ≈, and no interval on a leaderboard.",
}
"""What the codes in cells say, in the order of the footnotes."""
AlphaCode = Literal["", "ALPHA_STUCK", "ALPHA_UNIFORM"]

NEAR_UNIFORM = 1.1
"""Shares up to this multiple of 1/n count as uniform: our choice. α ~ N(0, 0.001²) alone gives 1.003."""

ALPHA_MEANINGS: Mapping[str, str] = {
    "ALPHA_STUCK": "α could not move: its rate summed over its updates allows no operation more than"
    f" {NEAR_UNIFORM:g} times its uniform share (α's start and what Adam steps beyond the rate not counted);"
    " more α updates or a higher alpha_lr would",
    "ALPHA_UNIFORM": f"α stayed uniform: no operation at any site got more than {NEAR_UNIFORM:g} times its uniform share",
}
"""Code -> the footnote of a table."""
NONE_YET = "No run under these rules yet; runs under others are in the tables of their protocol."
GENERATED = "Made of generated images: these numbers say that the code runs, and nothing about methods."


def score_page(
    archive: Archive,
    *,
    protocol: str = "",
    study: Study | None = None,
    runs: pd.DataFrame | None = None,
    details: bool = False,
) -> Page:
    """The page of a protocol, a study or some runs.

    Args:
        protocol, study, runs: as in `harness.comparison.tables.grids`.
        details: also parameters, updates, rates and how they were chosen.
    """
    import pandas as pd

    page_grids = grids(archive, protocol=protocol, study=study, runs=runs)
    papers = Papers.read() if study and study.table.paper else None
    tables: list[Table] = []
    for grid in page_grids:
        scores = score_table(grid, details=details)
        if study and study.note:
            scores = replace(scores, above=[study.note, *scores.above])
        tables.append(scores)
        if study and baseline_of(study):
            tables += difference_tables(grid, baseline_of(study))
        if papers:
            tables += paper_tables(grid, papers)
    title = study.title if study else ", ".join(dict.fromkeys(grid.protocol for grid in page_grids)) or "no records"
    generated = bool(page_grids) and all(grid.is_generated for grid in page_grids)
    records = [record for grid in page_grids for record in grid.records]
    return Page(
        title=title + (": generated images, whose scores do not rank methods" if generated else ""),
        note=GENERATED if generated else "",
        tables=tables or [Table(heading=study.name if study else title, above=[NONE_YET])],
        foot=footnotes(tables, records),
        numbers=pd.concat([grid.tidy() for grid in page_grids], ignore_index=True) if page_grids else None,
    )


def score_table(grid: Grid, *, details: bool = False) -> Table:
    """A line for each row, a column for each benchmark, split and metric; with ``details`` further columns."""
    codes = {row: alpha_codes(grid.records_of(row), grid.archive) for row in grid.rows}
    further = _details(grid) if details else {}
    lines: list[list[Value]] = []
    for row in grid.rows:
        sign = "‡" if any(map(_selected_on_test, grid.records_of(row))) else ""
        name = " ".join(filter(None, [row, sign, *codes[row]]))
        scores = [Score(cell=grid.cells[row, c], mark=grid.marks.get((row, c), "")) for c in grid.columns]
        lines.append([name, *scores, *(values[row] for values in further.values())])
    titles = [_heading(column, grid.columns) for column in grid.columns]
    judged = grid.first_columns.values() if grid.is_own and not grid.is_generated else ()
    gains = [gain(grid, column) for column in judged]
    return Table(
        heading=grid.title, above=rules_in_words(grid), columns=heads("method", *titles, *further, words=["rate"]), rows=lines,
        below=[*filter(None, gains), *_notes(grid, codes, details=details)],
    )  # fmt: skip


def _heading(column: Column, columns: Sequence[Column]) -> str:
    """Benchmark, split where there are several, and metric; with a note that distinguishes the column from others."""
    title = column.title
    if column.note and len(column.note) <= 24 and len({other.note for other in columns}) > 1:
        title += f" ({column.note})"
    title += f" {column.split_title}" if column.split_title else ""
    return f"{title} {heading(column.metric)}"


def rules_in_words(grid: Grid) -> list[str]:
    """Lines on the rules, backbone, prompts, seeds and data of a table."""
    rules = f"Protocol: {grid.protocol}, hash {grid.protocol_hash}"
    if grid.overrides is None:
        rules += " (not a built-in protocol; `sam-peft show` prints a run's rules)"
    elif grid.overrides:
        rules += f", with {grid.overrides}"
    weights = f"checkpoint {weights_in_words(grid.checkpoint)}" if grid.checkpoint else "random weights"
    lines = [rules, f"Backbone: {grid.backbone}, {weights}"]
    by_prompt = {"box": "a box around each object of the true mask", "points": "points on each object of the true mask"}
    if (prompt := rule(grid.rules, "prompt")) in by_prompt:
        without = max(record.counts.get("unprompted", 0) for record in grid.records)
        more = f"; {without} test images have no object and no prompt" if without else ""
        if noise := rule(grid.rules, "prompt_noise"):
            more = f"; in tests each edge of a box is moved by up to {noise:g} of its side{more}"
        lines.append(f"Prompts: {by_prompt[prompt]}, in training and in tests{more}")
    seeds = sorted({seed for cell in grid.cells.values() for seed in cell.planned})
    lines.append(f"Seeds: {', '.join(map(str, seeds))}")
    for name in grid.first_columns:
        if records := [record for record in grid.records if record.run.benchmark == name]:
            lines.append(data_in_words(name, records))
    return lines


def data_in_words(name: str, records: Sequence[Record]) -> str:
    """The title of a benchmark with a note on its data, how many images were used, and how they were split."""
    notes = sorted({record.run.data_note for record in records if record.run.data_note})
    rules = sorted({record.run.split_rule for record in records if record.run.split_rule})
    sizes = {(" / " if record.available else "/").join(record.limits.values()) for record in records if record.counts}
    title = benchmark_title(name, [record.run for record in records]) + (f" ({', '.join(notes)})" if notes else "")
    details = [" or ".join(sorted(sizes)) + " training/validation/test images"] * bool(sizes)
    left_out = {split: count for record in records for split, count in record.ignored.items()}
    named = ", ".join(f"{count} of {split}" for split, count in sorted(left_out.items()))
    details += [f"test images left out, as every pixel of the mask is ignored: {named}"] * bool(left_out)
    details += [f"split: {' or '.join(rules)}"] * bool(rules)
    if any(record.run.rule("test_untrained") for record in records):
        details.append("training images that nothing trained on are tested too")
    return title + (f": {'; '.join(details)}" if details else "")


def _selected_on_test(record: Record) -> bool:
    """Whether the checkpoint was chosen on the test split, as some released code does."""
    return bool(record.run.rule("quirks").get("selection") == "released")


def _details(grid: Grid) -> dict[str, dict[str, Value]]:
    """Heading -> row -> value of the further columns."""
    runs = {row: grid.records_of(row) for row in grid.rows}

    def spans(name: str, of: str, unit: float, form: str) -> dict[str, Value]:
        return {
            row: Number.span((getattr(r, of).get(name) for r in here), unit=unit, form=form)
            for row, here in runs.items()
        }

    further: dict[str, dict[str, Value]] = {
        "params (M)": spans("trainable", "parameters", 1e6, ".3f"),
        "encoder (M)": spans("encoder", "parameters", 1e6, ".3f"),
        "updates": spans("weight_updates", "budget", 1, ".0f"),
        "α updates": spans("alpha_updates", "budget", 1, ".0f"),
        "rate": {row: _rates(here) for row, here in runs.items()},
        "pass (s)": spans("step_time_s", "cost", 1, ".3g"),
        "peak (GiB)": spans("peak_memory_bytes", "cost", 2**30, ".2f"),
    }
    if not any(record.environment.get("driver") for here in runs.values() for record in here):
        further.pop("peak (GiB)")
    if not any(record.budget.get("alpha_updates") for here in runs.values() for record in here):
        further.pop("α updates")
    return further


def _rates(records: Iterable[Record]) -> str:
    """``lr 0.003 of 4``: the chosen value, and of how many; § at an end of its grid."""
    rates: dict[str, None] = {}
    for record in records:
        run = record.run
        if "chosen" in run.tuning:
            text = (
                _options(run.tuning["chosen"])
                + f" of {len(run.tuning['trials'])}"
                + ("§" if run.tuning["edge"] else "")
            )
        else:
            own = {name: value for name, value in run.method_config.items() if name in ("lr", "encoder_lr")}
            text = _options(own if any(own.values()) else {name: run.rule(name) for name in own if name == "lr"})
        rates[text] = None
    return "; ".join(filter(None, rates))


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items() if value is not None)


def footnotes(tables: Sequence[Table], records: Iterable[Record]) -> list[str]:
    """How to read all tables of a page, with the codes that they show."""
    scores = [value.cell for table in tables for line in table.rows for value in line if isinstance(value, Score)]
    shown = {code for cell in scores if cell.planned for code in cell.codes.values() or cell.flags}
    lines = [CELLS] if scores else []
    lines += [f"{code}: {text}" for code, text in CODES.items() if code in shown]
    if any(map(_selected_on_test, records)):
        lines.append("‡ the checkpoint was selected on the test split, as some released code does.")
    return lines


def _notes(grid: Grid, codes: Mapping[str, Sequence[str]], *, details: bool) -> list[str]:
    """Footnotes of this table alone; ``codes``: the flags of each row's α."""
    lines = [f"{code}: {ALPHA_MEANINGS[code]}." for code in sorted(set().union(*codes.values()))]
    for row in grid.rows:
        lines += [
            f"{row}: {text}."
            for text in dict.fromkeys(record.run.never_reached for record in grid.records_of(row))
            if text
        ]
    updates: dict[str, set[float]] = {}
    for record in grid.records:
        if record.code == "OK" and record.budget.get("weight_updates"):
            updates.setdefault(record.run.benchmark, set()).add(record.budget["weight_updates"])
    if every := sorted(count for counts in updates.values() if len(counts) > 1 for count in counts):
        lines.append(f"Rows had {every[0]:.0f} to {every[-1]:.0f} weight updates, which also affects their scores.")
    if details and any(record.run.tuning.get("edge") for record in grid.records):
        lines.append("§ a chosen value is the first or last of its grid: a better one may lie beyond.")
    return lines


def difference_tables(grid: Grid, baseline: str) -> list[Table]:
    """Every row minus the baseline, on each benchmark's leading metric, and the mean over these benchmarks."""
    columns = list(grid.first_columns.values())
    lines: list[list[Value]] = []
    known: list[Difference] = []
    for row in (row for row in grid.rows if row != baseline):
        here = [grid.difference(row, baseline, column) for column in columns]
        if any(here):
            known += filter(None, here)
            lines.append([row, *here, *([grid.mean_difference(row, baseline)] if len(columns) > 1 else [])])
    if not lines:
        return []
    over = sorted({each.over for each in known})
    below = [
        f"Difference in points, positive is better, paired by seed; 95 % interval over {', or '.join(over)}: one comparison at a time."
    ]
    titles = [f"{column.name}" for column in columns] + (["mean"] if len(columns) > 1 else [])
    heading = f"{grid.title}: differences to {baseline}"
    return [Table(heading=heading, level=3, columns=heads("method", *titles), rows=lines, below=below)]


def paper_tables(grid: Grid, papers: Papers) -> list[Table]:
    """Published values and claims with ours; no table without any."""
    lines: list[list[Value]] = []
    for value, cell, difference, departs in papers.paired_values(grid):
        spread = f" ± {value.spread} {value.spread_kind.upper()}" if value.spread else ""
        source = f"{value.paper}, {value.table} [{value.mark}]"
        lines.append(
            [
                cell.row,
                cell.column.name,
                source,
                value.value + spread,
                Score(cell=cell),
                difference,
                ", ".join(departs) or "as published",
            ]
        )
    for claim, column, difference in papers.paired_claims(grid):
        lines.append([claim.text, column.name, f"{claim.source} [{claim.mark}]", claim.expected, difference, None, ""])
    if not lines:
        return []
    columns = heads(
        *("of", "number", "source", "paper", "ours", "ours − paper", "set-up"), words=("number", "source", "set-up")
    )
    return [
        Table(
            heading=f"{grid.title}: against the papers", level=3, columns=columns, rows=lines,
            below=[
                "Ours − paper in points with its 95 % interval, over our seeds and the paper's runs (Welch). Set-up: what differs from the"
                " published one (ours stands above the table of scores); where something does, this is not a reproduction.",
                "Marks of sources: " + "; ".join(f"{mark} {words}" for mark, words in MARKS.items()) + ".",
            ],
        )
    ]  # fmt: skip


def alpha_code(record: Record, last: Shares) -> AlphaCode:
    """The flag of a run whose mixture says nothing about the choice of α. Empty for other runs, without α, and for a control
    without a search. ``last`` is softmax(α) at the end of training, which alone decides where the record does not hold how far α could
    move."""
    sizes = [len(shares) for shares in last.values() if len(shares) > 1]
    if not sizes or record.run.never_reached:
        return ""
    cap = record.budget.get("share_cap")
    if record.budget.get("alpha_updates") == 0 or (cap is not None and cap * max(sizes) <= NEAR_UNIFORM):
        return "ALPHA_STUCK"
    largest = max(len(shares) * max(shares) for shares in last.values() if len(shares) > 1)
    return "ALPHA_UNIFORM" if largest <= NEAR_UNIFORM else ""


def alpha_codes(records: Iterable[Record], archive: Archive) -> list[str]:
    """The flags of these runs' α, each once."""
    ends = ((record, archive.mixture(record)) for record in records)
    return sorted({code for record, end in ends if end and (code := alpha_code(record, end))})
