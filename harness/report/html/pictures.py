"""Figures for a page: the SVG that `sam-peft figures` writes, without what a page has no use for, packed."""

from __future__ import annotations

import base64
import gzip
import io
import re
from collections.abc import Iterable, Iterator, Sequence

from harness.report.figures import FIGURES, draw
from harness.report.figures.material import Material, NothingToDrawError
from harness.report.figures.style import encoded
from harness.report.html.content import Picture, Tags

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


def pictures(materials: Iterable[Material]) -> Iterator[tuple[str, Picture | str]]:
    """(name of a figure, the picture or why it was not drawn) of everything that the records hold, what says most first."""
    for material in materials:
        for name in sorted(FIGURES, key=lambda one: FIRST.index(one) if one in FIRST else len(FIRST)):
            try:
                for stem, drawing in draw(name, material):
                    data = encoded(drawing.figure, "svg", title=stem, caption=drawing.caption)
                    benchmark = next((one for one in material.benchmarks if _is_of(drawing.part, one)), "")
                    yield name, _picture(data, stem, name, drawing.caption, Tags(benchmark=benchmark))
            except NothingToDrawError as error:
                yield name, f"{material.name}: no {name}: {error}"


def within(found: Iterable[Picture], *, room: int) -> tuple[list[Picture], list[Picture]]:
    """The pictures that fit into ``room`` bytes, one after the other, and those that do not."""
    kept: list[Picture] = []
    out: list[Picture] = []
    for one in found:
        size = len(one.packed) + 2 * len(one.caption)
        (kept if size <= room else out).append(one)
        room -= size if size <= room else 0
    return kept, out


def titles(out: Sequence[Picture]) -> list[str]:
    """What is said of pictures that there was no room for."""
    if not out:
        return []
    names = ", ".join(one.title for one in out)
    return [f"No room for {len(out)} figures in one page: {names}; sam-peft figures draws them."]


def _is_of(part: str, benchmark: str) -> bool:
    """Whether a drawing is of one benchmark: ``kvasir``, ``kvasir-loss``."""
    return part == benchmark or part.startswith(f"{benchmark}-")


def _picture(data: bytes, stem: str, about: str, caption: str, tags: Tags) -> Picture:
    svg = data.decode()
    size = _SIZE.search(svg)
    assert size is not None  # matplotlib writes it
    width, height = (round(float(number) * PIXELS) for number in size.groups())
    packed = base64.b64encode(gzip.compress(compact_svg(svg).encode(), mtime=0)).decode()
    return Picture(title=stem, about=about, caption=caption, packed=packed, width=width, height=height, tags=tags)


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
