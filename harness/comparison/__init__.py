"""Frames in; rows, and differences with intervals, out.

``rows(Archive(root).frame("runs"))`` names the row of every run. `grids` makes the tables of a folder or of a study. `difference`
compares two rows on one column, and `simultaneous` all rows with one.
"""

from harness.comparison.frames import row_name, rows, rows_of_study
from harness.comparison.grid import Grid, Row, grids
from harness.comparison.scores import Cell, Column, Difference, Mark, Sample, difference, simultaneous

__all__ = [
    "Cell",
    "Column",
    "Difference",
    "Grid",
    "Mark",
    "Row",
    "Sample",
    "difference",
    "grids",
    "row_name",
    "rows",
    "rows_of_study",
    "simultaneous",
]
