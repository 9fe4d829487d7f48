"""Runs in a terminal, from their records and what lies beside them: one (rules, learning curve, mixtures, scores, cost, files),
two beside each other, and two results folders beside each other.
What stands behind any cell of any page, the cell tells itself.
"""

from __future__ import annotations

import math
import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tabulate import tabulate

from harness.archive.archive import Archive
from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.comparison.alpha import MEANINGS, alpha_code, search_start
from harness.comparison.names import benchmark_title, metric, shown_metrics
from harness.comparison.rows import begun_by
from harness.comparison.rules import NOT_THERE, Difference, card, differences, from_card, in_words
from harness.protocols.keys import hashed_options
from harness.registry import operation_names
from harness.report.page import Line, Page, Shown, Table
from harness.system.errors import UsageError, did_you_mean

GIB = 2**30
WIDTH = 60
"""Columns of a curve's bars at most; with the labels before them it fits into 80."""
WIDEST = 6
"""Columns of one epoch at most."""
EIGHTHS = " ▁▂▃▄▅▆▇█"
BAR = 30
"""Columns of a share of 1."""


def record_as_data(record: Record, store: RecordStore) -> dict[str, Any]:
    """What `in_terminal` shows, as plain data; ``rules_changed`` is None where the card is not known."""
    changed = _changed(record)
    content = asdict(record)
    names = ("key", "code", "message", "run", "scores", "selected_epoch", "parameters", "counts", "history", "cost",
             "environment", "attempts", "finished")  # fmt: skip
    return {
        **{name: content[name] for name in names},
        "rules_changed": None if changed is None else {k: {"run": a, "card": b} for k, (a, b) in changed.items()},
        "search_start": search_start(record),
        "operations": list(operation_names(record.run.method, record.run.method_config)),
        "mixtures": record.architecture[-1] if record.architecture else {},
        "files": files(record, store),
    }


def in_terminal(record: Record, store: RecordStore) -> str:
    """The run in a page of at most 80 columns, save for names and paths that are longer."""
    run = record.run
    sections = {
        "": _heading(record),
        "rules": _rules(record),
        "learning curve": _curves(record),
        "mixtures at the end": _mixtures(record),
        "scores (%)": _scores(record),
        "cost": _cost(record),
        "files": files(record, store),
    }
    head = f"{run.variant} on {run.benchmark}, seed {run.seed}: {record.code}"
    lines = [head + (f": {record.message}" if record.message else "")]
    for title, body in sections.items():
        if body:
            lines += [*([f"\n{title}"] if title else []), *(f"  {line}" for line in body)]
    return "\n".join(lines) + "\n"


def files(record: Record, store: RecordStore) -> list[str]:
    """What there is of the run on disk: record, tables beside it, then its state (checkpoints, logs)."""
    key = record.key
    beside = (store.path(key), store.images_path(key), store.architecture_path(key), store.masks_path(key))
    state = store.root / "state" / key
    kept = sorted(state / name for name in os.listdir(state)) if state.is_dir() else []
    return [str(path) for path in (*beside, *kept) if path.is_file()]


def _heading(record: Record) -> list[str]:
    run = record.run
    options = ", ".join(f"{name}={value}" for name, value in sorted(run.method_config.items()))
    counts = ", ".join(f"{name} {count:,}" for name, count in record.parameters.items())
    images = ", ".join(f"{name} {count}" for name, count in record.counts.items())
    where = ", ".join(record.environment[name] for name in ("device", "host") if record.environment.get(name))
    starts = f"{record.attempts} start{'s' if record.attempts != 1 else ''}"
    said = {
        "key": record.key,
        "backbone": f"{run.backbone}, checkpoint {run.checkpoint or 'none (random weights)'}",
        "options": options or "none",
        "parameters": counts,
        "images": images + (f" ({run.data_note})" if run.data_note else ""),
        "finished": ", ".join(part for part in (record.finished, where, starts + begun_by(record)) if part),
    }
    return [line for name, text in said.items() if text for line in _wrapped(f"{name:<12}{text}")]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 78, subsequent_indent=" " * 12, break_long_words=False, break_on_hyphens=False)


