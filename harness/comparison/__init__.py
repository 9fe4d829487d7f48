"""Frames in; rows, differences with intervals, and the leaderboard, out.

``rows(Archive(root).frame("runs"))`` names the row of every run. `grids` makes the tables of a folder or of a study. `difference`
compares two rows on one column, and `simultaneous` all rows with one. `leaderboards` does so for whole tables.
"""

from harness.comparison.cells import Cell, Column
from harness.comparison.differences import Difference, Sample, difference, simultaneous
from harness.comparison.grid import Grid, Mark
from harness.comparison.leaderboard import Leaderboard, leaderboards
from harness.comparison.rows import row_name, rows, rows_of_study
from harness.comparison.tables import grids

__all__ = [
    "Cell",
    "Column",
    "Difference",
    "Grid",
    "Leaderboard",
    "Mark",
    "Sample",
    "difference",
    "grids",
    "leaderboards",
    "row_name",
    "rows",
    "rows_of_study",
    "simultaneous",
]
