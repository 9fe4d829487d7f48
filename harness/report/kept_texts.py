"""Texts of pages that nothing touched: kept in the cache of the records, by all that a page is made of.

A page is made of records, of what lies beside them, of this code with the cards, studies, claims and published numbers that
come with it, and of the folder's notes on checkpoints. What is kept under another mixture of these is not looked at, and
of a folder without a cache nothing is kept.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from harness.archive.archive import Archive
from harness.archive.cache import Look
from harness.archive.checkpoints import FILE

_HERE = Path(__file__).parents[2]
_CODE = ("harness", "methods", "datasets", "results/paper")


class KeptTexts:
    """What is known of the pages of a results folder.

    Args:
        seen: its records.
        made_of: protocol -> digest of its records and of all else that a page looks at.
    """

    def __init__(self, seen: Look, made_of: Mapping[str, str]) -> None:
        self.made_of = made_of
        self._seen = seen

    def get(self, name: str, form: str, made_of: str) -> str | None:
        """The text of a page, None where it is to be made."""
        then, text = self._seen.pages.get(f"{name} {form}", ("", ""))
        return text if then == made_of else None

    def put(self, name: str, form: str, made_of: str, text: str) -> None:
        """Remember it until `keep`."""
        self._seen.pages[f"{name} {form}"] = (made_of, text)
        self._seen.changed = True

    def keep(self) -> None:
        """Write down what is new; where that cannot be done the page is made again next time."""
        self._seen.save()


def kept_texts(archive: Archive) -> KeptTexts | None:
    """None where the folder has no cache, and its pages are made anew."""
    seen = archive.seen
    if not seen.has_cache:
        return None
    archive.keeps_pages = True
    notes = archive.root / FILE
    return KeptTexts(seen, seen.made_of(_around() + (notes.read_bytes() if notes.is_file() else b"")))


@cache
def _around() -> bytes:
    """Of this code, and of all that comes with it."""
    digest = hashlib.blake2b(sys.version.encode())
    files = [path for folder in _CODE for path in sorted((_HERE / folder).rglob("*")) if path.suffix != ".pyc"]
    for path in (*files, _HERE / "results" / "claims.yaml"):
        if path.is_file():
            digest.update(str(path).encode() + path.read_bytes())
    return digest.digest()
