"""Published numbers beside ours: value, ours, difference, interval, and a verdict where the set-up is the published one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from harness import statistics as stats
from harness.comparison import provenance
from harness.comparison.grid import Grid, is_run
from harness.comparison.published import PARAMETERS, Published, by_row
from harness.comparison.rows import is_entry
from harness.comparison.setups import departures_from, shortly
from harness.comparison.sources import Sources
from harness.judging.verdicts import judge
from harness.report.headings import Heading
from harness.report.page import Block, Text, texts

TOLERANCE = 1.0
"""Percentage points around a published score that count as the same: our choice, no paper states one."""

FOOTNOTES = (
    f"Verdict: reproduced if the 95 % interval of the difference lies inside ± {TOLERANCE:g} points, not reproduced if"
    " wholly outside, else inconclusive; parameters must agree in every printed digit.",
    "95 % CI: of the difference, over our seeds and the paper's runs (Welch); without a printed spread the paper's runs"
    " (one, if it names no number) are taken to vary as ours do.",
    "Not judged: another card or rule, backbone, checkpoint or other images than the paper's numbers were made with.",
    "Marks of sources: P a public page about the paper, S quoted by third parties that had it (a typo is possible).",
)


def published_block(grid: Grid, *, sources: Sources, heading: Heading) -> Block | None:
    """One row for every number that a paper has for a cell of the grid; None where there is no such number."""
    known = by_row(sources.published)
    rows = []
    for index, row in enumerate(grid.rows):
        if row.score != "best":
            continue
        for place, column in enumerate(grid.columns):
            for published in known.get((row.method, column.benchmark, column.split, column.metric), []):
                if _is_row(grid, index, published):
                    rows.append(_score_row(grid, index, place, published, sources))
        for published in known.get((row.method, "", "", PARAMETERS), []):
            if _is_row(grid, index, published):
                rows.append(_parameter_row(grid, index, published, sources))
    if not rows:
        return None
    return Block(
        heading=f"{heading.title}: beside the papers",
        level=3,
        columns=["method", "number", "paper", "source", "ours", "Δ", "95 % CI", "verdict"],
        rows=rows,
        below=FOOTNOTES,
    )


def published_cards(sources: Sources) -> set[str]:
    """The cards that hold a paper's rules: numbers stand beside what was run under them, whatever the study's own card."""
    return {setup.card for setup in (sources.setups or {}).values()}


def _is_row(grid: Grid, index: int, published: Published) -> bool:
    """Whether a number is of this row: of the method with the options that the paper changed, and nothing else."""
    members = grid.members[index]
    if members:
        return any(is_entry(record, published.settings) for record in members)
    return dict(grid.rows[index].options) == published.settings


def against(ours: Sequence[float], published: Published) -> stats.Estimate:
    """Ours minus the paper's number, in points, with the variance of both.

    Where the paper prints no spread, its runs (one, if it does not say how many) are taken to vary as ours do.

    Args:
        ours: one score a seed, in percent.
    """
    assert published.number is not None
    estimate, runs = stats.of_seeds(ours), int(published.runs or 0)
    if not published.spread:
        spread = stats.sd(ours)
        if spread is None:
            return stats.differ(estimate, published.number, error=0.0, df=math.inf)
        mine, theirs = spread**2 / len(ours), spread**2 / max(runs, 1)
        both = stats.VarianceShare(
            variance=mine + theirs, df=len(ours) - 1, narrows=mine / (mine + theirs) if spread else 1
        )
        return stats.Estimate(mean=estimate.mean - published.number, n=len(ours), seeds=both)
    error = float(published.spread)
    if published.spread_kind == "sd":
        error /= math.sqrt(max(runs, 1))
    return stats.differ(estimate, published.number, error=error, df=max(runs - 1, 1) if runs else 2)


def _score_row(grid: Grid, index: int, place: int, published: Published, sources: Sources) -> list[Text]:
    cell = grid.cells[index, place]
    start = (grid.rows[index].shown, grid.columns[place].short, published.text, _source(published))
    if not cell.complete:
        numbers = ("–", "–", "–", "inconclusive (no score)")
        return texts((*start, *numbers), behind=partial(_behind_score, grid=grid, index=index, place=place, words=[]))
    ours = [100 * cell.values[seed] for seed in sorted(cell.values)]
    difference, differs = (
        against(ours, published),
        departures_from(published.paper, cell.records, sources.setups or {}, sources.card_of),
    )
    interval = difference.interval()
    verdict: str = judge(interval, low=-TOLERANCE, high=TOLERANCE)
    verdict += " (n too small)" if interval is None else ""
    numbers = (
        f"{math.fsum(ours) / len(ours):.1f} ({len(ours)})",
        f"{difference.mean:+.1f}",
        "–" if interval is None else f"{interval:+.1f}",
        f"not judged: {shortly(differs)}" if differs else verdict,
    )
    words = [f"  published: {published.text}, {_source(published)}: {published.source}"]
    words += [f"  not the published set-up: {one}" for one in differs]
    behind = partial(_behind_score, grid=grid, index=index, place=place, words=words)
    return texts((*start, *numbers), behind=behind)


def _behind_score(folder: provenance.Folder, grid: Grid, index: int, place: int, words: Sequence[str]) -> list[str]:
    return [*words, *provenance.of_cell(folder, grid, index, place)]


def _source(published: Published) -> str:
    return f"{published.paper}, {published.table} [{published.mark}]"


def _parameter_row(grid: Grid, index: int, published: Published, sources: Sources) -> list[Text]:
    """A count is judged on the published backbone alone; weights, rules and data do not enter it."""
    assert published.number is not None
    counts = sorted({r.parameters["trainable"] for r in grid.members[index] if is_run(r) and r.parameters})
    start = (grid.rows[index].shown, "params (M)", published.text, _source(published))
    behind = partial(provenance.of_row, grid=grid, index=index)
    if not counts:
        return texts((*start, "–", "–", "–", "inconclusive (no run)"), behind=behind)
    millions, setup = counts[0] / 1e6, (sources.setups or {}).get(published.paper)
    agrees = all(abs(count / 1e6 - published.number) <= published.half_digit for count in counts)
    verdict = "reproduced" if agrees else "not reproduced"
    if setup is None or setup.backbone != grid.backbone:
        wanted = f"instead of {setup.backbone}" if setup else f"(what {published.paper} used is not known here)"
        verdict = f"not judged: backbone {grid.backbone} {wanted}"
    return texts((*start, f"{millions:.3f}", f"{millions - published.number:+.3f}", "exact", verdict), behind=behind)
