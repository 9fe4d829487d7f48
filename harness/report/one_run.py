"""One run in a terminal, from its record and what lies beside it: rules, learning curve, mixtures, scores, cost, files."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.comparison.alpha import MEANINGS, alpha_code, search_start
from harness.comparison.code_versions import begun_by
from harness.comparison.rules import CardOf, Difference, from_card, in_words
from harness.registry import operation_names
from harness.report.plot import EIGHTHS, curve

GIB = 2**30
BAR = 30
"""Columns of a share of 1."""


def record_as_data(record: Record, store: RecordStore, *, card_of: CardOf) -> dict[str, Any]:
    """What `in_terminal` shows, as plain data; ``rules_changed`` is None where the card is not known."""
    changed = _changed(record, card_of)
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


def in_terminal(record: Record, store: RecordStore, *, card_of: CardOf) -> str:
    """The run in a page of at most 80 columns, save for names and paths that are longer."""
    run = record.run
    sections = {
        "": _heading(record),
        "rules": _rules(record, card_of),
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


def _changed(record: Record, card_of: CardOf) -> Difference | None:
    card = card_of(record.run.protocol, record.run.benchmark)
    return None if card is None else from_card(record.run.rules, card)


def _rules(record: Record, card_of: CardOf) -> list[str]:
    run, changed = record.run, _changed(record, card_of)
    card = f"card {run.protocol}, hash {run.protocol_hash}"
    if changed is None:
        return [f"{card}: no card of this name here to compare with"]
    if not changed:
        return [f"{card}: as the card says"]
    return [f"{card}, and instead of what the card says:", *(f"  {in_words({k: v})}" for k, v in changed.items())]


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

    draw("loss", {one["epoch"]: one["loss"] for one in record.history}, height=4)
    for metric in sorted({name for one in record.history for name in one.get("val", {})}):
        values = {one["epoch"]: 100 * one["val"][metric] for one in record.history if metric in one.get("val", {})}
        chosen = f", best checkpoint in epoch {record.selected_epoch}" if record.selected_epoch else ""
        draw(f"validation {metric} (%){chosen}", values, height=4)
    draw("rate", {one["epoch"]: one["lr"] for one in record.history}, height=2)
    return lines


def _mixtures(record: Record) -> list[str]:
    last = record.architecture[-1] if record.architecture else {}
    names = operation_names(record.run.method, record.run.method_config)
    width = max((len(shares) for shares in last.values()), default=0)
    if width < 2:
        return []
    shares = [one for one in last.values() if len(one) == width]
    labels = names if len(names) == width else tuple(f"w{index}" for index in range(width))
    room = max(map(len, labels))
    lines = [f"mean share over {len(shares)} sites, and the range"]
    for index, label in enumerate(labels):
        mine = [one[index] for one in shares]
        mean = math.fsum(mine) / len(mine)
        whole, rest = divmod(round(8 * BAR * mean), 8)
        bar = "█" * whole + (EIGHTHS[rest] if rest else "")
        lines.append(f"{label:<{room}}  {mean:.3f}  {min(mine):.3f}–{max(mine):.3f}  {bar}".rstrip())
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
        ("step_time_s", "{:.4g} s an update (median)", 1.0),
        ("train_time_s", "{:.4g} s in updates", 1.0),
        ("wall_time_s", "{:.4g} s of training in all", 1.0),
        ("peak_memory_bytes", "{:.2f} GiB at most", 1.0 / GIB),
        ("gpu_hours", "{:.3g} GPU-hours", 1.0),
    ]
    words = [text.format(factor * cost[name]) for name, text, factor in said if cost.get(name)]
    return [*textwrap.wrap(", ".join(words), 78), *_where_time_went(cost)]


def _where_time_went(cost: Mapping[str, float]) -> list[str]:
    """The stages of the start that finished the run; none where the record is older than they are."""
    stages = {name[6:-2]: seconds for name, seconds in cost.items() if name.startswith("stage_")}
    whole = sum(stages.values())
    if not whole:
        return []
    shares = [f"{name} {100 * seconds / whole:.0f} %" for name, seconds in stages.items() if seconds >= 0.005 * whole]
    outside = max(0.0, 1 - cost.get("passes_s", 0.0) / whole)
    text = (
        f"{whole:.4g} s from start to record: {', '.join(shares)}; outside the network's passes {100 * outside:.0f} %"
    )
    return textwrap.wrap(text, 78)
