"""From a card's name to frozen rules: YAML with ``_base_`` inheritance, overrides, per-benchmark rules, hash."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.archive.schema import content_hash, hashed_rules
from harness.check import from_mapping
from harness.models.catalog import backbone
from harness.protocols.card import Protocol
from harness.protocols.inheritance import CARDS, read_card
from harness.system.errors import UsageError, did_you_mean


def card_names() -> list[str]:
    return sorted(path.stem for path in CARDS.glob("*.yaml"))


def card_path(name: str) -> Path:
    """The file behind a card's name, or a path to a user's own YAML.

    Raises:
        UsageError: neither exists.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise UsageError(f"protocol file {path} does not exist")
        return path
    path = CARDS / f"{name.strip().lower().replace('_', '-')}.yaml"
    if not path.is_file():
        raise UsageError(
            f"unknown protocol {name!r}{did_you_mean(name, card_names())}, or give the path of a .yaml file"
        )
    return path


def load_protocol(name: str, overrides: Mapping[str, Any] | None = None) -> Protocol:
    """Read a card and apply ``overrides``, whose keys may be dotted (``quirks.structure_loss``).

    An override holds for every benchmark: it beats what the card says for one of them. ``benchmarks.camo.epochs``
    is for one benchmark.

    Raises:
        UsageError: no such card, unreadable YAML, unknown key, wrong type.
    """
    path = card_path(name)
    values = read_card(path).values()
    values["name"] = path.stem
    for key, value in sorted((overrides or {}).items(), key=lambda item: item[0].startswith("benchmarks.")):
        for special in _tables(values.get("benchmarks")):
            special.pop(key, None)
        _assign(values, key, value)
    return from_mapping(Protocol, values, where=f"protocol {path.stem}")


def resolve(protocol: Protocol, benchmark: str) -> Protocol:
    """The rules for one benchmark: the card's overrides for it applied, the tables of overrides dropped."""
    overrides = protocol.benchmarks.get(benchmark, {})
    plain = {**_plain(protocol), "methods": {}, "benchmarks": {}, "tune": {}}
    for key, value in overrides.items():
        _assign(plain, key, value)
    return from_mapping(Protocol, plain, where=f"protocol {protocol.name}, benchmark {benchmark}")


def with_rules(protocol: Protocol, chosen: Mapping[str, Any]) -> Protocol:
    """A resolved protocol with some rules changed.

    Raises:
        UsageError: a value that is none.
    """
    return from_mapping(Protocol, {**_plain(protocol), **chosen}, where=f"protocol {protocol.name}")


def for_backbone(protocol: Protocol, name: str) -> Protocol:
    """The rules with the normalisation that the backbone's weights were trained with, where they name none.

    Raises:
        UsageError: unknown backbone.
    """
    mean, std = backbone(name).pixels
    if protocol.pixel_mean is None and protocol.pixel_std is None:
        return replace(protocol, pixel_mean=mean, pixel_std=std, normalisation="backbone")
    return replace(protocol, pixel_mean=protocol.pixel_mean or mean, pixel_std=protocol.pixel_std or std)


def protocol_hash(protocol: Protocol) -> str:
    """Hash of everything in the card that can change a number; its name, its default backbone and execution-only fields are left out."""
    return content_hash(hashed_rules(_plain(protocol)))[:8]


def as_rules(protocol: Protocol) -> dict[str, Any]:
    """The card as JSON-ready data, for a run."""
    return _plain(protocol)


@lru_cache(maxsize=256)
def card_rules(name: str, benchmark: str) -> dict[str, Any] | None:
    """The rules that the harness's own card of this name has for a benchmark ("" for the card itself); None where it has
    no such card."""
    if name not in card_names():
        return None
    card = load_protocol(name)
    return as_rules(resolve(card, benchmark) if benchmark else card)


def from_rules(rules: Mapping[str, Any]) -> Protocol:
    return from_mapping(Protocol, rules, where="protocol in the run")


def _plain(protocol: Protocol) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(protocol).items()}


def _tables(benchmarks: Any) -> list[dict[str, Any]]:
    """What a card says for single benchmarks, as far as it is what it should be; the rest is told after this."""
    return [one for one in benchmarks.values() if isinstance(one, dict)] if isinstance(benchmarks, dict) else []


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    target = values
    for parent in parents:
        target = target.setdefault(parent, {})
        if not isinstance(target, dict):
            raise UsageError(f"--set {key}: {parent} has no fields of its own")
    target[leaf] = value
