"""The style of every figure: sizes of a paper's columns, a few colours, and files with reproducible bytes."""

from __future__ import annotations

import io
import re
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from harness.system.text import printable_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FigureFormat = Literal["svg", "pdf", "png"]
FIGURE_FORMATS: tuple[FigureFormat, ...] = ("svg", "pdf", "png")

COLUMN, PAGE = 3.35, 6.9
"""Inches: one column (85 mm) and the width of a page with two."""

INK = "#010203"
"""Colour of text and axes. In a page it becomes the page's own colour of text, light or dark."""
GREY, BASELINE, BETTER, WORSE = "#8a8a8a", "#e0862a", "#2f7fc1", "#c2453d"
SERIES = (BETTER, "#2a9d6f", "#9a5fb4", WORSE, "#7a8b2a", "#27a3b4")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

SETTINGS: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that every machine draws the same
    "font.size": 7, "axes.titlesize": 7, "axes.labelsize": 7, "legend.fontsize": 6.5,
    "xtick.labelsize": 6.5, "ytick.labelsize": 6.5,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "lines.linewidth": 1.2, "lines.markersize": 4,
    "legend.frameon": False, "figure.dpi": 100, "savefig.dpi": 200,
    "axes.grid": False, "grid.linewidth": 0.4, "grid.color": GREY, "grid.alpha": 0.35, "axes.axisbelow": True,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    "pdf.fonttype": 42,  # TrueType inside, as journals ask
    "axes.unicode_minus": True, "text.parse_math": False,  # a label is text, whatever it holds
}  # fmt: skip


@contextmanager
def styled(**more: Any) -> Iterator[None]:
    """matplotlib's defaults with `SETTINGS`, whatever the user's matplotlibrc has."""
    import matplotlib

    defaults: Any = matplotlib.rcParamsDefault
    settings: Any = {**defaults, "backend": matplotlib.rcParams["backend"], **SETTINGS, **more}
    with matplotlib.rc_context(settings):
        yield


def new_figure(width: float, height: float) -> Figure:
    """A figure of a size in inches with automatic layout, without a window."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def limits(values: Sequence[float], *, margin: float = 0.08) -> tuple[float, float]:
    """Ends of an axis around these values, without those more than three interquartile ranges from the quartiles (Tukey's far fence): a
    collapsed row must not flatten the others. ``margin`` is a share of the axis."""
    kept = list(values)
    if len(kept) > 4:
        first, _, third = statistics.quantiles(kept, n=4, method="inclusive")
        reach = 3 * (third - first)
        kept = [value for value in kept if first - reach <= value <= third + reach]
    beyond = margin * (max(kept) - min(kept)) or 1.0
    return min(kept) - beyond, max(kept) + beyond


def cut(label: str, most: int) -> str:
    label = printable_line(label)
    return label if len(label) <= most else f"{label[: most - 1]}…"


def encoded_figure(figure: Figure, form: FigureFormat, *, title: str, caption: str) -> bytes:
    """The bytes of a figure's file, without date or machine; equal figures give equal bytes."""
    metadata: dict[str, dict[str, Any]] = {
        "svg": {"Date": None, "Title": title, "Description": caption},
        "pdf": {"CreationDate": None, "ModDate": None, "Title": title, "Subject": caption},
        "png": {"Title": title, "Description": caption},
    }
    out = io.BytesIO()
    with styled(**{"svg.hashsalt": title}):
        figure.savefig(out, format=form, metadata=metadata[form], facecolor="white")
    data = out.getvalue()
    return b"\n".join(line.rstrip() for line in data.split(b"\n")) if form == "svg" else data


def inline(figure: Figure, *, name: str) -> str:
    """An ``<svg>`` element for a page, with the page's own colour and font. ``name`` distinguishes its ids from those of the page's other
    figures."""
    out = io.StringIO()
    with styled(**{"svg.hashsalt": name, "svg.fonttype": "none", "savefig.transparent": True}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = re.sub(r"<metadata>.*?</metadata>", "", out.getvalue()[out.getvalue().index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', "", svg, count=1)
    return re.sub(r' id="[\w.]*_\d+"', "", svg).replace(INK, "currentColor").replace("'DejaVu Sans'", "inherit")
