"""Figures that `sam-peft figures` wrote below a results folder, packed; and a page's preview."""

from __future__ import annotations

import base64
import gzip
import io
import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from harness.report.html.content import Picture, SitePage
from harness.system.files import read_regular

LARGEST_FIGURE = 8 << 20
ROOM = 640_000
"""Bytes of figures in a page; what would go beyond it is left out."""
PIXELS = 1.75
"""CSS pixels of a point, the unit of an SVG's size: letters of a paper's 7 pt are read on a screen."""
_SIZE = re.compile(r'width="([\d.]+)pt" height="([\d.]+)pt"')


def drawn_figures(root: Path, name: str) -> list[Picture]:
    """The figures of a study or a card, with their captions, as far as there is room."""
    paths = sorted((root / "figures").glob(f"{name}-*.svg"))
    own = [
        path
        for path in paths
        if re.fullmatch(rf"{re.escape(name)}-[0-9a-f]{{8}}.*", path.stem) and "-masks" not in path.stem
    ]
    return list(_within(filter(None, map(_picture, own)), room=ROOM))


def _within(pictures: Iterable[Picture], *, room: int) -> Iterator[Picture]:
    for picture in pictures:
        if len(picture.packed) <= room:
            room -= len(picture.packed)
            yield picture


def _picture(path: Path) -> Picture | None:
    """None of a file that is no figure of ours."""
    try:
        svg = read_regular(path, largest=LARGEST_FIGURE).decode()
    except (OSError, ValueError):
        return None
    if (size := _SIZE.search(svg)) is None:
        return None
    caption = path.with_suffix(".txt")
    try:
        words = read_regular(caption, largest=LARGEST_FIGURE).decode() if caption.is_file() else ""
    except (OSError, ValueError):
        words = ""
    width, height = (round(float(number) * PIXELS) for number in size.groups())
    packed = base64.b64encode(gzip.compress(svg.encode(), mtime=0)).decode()
    return Picture(title=path.stem, caption=words.strip(), packed=packed, width=width, height=height)


SIZE = (1200, 630)
"""Pixels of a preview, as pages that show links want it."""
INK, SOFT, ACCENT, LINE, PAPER = "#14181d", "#59626d", "#0b57a4", "#d5d9df", "#ffffff"


def preview(page: SitePage) -> bytes:
    """Question, verdict and the first differences, as a PNG."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", SIZE, PAPER)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, SIZE[0], 12), fill=ACCENT)
    draw.text((64, 48), "SAM PEFT harness", font=_font(24), fill=SOFT)
    top = 92
    for line in textwrap.wrap(page.question, 40)[:2]:
        draw.text((64, top), line, font=_font(46, bold=True), fill=INK)
        top += 58
    top += 12
    for line in textwrap.wrap(page.verdict, 78)[:4]:
        draw.text((64, top), line, font=_font(25), fill=INK)
        top += 36
    plot = page.parts[0].headline.plot if page.parts else None
    if plot:
        _lanes(draw, plot, top=top + 24)
    out = io.BytesIO()
    image.quantize(64).save(out, format="png", optimize=True)
    return out.getvalue()


def _lanes(draw: Any, plot: Any, *, top: int) -> None:
    left, right = 470, SIZE[0] - 64
    lanes = plot.across[: max(1, (SIZE[1] - 40 - top) // 40)]

    def x(share: float) -> float:
        return left + (right - left) * share / 100

    zero = x(plot.scale.at(0))
    draw.line((zero, top - 6, zero, top + 40 * len(lanes)), fill=SOFT, width=2)
    for number, lane in enumerate(lanes):
        middle, point = top + 40 * number + 16, lane.points[-1]
        name = lane.name.text if len(lane.name.text) < 30 else f"{lane.name.text[:29]}…"
        draw.text((64, middle - 13), name, font=_font(23), fill=INK)
        if point.low is not None and point.high is not None:
            draw.line((x(point.low), middle, x(point.high), middle), fill=ACCENT, width=4)
        draw.ellipse((x(point.at) - 8, middle - 8, x(point.at) + 8, middle + 8), fill=ACCENT)


def _font(size: int, *, bold: bool = False) -> Any:
    import matplotlib
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)
