"""Splits that nobody published are carved here, by one rule: order by a hash of seed and stem, take the first.

The order depends on nothing but seed and stem: not on the file system, not on the layout, not on which other files are
there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from itertools import groupby

from harness.datasets.base import DatasetError, Pair

Group = Callable[[Pair], str]


def own_stem(pair: Pair) -> str:
    """Every image is its own group."""
    return pair.stem.casefold()


def draw_key(seed: int, group: str) -> str:
    """What `carve` sorts groups by."""
    return hashlib.sha256(f"{seed}:{group}".encode()).hexdigest()


def carve(
    pairs: Sequence[Pair], *, count: int, seed: int, group: Group = own_stem
) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """Carve ``count`` pairs out of ``pairs``; returns (rest, carved), each in the order given.

    Args:
        count: how many pairs to take; with larger groups, whole groups are taken until at least so many are there.
        seed: `DataOptions.split_seed`.
        group: pairs of one group stay together (frames of one video, copies of one image).

    Raises:
        DatasetError: nothing would be left on one side.
    """
    keyed = sorted(pairs, key=lambda pair: (draw_key(seed, group(pair)), group(pair)))
    taken: set[str] = set()
    for _, members in groupby(keyed, key=group):
        if len(taken) >= count:
            break
        taken.update(pair.stem for pair in members)
    rest = tuple(pair for pair in pairs if pair.stem not in taken)
    carved = tuple(pair for pair in pairs if pair.stem in taken)
    if not rest or not carved:
        together = len(set(map(group, pairs)))
        raise DatasetError(
            f"{len(pairs)} images (groups that stay together: {together}) are too few to carve {count} from and keep some; "
            "give more, or splits of your own"
        )
    return rest, carved


def share(total: int, fraction: float) -> int:
    """``fraction`` of ``total``, rounded, at least one."""
    return max(1, round(total * fraction))
