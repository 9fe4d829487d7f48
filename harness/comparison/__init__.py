"""Frames in; rows, differences with intervals, and the leaderboard, out.

``rows(Archive(root).frame("runs"))`` names the row of every run. `grids` makes the tables of a folder or of a study;
`Grid.difference` compares two rows on one column. `leaderboards` compares all rows of a table with one.
"""

from harness.comparison.differences import Difference as Difference
from harness.comparison.grid import Cell as Cell
from harness.comparison.grid import Column as Column
from harness.comparison.grid import Grid as Grid
from harness.comparison.leaderboard import Leaderboard as Leaderboard
from harness.comparison.leaderboard import leaderboards as leaderboards
from harness.comparison.rows import rows as rows
from harness.comparison.tables import grids as grids
