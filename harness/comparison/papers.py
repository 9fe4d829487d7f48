"""What papers published, each number with where it comes from and how sure that is, and what it was made with.

``results/paper/<paper>.csv``, columns `COLUMNS`: an unknown cell is a row without a value and with the mark ``?``: it says that
the paper has the number and that nobody here has read it. ``results/paper/setups.yaml``: paper -> card, backbone, checkpoint
and test images. A run under another card, on another backbone, from other weights or on other images is no attempt to
reproduce the number, and gets no verdict.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from harness import statistics as stats
from harness.archive.measured import CostRecord
from harness.archive.schema import Record
from harness.comparison.names import BENCHMARK_ORDER, METHOD_ORDER, METRICS, PAPER_METRICS
from harness.comparison.rows import grouped
from harness.comparison.rules import card, each_in_words, flat, from_card
from harness.registry import method_config
from harness.system.errors import UsageError, did_you_mean, os_reason
from harness.system.files import write_atomically

FOLDER = Path(__file__).parents[1] / "data" / "paper"
SETUPS = FOLDER / "setups.yaml"
PUBLISHED_SPLITS = ("official", "AutoGluon's", "PraNet's")
"""How a split rule begins (`harness.datasets.base.Splits.rule`) whose test images are published."""
MOST_NAMED = 4
"""Differences to a set-up that a cell names before it counts the rest."""

MARKS = {
    "P": "stated on a public page about the paper",
    "C": "read in public code",
    "R": "read in public code and run",
    "D": "derived by arithmetic",
    "S": "quoted by third parties that had the paper; a typo is possible",
    "?": "not known",
}
SPREADS = ("", "se", "sd")
PARAMETERS = "parameters_m"
"""Trained parameters with the mask decoder, in millions; such a cell belongs to no benchmark."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """One cell of a paper's table; scores in percent, as printed.

    Args:
        paper: file name without suffix.
        table: number or name of the table.
        method, benchmark, split, metric: canonical names; benchmark and split are empty for `PARAMETERS`.
        options: what an ablation changes in the method's configuration: ``rank=6``, ``search_start_epoch=0;stagewise=true``.
        value: as printed, so that its digits are kept; empty if unknown.
        spread: the number after ±, empty where there is none.
        spread_kind: ``se`` or ``sd``.
        runs: how many runs the paper averaged.
        source: where the number was read.
        mark: see `MARKS`.
    """

    paper: str
    table: str
    method: str
    benchmark: str
    split: str
    metric: str
    options: str = ""
    value: str = ""
    spread: str = ""
    spread_kind: str = ""
    runs: str = ""
    source: str = ""
    mark: str = "?"

    @property
    def cell(self) -> tuple[str, ...]:
        """What must be unique."""
        return (self.paper, self.table, self.method, self.benchmark, self.split, self.metric, self.options)

    @property
    def settings(self) -> dict[str, Any]:
        """``options`` with the values' own types. Raises UsageError: not ``NAME=VALUE;…``."""
        return parse_settings(self.options)

    @property
    def number(self) -> float | None:
        return float(self.value) if self.value else None

    @property
    def text(self) -> str:
        return f"{self.value} ± {self.spread} {self.spread_kind.upper()}" if self.spread else self.value

    @property
    def cited(self) -> str:
        return f"{self.paper}, {self.table} [{self.mark}]"

    @property
    def half_digit(self) -> float:
        """Half a unit of the last printed digit."""
        return 0.5 * 10.0 ** -len(self.value.partition(".")[2])


def parse_settings(text: str) -> dict[str, Any]:
    """Values as JSON has them where they are JSON (numbers, true, lists), text else."""
    values: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in text.split(";"))):
        name, equals, value = (part.strip() for part in item.partition("="))
        if not (name and equals and value):
            raise UsageError(f"options {text!r}: {item!r} is not NAME=VALUE (several are joined by ;)")
        try:
            values[name] = json.loads(value)
        except json.JSONDecodeError:
            values[name] = value
    return values


COLUMNS = tuple(f.name for f in fields(Published) if f.name != "paper")


def read_published(folder: Path = FOLDER) -> list[Published]:
    """Every cell of every paper, in the order of the files. Raises UsageError: a file is not CSV with the columns of
    `COLUMNS`."""
    return [cell for path in sorted(folder.glob("*.csv")) for cell in read_file(path)]


def read_file(path: Path) -> list[Published]:
    """Raises as `read_published`."""
    try:
        rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} is not readable CSV: {error}") from error
    if not rows or tuple(rows[0]) != COLUMNS:
        raise UsageError(f"{path}: the first line must be {','.join(COLUMNS)}")
    cells = []
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(COLUMNS):
            raise UsageError(f"{path}, line {number}: {len(row)} fields instead of {len(COLUMNS)}")
        cells.append(Published(paper=path.stem, **dict(zip(COLUMNS, (item.strip() for item in row), strict=True))))
    return cells


