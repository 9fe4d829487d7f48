"""What a page shows first of one grid: a verdict, the differences to a baseline on one axis, and the leaderboard.

Numbers are those of the cells; places on an axis are in percent of its width.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from harness import statistics as stats
from harness.comparison.cells import Cell, Column, Difference, Grid, Mark, spread_over
from harness.comparison.draws import collapsed
from harness.comparison.names import METHOD_TITLES
from harness.comparison.rows import MISSING, Row
from harness.comparison.step_costs import costs_of, ratios_within, session_for
from harness.report.answers import RANKS_NOTHING, answers
from harness.report.figures.style import without_outliers

MOST_WORDS = 40
"""Of a verdict."""
MANY_ROWS = 6
"""Rows from which a verdict counts them before it speaks of one."""
RATES = {"lr": "", "encoder_lr": "encoder ", "decoder_lr": "decoder ", "alpha_lr": "α "}
"""Rates that a configuration can hold, or the rules for the decoder, and how a table calls them."""
MOST_LANES = 8
"""Rows of a plot before somebody asks for the others."""
_OPTIONS = re.compile(r"[a-z_]+=[^=<>]+([,;] ?[a-z_]+=[^=<>]+)*")
"""A label that is nothing but options, as that of a reading."""
OPTIONS_SHOWN = 2
"""Of a row whose label is its options; the others stand in its hint."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """An axis. What lies beyond it is drawn at its end."""

    low: float
    high: float

    @classmethod
    def around(cls, values: Sequence[float], intervals: Iterable[stats.Interval | None], *, zero: bool) -> Scale:
        """Wide enough for the values without outliers and for a usual interval; with ``zero``, 0 lies on it."""
        inside = without_outliers(values)
        known = [interval for interval in intervals if interval and math.isfinite(interval.low)]
        half = statistics.median([(interval.high - interval.low) / 2 for interval in known]) if known else 0.0
        spread = max(inside) - min(inside)
        pad = max(min(half, 3 * spread) if spread else half, 0.15 * spread, 1e-3)
        low, high = min(inside) - pad, max(inside) + pad
        if zero:
            room = 0.06 * (max(high, 0.0) - min(low, 0.0))
            low, high = min(low, -room), max(high, room)
        return cls(low=low, high=high)

    def at(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(max(share, 0.0), 1.0), 2)

    def beyond(self, value: float) -> str:
        return "low" if value < self.low else "high" if value > self.high else ""

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """(place, words) of about five round numbers."""
        step = _round_step((self.high - self.low) / 4)
        first = math.ceil(self.low / step)
        values = [step * number for number in range(first, math.floor(self.high / step) + 1)]
        digits = max(0, -math.floor(math.log10(step)))
        return [(self.at(value), f"{value:+.{digits}f}" if abs(value) > step / 2 else "0") for value in values]


def _round_step(step: float) -> float:
    unit = 10.0 ** math.floor(math.log10(step))
    return next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= step * 0.999)


@dataclass(frozen=True, kw_only=True)
class Point:
    """A mean with its interval on a scale.

    Args:
        at, low, high: in percent; the latter two are None without an interval.
        beyond: ``low`` or ``high`` where the mean is not on the scale.
        words: the numbers.
        about: what it is of.
        kind: number of the benchmark, for its colour; 0 for the mean over benchmarks.
    """

    at: float
    low: float | None
    high: float | None
    beyond: str
    about: str
    words: str = ""
    kind: int = 0


@dataclass(frozen=True, kw_only=True)
class Name:
    """A row's name, and the options behind it for whoever points at it."""

    text: str
    hint: str


