"""Parse words of the command line: ``lora[rank=6],all``, ``--seeds 5``, ``NAME=DIR``. No torch here."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from harness.check import parse_assignments
from harness.planning.request import Variant
from harness.registry import METHODS, Registry, method_config_class
from harness.system.errors import UsageError


def usable(registry: Registry) -> list[str]:
    """What ``all`` stands for; installed plug-ins that are broken are named on stderr and left out."""
    names = registry.usable_names()
    for line in registry.broken.values():
        print(line, file=sys.stderr)
    return names


def all_methods() -> list[str]:
    """What ``all`` stands for: those that train something. The others need a whole pretrained segmenter, which not every
    backbone has, and are asked for by name."""
    return [name for name in usable(METHODS) if method_config_class(name).trains]


def expand(text: str, everything: list[str]) -> list[str]:
    """Comma-separated words, commas inside brackets kept; ``all`` stands for ``everything``.

    Raises:
        UsageError: a bracket is not closed.
    """
    words, depth, current = [], 0, ""
    for letter in text + ",":
        depth += (letter == "[") - (letter == "]")
        if letter == "," and depth == 0:
            if current.strip():
                words.append(current.strip())
            current = ""
        else:
            current += letter
    if depth:
        raise UsageError(f"{text!r}: a bracket is not closed")
    return [name for word in words for name in (everything if word == "all" else [word])]


def parse_entry(word: str) -> Variant:
    """``lora[rank=6,alpha=12]`` as an entry; a value with a comma is put in quotes: ``lora[sites='q,v']``.

    Raises:
        UsageError: not of this form, or an unknown method.
    """
    match = re.fullmatch(r"([^\[\]]+)(?:\[(.*)\])?", word)
    if not match:
        raise UsageError(f"--methods: {word!r} is not NAME or NAME[option=value,…]")
    items = re.findall(r"""((?:[^,'"]|'[^']*'|"[^"]*")+)""", match[2] or "")
    given = parse_assignments([item.strip() for item in items])
    options = {key: value.strip("'\"") if isinstance(value, str) else value for key, value in given.items()}
    return Variant(method=METHODS.resolve(match[1]), options=options)


def parse_seeds(text: str, *, name: str = "--seeds") -> tuple[int, ...]:
    """``5`` is seeds 0 to 4; ``0,3,7`` is those; ``7,`` is seed 7 alone.

    Raises:
        UsageError: not whole numbers, none, one twice, or beyond all use.
    """
    from harness.studies import MOST_SEEDS

    listed = "," in text
    parts = [part.strip() for part in text.removesuffix(",").split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise UsageError(f"{name} {text!r} is neither a number of seeds (5) nor a list of seeds (0,3,7)")
    if any(len(part) > 9 for part in parts) or (not listed and int(parts[0]) > MOST_SEEDS):
        raise UsageError(f"{name} {text!r}: at most {MOST_SEEDS} seeds, each of at most 9 digits")
    seeds = tuple(int(part) for part in parts) if listed else tuple(range(int(parts[0])))
    if not seeds or len(set(seeds)) < len(seeds):
        raise UsageError(f"{name} {text!r} names no seed, or one twice; give a number (3) or a list (0,3,7)")
    return seeds


def parse_roots(items: Iterable[str]) -> dict[str, Path]:
    """``["kvasir=/data/Kvasir-SEG"]`` as a folder for each name; names are as they were typed.

    Raises:
        UsageError: an item is not NAME=DIR, or one name is there twice.
    """
    roots: dict[str, Path] = {}
    for item in items:
        name, equals, folder = item.partition("=")
        if not equals or not name.strip() or not folder:
            raise UsageError(f"--dataset-root {item!r} is not NAME=DIR, such as --dataset-root kvasir=/data/Kvasir-SEG")
        if name.strip() in roots:
            raise UsageError(f"--dataset-root {name.strip()} is given twice")
        roots[name.strip()] = Path(folder).expanduser()
    return roots
