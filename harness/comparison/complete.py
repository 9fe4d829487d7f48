"""Which rows and places (columns, benchmarks) of a table with gaps make a table without any."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Set
from typing import TypeVar

Place = TypeVar("Place", bound=Hashable)
Entry = TypeVar("Entry", bound=Hashable)


def without_gaps(done: Mapping[Place, Set[Entry]], *, least: int) -> tuple[list[Place], set[Entry]]:
    """(places in the order of ``done``, rows that are complete in all of them), at least ``least`` rows.

    From every place as a start the others are added greedily, those with the most rows first, so that a barely begun one
    costs no other its rows; the start that gathers the most places wins, of several the one that keeps the most rows.

    Args:
        done: place -> the rows that are complete there.
    """
    order = sorted((place for place in done if len(done[place]) >= least), key=lambda one: -len(done[one]))
    best: tuple[list[Place], set[Entry]] = [], set()
    for start in order:
        chosen, common = [start], set(done[start])
        for place in order:
            if place != start and len(common & done[place]) >= least:
                common &= done[place]
                chosen.append(place)
        best = max(best, (chosen, common), key=lambda one: (len(one[0]), len(one[1])))
    return [place for place in done if place in best[0]], best[1]
