"""A results folder as the content of its report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.archive.cost import CostStore
from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.comparison import names
from harness.comparison.grid import Grid
from harness.comparison.provenance import Folder
from harness.comparison.rules import CardOf
from harness.comparison.sources import Sources
from harness.judging import definitions
from harness.judging.judging import CountOf, judge_claims, require_protocol
from harness.report.differences import comparison, difference_blocks
from harness.report.figures.material import PictureOf, baseline_of, materials
from harness.report.headings import Heading
from harness.report.html.answer import answer
from harness.report.html.content import Answer, Content, PageTables, Picture, Table
from harness.report.html.layout import Explained, Known, laid_out
from harness.report.html.numbers import gaps_block, numbers_block
from harness.report.html.overview import claims_block, compared_block
from harness.report.html.pictures import pictures, titles, within
from harness.report.page import Block, Page, legend
from harness.report.pages import built_pages, sources_below
from harness.report.tables import headed_grids, is_generated
from harness.report.writing import write
from harness.studies import Study, load_study, study_names
from harness.system.errors import UsageError

Headed = Sequence[tuple[Grid, Heading]]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a report is asked to show.

    Args:
        study: its rows, benchmarks and seeds alone.
        baseline: label of the row that others are compared with; see `materials`.
        claims_of: the protocol whose scores judge claims.
        figures: draw them.
        room: bytes for figures and masks.
    """

    study: Study | None = None
    baseline: str = ""
    claims_of: str = "nas-lora"
    figures: bool = True
    room: int = 3_500_000


@dataclass(frozen=True, kw_only=True)
class Hands:
    """What reporting is handed in from rooms that it does not know.

    Args:
        card_of: the harness's own cards.
        count_of: closed-form parameters, for claims on them.
        cards: names of the harness's own cards.
        picture_of: images for masks.
    """

    card_of: CardOf
    count_of: CountOf
    cards: Sequence[str]
    picture_of: PictureOf = field(default=lambda record, split, stem: None)


def collect(root: Path, wanted: Wanted, hands: Hands) -> Content:
    """Everything that the report of ``root`` shows.

    Raises:
        UsageError: there is no folder of records, none in it that is asked for, no row of the baseline's label, or no
            card of the name that judges claims.
    """
    if wanted.study is not None and wanted.study.table.kind == "cost":
        raise UsageError(
            f"study {wanted.study.name!r} has costs and no scores; without --study the report shows costs too"
        )
    built = built_pages(root, study=wanted.study, card_of=hands.card_of)
    store, costs = RecordStore(root), CostStore(root)
    records, _ = store.summaries()
    if not records:
        raise UsageError(f"{store.folder} holds no record; run something first (python -m harness.run …)")
    require_protocol(wanted.claims_of, records, cards=hands.cards)
    sources = sources_below(root, card_of=hands.card_of)
    by_page = dict(_grids(records, wanted.study, sources))
    headed = sorted((one for mine in by_page.values() for one in mine), key=lambda one: _weight(one[0]))
    if not headed:
        assert wanted.study is not None  # every record has a protocol's page
        raise UsageError(f"no record below {root} belongs to study {wanted.study.name!r}")
    _require_baseline(wanted.baseline, headed)
    explained = Explained(Folder(store=store, records=records))
    known = Known.of((grid for grid, _ in headed), (one.variant for session in costs for one in session.methods))
    found = built.content
    cost_names = [name for name in study_names() if load_study(name).table.kind == "cost"]
    groups = [
        _group(name, found[name], _compared(name, by_page, found, wanted, sources), known, explained)
        for name in sorted(found.keys() - set(cost_names), key=lambda name: _order(name, by_page))
    ]
    findings = judge_claims(
        definitions.read_claims(), records, costs, protocol=wanted.claims_of, count_of=hands.count_of, sources=sources
    )
    drawn, reasons = _drawn(root, wanted, hands) if wanted.figures else ([], [])
    kept, out = within(sorted(drawn, key=_place_of_picture), room=wanted.room)

    def table(block: Block, name: str, *, words: int | None = None) -> Table:
        return laid_out(block, known, explained, name=name, words=words)

    return Content(
        title=wanted.study.title if wanted.study else "Methods compared",
        facts=_facts(root, records, headed),
        answers=_answers(headed, sources),
        compared=table(compared_block(headed), "compared", words=0),
        groups=groups,
        numbers=table(numbers_block(headed), "numbers", words=2),
        gaps=table(gaps_block(headed), "gaps", words=2),
        costs=[_group(name, found[name], [], known, explained) for name in cost_names if name in found],
        claims=table(claims_block(findings), "claims", words=0),
        claims_said=[_judged_on(wanted.claims_of, records)],
        methods=list(dict.fromkeys(known.methods.values())),
        benchmarks={name: names.benchmark_title(name) for name in _benchmarks(headed)},
        metrics={one.metric: names.metric(one.metric).title for grid, _ in headed for one in grid.columns},
        pictures=[one for one in kept if one.about != "masks"],
        masks=[one for one in kept if one.about == "masks"],
        skipped=[f"{path}: {reason}" for path, reason in sorted(built.skipped.items())],
        left_out=[*titles(out), *reasons],
        behind=explained.texts,
        lines=explained.lines,
    )


