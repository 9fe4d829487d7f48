"""A results folder as a website that opens offline: a leaderboard with its picture and sentence, then a page for each benchmark.

Templates escape every word, style and script are in the pages, and nothing is fetched.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from harness.comparison.leaderboard import Leaderboard
from harness.comparison.names import benchmark_rank
from harness.registry import arxiv_of
from harness.report import figures, masks, sentences
from harness.report.formats import as_spreadsheet
from harness.report.leaderboard import still_to_run
from harness.report.runs import commands_of
from harness.report.scores import data_in_words
from harness.report.style import COLUMN, PAGE, inline, styled
from harness.system.text import printable

WRITTEN = 'name="generator" content="sam-peft report"'
"""In the head of every page; identifies a file as one of ours."""
INDEX, LEADERBOARD = "index.html", "leaderboard.csv"

SAM = "2304.02643"
"""The arXiv id of Segment Anything."""


def site(
    boards: Sequence[Leaderboard],
    *,
    title: str,
    photographs: masks.Pictures | None,
    withheld: str,
    links: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """File name -> text: the first table is the leaderboard; each benchmark's page has its part of every table.

    Args:
        photographs: gives the photographs under masks, None for none.
        withheld: the line on a page whose masks have no photographs.
        links: name -> address of what stands at the foot of every page before the paper of Segment Anything.
    """
    first = boards[0]
    files = file_names(boards)
    with styled():
        whole, narrow = (figures.differences(first, first.leading, width=width) for width in (PAGE, COLUMN))
        picture = _picture("leaderboard", whole, narrow)
        costs = _picture("cost", figures.cost(first))
        parts = {name: [_part(b, name, photographs) for b in boards if name in b.columns] for name in files}
    shared = {
        "title": title, "files": files, "titles": {name: parts[name][0]["columns"][0].title for name in files},
        "links": {**(links or {}), "Segment Anything": f"https://arxiv.org/abs/{SAM}"},
        "still_to_run": still_to_run(first), "states": sorted({first.state(row) for row in first.rows}),
        "finished": max((r.finished for board in boards for r in board.grid.records), default="")[:10],
    }  # fmt: skip
    pages = {INDEX: _written("index.html", board=first, picture=picture, costs=costs, boards=boards, here="", **shared)}
    for name, file in files.items():
        pages[file] = _written("benchmark.html", parts=parts[name], withheld=withheld, here=name, **shared)
    pages[LEADERBOARD] = as_spreadsheet(first.grid.tidy())
    return pages


def file_names(boards: Sequence[Leaderboard]) -> dict[str, str]:
    """Benchmark -> the file of its page; the leaderboard's benchmarks first."""
    first = list(boards[0].columns)
    names = {name for board in boards for name in board.columns}
    files: dict[str, str] = {}
    for name in [*first, *sorted(names - set(first), key=benchmark_rank)]:
        stem = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-").lower() or "benchmark"
        taken = {INDEX, *files.values()}
        numbered = (f"{stem}.html" if number == 1 else f"{stem}-{number}.html" for number in range(1, len(taken) + 2))
        files[name] = next(file for file in numbered if file not in taken)
    return files


def _part(board: Leaderboard, benchmark: str, photographs: masks.Pictures | None) -> dict[str, Any]:
    """A benchmark's part of one table: columns, pictures, masks, and a note on the images."""
    leading = board.columns[benchmark]
    columns = [c for c in board.grid.columns if c.benchmark == benchmark and c != leading]
    drawn = (
        ("differences", figures.differences(board, benchmark)), ("curves", figures.curves(board, benchmark)),
        ("alpha", figures.alpha(board, benchmark)),
    )  # fmt: skip
    name = hashlib.sha256(f"{board.grid.title} {benchmark}".encode()).hexdigest()[:8]
    pictures = [picture for kind, figure in drawn if (picture := _picture(f"{kind}-{name}", figure))]
    tiles = masks.tiles(board, benchmark, photographs)
    about = masks.about(board, benchmark) if tiles else ""
    runs = [r for r in board.grid.records if r.run.benchmark == benchmark]
    return {
        "board": board, "columns": [leading, *columns], "pictures": pictures, "tiles": tiles, "about_tiles": about,
        "data": data_in_words(benchmark, runs),
    }  # fmt: skip


def _picture(name: str, drawn: tuple[Any, str] | None, narrow: tuple[Any, str] | None = None) -> dict[str, Any] | None:
    """A figure inside a page; ``narrow`` stands in for it on a narrow screen. ``wide``: it takes the page's width."""
    if drawn is None:
        return None
    small = inline(narrow[0], name=f"{name}-narrow") if narrow else ""
    wide = drawn[0].get_figwidth() > 1.5 * COLUMN
    return {"svg": inline(drawn[0], name=name), "caption": drawn[1], "narrow": small, "wide": wide}


def scale_of(board: Leaderboard, benchmark: str) -> float:
    """A tenth of the widest interval's reach, of the rows that are not worse than the baseline: the unit of the bars in a table."""
    differences = [board.difference(row, benchmark) for row in board.rows if board.verdict(row, benchmark) != "worse"]
    ends = [end for difference in differences if difference for end in (difference.low, difference.high)]
    return max((abs(end) for end in ends if end is not None), default=0.0) / 10


def _tile_source(picture: Any) -> str:
    from PIL import Image

    image = Image.fromarray(picture)
    image.thumbnail((192, 192))
    out = io.BytesIO()
    image.save(out, format="webp", quality=80, method=4)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"


def _written(template: str, **content: Any) -> str:
    environment = _environment()
    script = environment.get_template("site.js").render()
    allowed = f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
    page = environment.get_template(template).render(
        script=script, style=environment.get_template("site.css").render(), script_hash=allowed, written=WRITTEN,
        leaderboard=LEADERBOARD, **content,
    )  # fmt: skip
    return str(page)


@cache
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=PackageLoader("harness.report", "templates"), autoescape=select_autoescape(("html",)),
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,  # what is HTML already stays
    )  # fmt: skip
    environment.globals.update(
        of=sentences, source=_tile_source, commands_of=commands_of, arxiv_of=arxiv_of, scale_of=scale_of,
        clipped=lambda value: f"{min(10.0, max(-10.0, value)):.2f}",
    )  # fmt: skip
    environment.filters["short"] = sentences.short_number
    return environment
