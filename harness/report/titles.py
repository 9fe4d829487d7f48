"""What stands over a table: a title that says what differs from other tables, and the lines below it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness.archive.archive import Archive
from harness.archive.schema import Record
from harness.comparison.cells import Grid
from harness.comparison.grids import grids
from harness.comparison.names import benchmark_title
from harness.comparison.rows import by_benchmark
from harness.comparison.rules import HEADED, headed, overrides, overrides_in_words, shared, told_apart
from harness.studies import Study


@dataclass(frozen=True, kw_only=True, eq=False)
class Titled:
    """A grid under its title.

    Args:
        title: protocol, backbone, and how its rules differ from the card's and from those of other tables of the page.
        overrides: what differs from the card, in words; empty where nothing does, None where the card is not known.
    """

    grid: Grid
    title: str
    overrides: str | None

    def above(self) -> list[str]:
        """Rules, backbone, seeds and data."""
        grid, sheet = self.grid, self.grid.sheet
        rules = f"Protocol: {sheet.protocol}, hash {sheet.protocol_hash}"
        if self.overrides is None:
            rules += " (no card of the harness; `sam-peft protocols show` with the hash prints its rules)"
        elif self.overrides:
            rules += f", with {self.overrides}"
        seeds = ", ".join(map(str, grid.seeds))
        said = f"n = {len(grid.seeds)} ({'seed' if len(grid.seeds) == 1 else 'seeds'} {seeds})"
        if len({cell.planned for cell in grid.cells.values() if cell.planned}) > 1:
            said = f"Seeds: {seeds}, not all of them planned for every row; n stands in each cell"
        checkpoint = f"checkpoint {weights_in_words(sheet.checkpoint)}" if sheet.checkpoint else "random weights"
        return [rules, f"Backbone: {sheet.backbone}, {checkpoint}", *_prompted(grid), said, *_data(grid)]

    def why(self, archive: Archive) -> list[str]:
        return [f"  {line}" for line in self.above()]


def titled_grids(
    records: Iterable[Record], archive: Archive, *, study: Study | None = None, metrics: Sequence[str] = ()
) -> list[Titled]:
    """The grids of a page, what says most first: real images before generated ones, many runs before few (`sheets` has settled
    the order of ties). No two have the same title."""
    made = grids(records, archive, study=study, metrics=metrics)
    ordered = sorted(made, key=lambda grid: (grid.is_generated, -len(grid.rows), -len(grid.records)))
    changed = [overrides(grid.records) for grid in ordered]
    titles = []
    for grid, by_name in zip(ordered, changed, strict=True):
        everywhere = shared(list(by_name.values())) if by_name else {}
        titles.append(_title(grid, [name for name in HEADED if name in everywhere]))
    for title in {title for title in titles if titles.count(title) > 1}:
        places = [place for place, other in enumerate(titles) if other == title]
        differing = _differing([ordered[place] for place in places])
        for place in places:
            own = shared(list((changed[place] or {}).values()))
            titles[place] = _title(ordered[place], [*(name for name in HEADED if name in own), *differing])
    for title in {title for title in titles if titles.count(title) > 1}:
        for place, grid in enumerate(ordered):
            if titles[place] == title:
                weights = weights_in_words(grid.sheet.checkpoint)
                titles[place] += f", rules {grid.sheet.protocol_hash[:8]}, weights {weights}"
    return [
        Titled(grid=grid, title=title, overrides=None if by_name is None else overrides_in_words(by_name))
        for grid, title, by_name in zip(ordered, titles, changed, strict=True)
    ]


def _title(grid: Grid, telling: Sequence[str]) -> str:
    words = headed(dict.fromkeys(telling), grid.rules) if telling and grid.records else ""
    return f"{grid.sheet.protocol} · {grid.sheet.backbone}" + (f" · {words}" if words else "")


def _differing(alike: Sequence[Grid]) -> list[str]:
    """Rules in which these grids differ from one another on a benchmark that all of them have."""
    names: dict[str, None] = {}
    first, *others = alike
    for other in others:
        for changed in told_apart(first.records, other.records).values():
            names |= dict.fromkeys(changed)
    return list(names)


def weights_in_words(checkpoint: str) -> str:
    """A checkpoint as a page names it."""
    return checkpoint.removeprefix("sha256-")[:12] or "random"


def _prompted(grid: Grid) -> list[str]:
    """What pointed out the objects, where anything did: such numbers say nothing of a model that finds them by itself."""
    by_prompt = {"box": "a box around each object of the true mask", "points": "points on each object of the true mask"}
    given = str(grid.rules.get("prompt", "none")) if grid.records else "none"
    if given not in by_prompt:
        return []
    without = max(record.counts.get("unprompted", 0) for record in grid.records)
    more = f"; {without} test images have no object and no prompt" if without else ""
    return [f"Prompts: {by_prompt[given]}, in training and in tests{more}"]


def _data(grid: Grid) -> list[str]:
    """A line a benchmark."""
    lines = []
    records = by_benchmark(grid.records)
    for name in grid.benchmarks:
        here = records.get(name, [])
        notes = sorted({record.run.data_note for record in here if record.run.data_note})
        rules = sorted({record.run.split_rule for record in here if record.run.split_rule})
        sizes = sorted({_sizes(record) for record in here if record.counts})
        title = benchmark_title(name, [record.run for record in here]) + (f" ({', '.join(notes)})" if notes else "")
        details = [" or ".join(sizes) + " training/validation/test images"] * bool(sizes)
        left_out = {split: count for record in here for split, count in record.ignored.items()}
        named = ", ".join(f"{count} of {split}" for split, count in sorted(left_out.items()))
        details += [f"test images left out, as every pixel of the mask is ignored: {named}"] * bool(left_out)
        details += [f"split: {' or '.join(rules)}"] * bool(rules)
        if any(record.run.rules.get("test_untrained") for record in here):
            details.append("training images that nothing trained on are tested too")
        lines.append(title + (f": {'; '.join(details)}" if details else ""))
    return lines


def _sizes(record: Record) -> str:
    counts = record.counts
    trained = [counts[name] for name in ("train", "val") if name in counts]
    return "/".join(str(count) for count in [*trained, *(count for _, count in sorted(record.tested.items()))])
