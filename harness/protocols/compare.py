"""Compares the rules of a run with those of its protocol or of another run, and puts rules into words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from harness.protocols.keys import PIXELS, hashed_rules, with_later

Rules = Mapping[str, Any]
RuleDifference = Mapping[str, tuple[Any, Any]]
"""dotted name -> (ours, the protocol's)"""

NOT_THERE = "nothing"
PROMINENT = ("epochs", "image_size", "train_limit", "lr", "batch_size", "optimizer", "precision")
"""Rules that are named first; the others follow in alphabetical order."""


def flat(rules: Rules) -> dict[str, Any]:
    """Dotted name -> value of every rule that can change a number; a rule that a record lacks has the value that it had then."""
    values: dict[str, Any] = {}

    def walk(table: Mapping[str, Any], path: str) -> None:
        for key, value in table.items():
            if isinstance(value, Mapping):
                walk(value, f"{path}{key}.")
            else:
                values[path + key] = list(value) if isinstance(value, tuple) else value

    walk(with_later(hashed_rules(rules)), "")
    return values


def differing_rules(ours: Rules, theirs: Rules) -> dict[str, tuple[Any, Any]]:
    """Rules in which the two differ; one that is missing is `NOT_THERE`."""
    first, second = flat(ours), flat(theirs)
    return {
        name: (first.get(name, NOT_THERE), second.get(name, NOT_THERE))
        for name in [*PROMINENT, *sorted((first.keys() | second.keys()) - {*PROMINENT})]
        if first.get(name, NOT_THERE) != second.get(name, NOT_THERE)
    }


def from_protocol(ours: Rules, of_protocol: Rules) -> dict[str, tuple[Any, Any]]:
    """`differing_rules` of a run from its protocol.

    Some differences do not count: a run has a budget of epochs under a protocol with one of updates where both give the same run; a
    protocol cannot hold the classes of a user's own data or a split seed that follows the run's; and it may leave normalisation open.
    """
    by_backbone = ours.get("normalisation") == "backbone"
    return {
        name: pair
        for name, pair in differing_rules(ours, of_protocol).items()
        if name != "own_classes"
        and not (name == "split_seed" and ours.get("split_follows_seed"))
        and not (name in PIXELS and by_backbone and of_protocol.get(name) is None)
        and (name, *pair) != ("budget", "epochs", "updates")
    }


def differing_in_words(difference: RuleDifference) -> str:
    """``epochs 1 instead of 40, image_size 128 instead of 1024``"""
    return ", ".join(f"{name} {_short(a)} instead of {_short(b)}" for name, (a, b) in difference.items())


def overrides_in_words(by_benchmark: Mapping[str, RuleDifference]) -> str:
    """Differences that all benchmarks share, then the others with the benchmark's name; empty where nothing differs."""
    everywhere = shared(list(by_benchmark.values()))
    parts = [differing_in_words(everywhere)] if everywhere else []
    for benchmark, difference in by_benchmark.items():
        own = {name: pair for name, pair in difference.items() if everywhere.get(name) != pair}
        if own:
            parts.append(f"{differing_in_words(own)} on {benchmark}")
    return "; ".join(parts)


def shared(differences: Sequence[RuleDifference]) -> dict[str, tuple[Any, Any]]:
    """The entries that all the differences have in common."""
    first, *others = differences or [{}]
    return {name: pair for name, pair in first.items() if all(other.get(name) == pair for other in others)}


HEADED: Mapping[str, Callable[[Any], str]] = {
    "prompt": lambda value: "no prompts" if value == "none" else f"prompt {value}",
    "prompt_noise": lambda value: f"prompt noise {value:g}",
    "decoder": lambda value: f"decoder {value}",
    "train_limit": lambda value: f"{value} training images" if value else "all training images",
    "image_size": lambda value: f"{value} px",
    "epochs": lambda value: f"{value} epoch{'s' if value != 1 else ''}",
}
"""Rules that a heading names first, in words."""


def headed(names: Iterable[str], rules: Rules) -> str:
    """The values of some rules as in a heading: ``400 training images, 266 px, warmup 50``."""
    values, wanted = flat(rules), list(names)
    first = [HEADED[name](values[name]) for name in HEADED if name in wanted and name in values]
    rest = [f"{name} {_short(values.get(name, NOT_THERE))}" for name in wanted if name not in HEADED]
    return ", ".join([*first, *rest])


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list) or value is None:
        return "+".join(map(str, value or ())) or "none"
    return str(value) or "none"
