"""How every figure looks: sizes of a paper's columns, one colour, marker and dash a method, and files with fixed bytes."""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from harness.comparison.names import BENCHMARK_ORDER
from harness.comparison.rows import Row
from harness.registry import METHODS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.path import Path

Format = Literal["svg", "pdf", "png"]
FORMATS: tuple[Format, ...] = ("svg", "pdf", "png")

COLUMN, PAGE = 3.35, 6.9
"""Inches: one column (85 mm) and the width of a page with two."""
PAGE_LENGTH = 9.7

GREY = "#8a8a8a"
PALETTE = (
    "#b3b3b3",
    *("#1b1b1b", "#7f7f7f", "#b07aa1", "#9c755f", "#edc948", "#59a14f", "#76b7b2"),
    *("#4e79a7", "#8cb6d9", "#f28e2b", "#bc8f20", "#8c2d8f", "#d62728", "#0b6e4f"),
    *("#e377c2", "#17becf", "#98bf3c", "#5b3a29", "#1a3a8f"),
    *("#ff9896", "#aec7e8", "#c49c94", "#dbdb8d"),
)
"""By a method's place in the registry; what a method looks like stays when others join, so that figures stay comparable."""
MARKERS = (
    *("x", "o", "s", "^", "v", "D", "P", "X", "<", ">", "p", "h"),
    *("*", "d", "8", "H", "1", "2", "3", "4", "+", "|", "_", "."),
)
SHADES = ("#4e79a7", "#f28e2b", "#59a14f", "#b07aa1", "#edc948", "#76b7b2", "#9c755f", "#d62728", "#1b1b1b")
"""One a benchmark, in the papers' order."""
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (2, 1)))

SETTINGS: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that every machine draws the same
    "font.size": 7, "axes.titlesize": 7, "axes.labelsize": 7, "legend.fontsize": 6.5,
    "xtick.labelsize": 6.5, "ytick.labelsize": 6.5, "figure.titlesize": 8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "lines.linewidth": 1.2, "lines.markersize": 4,
    "legend.frameon": False, "figure.dpi": 100, "savefig.dpi": 200, "figure.facecolor": "white",
    "axes.grid": False, "grid.linewidth": 0.4, "grid.color": "#dddddd", "axes.axisbelow": True,
    "pdf.fonttype": 42, "ps.fonttype": 42,  # TrueType inside, as journals ask
    "svg.fonttype": "path", "svg.hashsalt": "sam-peft-harness",
    "axes.unicode_minus": True, "text.parse_math": False,  # a label is text, whatever it holds
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Look:
    """What tells a row from the others, with colour and without.

    Args:
        number: which of its method's rows it is, from 1.
    """

    colour: str
    marker: str
    dash: Any
    number: int

    def line(self, **more: Any) -> dict[str, Any]:
        """Arguments of `Axes.plot` for a curve, which has a dash of its own."""
        face = self.colour if self.number == 1 else "white"
        return {
            "color": self.colour, "linestyle": self.dash, "marker": self.marker, "markerfacecolor": face,
            "markeredgecolor": self.colour, "markeredgewidth": 0.9, **more,
        }  # fmt: skip

    def points(self, **more: Any) -> dict[str, Any]:
        """Arguments for points without a line: from the third row of a method on they are its number in a circle."""
        numbered = {"marker": _in_circle(self.number), "markersize": 6.2, "markeredgewidth": 0.5}
        return {**self.line(linestyle="none"), **(numbered if self.number > 2 else {}), **more}


