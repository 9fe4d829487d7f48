"""The command line that trains finished runs again, for a reader who has this program and the data."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import Any

from harness.archive.schema import Record, Run
from harness.comparison.rules import card, from_card
from harness.comparison.scores import MISSING
from harness.registry import BENCHMARKS, METHODS


def command_of(records: Iterable[Record]) -> str:
    """``sam-peft run …`` that trains the runs of these records, which differ in their seed alone; empty where there is none.

    Folders and weights are the reader's (DIR, FILE). What the protocol's card does not say is in ``--set``, options that were
    tuned as they were chosen; a card that this version does not have has to be brought along.
    """
    runs = sorted((record.run for record in records if record.code != MISSING), key=lambda run: run.seed)
    if not runs:
        return ""
    run = runs[0]
    generated = run.rules.get("data") == "sample"  # unless a folder is given for one
    own = bool(run.rules.get("own_classes")) or (generated and not run.is_generated)
    by_label = not run.changed and run.variant.startswith(
        f"{run.method}["
    )  # older records do not say what they changed
    seeds = list(dict.fromkeys(str(run.seed) for run in runs))
    words = ["sam-peft", "run", "--methods", run.variant if by_label else run.method]
    words += ["--datasets", f"{run.benchmark}=DIR" if own else run.benchmark]
    words += ["--protocol", run.protocol, "--backbone", run.backbone]
    words += ["--seeds", ",".join(seeds) if len(seeds) > 1 else f"{seeds[0]},"]
    of_card = card(run.protocol, run.benchmark)
    rules = from_card(run.rules, of_card) if of_card is not None else {}
    for name, value in [
        *((f"{run.method}.{name}", value) for name, value in sorted(run.changed.items())),
        *((name, ours) for name, (ours, _) in rules.items()),
    ]:
        words += ["--set", f"{name}={_word(value)}"]
    words += plugin_of(run)
    words += ["--checkpoint", "FILE"] if run.checkpoint else []
    words += [] if generated or own else ["--data", "DIR"]
    return shlex.join(words)


def plugin_of(run: Run) -> list[str]:
    """``--plugin FILE.py`` where the method or the benchmark is neither built in nor of a package or a folder of one's own."""
    own = bool(run.rules.get("own_classes")) or BENCHMARKS.is_fixed(run.benchmark)
    return [] if METHODS.is_fixed(run.method) and own else ["--plugin", "FILE.py"]


def _word(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{','.join(map(str, value))}]"
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
