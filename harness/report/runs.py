"""Runs in a terminal, from their records and sidecar files: one (rules, epochs, mixtures, scores, cost, files), or two side by side."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tabulate import tabulate

from harness.archive.archive import Archive
from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.comparison.alpha import MEANINGS, alpha_code, search_start
from harness.comparison.rows import begun_by
from harness.comparison.rules import NOT_THERE, Difference, card, differences, from_card, in_words
from harness.protocols.keys import hashed_options
from harness.registry import operation_names
from harness.report.page import Shown

GIB = 2**30
MOST_EPOCHS = 12
"""Epochs that are listed; of more, evenly spaced ones with the first, the last and the selected one."""


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
        "epochs": _epochs(record),
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
    """What there is of the run on disk: its record and sidecar files, then its state (checkpoints, logs)."""
    key = record.key
    result = (store.path(key), store.images_path(key), store.architecture_path(key), store.masks_path(key))
    state = store.root / "state" / key
    kept = sorted(state / name for name in os.listdir(state)) if state.is_dir() else []
    return [str(path) for path in (*result, *kept) if path.is_file()]


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


def _epochs(record: Record) -> list[str]:
    """A table: epoch, loss, rate, validation scores; the selected epoch and the one after which α learns are marked."""
    history, start = record.history, search_start(record)
    if not history:
        return []
    last = len(history)
    chosen = {1, last, record.selected_epoch} | {
        round(1 + place * (last - 1) / (MOST_EPOCHS - 1)) for place in range(MOST_EPOCHS)
    }
    metrics = sorted({name for entry in history for name in entry.get("val", {})})
    rows = []
    for entry in (entry for entry in history if entry["epoch"] in chosen):
        mark = "best" if entry["epoch"] == record.selected_epoch else ""
        scores = [f"{100 * entry['val'][name]:.2f}" if name in entry.get("val", {}) else "" for name in metrics]
        rows.append([str(entry["epoch"]), f"{entry['loss']:.4g}", f"{entry['lr']:.3g}", *scores, mark])
    heads = ["epoch", "loss", "rate", *(f"val {name} (%)" for name in metrics), ""]
    lines = tabulate(
        rows, headers=heads, disable_numparse=True, colalign=["right"] * (len(heads) - 1) + ["left"]
    ).splitlines()
    return [line.rstrip() for line in lines] + ([f"α learns after epoch {start} (T_B)"] if start else [])


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
        lines.append(f"{label:<{room}}  {mean:.3f}  {min(of_operation):.3f}–{max(of_operation):.3f}")
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


RUN_FIELDS = ("method", "benchmark", "backbone", "checkpoint", "protocol", "seed", "manifest", "data_fingerprint")
MADE_WITH = ("commit", "torch", "device", "numbers")
Pair = tuple[Any, Any]
"""Of the first run and of the second."""


def compared(first: Record, second: Record) -> dict[str, dict[str, Pair]]:
    """``differences`` of run, options, rules and environment; ``scores`` in % and ``cost``, of what either of the two has."""
    fields = {name: (getattr(first.run, name), getattr(second.run, name)) for name in RUN_FIELDS}
    options = _pairs(
        hashed_options(first.run.method, first.run.method_config),
        hashed_options(second.run.method, second.run.method_config),
    )
    made = {name: (first.environment.get(name), second.environment.get(name)) for name in MADE_WITH}
    scores = [{" ".join(place): 100 * value for place, value in _flat(of_run).items()} for of_run in (first, second)]
    return {
        "differences": {
            **_unequal({"outcome": (first.code, second.code), **fields}),
            **_unequal({f"option {name}": pair for name, pair in options.items()}),
            **{f"rule {name}": pair for name, pair in differences(first.run.rules, second.run.rules).items()},
            **_unequal(made),
        },
        "scores": _pairs(*scores, missing=None),
        "cost": _pairs(first.cost, second.cost, missing=None),
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
        lines += ["", "no difference in run, options and rules"]
    for name, heading, form in (("scores", "scores (%)", ".2f"), ("cost", "cost", ".4g")):
        if numbers := [[key, *_numbers(pair, form)] for key, pair in content[name].items()]:
            align, headers = ("left", "right", "right", "right"), [heading, "A", "B", "B − A"]
            lines += ["", tabulate(numbers, headers=headers, disable_numparse=True, colalign=align)]
    return "\n".join(lines) + "\n"


def _flat(record: Record) -> dict[tuple[str, str, str], float]:
    """(scored model, split, metric) -> score."""
    return {(model, split, metric): value for model, split, metric, value in record.each_score()}


def _pairs(first: Mapping[str, Any], second: Mapping[str, Any], *, missing: Any = NOT_THERE) -> dict[str, Pair]:
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


def behind(cell: Shown, archive: Archive) -> Sequence[str]:
    """What a cell tells of itself, line by line."""
    return cell.of.why(archive) if cell.of else ["  nothing else is known of it"]
