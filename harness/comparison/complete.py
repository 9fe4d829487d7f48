"""Which rows and places (columns, benchmarks) of a table with gaps make a table without any."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Set
from typing import TypeVar

Place = TypeVar("Place", bound=Hashable)
Entry = TypeVar("Entry", bound=Hashable)


def without_gaps(done: Mapping[Place, Set[Entry]], *, least: int) -> tuple[list[Place], set[Entry]]:
    """(places in the order of ``done``, rows that are complete in all of them), at least ``least`` rows.

    Greedy, from the place with the most rows to that with the fewest, so that a barely begun one costs no other its rows.

    Args:
        done: place -> the rows that are complete there.
    """
    chosen: list[Place] = []
    common: set[Entry] = set().union(*done.values())
    for place in sorted(done, key=lambda one: -len(done[one])):
        if len(common & done[place]) >= least:
            common &= done[place]
            chosen.append(place)
    return [place for place in done if place in chosen], common