def write_file(path: Path, cells: Iterable[Published]) -> None:
    """Raises UsageError if the file cannot be written; the old one stays whole."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([getattr(cell, name) for name in COLUMNS] for cell in cells)
    try:
        write_atomically(path, out.getvalue())
    except OSError as error:
        raise UsageError(f"cannot write {path}: {os_reason(error)}") from error


def add(folder: Path, cell: Published) -> str:
    """Fill an empty cell of its paper's file, or append a new one; returns which it was. Raises UsageError: the cell is wrong
    (see `problems`), or holds a number already."""
    wrong = problems([cell])
    if wrong:
        raise UsageError(wrong[0])
    path = folder / f"{cell.paper}.csv"
    cells = read_file(path) if path.is_file() else []
    for index, known in enumerate(cells):
        if known.cell != cell.cell:
            continue
        if known.value:
            raise UsageError(
                f"{path} has {known.value} ({known.source}) in this cell already; edit the file to replace it"
            )
        cells[index] = replace(cell)
        write_file(path, cells)
        return f"{path}: filled"
    write_file(path, [*cells, cell])
    return f"{path}: added"


def problems(cells: Iterable[Published], *, methods: Iterable[str] = METHOD_ORDER) -> list[str]:
    """One line for everything that is wrong: unknown names, impossible numbers, missing sources, two of one cell."""
    lines = []
    seen: dict[tuple[str, ...], int] = {}
    known_methods = tuple(methods)
    for cell in cells:
        where = f"{cell.paper}, table {cell.table}, {cell.method}, {cell.benchmark or '-'}, {cell.metric}"
        lines += [f"{where}: {text}" for text in _problems_of(cell, known_methods)]
        seen[cell.cell] = seen.get(cell.cell, 0) + 1
        if seen[cell.cell] == 2:
            lines.append(f"{where}: this cell is there twice")
    return lines


def _problems_of(cell: Published, methods: tuple[str, ...]) -> Iterator[str]:
    if cell.method not in methods:
        yield f"unknown method {cell.method!r}{did_you_mean(cell.method, methods)}"
    if cell.metric == PARAMETERS:
        if cell.benchmark or cell.split:
            yield "a parameter count belongs to no benchmark"
    elif cell.benchmark not in BENCHMARK_ORDER:
        yield f"unknown benchmark {cell.benchmark!r}{did_you_mean(cell.benchmark, BENCHMARK_ORDER)}"
    elif cell.metric not in METRICS:
        yield f"unknown metric {cell.metric!r}{did_you_mean(cell.metric, METRICS)}"
    elif cell.metric not in PAPER_METRICS[cell.benchmark]:
        reported = ", ".join(PAPER_METRICS[cell.benchmark])
        yield f"papers report {cell.benchmark} by {reported}, not by {cell.metric}"
    if cell.options and cell.method in methods:
        try:
            method_config(cell.method, cell.settings)
        except ValueError as error:  # UsageError, or what the method itself refuses
            yield str(error)
    highest = 1e5 if cell.metric == PARAMETERS else 100.0
    for name, text in (("value", cell.value), ("spread", cell.spread)):
        try:
            number = float(text or 0)
        except ValueError:
            yield f"{name} {text!r} is not a number"
            continue
        if not 0 <= number <= highest:
            yield f"{name} {text} is outside 0 to {highest:g}" + (" (percent)" if highest == 100 else "")
        elif name == "value" and cell.metric != PARAMETERS and 0 < number <= 1:
            yield f"value {text}: scores are in percent here; {100 * number:g} is meant?"
    if cell.spread_kind not in SPREADS or bool(cell.spread) != bool(cell.spread_kind):
        yield f"a spread needs its kind (se or sd), and a kind its spread: {cell.spread!r}, {cell.spread_kind!r}"
    if cell.runs and not (cell.runs.isdigit() and int(cell.runs) > 0):
        yield f"runs {cell.runs!r} is not a count"
    if cell.mark not in MARKS:
        yield f"unknown mark {cell.mark!r} (choose from {', '.join(MARKS)})"
    elif bool(cell.value) == (cell.mark == "?"):
        yield "a number needs a mark other than ?" if cell.value else f"no number, but the mark {cell.mark}"
    if cell.value and not cell.source:
        yield "a number needs a source (the page or table where it was read)"


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What one paper's numbers were made with.

    Args:
        card: the harness's card that holds its rules.
        backbone: name in the catalogue.
        checkpoint: as in `Run.checkpoint`.
        test_images: benchmark -> images in its test splits; one that is not named has no known test split.
    """

    card: str
    backbone: str
    checkpoint: str
    test_images: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Papers:
    """What papers published, and what that was made with.

    Args:
        published: their numbers.
        setups: paper -> what its numbers were made with; None to hold them against whatever was run, for pages that say so.
    """

    published: Sequence[Published] = ()
    setups: Mapping[str, Setup] | None = field(default_factory=dict)

    @classmethod
    def read(cls) -> Papers:
        """Those that come with the harness."""
        return cls(published=read_published(), setups=read_setups())

    @property
    def cards(self) -> set[str]:
        """The cards that hold a paper's rules: numbers stand beside what was run under them, whatever the study's own card."""
        return {setup.card for setup in (self.setups or {}).values()}

    def setup(self, paper: str) -> Setup | None:
        return (self.setups or {}).get(paper)

    def numbers_of(self, method: str, benchmark: str, split: str, metric: str) -> list[Published]:
        """Known numbers of a row and column; benchmark and split are empty for `PARAMETERS`."""
        return self._by_place.get((method, benchmark, split, metric), [])

    @cached_property
    def _by_place(self) -> dict[tuple[str, str, str, str], list[Published]]:
        known = (number for number in self.published if number.value)
        return grouped(known, lambda number: (number.method, number.benchmark, number.split, number.metric))

    def departures(self, paper: str, records: Iterable[Record]) -> tuple[str, ...]:
        """How these runs differ from what a paper's numbers were made with; all of it, each once."""
        if self.setups is None:
            return ()
        setup = self.setup(paper)
        if setup is None:
            return (f"what {paper} used is not known here",)
        return tuple(dict.fromkeys(word for record in records for word in departures(record, setup)))

    def departures_of_session(self, paper: str, session: CostRecord) -> tuple[str, ...]:
        """The same for a cost session: device, backbone, and what of the card a step's cost depends on."""
        setup = self.setup(paper)
        if setup is None:
            return (f"what {paper} used is not known here",)
        shown, words = session.comparability, []
        if not shown.on_gpu:
            words.append(f"on a CPU ({shown.device})")
        if session.shared:
            words.append("device shared")
        if shown.backbone != setup.backbone:
            words.append(f"backbone {shown.backbone} instead of {setup.backbone}")
        rules = card(setup.card, "")
        if rules is None:
            return (*words, f"the card {setup.card} is not known")
        rules = flat(rules)
        ours = {
            "image_size": shown.image_size, "batch_size": shown.batch, "precision": shown.precision, **shown.options
        }  # fmt: skip
        changed = {name: (value, rules[name]) for name, value in ours.items() if name in rules and value != rules[name]}
        return (*words, *each_in_words(changed))


