"""The table of one command, from the records of its runs, and the pages of its results folder."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from harness.archive.schema import Run
from harness.archive.store import RecordStore
from harness.comparison.grid import placeholder
from harness.comparison.rows import is_entry
from harness.comparison.rules import CardOf, no_card
from harness.report.against_paper import published_cards
from harness.report.page import SUFFIX, Format
from harness.report.pages import pages, sources_below
from harness.report.tables import render
from harness.studies import Entry, Study, load_study
from harness.system.errors import UsageError, os_reason
from harness.system.files import write_atomically
from harness.system.streams import say_skipped


def narrowed(study: Study, runs: Sequence[Run], *, cards: Collection[str] = ()) -> Study:
    """The study as it was planned, where the command line replaced its seeds, benchmarks, backbones, methods or protocol.

    Published numbers stand beside the study's own protocol and the papers' cards.

    Args:
        cards: those of the papers.
    """
    entries: dict[str, Entry] = {}
    for run in runs:
        alike = [entry for entry in study.entries if entry.method == run.method]
        mine = [entry for entry in alike if is_entry(placeholder(run), entry.options)]
        for entry in mine or [Entry(label=run.variant, method=run.method, options=run.changed)]:
            entries.setdefault(entry.label, entry)
    places = {entry.label: place for place, entry in enumerate(study.entries)}
    rows = sorted(entries.values(), key=lambda entry: places.get(entry.label, len(places)))
    return replace(
        study,
        protocol=runs[0].protocol,
        backbones=tuple(dict.fromkeys(run.backbone for run in runs)),
        benchmarks=tuple(dict.fromkeys(run.benchmark for run in runs)),
        entries=tuple(rows),
        seeds=tuple(sorted({run.seed for run in runs})),
        table=replace(study.table, paper=study.table.paper and runs[0].protocol in {study.protocol, *cards}),
    )


def finished_table(
    runs: Sequence[Run],
    results: Path,
    *,
    study: str | None,
    card_of: CardOf = no_card,
    style: Format = "markdown",
    width: int = 0,
) -> tuple[str, Path | None]:
    """The table of what was planned, from its records; the pages below ``results/tables`` hold every record there.

    Returns:
        The table, and the page that holds it too; None where there is none yet.

    Args:
        card_of: see `harness.comparison.rules`.
        width: of the terminal that ``text`` is for.
    """
    grid = load_study(study) if study else None
    store, sources = RecordStore(results), sources_below(results, card_of=card_of)
    text = render(
        store.summaries()[0],
        study=narrowed(grid, runs, cards=published_cards(sources)) if grid else None,
        runs=list(runs),
        sources=sources,
        style=style,
        width=width,
    )
    if not store.folder.is_dir() or not runs:  # the first runs were all interrupted: no pages yet
        return text, None
    found = pages(results, card_of=card_of)
    say_skipped(found.skipped)
    for path, page in {
        **found.content,
        **(pages(results, study=grid, card_of=card_of).content if grid else {}),
    }.items():
        try:
            write_atomically(path, page)
        except OSError as error:
            raise UsageError(
                f"table {path} could not be written: {os_reason(error)}; regenerate it with sam-peft tables"
            ) from error
    return text, results / "tables" / f"{grid.name if grid else runs[0].protocol}{SUFFIX['markdown']}"
