"""A run in a terminal, by its record and sidecar files, and the command that repeats a run."""

from __future__ import annotations

import math
import os
import shlex
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from harness.archive.archive import epoch_numbers
from harness.archive.schema import Record, Run
from harness.archive.store import RecordStore
from harness.protocols.compare import RuleDifference, differing_in_words, from_protocol
from harness.protocols.load import protocol_rules
from harness.registry import BENCHMARKS, METHODS
from harness.report.scores import ALPHA_MEANINGS, alpha_code

WIDTH = 78
BARS = "▁▂▃▄▅▆▇█"
HUGE = 1e100  # no run computes such numbers, and sums of them overflow


def record_as_data(record: Record, store: RecordStore) -> dict[str, Any]:
    """The record as plain data, with ``files`` and ``rules_changed``, which is None where the protocol is not known."""
    changed = _changed(record.run)
    by_rule = None if changed is None else {name: {"run": a, "protocol": b} for name, (a, b) in changed.items()}
    return {**asdict(record), "rules_changed": by_rule, "files": files(record, store)}


def in_terminal(record: Record, store: RecordStore) -> str:
    """The run as a page of at most 80 columns; only longer names and paths exceed them."""
    run = record.run
    head = f"{run.label} on {run.benchmark}, seed {run.seed}: {record.code}"
    lines = [head + (f": {record.message}" if record.message else "")]
    sections = {
        "": list(_about(record)),
        "learning curve": list(_curves(record)),
        "mixture at the end": list(_mixture(record)),
        "scores (%)": [
            f"{model} {split}: " + ", ".join(f"{name} {100 * value:.2f}" for name, value in values.items())
            for model, splits in record.scores.items()
            for split, values in splits.items()
        ],
        "cost": list(_cost(record)),
        "files": files(record, store),
    }
    for title, body in sections.items():
        if body:
            lines += [*([f"\n{title}"] if title else [])]
            lines += [f"  {part}" for line in body for part in _wrapped(line, words=title != "files")]
    return "\n".join(lines) + "\n"


def files(record: Record, store: RecordStore) -> list[str]:
    """The files of the run: record, sidecar files, then its state (checkpoints, logs)."""
    key = record.key
    there = (store.path(key), store.images_path(key), store.architecture_path(key), store.masks_path(key))
    state = store.root / "state" / key
    kept = sorted(state / name for name in os.listdir(state)) if state.is_dir() else []
    return [str(path) for path in (*there, *kept) if path.is_file()]


def _wrapped(text: str, *, words: bool) -> list[str]:
    if not words:
        return [text]
    return textwrap.wrap(text, WIDTH, subsequent_indent=" " * 12, break_long_words=False, break_on_hyphens=False)


def _about(record: Record) -> Iterator[str]:
    run, rules = record.run, "no protocol of this name here to compare with"
    if (changed := _changed(run)) is not None:
        rules = differing_in_words(changed) or "as the protocol says"
    where = ", ".join(record.environment[name] for name in ("device", "host") if record.environment.get(name))
    attempts = f"{record.attempts} attempt{'s' if record.attempts != 1 else ''}"
    begun = {"begun by other code": "begun_by", "begun on": "begun_on"}
    attempts += "".join(
        f", {word} {record.environment[name]}" for word, name in begun.items() if record.environment.get(name)
    )
    facts = {
        "key": record.key,
        "backbone": f"{run.backbone}, checkpoint {run.checkpoint or 'none (random weights)'}",
        "options": ", ".join(f"{name}={value}" for name, value in sorted(run.method_config.items())) or "none",
        "rules": f"{run.protocol}, hash {run.protocol_hash}: {rules}",
        "parameters": ", ".join(f"{name} {count:,}" for name, count in record.parameters.items()),
        "images": ", ".join(f"{name} {count}" for name, count in {**record.counts, **record.limits}.items())
        + "".join(f", {name} ignored {count}" for name, count in record.ignored.items())
        + (f" ({run.data_note})" if run.data_note else ""),
        "finished": ", ".join(part for part in (record.finished, where, attempts) if part),
    }
    yield from (f"{name:<12}{text}" for name, text in facts.items() if text)


def _changed(run: Run) -> RuleDifference | None:
    of_protocol = protocol_rules(run.protocol, run.benchmark)
    return None if of_protocol is None else from_protocol(run.rules, of_protocol)


def _curves(record: Record) -> Iterator[str]:
    quantities: dict[str, list[float]] = {}
    for entry in record.history:
        for name, value in epoch_numbers(entry).items():
            quantities.setdefault(name, []).append(value)
    quantities.pop("train/seconds", None)
    for name, values in quantities.items():
        yield f"{name:<14} {sparkline(values)} {values[0]:.4g} to {values[-1]:.4g}"
    notes = [f"{len(record.history)} epochs"] if quantities else []
    if quantities and record.selected_epoch:
        chosen = "last" if record.run.rule("select") == "last" else "best"
        notes += [f"{chosen} checkpoint in epoch {record.selected_epoch}"]
    notes += [f"α learns after epoch {start} (T_B)"] if (start := search_start(record)) else []
    yield from [", ".join(notes)] if notes else []


