"""Two results folders beside each other: which runs both have, and in what their scores differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.comparison.names import benchmark_title, metric, shown_metrics

Named = tuple[str, str, str, str, int]
"""Protocol, backbone, benchmark, row and seed: what a run is where its key is another one."""
MOST_ROWS = 40


@dataclass(frozen=True, kw_only=True)
class SharedRun:
    """A run that both folders have.

    Args:
        same_key: whether it is the same run, not one of the same name under other rules, data, options or weights.
        differences: (score, split, metric) -> B − A in points, of the scores that both have.
    """

    first: Record
    second: Record
    same_key: bool
    differences: Mapping[tuple[str, str, str], float]


def compared_folders(first: RecordStore, second: RecordStore) -> dict[str, Any]:
    """``both``: pairs, those with the same key first; ``A`` and ``B``: records that only one has; ``unreadable``: files."""
    mine, problems = first.summaries()
    others, more = second.summaries()
    by_key = {record.key: record for record in others}
    pairs = [_pair(record, by_key[record.key]) for record in mine if record.key in by_key]
    known = {pair.first.key for pair in pairs}
    rest = {_named(record): record for record in others if record.key not in known}
    left = []
    for record in mine:
        if record.key in known:
            continue
        if other := rest.pop(_named(record), None):
            pairs.append(_pair(record, other))
        else:
            left.append(record)
    paired = {pair.second.key for pair in pairs}
    only = [record for record in others if record.key not in paired]
    return {"both": pairs, "A": left, "B": only, "unreadable": {**problems, **more}}


def folders_in_terminal(first: RecordStore, second: RecordStore) -> str:
    """Counts, then a line a pair: the first metric that tables show of its benchmark, and the largest difference of any score."""
    content = compared_folders(first, second)
    pairs: list[SharedRun] = content["both"]
    alike = [pair for pair in pairs if pair.same_key]
    equal = [pair for pair in alike if _largest(pair) == 0.0 and pair.first.code == pair.second.code]
    lines = [f"A: {first.root}", f"B: {second.root}", ""]
    lines.append(f"{len(alike)} runs in both, {len(equal)} of them with the same scores to the last digit")
    if len(pairs) > len(alike):
        lines.append(f"{len(pairs) - len(alike)} of the same name under other rules, options, data or weights (*)")
    lines.append(f"{len(content['A'])} in A alone, {len(content['B'])} in B alone")
    rows = [_row(pair) for pair in sorted(pairs, key=_largest, reverse=True) if pair not in equal]
    if rows:
        align = ("left", "left", "left", "right", "right", "right", "right")
        heads = ["run", "benchmark", "metric", "A", "B", "B − A", "largest"]
        lines += ["", tabulate(rows[:MOST_ROWS], headers=heads, disable_numparse=True, colalign=align)]
        lines += [f"and {len(rows) - MOST_ROWS} more (--json has all)"] if len(rows) > MOST_ROWS else []
        lines.append("scores in %; largest: of all scores that both have; --compare KEY KEY looks into two runs")
    for name in ("A", "B"):
        lines += [f"{name} alone: {_name(record)}" for record in content[name][:MOST_ROWS]]
        left = len(content[name]) - MOST_ROWS
        lines += [f"{name} alone: {left} more (--json has all)"] if left > 0 else []
    lines += [f"unreadable: {path}: {reason}" for path, reason in content["unreadable"].items()]
    return "\n".join(lines) + "\n"


def folders_as_data(first: RecordStore, second: RecordStore) -> dict[str, Any]:
    """The same, JSON-ready."""
    content = compared_folders(first, second)
    pairs = [
        {
            "A": pair.first.key,
            "B": pair.second.key,
            "run": _name(pair.first),
            "outcome": [pair.first.code, pair.second.code],
            "differences": {" ".join(where): value for where, value in pair.differences.items()},
        }
        for pair in content["both"]
    ]
    alone = {name: [record.key for record in content[name]] for name in ("A", "B")}
    return {"both": pairs, **alone, "unreadable": {str(path): why for path, why in content["unreadable"].items()}}


def _pair(first: Record, second: Record) -> SharedRun:
    return SharedRun(
        first=first,
        second=second,
        same_key=first.key == second.key,
        differences={
            (name, split, one): 100 * (second.scores[name][split][one] - value)
            for name, splits in first.scores.items()
            for split, values in splits.items()
            for one, value in values.items()
            if one in second.scores.get(name, {}).get(split, {})
        },
    )


def _named(record: Record) -> Named:
    run = record.run
    return run.protocol, run.backbone, run.benchmark, run.variant, run.seed


def _name(record: Record) -> str:
    run = record.run
    return f"{run.variant} on {run.benchmark}, seed {run.seed} ({record.key}, {run.protocol}, {run.backbone})"


def _largest(pair: SharedRun) -> float:
    return max(map(abs, pair.differences.values()), default=0.0)


def _row(pair: SharedRun) -> list[str]:
    run = pair.first.run
    name = f"{run.variant}, seed {run.seed}{'' if pair.same_key else ' *'}"
    scores = [where for where in pair.differences if where[0] == "best" and where[1] != "val"]
    if not scores:
        return [name, benchmark_title(run.benchmark), "", pair.first.code, pair.second.code, "", ""]
    order = shown_metrics(run.benchmark, [run], scored={where[2] for where in scores})
    shown = min(scores, key=lambda where: order.index(where[2]) if where[2] in order else len(order))
    score, split, one = shown
    values = [f"{100 * record.scores[score][split][one]:.2f}" for record in (pair.first, pair.second)]
    place = metric(one).title + (f" {split}" if split != "test" else "")
    return [
        name,
        benchmark_title(run.benchmark),
        place,
        *values,
        f"{pair.differences[shown]:+.2f}",
        f"{_largest(pair):.2f}",
    ]