def _changed(record: Record) -> Difference | None:
    of_card = card(record.run.protocol, record.run.benchmark)
    return None if of_card is None else from_card(record.run.rules, of_card)


def _rules(record: Record) -> list[str]:
    run, changed = record.run, _changed(record)
    named = f"card {run.protocol}, hash {run.protocol_hash}"
    if changed is None:
        return [f"{named}: no card of this name here to compare with"]
    if not changed:
        return [f"{named}: as the card says"]
    return [f"{named}, and instead of what the card says:", *(f"  {in_words({k: v})}" for k, v in changed.items())]


def _curves(record: Record) -> list[str]:
    epochs, start = len(record.history), search_start(record)
    if not epochs:
        return []
    lines = [
        f"{epochs} epoch{'s' if epochs != 1 else ''}"
        + (f", T_B after epoch {start}: α learns from then on" if start else "")
    ]

    def draw(title: str, values: Mapping[int, float], *, height: int) -> None:
        bars = curve(values, epochs=epochs, height=height, mark=start)
        if bars:
            lines.extend([title, *bars])

    draw("loss", {epoch["epoch"]: epoch["loss"] for epoch in record.history}, height=4)
    chosen = f", best checkpoint in epoch {record.selected_epoch}" if record.selected_epoch else ""
    for name in sorted({name for epoch in record.history for name in epoch.get("val", {})}):
        values = {epoch["epoch"]: 100 * epoch["val"][name] for epoch in record.history if name in epoch.get("val", {})}
        draw(f"validation {name} (%){chosen}", values, height=4)
    draw("rate", {epoch["epoch"]: epoch["lr"] for epoch in record.history}, height=2)
    return lines


def _mixtures(record: Record) -> list[str]:
    last = record.architecture[-1] if record.architecture else {}
    names = operation_names(record.run.method, record.run.method_config)
    width = max((len(shares) for shares in last.values()), default=0)
    if width < 2:
        return []
    shares = [value for value in last.values() if len(value) == width]
    labels = names if len(names) == width else tuple(f"w{index}" for index in range(width))
    room = max(map(len, labels))
    lines = [f"mean share over {len(shares)} sites, and the range"]
    for index, label in enumerate(labels):
        of_operation = [of_site[index] for of_site in shares]
        mean = math.fsum(of_operation) / len(of_operation)
        whole, rest = divmod(round(8 * BAR * mean), 8)
        bar = "█" * whole + (EIGHTHS[rest] if rest else "")
        spread = f"{min(of_operation):.3f}–{max(of_operation):.3f}"
        lines.append(f"{label:<{room}}  {mean:.3f}  {spread}  {bar}".rstrip())
    code = alpha_code(record, last)
    return [*lines, *(textwrap.wrap(MEANINGS[code], 78) if code else [])]


def _scores(record: Record) -> list[str]:
    lines = []
    for variant, splits in record.scores.items():
        for split, values in splits.items():
            words = ", ".join(f"{name} {100 * value:.2f}" for name, value in values.items())
            lines += textwrap.wrap(f"{variant} {split}: {words}", 78, subsequent_indent="  ")
    return lines


def _cost(record: Record) -> list[str]:
    cost = record.cost
    said = [
        ("step_time_s", "{:.4g} s a pass (median)", 1.0),
        ("train_time_s", "{:.4g} s in updates", 1.0),
        ("wall_time_s", "{:.4g} s of training in all", 1.0),
        ("peak_memory_bytes", "{:.2f} GiB at most", 1.0 / GIB),
        ("gpu_hours", "{:.3g} GPU-hours", 1.0),
    ]
    words = [text.format(factor * cost[name]) for name, text, factor in said if cost.get(name)]
    return [*textwrap.wrap(", ".join(words), 78), *_where_time_went(record)]


