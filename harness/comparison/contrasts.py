"""Every row of a grid against a baseline: differences with the p-values of sign flips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness import statistics as stats
from harness.archive.archive import Archive
from harness.comparison.cells import Column, Difference, Grid
from harness.comparison.rows import Row


@dataclass(frozen=True, kw_only=True, eq=False)
class Contrast:
    """A row's difference to the baseline on one column.

    Args:
        p_seeds, p_images: of sign flips, adjusted after Holm over the rows of the column; None where n is too small, and
            where seeds are folds, whose differences depend on each other through the images that they share.
    """

    difference: Difference
    p_seeds: float | None
    p_images: float | None

    @property
    def row(self) -> Row:
        return self.difference.first.row

    @property
    def column(self) -> Column:
        return self.difference.first.column

    @property
    def p_in_words(self) -> tuple[str, str]:
        """Over seeds, over images."""
        few = "– (folds)" if self.difference.folds else f"n too small ({len(self.difference.by_seed)})"
        return (
            few if self.p_seeds is None else f"{self.p_seeds:.2g}",
            "–" if self.p_images is None else f"{self.p_images:.2g}",
        )

    def why(self, archive: Archive) -> list[str]:
        seeds, images = self.p_in_words
        return [
            *self.difference.why(archive),
            f"  p over seeds {seeds}, over images {images} (Holm over the rows of this benchmark)",
            *self.difference.sides_why(archive),
        ]


@dataclass(frozen=True, kw_only=True)
class Contrasts:
    """A grid against one of its rows: every other row that has a seed in common with it, by column."""

    grid: Grid
    baseline: Row
    by_column: Sequence[Contrast]

    @classmethod
    def of(cls, grid: Grid, baseline: str) -> Contrasts | None:
        """None where the grid has no row ``baseline`` or nothing to compare it with."""
        base = grid.row(baseline)
        if base is None:
            return None
        contrasts = [contrast for column in grid.first_metrics for contrast in on_column(grid, base, column)]
        return cls(grid=grid, baseline=base, by_column=contrasts) if contrasts else None


def on_column(grid: Grid, base: Row, column: Column) -> list[Contrast]:
    """Every other row's difference to ``base`` on one column."""
    differences = {
        row.label: difference
        for row in grid.rows
        if row is not base and (difference := grid.difference(row, base, column)) is not None
    }
    within = stats.ALPHA / max(len(differences), 1)  # what the best of so many must reach to pass after Holm
    by_seed = {
        label: None if difference.folds else stats.sign_flip(difference.by_seed, alpha=within).p
        for label, difference in differences.items()
    }
    by_image = {
        label: stats.sign_flip(difference.by_image).p
        for label, difference in differences.items()
        if difference.by_image is not None
    }
    seeds_p = stats.holm({label: p for label, p in by_seed.items() if p is not None})
    images_p = stats.holm({label: p for label, p in by_image.items() if p is not None})
    return [
        Contrast(difference=difference, p_seeds=seeds_p.get(label), p_images=images_p.get(label))
        for label, difference in differences.items()
    ]