@dataclass(frozen=True, kw_only=True)
class Lane:
    """A row of the plot: its points by benchmark, then the mean over benchmarks where there are several."""

    name: Name
    points: Sequence[Point]
    words: str
    differs: str


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Differences to a baseline in points, positive is better."""

    baseline: str
    lanes: Sequence[Lane]
    scale: Scale
    legend: Sequence[str]
    about: str

    @property
    def across(self) -> list[Lane]:
        """Those that speak for all benchmarks."""
        return [lane for lane in self.lanes if not self.legend or lane.points[-1].kind == 0]


@dataclass(frozen=True, kw_only=True)
class Score:
    """A cell of the leaderboard."""

    cell: Cell
    text: str
    mark: Mark
    point: Point | None
    spoken: str


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A row of the leaderboard."""

    row: Row
    name: Name
    scores: Sequence[Score]
    trained: str
    encoder: str
    cost: str
    cost_hint: str
    is_baseline: bool


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The first screen of one grid; its leaderboard is method × benchmark, with what a row trains and what a training step of it
    costs beside one of the row ``cost_of``."""

    verdict: str
    plot: Plot | None
    columns: Sequence[Column]
    headings: Sequence[str]
    standings: Sequence[Standing]
    cost_of: str


@dataclass(frozen=True, kw_only=True)
class Against:
    """A row against the baseline: by benchmark, and over all of them."""

    row: Row
    by_column: Mapping[Column, Difference]
    overall: stats.Estimate | None

    @property
    def differs(self) -> str:
        return _sign(self.overall.interval() if self.overall else None)

    def words(self) -> str:
        assert self.overall is not None
        return _in_words(self.overall)


def headline(grid: Grid, *, baseline: Row, compares: bool) -> Headline:
    """The first screen of a grid; where no study ``compares`` rows with a baseline, the verdict names the best rows."""
    names, columns = row_names(grid.rows), list(grid.first_columns.values())
    against = [] if grid.is_generated else _against(grid, baseline)
    return Headline(
        verdict=_verdict(grid, baseline, against, names, compares=compares),
        plot=_plot(against, baseline, names, columns=columns),
        columns=columns,
        headings=[_heading(column, columns) for column in columns],
        standings=_standings(grid, baseline, names, columns),
        cost_of=names[baseline].text,
    )


def row_names(rows: Sequence[Row]) -> dict[Row, Name]:
    """Names that tell the rows apart: a label as it is, but for one that is the method's options."""
    texts = {row: _name(row) for row in rows}
    said = list(texts.values())
    numbers: dict[str, int] = {}
    names = {}
    for row, text in texts.items():
        if said.count(text) > 1:
            numbers[text] = numbers.get(text, 0) + 1
            text += f" #{numbers[text]}"
        options = ", ".join(f"{name}={value}" for name, value in row.options.items())
        hint = " · ".join(dict.fromkeys(filter(None, (row.shown, row.method, options))))
        names[row] = Name(text=re.sub(r"(?<=\de)-(?=\d)", "−", text), hint=hint)  # a line does not end behind this sign
    return names


def _name(row: Row) -> str:
    title, label = METHOD_TITLES.get(row.method, row.method), row.label
    written = re.fullmatch(rf"{re.escape(row.method)}\[(.*)\](.*)", label)
    if written:
        label, behind = written[1], written[2]
    elif _OPTIONS.fullmatch(label) or label == "default":
        behind = ""
    elif label == row.method or label.startswith(f"{row.method},"):
        return title + label[len(row.method) :] + row.note
    else:
        return label + row.note
    options = [_option(word) for word in re.split(r"[,;] ?(?=[a-z_]+(?:=|$))", label)]
    more = len(options) - OPTIONS_SHOWN
    shown = ", ".join(options[:OPTIONS_SHOWN]) + (f" +{more}" if more > 0 else "")
    return f"{title}, {shown}{behind}{row.note}"


def _option(word: str) -> str:
    name, _, value = word.partition("=")
    name = name.replace("_", " ")
    return {"True": name, "False": f"no {name}", "": name}.get(value, f"{name} {value}")


