"""The committed pages are what the records give."""

from __future__ import annotations

import pytest

from harness.archive.archive import Archive
from harness.report.formats import write
from harness.report.pages import Makers, pages_below
from tests.values import RESULTS

TEXTS = {path.stem: path.read_text(encoding="utf-8") for path in (RESULTS / "tables").glob("*.md")}


@pytest.fixture(autouse=True)
def _demo_protocol() -> None:
    """These records are held against the protocol demo as it is."""


@pytest.fixture(scope="module")
def pages() -> Makers:
    return pages_below(Archive(RESULTS))[0]


@pytest.mark.parametrize("name", ["mini", "demo", "cost"])
def test_a_page_is_what_the_records_give(pages: Makers, name: str) -> None:
    """Of every kind one; the check of the committed results (``sam-peft tables --check``) has them all."""
    assert write(pages[name]()) == TEXTS[name]
    assert pages.keys() == TEXTS.keys()
