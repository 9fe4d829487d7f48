"""Figures for a page: the SVG that `sam-peft figures` writes, without what a page has no use for, packed."""

from __future__ import annotations

import base64
import gzip
import io
import re
from collections.abc import Iterable, Iterator

from harness.report.figures import FIGURES, draw
from harness.report.figures.material import Drawing, Material, NothingToDrawError
from harness.report.figures.style import encoded
from harness.report.html.content import Picture

FIRST = ("forest", "pareto", "ranks", "stability")
"""Figures that say most, before the others."""
PIXELS = 1.75
"""CSS pixels of a point, the unit of an SVG's size: letters of a paper's 7 pt are read on a screen."""
_NOT_SHOWN = re.compile(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<metadata>.*?</metadata>|<!--.*?-->|<title>.*?</title>", re.DOTALL)
_NAMED_GROUP = re.compile(r"<g id=\"[^\"]*\">")
_LINES = re.compile(r' d="([^"]*)"')
_PLACE = re.compile(r' (x|y)="(-?\d+\.\d{2})\d+"')
_LONG = re.compile(r"(\d+\.\d{2})\d+")
_SIZE = re.compile(r'width="([\d.]+)pt" height="([\d.]+)pt"')
_RASTER = re.compile(r'"data:image/png;base64,([^"]*)"')


def packed_figures(materials: Iterable[Material]) -> Iterator[Picture | str]:
    """Every figure that the records hold, or why it was not drawn; what says most first."""
    names = sorted(FIGURES, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    for material in materials:
        for name in names:
            try:
                for stem, drawing in draw(name, material):
                    data = encoded(drawing.figure, "svg", title=stem, caption=drawing.caption)
                    yield _picture(data, drawing, title=stem, about=name)
            except NothingToDrawError as error:
                yield f"{material.name}: no {name}: {error}"


def within(drawn: Iterable[Picture], *, room: int) -> tuple[list[Picture], list[Picture]]:
    """The pictures that fit into ``room`` bytes, one after the other, and those that do not."""
    kept: list[Picture] = []
    out: list[Picture] = []
    for picture in drawn:
        size = len(picture.packed) + 2 * len(picture.caption)
        (kept if size <= room else out).append(picture)
        room -= size if size <= room else 0
    return kept, out


def _picture(data: bytes, drawing: Drawing, *, title: str, about: str) -> Picture:
    svg = data.decode()
    size = _SIZE.search(svg)
    assert size is not None  # matplotlib writes it
    width, height = (round(float(number) * PIXELS) for number in size.groups())
    packed = base64.b64encode(gzip.compress(compact_svg(svg).encode(), mtime=0)).decode()
    return Picture(
        title=title, about=about, caption=drawing.caption, packed=packed, width=width, height=height,
        benchmark=drawing.benchmark,
    )  # fmt: skip


def compact_svg(svg: str) -> str:
    """The same picture in fewer bytes: coordinates to a hundredth of a point, rasters as WebP, no metadata or comments."""
    svg = _NAMED_GROUP.sub("<g>", _NOT_SHOWN.sub("", svg))
    svg = _LINES.sub(lambda found: f' d="{_LONG.sub(lambda one: one[1], found[1])}"', svg)
    svg = _PLACE.sub(r' \1="\2"', svg)
    svg = _RASTER.sub(lambda found: f'"{_webp(found[1])}"', svg)
    return re.sub(r"\s+", " ", svg).replace("> <", "><").strip()


def _webp(png: str) -> str:
    """Lossless for flat masks; a photograph, which has many colours, with a little loss."""
    from PIL import Image

    image = Image.open(io.BytesIO(base64.b64decode(png)))
    out = io.BytesIO()
    is_flat = image.convert("RGB").getcolors(64) is not None
    image.save(out, format="webp", lossless=is_flat, quality=80, method=4)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()