def _against(grid: Grid, baseline: Row) -> list[Against]:
    compared = []
    columns = list(grid.first_columns.values())
    for row in grid.rows:
        if row is baseline:
            continue
        differences = {
            column: difference
            for column in columns
            if (difference := grid.difference(row, baseline, column)) is not None
        }
        if not differences:
            continue
        overall = None
        if len(differences) == len(columns):
            overall = stats.average_of([difference.estimate for difference in differences.values()])
        compared.append(Against(row=row, by_column=differences, overall=overall))
    return compared


def _plot(
    against: Sequence[Against], baseline: Row, names: Mapping[Row, Name], *, columns: Sequence[Column]
) -> Plot | None:
    if not against:
        return None
    several = len(columns) > 1
    estimates = [difference.estimate for row in against for difference in row.by_column.values()]
    estimates += [compared.overall for compared in against if compared.overall]
    means, intervals = zip(*((estimate.mean, estimate.interval()) for estimate in estimates), strict=True)
    scale = Scale.around(means, intervals, zero=True)
    lanes = []
    most = max(len(difference.by_seed) for row in against for difference in row.by_column.values())
    for compared in against:
        overall = compared.overall
        shown = [
            (difference.estimate, column.short, columns.index(column) + 1)
            for column, difference in compared.by_column.items()
        ]
        words = _in_words(overall or shown[0][0])
        if several and overall:
            shown.append((overall, f"mean of {len(columns)}", 0))
        points = [
            replace(
                _point(scale, estimate.mean, estimate.interval(), about=about), words=_in_words(estimate), kind=kind
            )
            for estimate, about, kind in shown
        ]
        if overall is None:
            some = f"{len(compared.by_column)} of {len(columns)}"
            words = (
                f"{words} ({some})".replace(" of ", "\N{NO-BREAK SPACE}of\N{NO-BREAK SPACE}")
                if len(compared.by_column) == 1
                else f"{some} benchmarks"
            )
        fewest = min(len(difference.by_seed) for difference in compared.by_column.values())
        words += f", n = {fewest}" if fewest < most else ""
        lanes.append(Lane(name=names[compared.row], points=points, words=words, differs=compared.differs))
    over = spread_over(difference for compared in against for difference in compared.by_column.values())
    about = f"Paired by seed and image, positive is better; bars: 95 % intervals over {over}."
    if several:
        about += " ◆ mean over benchmarks."
    if any(point.beyond for lane in lanes for point in lane.points):
        about += " ◁ ▷ beyond the axis."
    legend = [column.short for column in columns] if several else []
    return Plot(baseline=names[baseline].text, lanes=lanes, scale=scale, legend=legend, about=about)


def _point(scale: Scale, mean: float, interval: stats.Interval | None, *, about: str) -> Point:
    low, high = (scale.at(interval.low), scale.at(interval.high)) if interval else (None, None)
    return Point(at=scale.at(mean), low=low, high=high, beyond=scale.beyond(mean), about=about)


def _signed(value: float, digits: int = 1) -> str:
    return f"{value:+z.{digits}f}".replace("-", "−")


def _in_words(estimate: stats.Estimate) -> str:
    """``+1.2 [−0.3, +2.7]``"""
    interval = estimate.interval()
    if interval is None:
        return _signed(estimate.mean)
    digits = stats.digits_of(interval, 1)
    low, high = _signed(interval.low, digits), _signed(interval.high, digits)
    return f"{_signed(estimate.mean, digits)} [{low}, {high}]"


def _sign(interval: stats.Interval | None) -> str:
    if interval is None or interval.low <= 0 <= interval.high:
        return ""
    return "better" if interval.low > 0 else "worse"


