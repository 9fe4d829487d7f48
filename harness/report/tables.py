"""The tables of a results folder: grids as pages. The same records give the same bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from harness.archive.schema import Record, Run
from harness.comparison.grid import Grid, placeholder
from harness.comparison.sheets import grids
from harness.comparison.sources import Sources
from harness.report.against_paper import published_block, published_cards
from harness.report.agreement import agreement_blocks
from harness.report.answers import answers
from harness.report.differences import comparison, difference_blocks
from harness.report.headings import Heading, headings
from harness.report.numbers import numbers_of
from harness.report.page import Block, Format, Page
from harness.report.score_table import footnotes, score_blocks
from harness.report.tuned import tuning_blocks
from harness.report.writing import write
from harness.studies import Study

GENERATED = "generated sample"
"""How the data note of a benchmark begins whose images are made up."""
RANKS_NOTHING = (
    "These numbers show that the path from files to tables works. The images are generated: nothing is ranked."
)


def render(
    records: Iterable[Record],
    *,
    study: Study | None = None,
    runs: Iterable[Run] | None = None,
    sources: Sources | None = None,
    metrics: Sequence[str] = (),
    style: Format = "markdown",
    width: int = 100,
) -> str:
    """`score_page`, written."""
    page = score_page(records, study=study, runs=runs, sources=sources, metrics=metrics)
    return write(page, style=style, width=width)


def score_page(
    records: Iterable[Record],
    *,
    study: Study | None = None,
    runs: Iterable[Run] | None = None,
    sources: Sources | None = None,
    metrics: Sequence[str] = (),
) -> Page:
    """One page: a table for each protocol hash, backbone and checkpoint among ``records``, what says most first.

    Args:
        records: any order.
        study: rows, benchmarks and seeds to show; without one, everything there is.
        runs: show these planned runs and nothing else, under their own labels; those without a record show as missing.
        sources: per-image scores, cards, and published numbers, which a study with ``table.paper`` shows beside ours.
        metrics: columns of these instead of the study's or the papers' choice.
    """
    sources = sources or Sources()
    chosen = list(records) if runs is None else of_runs(records, runs)
    title = study.title if study else ", ".join(sorted({record.run.protocol for record in chosen})) or "no records"
    headed = headed_grids(chosen, study=study, sources=sources, metrics=metrics)
    found = [grid for grid, _ in headed]
    blocks: list[Block] = []
    said: list[tuple[Heading, list[str]]] = []
    numbers = []
    for grid, heading in headed:
        main = score_blocks(grid, heading=heading, sources=sources, rank=not is_generated(grid))
        if study and study.note:
            main[0] = replace(main[0], above=[study.note, *main[0].above])
        blocks += main
        blocks += tuning_blocks(grid, heading=heading)
        baseline = study.table.baseline if study else ""
        against = comparison(grid, baseline=baseline, images_of=sources.images_of) if baseline else None
        numbers += numbers_of(grid, against, heading=heading)
        if not is_generated(grid):
            said.append((heading, answers(grid, sources=sources)))
        blocks += difference_blocks(grid, against, heading=heading) if against else []
        if study and study.table.paper and grid.protocol in {study.protocol, *published_cards(sources)}:
            beside = published_block(grid, sources=sources, heading=heading)
            blocks += [beside] if beside else []
    if not blocks:
        blocks = [Block(heading=study.name if study else title, above=["No record of this table yet."])]
    if study is not None:
        blocks += agreement_blocks(
            [grid for grid in found if not is_generated(grid)], title=study.title, images_of=sources.images_of
        )
    telling = [(heading, lines) for heading, lines in said if lines]
    lead = [f"{heading.title}: {line}" if len(telling) > 1 else line for heading, lines in telling for line in lines]
    generated = bool(found) and all(map(is_generated, found))
    note = RANKS_NOTHING if generated else ""
    title += ": generated images, whose numbers rank nothing" if generated else ""
    return Page(title=title, lead=lead, blocks=blocks, foot=footnotes(found), numbers=numbers, note=note)


def of_runs(records: Iterable[Record], runs: Iterable[Run]) -> list[Record]:
    """The records of ``runs`` under the labels of ``runs`` (one may serve several sweeps); placeholders else."""
    known = {record.key: record for record in records}
    return [_under_label(known[run.key], run) if run.key in known else placeholder(run) for run in runs]


def _under_label(record: Record, run: Run) -> Record:
    """What is said of data and checkpoint stays the record's own: it was made from those."""
    own = record.run
    made_from = ("split_rule", "data_note", "data_fingerprint", "checkpoint")
    run = replace(run, **{name: getattr(own, name) for name in made_from})
    return replace(record, run=run)


def headed_grids(
    records: Iterable[Record], *, study: Study | None = None, sources: Sources, metrics: Sequence[str] = ()
) -> list[tuple[Grid, Heading]]:
    """The grids of a page in the order of what they say, each with what stands over it."""
    found = sorted(grids(records, study=study, metrics=metrics, card_of=sources.card_of), key=_weight)
    return list(zip(found, headings(found, card_of=sources.card_of), strict=True))


def _weight(grid: Grid) -> tuple[bool, int, int]:
    """Sort key: many runs before few, real images before generated ones; `sheets` has settled the order of ties."""
    return (is_generated(grid), -len(grid.rows), -len(grid.records))


def is_generated(grid: Grid) -> bool:
    """Whether all of its images are made up, so that nothing is ranked."""
    notes = [record.run.data_note for record in grid.records]
    return bool(notes) and all(note.startswith(GENERATED) for note in notes)