def _grids(records: Sequence[Record], study: Study | None, sources: Sources) -> Iterator[tuple[str, Headed]]:
    """Page -> its grids."""
    if study is not None:
        yield study.name, headed_grids(records, study=study, sources=sources)
        return
    for protocol in sorted({record.run.protocol for record in records}):
        yield protocol, headed_grids((one for one in records if one.run.protocol == protocol), sources=sources)


def _compared(
    name: str, by_page: dict[str, Headed], found: Iterable[str], wanted: Wanted, sources: Sources
) -> list[Block]:
    """Differences to a baseline, for a page that has none itself; nothing where the page of a study shows them."""
    studies = [load_study(one) for one in found if one in study_names()]
    shown = {study.protocol for study in studies if study.table.baseline}
    own = wanted.study.table.baseline if wanted.study else ""
    blocks: list[Block] = []
    for grid, heading in by_page.get(name, ()):
        if not own and grid.protocol not in shown and not is_generated(grid):
            baseline = baseline_of(grid, wanted.study, wanted.baseline)
            against = comparison(grid, baseline=baseline, images_of=sources.images_of)
            blocks += difference_blocks(grid, against, heading=heading) if against else []
    return blocks


def _group(name: str, page: Page, more: Sequence[Block], known: Known, explained: Explained) -> PageTables:
    tables = [
        laid_out(block, known, explained, name=f"{name}-{number}")
        for number, block in enumerate([*page.blocks, *more], start=1)
    ]
    foot = [*page.foot, *legend(page, best="Bold", tied="≈", second="Underlined")]
    csv = write(page, style="csv") if page.numbers else ""
    return PageTables(name=name, title=page.title, note=page.note, tables=tables, foot=foot, csv=csv)


def _order(name: str, by_page: dict[str, Headed]) -> tuple[bool, int, str]:
    """Sort key of pages: real images first, then those with many runs."""
    mine = by_page.get(name, ())
    generated = bool(mine) and all(is_generated(grid) for grid, _ in mine)
    return generated, -sum(len(grid.records) for grid, _ in mine), name


def _weight(grid: Grid) -> tuple[bool, int]:
    """Sort key of grids: real images first, then those with many runs."""
    return is_generated(grid), -len(grid.records)


def _answers(headed: Headed, sources: Sources) -> list[Answer]:
    return [answer(grid, heading, sources=sources) for grid, heading in headed]


def _drawn(root: Path, wanted: Wanted, hands: Hands) -> tuple[list[Picture], list[str]]:
    """Pictures, and why others were not drawn."""
    try:
        found = materials(
            root, study=wanted.study, baseline=wanted.baseline, picture_of=hands.picture_of, card_of=hands.card_of
        )
    except UsageError as error:  # no run ended well: the tables say so too
        return [], [str(error)]
    drawn = list(pictures(sorted(found, key=lambda one: _weight(one.grid))))
    images = [one for _, one in drawn if isinstance(one, Picture)]
    return images, [one for _, one in drawn if isinstance(one, str)]


def _place_of_picture(picture: Picture) -> bool:
    """Sort key: masks are of few images, and large."""
    return picture.about == "masks"


def _require_baseline(label: str, headed: Headed) -> None:
    labels = {row.label for grid, _ in headed for row in grid.rows}
    if label and label not in labels:
        raise UsageError(f"no row is called {label!r}; choose from {', '.join(sorted(labels))}")


def _benchmarks(headed: Headed) -> list[str]:
    found = {column.benchmark for grid, _ in headed for column in grid.columns}
    return sorted(found, key=names.benchmark_rank)


def _facts(root: Path, records: Sequence[Record], headed: Headed) -> list[str]:
    shown = {record.key for grid, _ in headed for record in grid.records}
    days = sorted(record.finished[:10] for record in records if record.key in shown and record.finished)
    period = f"finished {' to '.join(dict.fromkeys((days[0], days[-1])))}" if days else ""
    runs = f"{len(shown)} runs under {len(headed)} {'set' if len(headed) == 1 else 'sets'} of rules"
    return [f"results folder {root}", runs, *([period] if period else [])]


def _judged_on(protocol: str, records: Sequence[Record]) -> str:
    others = sorted({record.run.protocol for record in records} - {protocol})
    said = f"Judged on scores under the card {protocol} and on every cost session"
    return said + (f"; scores under {', '.join(others)} do not count here." if others else ".")
