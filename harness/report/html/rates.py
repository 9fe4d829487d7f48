"""The learning rate of a run, and how it was chosen, in words."""

from __future__ import annotations

from collections.abc import Sequence

from harness.archive.schema import Record

FIELDS = {"lr": "", "encoder_lr": "encoder ", "alpha_lr": "α "}
"""Rates that a configuration can hold, and how a table calls them."""


def rate(record: Record) -> str:
    """``5e-04, encoder 1e-05``: that of the weights first; others only where the configuration has them."""
    config = record.run.method_config
    found = {name: config.get(name) for name in FIELDS}
    found["lr"] = found["lr"] if found["lr"] is not None else record.run.rules.get("lr")
    return ", ".join(f"{FIELDS[name]}{value:.4g}" for name, value in found.items() if isinstance(value, int | float))


def how_chosen(record: Record) -> str:
    """Tuned, set for this row, set for the method by the card or by its own default, or the card's for all methods."""
    run = record.run
    tuned = [name for name in run.tuning.get("chosen", {}) if name in FIELDS]
    if tuned:
        return f"tuned, {len(run.tuning.get('trials', ()))} trials"
    if any(name in run.changed for name in FIELDS):
        return "this row"
    of_method = run.rules.get("methods", {}).get(run.method, {})
    if any(name in of_method for name in FIELDS):
        return "card, for this method"
    return "card" if run.method_config.get("lr") is None else "the method's default"


def of_all(words: Sequence[str]) -> str:
    """What runs of one row share, else every one of it once."""
    return " or ".join(dict.fromkeys(filter(None, words))) or "–"