def read_setups() -> dict[str, Setup]:
    """Raises UsageError with what is wrong with the file."""
    from harness.check import from_mapping
    from harness.system.yaml_files import read_yaml

    data = read_yaml(SETUPS, what="published set-ups")
    if not isinstance(data, Mapping):
        raise UsageError(f"{SETUPS}: expected a mapping of papers to what their numbers were made with")
    return {str(paper): from_mapping(Setup, values, where=f"{SETUPS}, {paper}") for paper, values in data.items()}


def departures(record: Record, setup: Setup) -> list[str]:
    """How a run differs from the published set-up, in words; empty where it does not."""
    run = record.run
    words = []
    if run.backbone != setup.backbone:
        words.append(f"backbone {run.backbone} instead of {setup.backbone}")
    if run.checkpoint != setup.checkpoint:
        words.append("other weights" if run.checkpoint else "random weights")
    words += _other_images(record, setup)
    rules = card(setup.card, run.benchmark)
    if rules is None:
        return [*words, f"the card {setup.card} is not known"]
    return [*words, *each_in_words(from_card(run.rules, rules))]


def _other_images(record: Record, setup: Setup) -> list[str]:
    run, published = record.run, setup.test_images.get(record.run.benchmark)
    if run.data_note:
        return [run.data_note]
    if published is None:
        return ["no published test split"]
    if not run.split_rule.startswith(PUBLISHED_SPLITS):
        return [f"test images by another rule ({run.split_rule})"]
    ours = sum(record.tested.values())
    return [f"{ours} test images instead of {published}"] if ours and ours != published else []


def shortly(departures: Iterable[str]) -> str:
    """For a cell: the first few, and how many more there are."""
    every = list(dict.fromkeys(departures))
    more = f" and {len(every) - MOST_NAMED} more" if len(every) > MOST_NAMED else ""
    return "; ".join(every[:MOST_NAMED]) + more


def against(ours: Sequence[float], published: Published) -> stats.Estimate:
    """Ours minus the paper's number, in points, with the variance of both.

    Where the paper prints no spread, its runs (one, if it does not say how many) are taken to vary as ours do.

    Args:
        ours: one score a seed, in percent.
    """
    assert published.number is not None
    estimate, runs = stats.of_seeds(ours), int(published.runs or 0)
    if not published.spread:
        spread = stats.sd(ours)
        if spread is None:
            return stats.differ(estimate, published.number, error=0.0, df=math.inf)
        of_ours, of_theirs = spread**2 / len(ours), spread**2 / max(runs, 1)
        both = stats.VarianceShare(
            variance=of_ours + of_theirs, df=len(ours) - 1, narrows=of_ours / (of_ours + of_theirs) if spread else 1
        )
        return stats.Estimate(mean=estimate.mean - published.number, n=len(ours), seeds=both)
    error = float(published.spread)
    if published.spread_kind == "sd":
        error /= math.sqrt(max(runs, 1))
    return stats.differ(estimate, published.number, error=error, df=max(runs - 1, 1) if runs else 2)
