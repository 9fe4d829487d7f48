"""The committed pages: what the records give, with pandas' numbers and their marks, every cell explained, in LaTeX too."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest

from harness.archive.archive import Archive, frame
from harness.archive.measured import CostStore
from harness.report.costs import Measured
from harness.report.formats import write
from harness.report.pages import Pages, page_of, pages_below
from tests.values import RESULTS

TEXTS = {path.stem: path.read_text(encoding="utf-8") for path in (RESULTS / "tables").glob("*.md")}
SOME = ("mini", "demo", "cost", "small-search", "question-sam")
"""Pages with tables, differences, means, ranks, costs, ratios, and claims on cost."""
NUMBER = re.compile(r"(?P<mark>\*\*|<u>)?(?P<mean>\d+\.\d) ± \d+\.\d \((?P<n>\d+)\)(\*\*|</u>)?(?P<tied> ≈)?")


@pytest.fixture(autouse=True)
def _card() -> None:
    """These records are held against the card demo as it is."""


@pytest.fixture(scope="module")
def archive() -> Archive:
    return Archive(RESULTS)


@pytest.fixture(scope="module")
def pages(archive: Archive) -> Pages:
    """Each is built where a test first looks at it."""
    return pages_below(archive)


def columns(page: str) -> Iterator[tuple[str, list[str]]]:
    """Heading and cells of every column of numbers that have a direction."""
    for block in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):
        head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines())
        yield from ((name, [row[at] for row in rows]) for at, name in enumerate(head) if name.endswith(("↑", "↓")))


@pytest.mark.parametrize("name", SOME)
def test_a_page_is_what_the_records_give(pages: Pages, name: str) -> None:
    """Of every kind one; the check of the committed results (``sam-peft tables --check``) has them all."""
    assert write(pages.content[name]) == TEXTS[name]
    assert pages.content.keys() == TEXTS.keys()


def test_means_and_deviations_are_those_of_pandas(archive: Archive) -> None:
    scores = frame(archive, "scores")
    mini = scores[(scores.protocol == "mini") & (scores.model == "best") & (scores.split == "test")]
    groups = mini.groupby(["protocol_hash", "variant", "benchmark", "metric"])["value"].agg(["mean", "std", "count"])
    cells = {f"{100 * mean:.1f} ± {100 * sd:.1f} ({count})" for mean, sd, count in groups.itertuples(index=False)}
    rows = [line for line in TEXTS["mini"].splitlines() if line.startswith("| ") and "updates" not in line]
    printed = {cell for row in rows for cell in re.findall(r"\d+\.\d ± \d+\.\d \(\d\)", row)}
    assert len(printed) > 30
    assert printed <= cells


def test_the_best_of_a_column_is_bold_and_the_next_that_differs_from_it_underlined() -> None:
    marked = 0
    for heading, cells in (column for page in TEXTS.values() for column in columns(page)):
        sign = 1 if heading.endswith("↑") else -1
        values = [(m["mark"], bool(m["tied"]), m["n"], sign * float(m["mean"])) for m in map(NUMBER.match, cells) if m]
        best, second = ({(n, mean) for mark, _, n, mean in values if mark == wanted} for wanted in ("**", "<u>"))
        if best:  # of other seeds a row is compared on those that both have, which a page does not print
            ((runs, value),) = best
            assert value == max(mean for *_, n, mean in values if n == runs), (heading, cells)
            for runs, value in second:
                others = [mean for mark, tied, n, mean in values if mark != "**" and not tied and n == runs]
                assert value == max(others), (heading, cells)
            assert len(second) < 2, (heading, cells)
            marked += 1
    assert marked > 100


def test_every_cell_is_explained(archive: Archive, pages: Pages) -> None:
    """Tables, differences, means, ranks, costs, ratios, claims on cost; and the page of a study that has none there."""
    content = {name: pages.content[name] for name in SOME}
    content["real-images"] = page_of(archive, "real-images")
    cells = [
        (table.heading, cell) for page in content.values() for table in page.tables for row in table.rows for cell in row.cells
    ]  # fmt: skip
    assert len(cells) > 500
    for heading, cell in cells:
        assert cell.of is not None, (heading, cell.text)
        assert list(cell.of.why(archive)), (heading, cell.text)


def test_a_session_beside_others_says_so(archive: Archive) -> None:
    session = next(iter(CostStore(RESULTS)))
    alone, beside = (
        list(Measured(session=replace(session, shared=words), cost=session.methods[0], label="").why(archive))
        for words in ("", "two others")
    )
    assert [line for line in beside if line not in alone] == ["  the device was not exclusive: two others"]
