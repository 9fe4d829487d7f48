"""Every row against one baseline row: paired differences and tests by benchmark, then across benchmarks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from harness import statistics as stats
from harness.comparison import provenance
from harness.comparison.columns import Column
from harness.comparison.grid import Grid, first_metrics, one_each
from harness.comparison.paired import Difference, ImagesOf, paired_difference
from harness.report.across import across_blocks
from harness.report.headings import Heading
from harness.report.page import Block, Text, texts

NOTES = (
    "Δ: mean difference in points, paired by seed, positive is better (n pairs). 95 % CI: over seeds and images (crossed),"
    " so it speaks of other seeds and other images; over seeds alone (marked t) where a score is not a mean over images.",
    "p seeds: sign flips of the seeds' differences. p images: sign flips of each image's difference, averaged over the"
    " seeds at hand; it says nothing of other seeds. Both adjusted after Holm over the methods of a benchmark.",
)


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A row against the baseline on one column.

    Args:
        row: its index in the grid.
        p_seeds, p_images: as printed, adjusted.
    """

    row: int
    place: int
    difference: Difference
    p_seeds: str
    p_images: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A grid against one of its rows.

    Args:
        base: index of that row.
        places: the columns that are compared: the first metric of each benchmark and split.
        found: every other row that has a seed in common with it, by column.
    """

    base: int
    places: tuple[int, ...]
    found: tuple[Compared, ...]


def comparison(grid: Grid, *, baseline: str, images_of: ImagesOf) -> Comparison | None:
    """None where the grid has no row ``baseline`` or nothing to compare it with."""
    labels = [row.label for row in grid.rows]
    if baseline not in labels:
        return None
    base, places = labels.index(baseline), first_metrics(grid)
    found = [one for place in places for one in _compare(grid, base, place, images_of)]
    return Comparison(base=base, places=tuple(places), found=tuple(found)) if found else None


def difference_blocks(grid: Grid, against: Comparison, *, heading: Heading) -> list[Block]:
    """Differences by benchmark, and what follows across benchmarks."""
    base, found = against.base, against.found
    notes = list(NOTES)
    clusters = [
        f"{grid.columns[one.place].short}: {one.difference.clusters}" for one in found if one.difference.clusters
    ]
    if clusters:
        notes.append(f"Images that are not independent count by cluster ({', '.join(dict.fromkeys(clusters))}).")
    differences = Block(
        heading=f"{heading.title}: differences to {grid.rows[base].label}",
        level=3,
        columns=["method", "number", "Δ (n)", "95 % CI", "p seeds", "p images"],
        rows=[_row(grid, base, one) for one in found],
        below=notes,
    )
    chosen = one_each(grid, list(against.places))
    by_row: dict[int, dict[int, Difference]] = {}
    for one in found:
        if one.place in chosen:
            by_row.setdefault(one.row, {})[one.place] = one.difference
    return [differences, *across_blocks(grid, base, chosen, by_row, heading=heading)]


def _compare(grid: Grid, base: int, place: int, images_of: ImagesOf) -> list[Compared]:
    """Every other row that has a seed in common with row ``base``."""
    column: Column = grid.columns[place]
    found: dict[int, Difference] = {}
    for index, row in enumerate(grid.rows):
        scored = (row.score, grid.rows[base].score)
        cells = (grid.cells[index, place], grid.cells[base, place])
        difference = paired_difference(*cells, column, scored=scored, images_of=images_of)
        if index != base and difference is not None:
            found[index] = difference
    within = stats.ALPHA / max(len(found), 1)  # what the best of so many must reach to pass after Holm
    by_seed = {str(index): stats.sign_flip(one.by_seed, alpha=within) for index, one in found.items()}
    by_image = {
        str(index): stats.sign_flip(one.by_image, resamples=2_000)
        for index, one in found.items()
        if one.by_image is not None
    }
    seeds_p = stats.holm({name: test.p for name, test in by_seed.items() if test.p is not None})
    images_p = stats.holm({name: test.p for name, test in by_image.items() if test.p is not None})
    return [
        Compared(
            row=index,
            place=place,
            difference=one,
            p_seeds=f"{seeds_p[str(index)]:.2g}" if str(index) in seeds_p else f"n too small ({len(one.by_seed)})",
            p_images=f"{images_p[str(index)]:.2g}" if str(index) in images_p else "–",
        )
        for index, one in found.items()
    ]


def _row(grid: Grid, base: int, one: Compared) -> list[Text]:
    interval, difference = one.difference.interval, one.difference
    bounds = "–" if interval is None else f"[{_points(interval.low)}, {_points(interval.high)}]"
    behind = partial(
        provenance.of_difference, grid=grid, pair=(one.row, base), place=one.place, difference=difference,
        p_values=(f"p over seeds {one.p_seeds}, over images {one.p_images} (Holm over the rows of this benchmark)",),
    )  # fmt: skip
    words = (
        grid.rows[one.row].shown,
        grid.columns[one.place].short,
        f"{_points(difference.mean)} ({len(difference.by_seed)})",
        bounds + (" t" if interval is not None and difference.by_image is None else ""),
        one.p_seeds,
        one.p_images,
    )
    first, *rest = texts(words, behind=behind)
    return [replace(first, name=grid.rows[one.row].label), *rest]


def _points(value: float) -> str:
    return f"{value:+.2f}".replace("-0.00", "+0.00")