def _verdict(
    grid: Grid, baseline: Row, against: Sequence[Against], names: Mapping[Row, Name], *, compares: bool
) -> str:
    """The answer in at most `MOST_WORDS` words, what says most first."""
    if grid.is_generated:
        return RANKS_NOTHING
    told = [compared for compared in against if compared.overall and compared.overall.interval()]
    if not compares or not told:
        return _within((_best(grid, names) if grid.marks else answers(grid)) or _highest(grid, names))
    base, columns = names[baseline].text, list(grid.first_columns.values())
    over = f"over {len(columns)} benchmarks" if len(columns) > 1 else f"on {columns[0].short}"
    lead = _lead(told, baseline, grid.rows)
    first = f"{names[lead.row].text} against {base}: {lead.words()} points {over}"
    first += f", {_significance(lead)}."
    sentences = [first, *_by_benchmark(lead, columns)]
    if len(told) > MANY_ROWS:
        sentences = [_counted(told, base, names, who=f"Of {len(told)} rows {over}"), *sentences]
    elif len(told) > 1:
        others = [compared for compared in told if compared is not lead]
        who = f"Of the other {len(others)}" if len(others) > 1 else names[others[0].row].text
        sentences.append(_counted(others, base, names, who=who))
    return _within([*sentences, *_collapsed(grid, {baseline, lead.row}, names)])


def _by_benchmark(lead: Against, columns: Sequence[Column]) -> list[str]:
    if len(columns) < 2:
        return []
    signs = {column: _sign(difference.interval) for column, difference in lead.by_column.items()}
    better, worse = (
        [column.benchmark_title for column, sign in signs.items() if sign == word] for word in ("better", "worse")
    )
    parts = [f"{word} on {' and '.join(on)}" for word, on in (("better", better), ("worse", worse)) if on]
    return [f"By benchmark: {', '.join(parts)}." if parts else "On no benchmark do they differ significantly."]


def _lead(told: Sequence[Against], baseline: Row, rows: Sequence[Row]) -> Against:
    """The row that a verdict speaks of: of another method than the baseline, the next behind it in the order of the study."""
    place = rows.index(baseline)
    order = [*rows[place:], *rows[:place]]
    return min(told, key=lambda compared: (compared.row.method == baseline.method, order.index(compared.row)))


def _counted(told: Sequence[Against], base: str, names: Mapping[Row, Name], *, who: str) -> str:
    """Of several rows how many are better and worse; of one, which it is."""
    if len(told) == 1:
        return f"{who}: {told[0].words()}, {_significance(told[0])}."
    parts = []
    for word in ("better", "worse"):
        rows = [names[compared.row].text for compared in told if compared.differs == word]
        if rows:
            parts.append(f"{rows[0] if len(rows) == 1 else len(rows)} significantly {word}")
    return f"{who}, {' and '.join(parts) or 'none differs significantly from'} {'than ' if parts else ''}{base}."


def _significance(compared: Against) -> str:
    return f"significantly {compared.differs}" if compared.differs else "not significantly different"


def _best(grid: Grid, names: Mapping[Row, Name]) -> list[str]:
    sentences = []
    for column in grid.first_columns.values():
        cells = grid.best_first(column)
        best = [cell for cell in cells if grid.marks.get(cell) == "best"]
        tied = [cell for cell in cells if grid.marks.get(cell) == "tied"]
        if best:
            said = f"{column.short}: {names[best[0].row].text} is best ({100 * best[0].value:.1f})"
            if tied:
                more = f" and {len(tied) - 1} more" if len(tied) > 1 else ""
                said += f", not significantly different from {names[tied[0].row].text}{more}"
            sentences.append(said + ".")
    return sentences


def _highest(grid: Grid, names: Mapping[Row, Name]) -> list[str]:
    """Which row leads each column, where every row has one seed."""
    sentences = ["Nothing is ranked: no two rows have two seeds each on one benchmark."]
    for column in grid.first_columns.values():
        cells = [cell for cell in grid.below(column) if cell.complete]
        if len(cells) > 1:
            best = max(cells, key=lambda cell: column.sign * cell.value)
            word = "Lowest" if column.sign < 0 else "Highest"
            sentences.append(f"{word} {column.short}: {names[best.row].text} ({100 * best.value:.1f}, one seed).")
    return sentences