def _where_time_went(record: Record) -> list[str]:
    """The stages of the start that finished the run, and before them what earlier starts trained, so that the seconds add up;
    none where the record is older than they are."""
    cost = record.cost
    stages = {name[6:-2]: seconds for name, seconds in cost.items() if name.startswith("stage_")}
    whole = sum(stages.values())
    if not whole:
        return []
    shares = [f"{name} {100 * seconds / whole:.0f} %" for name, seconds in stages.items() if seconds >= 0.005 * whole]
    outside = max(0.0, 1 - cost.get("passes_s", 0.0) / whole)
    text = (
        f"{whole:.4g} s from start to record: {', '.join(shares)}; outside the network's passes {100 * outside:.0f} %"
    )
    trained = stages.get("training", 0.0) + stages.get("validating", 0.0)
    before = cost.get("wall_time_s", 0.0) - trained
    if record.attempts > 1 and before > 0.005 * whole:
        text = f"{whole + before:.4g} s in all: {before:.4g} s of training before the last of {record.attempts} starts, then {text}"
    return textwrap.wrap(text, 78)


def curve(values: Mapping[int, float], *, epochs: int, height: int, mark: int | None = None) -> list[str]:
    """Bars of block characters in a terminal, one an epoch: the lines of a curve from its smallest value (one eighth of a row)
    to its largest; empty without a finite value.

    Args:
        values: epoch (1-based) -> value; epochs without one stay blank. More epochs than fit are averaged in groups.
        epochs: how many there are.
        height: rows of the bars.
        mark: an epoch that is marked below the bars with ``T_B``.
    """
    group = -(-epochs // WIDTH)
    columns = -(-epochs // group)
    means: list[float | None] = []
    for column in range(columns):
        members = range(column * group + 1, min(epochs, (column + 1) * group) + 1)
        finite = [values[epoch] for epoch in members if math.isfinite(values.get(epoch, math.nan))]
        means.append(math.fsum(finite) / len(finite) if finite else None)
    known = [value for value in means if value is not None]
    if not known:
        return []
    low, high = min(known), max(known)
    cells = max(1, min(WIDEST, WIDTH // columns))
    full = 8 * height
    levels = [
        0 if v is None else full if high == low else 1 + round((full - 1) * (v - low) / (high - low)) for v in means
    ]
    labels = {0: f"{high:.4g}", height - 1: f"{low:.4g}"} if height > 1 and high > low else {0: f"{high:.4g}"}
    lines = []
    for row in range(height):
        below = 8 * (height - 1 - row)
        bars = "".join(EIGHTHS[max(0, min(8, level - below))] * cells for level in levels)
        lines.append(f"{labels.get(row, ''):>10} │{bars}".rstrip())
    if mark is not None and 1 <= mark <= epochs:
        lines.append(f"{'':>10} │{' ' * ((mark - 1) // group * cells + cells - 1)}↑ T_B")
    return lines


ASKED = ("method", "benchmark", "backbone", "checkpoint", "protocol", "seed", "manifest", "data_fingerprint")
MADE_WITH = ("commit", "torch", "device", "numbers")
Pair = tuple[Any, Any]
"""Of the first run and of the second."""


def compared(first: Record, second: Record) -> dict[str, dict[str, Pair]]:
    """``differences`` of what was asked and made with; ``scores`` in % and ``cost``, of what either of the two has."""
    asked = {name: (getattr(first.run, name), getattr(second.run, name)) for name in ASKED}
    options = _beside(
        hashed_options(first.run.method, first.run.method_config),
        hashed_options(second.run.method, second.run.method_config),
    )
    made = {name: (first.environment.get(name), second.environment.get(name)) for name in MADE_WITH}
    scores = [{" ".join(place): 100 * value for place, value in _flat(of_run).items()} for of_run in (first, second)]
    return {
        "differences": {
            **_unequal({"outcome": (first.code, second.code), **asked}),
            **_unequal({f"option {name}": pair for name, pair in options.items()}),
            **{f"rule {name}": pair for name, pair in differences(first.run.rules, second.run.rules).items()},
            **_unequal(made),
        },
        "scores": _beside(*scores, missing=None),
        "cost": _beside(first.cost, second.cost, missing=None),
    }


def compared_in_terminal(first: Record, second: Record) -> str:
    """The two as A and B, with B − A where both are numbers."""
    content = compared(first, second)
    lines = [
        f"{name}: {record.key}, {record.run.variant} on {record.run.benchmark}, seed {record.run.seed}: {record.code}"
        for name, record in (("A", first), ("B", second))
    ]
    if rows := [[name, _cut(a), _cut(b)] for name, (a, b) in content["differences"].items()]:
        lines += ["", tabulate(rows, headers=["differs in", "A", "B"], disable_numparse=True)]
    else:
        lines += ["", "no difference in what was asked"]
    for name, heading, form in (("scores", "scores (%)", ".2f"), ("cost", "cost", ".4g")):
        if numbers := [[key, *_numbers(pair, form)] for key, pair in content[name].items()]:
            align, headers = ("left", "right", "right", "right"), [heading, "A", "B", "B − A"]
            lines += ["", tabulate(numbers, headers=headers, disable_numparse=True, colalign=align)]
    return "\n".join(lines) + "\n"


def _flat(record: Record) -> dict[tuple[str, str, str], float]:
    """(scored model, split, metric) -> score."""
    return {(model, split, metric): value for model, split, metric, value in record.each_score()}


def _beside(first: Mapping[str, Any], second: Mapping[str, Any], *, missing: Any = NOT_THERE) -> dict[str, Pair]:
    return {name: (first.get(name, missing), second.get(name, missing)) for name in {**first, **second}}


def _unequal(pairs: Mapping[str, Pair]) -> dict[str, Pair]:
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _numbers(pair: Pair, form: str) -> list[str]:
    first, second = pair
    difference = "" if first is None or second is None else f"{second - first:+{form}}"
    return [*("–" if value is None else f"{value:{form}}" for value in pair), difference]


def _cut(value: Any) -> str:
    text = "none" if value in (None, "") else str(value)
    return text if len(text) <= 24 else f"{text[:23]}…"


MOST_ROWS = 40


@dataclass(frozen=True, kw_only=True)
class SharedRun:
    """A run that two folders have: the same run where the keys are equal, else one of the same name under other rules, data,
    options or weights."""

    first: Record
    second: Record

    @property
    def same_key(self) -> bool:
        return self.first.key == self.second.key

    @cached_property
    def differences(self) -> dict[tuple[str, str, str], float]:
        """(scored model, split, metric) -> B − A in points, of the scores that both have."""
        ours, theirs = _flat(self.first), _flat(self.second)
        return {place: 100 * (theirs[place] - value) for place, value in ours.items() if place in theirs}

    @property
    def largest(self) -> float:
        return max(map(abs, self.differences.values()), default=0.0)


@dataclass(frozen=True, kw_only=True)
class TwoFolders:
    """Two results folders A and B beside each other.

    Args:
        both: runs that both have, those with the same key first.
        alone: ``A`` and ``B`` -> records that only this one has.
        unreadable: file -> reason.
    """

    folders: tuple[Archive, Archive]
    both: list[SharedRun]
    alone: dict[str, list[Record]]
    unreadable: dict[Path, str]

    @classmethod
    def of(cls, first: Archive, second: Archive) -> TwoFolders:
        by_key = {record.key: record for record in second.records}
        both = [SharedRun(first=record, second=by_key[record.key]) for record in first.records if record.key in by_key]
        known = {pair.first.key for pair in both}
        rest = {_named(record): record for record in second.records if record.key not in known}
        alone = []
        for record in (record for record in first.records if record.key not in known):
            if other := rest.pop(_named(record), None):
                both.append(SharedRun(first=record, second=other))
            else:
                alone.append(record)
        paired = {pair.second.key for pair in both}
        only = [record for record in second.records if record.key not in paired]
        problems = {**first.problems, **second.problems}
        return cls(folders=(first, second), both=both, alone={"A": alone, "B": only}, unreadable=problems)

    def in_terminal(self) -> str:
        """Counts, then a line a pair: the first metric that tables show of its benchmark, and the largest difference of any score."""
        alike = [pair for pair in self.both if pair.same_key]
        equal = [
            pair
            for pair in alike
            if pair.largest == 0.0 and pair.first.code == pair.second.code
            and _flat(pair.first).keys() == _flat(pair.second).keys()
        ]  # fmt: skip
        first, second = self.folders
        lines = [f"A: {first.root}", f"B: {second.root}", ""]
        lines.append(f"{len(alike)} runs in both, {len(equal)} of them with the same scores to the last digit")
        if len(self.both) > len(alike):
            others = len(self.both) - len(alike)
            lines.append(f"{others} of the same name under other rules, options, data or weights (*)")
        lines.append(f"{len(self.alone['A'])} in A alone, {len(self.alone['B'])} in B alone")
        ordered = sorted(self.both, key=lambda pair: pair.largest, reverse=True)
        if rows := [_row(pair) for pair in ordered if pair not in equal]:
            align = ("left", "left", "left", "right", "right", "right", "right")
            heads = ["run", "benchmark", "metric", "A", "B", "B − A", "largest"]
            lines += ["", tabulate(rows[:MOST_ROWS], headers=heads, disable_numparse=True, colalign=align)]
            lines += [f"and {len(rows) - MOST_ROWS} more (--json has all)"] if len(rows) > MOST_ROWS else []
            lines.append("scores in %; largest: of all scores that both have; --compare KEY KEY looks into two runs")
        for name, records in self.alone.items():
            lines += [f"{name} alone: {_in_words(record)}" for record in records[:MOST_ROWS]]
            left = len(records) - MOST_ROWS
            lines += [f"{name} alone: {left} more (--json has all)"] if left > 0 else []
        lines += [f"unreadable: {path}: {reason}" for path, reason in self.unreadable.items()]
        return "\n".join(lines) + "\n"

    def as_data(self) -> dict[str, Any]:
        """The same, JSON-ready."""
        pairs = [
            {
                "A": pair.first.key,
                "B": pair.second.key,
                "run": _in_words(pair.first),
                "outcome": [pair.first.code, pair.second.code],
                "differences": {" ".join(place): value for place, value in pair.differences.items()},
            }
            for pair in self.both
        ]
        alone = {name: [record.key for record in records] for name, records in self.alone.items()}
        return {"both": pairs, **alone, "unreadable": {str(path): why for path, why in self.unreadable.items()}}


def _named(record: Record) -> tuple[str, str, str, str, int]:
    """What two runs share that are the same but for rules, options, data or weights."""
    run = record.run
    return run.protocol, run.backbone, run.benchmark, run.variant, run.seed


def _in_words(record: Record) -> str:
    run = record.run
    return f"{run.variant} on {run.benchmark}, seed {run.seed} ({record.key}, {run.protocol}, {run.backbone})"


def _row(pair: SharedRun) -> list[str]:
    run, title = pair.first.run, benchmark_title(pair.first.run.benchmark, [pair.first.run])
    name = f"{run.variant}, seed {run.seed}{'' if pair.same_key else ' *'}"
    tested = [place for place in pair.differences if place[0] == "best" and place[1] != "val"]
    if not tested:
        return [name, title, "", pair.first.code, pair.second.code, "", ""]
    order = shown_metrics(run.benchmark, [run], scored={place[2] for place in tested})
    shown = min(tested, key=lambda place: order.index(place[2]) if place[2] in order else len(order))
    _, split, of = shown
    values = [f"{100 * _flat(record)[shown]:.2f}" for record in (pair.first, pair.second)]
    what = metric(of).title + (f" {split}" if split != "test" else "")
    return [name, title, what, *values, f"{pair.differences[shown]:+.2f}", f"{pair.largest:.2f}"]


MOST_LEFT_OUT = 5
"""Runs that are listed one by one; of more the text has the number."""


def explain(page: Page, archive: Archive, *, row: str, column: str) -> str:
    """`explained` as text, ending in a newline; of many runs that are left out it gives the number."""
    told = explained(page, archive, row=row, column=column)
    return "\n".join("\n".join([head, *_shortened(lines)]) + "\n" for head, lines in told)


def explained(page: Page, archive: Archive, *, row: str, column: str) -> list[tuple[str, Sequence[str]]]:
    """What the cell is called and what is behind it, line by line, in every table of the page that has it.

    Args:
        row: a row's label, as printed or any part of it that is unique.
        column: a column as printed (``Kvasir-SEG Sα``), or ``kvasir.s_measure``, or ``trans10k_v1.easy.miou``.

    Raises:
        UsageError: no such row or column, or several; or no table has both.
    """
    tables = [table for table in page.tables if table.columns]
    rows: dict[str, set[str]] = {}
    for line in (line for table in tables for line in table.rows):
        rows.setdefault(line.label, {line.label}).add(line.cells[0].text)
    label = _choose("row", row, rows)
    columns: dict[str, set[str]] = {}
    for table in (table for table in tables if any(line.label == label for line in table.rows)):
        for head in table.columns:
            columns.setdefault(head.title, set()).update(head.names)
    title = _choose("column", column, columns)
    told = [cell for table in tables for cell in _explained(table, archive, label=label, title=title)]
    if not told:
        raise UsageError(f"no table of this page has both the row {label!r} and the column {title!r}")
    return told


def _explained(table: Table, archive: Archive, *, label: str, title: str) -> list[tuple[str, Sequence[str]]]:
    titles = [head.title for head in table.columns]
    if title not in titles:
        return []
    place = titles.index(title)
    told = []
    for line in (line for line in table.rows if line.label == label):
        cell = line.cells[place]
        head = " · ".join([table.heading, label, *words_before(table, line, place), f"{title}: {cell.text}"])
        told.append((head, behind(cell, archive)))
    return told


def _shortened(lines: Sequence[str]) -> Sequence[str]:
    kept = [line for line in lines if not line.lstrip().startswith("left out: ")]
    left_out = len(lines) - len(kept)
    if left_out <= MOST_LEFT_OUT:
        return lines
    return [*kept, f"  {left_out} other runs left out (--json lists them)"]


def behind(cell: Shown, archive: Archive) -> Sequence[str]:
    """What a cell tells of itself, line by line."""
    return cell.of.why(archive) if cell.of else ["  nothing else is known of it"]


def words_before(table: Table, line: Line, place: int) -> list[str]:
    """The cells between a row's name and the one at ``place``, where they tell its rows apart (``Kvasir-SEG Sα``), as no
    number does."""
    tells = len(table.columns) > 1 and table.columns[1].words
    return [cell.text for cell in line.cells[1:place]] if place and tells else []


def _choose(kind: str, asked: str, choices: Mapping[str, set[str]]) -> str:
    def plain(text: str) -> str:  # naslora is NAS-LoRA
        return re.sub(r"[^\w.]", "", text.lower())

    given = plain(asked)
    for match in (
        [name for name, aliases in choices.items() if given in set(map(plain, aliases))],
        [name for name, aliases in choices.items() if any(given in alias for alias in map(plain, aliases))],
    ):
        if len(match) == 1:
            return match[0]
        if match:
            raise UsageError(f"{kind} {asked!r} fits {'; '.join(sorted(match))}; give more of it")
    near = did_you_mean(asked, choices)  # labels hold commas of their own
    raise UsageError(
        f"no {kind} {asked!r}" + (near if "did you mean" in near else f" (choose from {'; '.join(sorted(choices))})")
    )
