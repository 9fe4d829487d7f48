"""What stands over a table: a heading that says what differs, and the lines below it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.archive.schema import Record
from harness.comparison import names
from harness.comparison.grid import Grid
from harness.comparison.rows import by_benchmark
from harness.comparison.rules import (
    HEADED,
    CardOf,
    headed,
    overrides,
    overrides_in_words,
    shared,
    told_apart,
)


@dataclass(frozen=True, kw_only=True)
class Heading:
    """Of one grid.

    Args:
        title: protocol, backbone, and how its rules differ from the card's and from those of other tables of the page.
        overrides: what differs from the card, in words; empty where nothing does, None where the card is not known.
    """

    title: str
    overrides: str | None


def headings(grids: Sequence[Grid], *, card_of: CardOf) -> list[Heading]:
    """One a grid; no two tables of a page have the same."""
    changed = [overrides(grid.records, card_of) for grid in grids]
    titles = []
    for grid, found in zip(grids, changed, strict=True):
        everywhere = shared(list(found.values())) if found else {}
        telling = [name for name in HEADED if name in everywhere]
        titles.append(_title(grid, telling))
    for title in {title for title in titles if titles.count(title) > 1}:
        places = [place for place, one in enumerate(titles) if one == title]
        told_apart = _differing([grids[place] for place in places])
        for place in places:
            own = shared(list((changed[place] or {}).values()))
            titles[place] = _title(grids[place], [*(name for name in HEADED if name in own), *told_apart])
    for title in {title for title in titles if titles.count(title) > 1}:
        for place, grid in enumerate(grids):
            if titles[place] == title:
                titles[place] += f", rules {grid.protocol_hash[:8]}, weights {weights_in_words(grid.checkpoint)}"
    return [
        Heading(title=title, overrides=None if found is None else overrides_in_words(found))
        for title, found in zip(titles, changed, strict=True)
    ]


def _title(grid: Grid, telling: Sequence[str]) -> str:
    words = headed(dict.fromkeys(telling), grid.records[0].run.rules) if telling and grid.records else ""
    return f"{grid.protocol} · {grid.backbone}" + (f" · {words}" if words else "")


def _differing(grids: Sequence[Grid]) -> list[str]:
    """Rules in which these grids differ from one another on a benchmark that all of them have."""
    found: dict[str, None] = {}
    first, *others = grids
    for other in others:
        for changed in told_apart(first.records, other.records).values():
            found |= dict.fromkeys(changed)
    return list(found)


def weights_in_words(checkpoint: str) -> str:
    """A checkpoint as a page names it."""
    return checkpoint.removeprefix("sha256-")[:12] or "random"


def lines_above(grid: Grid, heading: Heading) -> list[str]:
    """Rules, backbone, seeds and data of a table."""
    rules = f"Protocol: {grid.protocol}, hash {grid.protocol_hash}"
    if heading.overrides is None:
        rules += " (no card of the harness; `sam-peft protocols show` with the hash prints its rules)"
    elif heading.overrides:
        rules += f", with {heading.overrides}"
    seeds = grid.seeds
    said = f"n = {len(seeds)} ({'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))})"
    if len({cell.planned for cell in grid.cells.values() if cell.planned}) > 1:
        said = f"Seeds: {', '.join(map(str, seeds))}, not all of them planned for every row; n stands in each cell"
    checkpoint = f"checkpoint {weights_in_words(grid.checkpoint)}" if grid.checkpoint else "random weights"
    return [rules, f"Backbone: {grid.backbone}, {checkpoint}", said, *_data(grid)]


def _data(grid: Grid) -> list[str]:
    """A line a benchmark."""
    found = []
    records = by_benchmark(grid.records)
    for name in dict.fromkeys(column.benchmark for column in grid.columns):
        mine = records.get(name, [])
        notes = sorted({record.run.data_note for record in mine if record.run.data_note})
        rules = sorted({record.run.split_rule for record in mine if record.run.split_rule})
        sizes = sorted({_sizes(record) for record in mine if record.counts})
        title = names.benchmark_title(name, [record.run for record in mine]) + (
            f" ({', '.join(notes)})" if notes else ""
        )
        details = [" or ".join(sizes) + " training/validation/test images"] * bool(sizes)
        details += [f"split: {' or '.join(rules)}"] * bool(rules)
        found.append(title + (f": {'; '.join(details)}" if details else ""))
    return found


def _sizes(record: Record) -> str:
    counts = record.counts
    order = [name for name in ("train", "val") if name in counts] + sorted(counts.keys() - {"train", "val"})
    return "/".join(str(counts[name]) for name in order)
