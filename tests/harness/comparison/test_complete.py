"""Which rows and places make a table without gaps."""

from __future__ import annotations

from harness.comparison.grids import without_gaps


def test_a_barely_begun_place_costs_no_rows() -> None:
    done = {"a": {1, 2, 3}, "b": {1}, "c": {1, 2, 3, 4}}
    assert without_gaps(done, least=3) == (["a", "c"], {1, 2, 3})
    assert without_gaps(done, least=1) == (["a", "b", "c"], {1})
    assert without_gaps(done, least=5) == ([], set())
    assert without_gaps({}, least=1) == ([], set())


def test_the_fullest_place_is_no_better_a_start_than_another() -> None:
    assert without_gaps({"a": {1, 2, 3, 4, 5}, "b": {6, 7, 8}, "c": {6, 7, 8}}, least=3) == (["b", "c"], {6, 7, 8})