def _collapsed(grid: Grid, rows: Iterable[Row], names: Mapping[Row, Name]) -> list[str]:
    """Where a run collapsed: nobody should have to guess what one bad run does to a mean and its interval."""
    where = []
    for row in grid.rows:
        for column in grid.first_columns.values() if row in rows else ():
            if collapsed(grid.cells[row, column]):
                where.append(f"{names[row].text} on {column.benchmark_title}")
    return [f"A run collapsed: {', '.join(where)}."] if where else []


def _within(sentences: Sequence[str]) -> str:
    """As many whole sentences as there is room for; the first is there, however long."""
    kept: list[str] = []
    for sentence in sentences:
        if kept and sum(len(part.split()) for part in (*kept, sentence)) > MOST_WORDS:
            continue
        kept.append(sentence)
    words = " ".join(kept).split()
    return " ".join(words) if len(words) <= MOST_WORDS else " ".join(words[: MOST_WORDS - 1]) + " …"


def _standings(grid: Grid, baseline: Row, names: Mapping[Row, Name], columns: Sequence[Column]) -> list[Standing]:
    scales: dict[Column, Scale] = {}
    for column in columns:
        if cells := [cell for cell in grid.below(column) if cell.complete]:
            scales[column] = Scale.around([cell.value for cell in cells], [cell.interval for cell in cells], zero=False)
    costs = step_costs(grid, baseline)
    standings = []
    for row in grid.rows:
        cost, hint = costs.get(row, ("", "no session of sam-peft cost has measured this row"))
        standings.append(
            Standing(
                row=row, name=names[row], scores=[_score(grid, row, column, scales.get(column)) for column in columns],
                trained=_count(row, "trainable"), encoder=_count(row, "encoder"), cost=cost, cost_hint=hint,
                is_baseline=row is baseline,
            )
        )  # fmt: skip
    return standings


def _heading(column: Column, columns: Sequence[Column]) -> str:
    """A column's heading, without the note, which may be long, where no other column needs it to be told apart."""
    arrow = "↓" if column.sign < 0 else "↑"
    if [other.short for other in columns].count(column.short) > 1:
        return column.heading(columns)
    return f"{column.short} {arrow}"


def _score(grid: Grid, row: Row, column: Column, scale: Scale | None) -> Score:
    cell = grid.cells[row, column]
    mark = grid.marks.get(cell, "")
    if not cell.complete or scale is None:
        text = f"{cell.code} {len(cell.seeds)}/{len(cell.planned)}" if cell.planned else "–"
        if cell.code == MISSING and not cell.seeds:
            text = "no data"
        return Score(cell=cell, text=text, mark="", point=None, spoken=text)
    interval = cell.interval
    point = _point(scale, cell.value, interval, about=column.short)
    words = f"95 % interval {100 * interval.low:.1f} to {100 * interval.high:.1f}" if interval else "one seed"
    said = {"best": ", best", "tied": ", not significantly different from the best"}.get(mark, "")
    text = f"{100 * cell.value:.1f}"
    return Score(cell=cell, text=text, mark=mark, point=point, spoken=f"{text}, {words}, n = {cell.n}{said}")


def _count(row: Row, part: str) -> str:
    """How many millions of parameters, or from how many to how many."""
    counts = sorted({record.parameters[part] for record in row.runs if part in record.parameters})
    millions = list(dict.fromkeys(f"{count / 1e6:.3f}" for count in (counts[:1] + counts[-1:])))
    return "–".join(millions)


def step_costs(grid: Grid, baseline: Row) -> dict[Row, tuple[str, str]]:
    """Row -> (its training step over the baseline's, paired by round, and what that is); nothing of rows that no session measured
    beside it."""
    session = session_for(grid, beside=baseline)
    if session is None:
        return {}
    costs = costs_of(grid, session)
    shown = session.comparability
    place = f"{shown.device}, batch {shown.batch}, {shown.image_size} px"
    return {
        row: (
            f"{ratio.value:.2f}×",
            f"{1e3 * statistics.median(cost.step_seconds['total']):.0f} ms a training step ({place})",
        )
        for row, cost in costs.items()
        if (ratio := ratios_within(cost, costs[baseline]).get("time"))
    }