def search_start(record: Record) -> int | None:
    """T_B, the last epoch before α's updates begin; None for a run without such a stage."""
    config = record.run.method_config
    start = config.get("search_start_epoch")
    searched = config.get("stagewise") and isinstance(start, int) and 0 < start < len(record.history)
    return start if searched else None


def sparkline(values: Sequence[float], *, width: int = 32) -> str:
    """One character a value, or a group of values where there are more than ``width``; a space where all are infinite or no numbers."""
    group = max(1, math.ceil(len(values) / width))
    groups = [values[start : start + group] for start in range(0, len(values), group)]
    finite = [[value for value in alike if abs(value) < HUGE] for alike in groups]
    means = [math.fsum(alike) / len(alike) if alike else math.nan for alike in finite]
    known = [mean for mean in means if not math.isnan(mean)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(" " if math.isnan(mean) else BARS[round((mean - low) * scale)] for mean in means)


def _mixture(record: Record) -> Iterator[str]:
    last = record.architecture[-1] if record.architecture else {}
    names = record.run.operations or []
    width = max((len(shares) for shares in last.values()), default=0)
    sites = [shares for shares in last.values() if len(shares) == width > 1]
    for index in range(width if sites else 0):
        name = names[index] if len(names) == width else f"w{index}"
        shares = [of_site[index] for of_site in sites]
        mean = math.fsum(shares) / len(shares)
        yield f"{name:<14} mean share {mean:.3f} ({min(shares):.3f} to {max(shares):.3f} over {len(sites)} sites)"
    if code := alpha_code(record, last):
        yield ALPHA_MEANINGS[code]


def _cost(record: Record) -> Iterator[str]:
    units = {
        "step_time_s": "s a pass (median)",
        "train_time_s": "s in updates",
        "wall_time_s": "s of training in all",
        "gpu_hours": "GPU-hours",
    }
    words = [f"{_four_digits(record.cost[name])} {unit}" for name, unit in units.items() if record.cost.get(name)]
    if peak := record.cost.get("peak_memory_bytes"):
        words.append(f"{peak / 2**30:.2f} GiB at most")
    yield from [", ".join(words)] if words else []
    stages = {name[6:-2]: seconds for name, seconds in record.cost.items() if name.startswith("stage_")}
    if whole := math.fsum(stages.values()):
        shares = [
            f"{name} {100 * seconds / whole:.0f} %" for name, seconds in stages.items() if seconds >= 0.005 * whole
        ]
        yield f"{_four_digits(whole)} s in its last attempt: {', '.join(shares)}"


def _four_digits(value: float) -> str:
    """All digits before the point, where there are more."""
    return f"{value:.4g}" if value < 9999.5 else f"{value:.0f}"


def commands_of(records: Iterable[Record]) -> str:
    """`command_of`, a line for each configuration: where a study chooses within seeds, runs of one row differ in what was chosen."""
    alike: dict[str, list[Record]] = {}
    for record in records:
        alike.setdefault(str(sorted(record.run.changed.items())), []).append(record)
    return "\n".join(map(command_of, alike.values()))


def command_of(records: Iterable[Record]) -> str:
    """``sam-peft run …`` that trains the runs of these records, which differ only in their seed; empty without a run.

    DIR and FILE stand for the reader's folders and weights. ``--set`` has the differences to the protocol, with tuned options as
    they were chosen. A protocol that this version lacks must be added.
    """
    runs = sorted((record.run for record in records), key=lambda run: run.seed)
    if not runs:
        return ""
    run = runs[0]
    generated = run.rule("data") == "sample"  # unless a folder was given
    own = bool(run.rule("own_classes")) or (generated and run.origin != "generated")
    seeds = list(dict.fromkeys(str(run.seed) for run in runs))
    words = ["sam-peft", "run", "--methods", run.method]
    words += ["--datasets", f"{run.benchmark}=DIR" if own else run.benchmark]
    words += ["--protocol", run.protocol, "--backbone", run.backbone]
    words += ["--seeds", ",".join(seeds) if len(seeds) > 1 else f"{seeds[0]},"]
    rules = _changed(run) or {}
    for name, value in [
        *((f"{run.method}.{name}", value) for name, value in sorted(run.changed.items())),
        *((name, ours) for name, (ours, _) in rules.items()),
    ]:
        words += ["--set", f"{name}={_word(value)}"]
    is_built_in = METHODS.is_fixed(run.method) and (bool(run.rule("own_classes")) or BENCHMARKS.is_fixed(run.benchmark))
    words += [] if is_built_in else ["--plugin", "FILE.py"]
    words += ["--checkpoint", "FILE"] if run.checkpoint else []
    words += [] if generated or own else ["--data", "DIR"]
    return shlex.join(words)


def _word(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{','.join(map(str, value))}]"
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