@cache
def _in_circle(number: int) -> Path:
    """A marker whose white face covers the bars below it."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.path import Path
    from matplotlib.textpath import TextPath
    from matplotlib.transforms import Affine2D

    digits = TextPath((0, 0), str(number), size=1, prop=FontProperties(family="DejaVu Sans"))
    box = digits.get_extents()
    scale = 1.15 / max(box.width, box.height)
    centred = Affine2D().translate(-(box.x0 + box.x1) / 2, -(box.y0 + box.y1) / 2).scale(scale)
    return Path.make_compound_path(Path.unit_circle(), centred.transform_path(digits))


def looks(rows: Sequence[Row]) -> dict[Row, Look]:
    """Row -> look. Colour and marker are the method's place in the registry, the same in every figure; further rows of
    one method differ by dash, by an empty marker, and as points by their number. Methods that this registry does not know
    come after it, by name."""
    known = METHODS.names()
    strangers = sorted({row.method for row in rows} - set(known))
    look: dict[Row, Look] = {}
    seen: dict[str, int] = {}
    for row in rows:
        place = (known + strangers).index(row.method)
        number = seen[row.method] = seen.get(row.method, 0) + 1
        look[row] = Look(
            colour=PALETTE[place % len(PALETTE)],
            marker=MARKERS[place % len(MARKERS)],
            dash=DASHES[(number - 1) % len(DASHES)],
            number=number,
        )
    return look


def benchmark_look(benchmark: str) -> tuple[str, str]:
    """Colour and marker, the same in every figure; benchmarks of others share the last."""
    rank = BENCHMARK_ORDER.index(benchmark) if benchmark in BENCHMARK_ORDER else -1
    return SHADES[rank % len(SHADES)], MARKERS[1 + rank % len(SHADES)]


@contextmanager
def styled() -> Iterator[None]:
    """matplotlib's own defaults with `SETTINGS`, whatever a user's matplotlibrc says."""
    import matplotlib

    defaults: Any = matplotlib.rcParamsDefault
    settings: Any = {**defaults, "backend": matplotlib.rcParams["backend"], **SETTINGS}
    with matplotlib.rc_context(settings):
        yield


def new_figure(width: float, height: float) -> Figure:
    """A figure in inches that arranges itself; it is known to no window system."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def panels(count: int, *, columns: int, width: float, height: float, **shared: Any) -> tuple[Figure, list[Axes]]:
    """``count`` axes in rows of at most ``columns``; ``height`` is that of a row."""
    columns = min(columns, count)
    lines = -(-count // columns)
    figure = new_figure(width, height * lines)
    axes = figure.subplots(lines, columns, squeeze=False, **shared)
    flat = list(axes.flat)
    for empty in flat[count:]:
        empty.remove()
    if lines > 1 and shared.get("sharex"):
        for place in range(count - columns, count):  # the last of each column says what the axis is
            flat[place].tick_params(labelbottom=True)
    return figure, flat[:count]


def split_by_length(
    items: Sequence[Any], *, columns: int, height: Callable[[Sequence[Any]], float]
) -> Iterator[list[Any]]:
    """``items`` in as many figures as it takes for none to be longer than a page; ``height`` is that of a row of panels."""
    page: list[Any] = []
    for start in range(0, len(items), columns):
        line = items[start : start + columns]
        lines = len(page) // columns + 1
        if page and lines * height([*page, *line]) > PAGE_LENGTH:
            yield page
            page = []
        page.extend(line)
    yield page


def without_outliers(values: Sequence[float]) -> list[float]:
    """Those within three interquartile ranges of the quartiles (Tukey's far fence): a row that collapsed must not flatten the
    others on an axis."""
    if len(values) < 5:
        return list(values)
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    reach = 3 * (third - first)
    return [value for value in values if first - reach <= value <= third + reach]


def limits(values: Sequence[float], *, margin: float) -> tuple[float, float]:
    """Ends of an axis around these values without outliers; ``margin`` is a share of its length."""
    kept = without_outliers(values)
    beyond = margin * (max(kept) - min(kept)) or 1.0
    return min(kept) - beyond, max(kept) + beyond


def name_below(figure: Figure, axes: Axes, *, most: int) -> None:
    """A legend below the axes, in as many columns as its labels leave room for, ``most`` at most; the figure grows by its
    lines beyond three."""
    handles, labels = axes.get_legend_handles_labels()
    width, height = figure.get_size_inches()
    columns = next((count for count in range(most, 1, -1) if _width(labels, columns=count) <= width), 1)
    figure.set_size_inches(width, height + 0.14 * max(0, -(-len(labels) // columns) - 3))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, handletextpad=0.4, columnspacing=0.8)


def _width(labels: Sequence[str], *, columns: int) -> float:
    """About the inches that a legend takes."""
    lines = -(-len(labels) // columns)
    return sum(0.3 + 0.045 * max(map(len, labels[at : at + lines])) for at in range(0, len(labels), lines))


def encoded(figure: Figure, style: Format, *, title: str, caption: str) -> bytes:
    """The file's bytes; equal figures give equal bytes, and no date or name of a machine is in them."""
    metadata: Mapping[Format, dict[str, Any]] = {
        "svg": {"Date": None, "Title": title, "Description": caption},
        "pdf": {"CreationDate": None, "ModDate": None, "Title": title, "Subject": caption},
        "png": {"Title": title, "Description": caption},
    }
    out = io.BytesIO()
    with styled():
        figure.savefig(out, format=style, metadata=metadata[style])
    data = out.getvalue()
    return b"\n".join(line.rstrip() for line in data.split(b"\n")) if style == "svg" else data
