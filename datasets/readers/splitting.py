"""Splits given as text files, one stem per line. Splits that were not published are carved by one rule: order by a hash of seed and
stem, take the first.

The order depends on nothing but seed and stem: not on the file system, not on the layout, not on which other files are
there.
"""

from __future__ import annotations

import codecs
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from harness.datasets.base import DatasetError, Pair, Tested
from harness.datasets.readers.opening import require_file
from harness.datasets.readers.pairing import IMAGE_EXTENSIONS, name_key

_LARGEST = 2**20
GroupOf = Callable[[Pair], str]
Pairs = tuple[Pair, ...]


class Arranged(NamedTuple):
    """The splits, the rule that made them in words, which images are tested, and the lists that were read."""

    train: Pairs
    val: Pairs
    test: dict[str, Pairs]
    rule: str
    tested: Tested = "given"
    lists: Mapping[Path, str] = MappingProxyType({})


def own_stem(pair: Pair) -> str:
    """Every image is its own group."""
    return name_key(pair.stem)


def order_of(seed: int, group: str) -> str:
    """What `carve` sorts groups by."""
    return hashlib.sha256(f"{seed}:{group}".encode()).hexdigest()


def carve(pairs: Sequence[Pair], *, count: int, seed: int, group: GroupOf = own_stem) -> tuple[Pairs, Pairs]:
    """Carve ``count`` pairs out of ``pairs``; returns (rest, carved), each in the order given.

    Args:
        count: how many pairs to take; with larger groups, whole groups are taken until there are at least that many.
        seed: `DataOptions.split_seed`.
        group: pairs of one group stay together (frames of one video, copies of one image).

    Raises:
        DatasetError: nothing would be left on one side.
    """
    keyed = sorted(pairs, key=lambda pair: (order_of(seed, group(pair)), group(pair)))
    taken: set[str] = set()
    for _, members in groupby(keyed, key=group):
        if len(taken) >= count:
            break
        taken.update(pair.stem for pair in members)
    rest = tuple(pair for pair in pairs if pair.stem not in taken)
    carved = tuple(pair for pair in pairs if pair.stem in taken)
    if not rest or not carved:
        groups = len(set(map(group, pairs)))
        together = f" (groups that stay together: {groups})" if groups < len(pairs) else ""
        raise DatasetError(
            f"{len(pairs)} images{together} are too few to carve {count} from and keep some; "
            "give more, or splits of your own"
        )
    return rest, carved


def share(total: int, fraction: float) -> int:
    """``fraction`` of ``total``, rounded, at least one."""
    return max(1, round(total * fraction))


def read_text(path: Path) -> str:
    """A text in UTF-8, or in UTF-16 with its byte order mark, as some editors write it. Raises DatasetError: neither, or unreadable."""
    require_file(path)
    try:
        data = path.read_bytes()
        text = data.decode("utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig")
        if "\0" in text:
            raise ValueError("it holds zero bytes, as UTF-16 without its mark does")
        return text
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} is not a readable list ({error}); save it as UTF-8") from error


def read_list(path: Path) -> list[str]:
    """Stems of a list, one per line, or several with commas, semicolons or tabs between them; an image and its mask of one name count once
    in a line. Blank lines, comments (``#``), folders and the extensions of images are dropped."""
    lines = [line.strip() for line in read_text(path).replace("\\", "/").splitlines()]
    words = [map(str.strip, re.split(r"[,;\t]", line)) for line in lines if not line.startswith("#")]
    return [stem for of_line in words for stem in dict.fromkeys(map(_stem, filter(None, of_line)))]


def _stem(name: str) -> str:
    """What follows a dot is dropped where it makes an image of the name; a stem may hold dots of its own."""
    path = Path(name)
    return path.stem if path.suffix.lower() in IMAGE_EXTENSIONS else path.name


def names_in(path: Path) -> set[str]:
    """The names in a list, in JSON or in YAML, as `name_key` writes them; empty for a file that is not text, or is large."""
    try:
        text = read_text(path).replace("\\", "/") if path.stat().st_size < _LARGEST else ""
    except (DatasetError, OSError):
        return set()
    words = re.split(r'(?m)^#.*|^\s*-\s|[\n,;\t"]|:\s', text)
    return {name_key(_stem(word.strip())) for word in words if re.search(r"\w", word)}


def committed(name: str) -> frozenset[str]:
    """Stems of a list that is kept in this package, as `name_key` writes them."""
    return frozenset(name_key(stem) for stem in read_list(Path(__file__).parents[1] / "manifests" / f"{name}.txt"))


def select_listed(pairs: Sequence[Pair], path: Path) -> Pairs:
    """The pairs that a list names, in its order. Raises DatasetError: the list is empty, or names an image that is not there."""
    if not (stems := read_list(path)):
        raise DatasetError(f"{path} is empty; list images in it, or remove it")
    by_stem = {name_key(pair.stem): pair for pair in pairs}
    if missing := [stem for stem in stems if name_key(stem) not in by_stem]:
        raise DatasetError(
            f"{path} names {len(missing)} images that are not there, the first is {missing[0]}; list the images' names, or move it away"
        )
    return tuple(by_stem[name_key(stem)] for stem in stems)


def split_by_lists(pairs: Sequence[Pair], lists: Mapping[str, Path]) -> Arranged:
    """Split by the lists of ``train``, ``val`` and ``test``, which are in one folder. Raises DatasetError: a list is missing, or names
    absent images."""
    train, val, test = (select_listed(pairs, lists[split]) for split in ("train", "val", "test"))
    folder = lists["train"].parent.name
    left_out = in_no_list(pairs, [pair.stem for part in (train, val, test) for pair in part])
    rule = f"lists in {folder}/ ({len(train)}/{len(val)}/{len(test)}){left_out}"
    return Arranged(train, val, {"test": test}, rule, lists={path: f"{folder}/{path.name}" for path in lists.values()})


def in_no_list(pairs: Sequence[Pair], stems: Sequence[str]) -> str:
    """``; 5 images in no list left out``, or nothing. ``stems``: those of the lists."""
    left_out = len(pairs) - len(set(stems))
    return f"; {left_out} images in no list left out" if left_out else ""
