"""From a protocol's name to frozen rules: YAML with ``_base_`` inheritance, overrides, per-benchmark rules, hash.

mmengine's `Config` merges the plain content of YAML files and never gets a file to execute.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.check import from_mapping
from harness.models.catalog import backbone
from harness.protocols.keys import content_hash, current_rules, hashed_rules
from harness.protocols.protocol import Protocol
from harness.system.errors import UsageError, did_you_mean
from harness.system.yaml_files import read_yaml

PROTOCOLS = Path(__file__).parent
BASE, DELETE = "_base_", "_delete_"
MOST_BASES = 20
"""Longest chain of protocols by ``_base_``."""


def read_protocol(path: Path, *, above: tuple[Path, ...] = ()) -> tuple[dict[str, Any], list[Path]]:
    """A protocol's fields merged into those of its bases, and the files of the bases and of the protocol.

    ``_base_`` is a file in the protocol's folder or below it, or one of the harness's own (``standard.yaml``). A table with
    ``_delete_: true`` replaces the base's instead of adding to it.

    Args:
        above: the protocols that are based on this one.

    Raises:
        UsageError: it is not plain YAML or not a mapping of fields. A base is missing, in another place, or leads back to itself. A
            table stands where a base has a single value.
    """
    from mmengine.config import Config  # 0.3 s: only when a protocol is read

    if path in above:
        raise UsageError(f"protocol {above[0]}: its _base_ leads back to itself")
    if len(above) > MOST_BASES:
        raise UsageError(f"protocol {above[0]}: it is based on more than {MOST_BASES} protocols")
    content = read_yaml(path, what="protocol")
    if not isinstance(content, dict):
        raise UsageError(f"protocol {path} is not a mapping of fields, such as epochs: 3")
    _check_keys(content, path)
    base = content.pop(BASE, None)
    if not isinstance(base, str | None):
        raise UsageError(f"protocol {path}: _base_ must be the name of one protocol's file")
    below, files = read_protocol(_base_path(path, base), above=(*above, path)) if base else ({}, [])
    merged = Config()  # not Config(below): that keeps some names, such as filename, for itself
    merged.merge_from_dict(below, allow_list_keys=False)
    try:
        merged.merge_from_dict(content, allow_list_keys=False)
    except TypeError as error:
        raise UsageError(f"protocol {path}: it has a table of fields where its _base_ has a single value") from error
    return _without_marks(merged.to_dict()), [*files, path]


def _base_path(file: Path, word: str) -> Path:
    """The file that an entry of ``_base_`` names. Paths are compared by name, so links to folders of protocols are followed."""
    path = Path(os.path.normpath(file.parent / word))
    absolute, folder = Path(os.path.abspath(path)), Path(os.path.abspath(file.parent))
    if not word.endswith((".yaml", ".yml")) or "::" in word:
        raise UsageError(
            f"protocol {file}: _base_ {word!r} is not a YAML file; give the file of a protocol, such as demo.yaml"
        )
    if not (absolute.is_relative_to(folder) or absolute.is_relative_to(PROTOCOLS)):
        raise UsageError(f"protocol {file}: _base_ {word!r} is outside its folder; copy that protocol next to this one")
    if path.is_file():
        return path
    if (PROTOCOLS / word).is_file():
        return PROTOCOLS / word
    raise UsageError(f"protocol {file}: its _base_ {path} does not exist")


def _check_keys(values: Mapping[Any, Any], path: Path, *, top: bool = True) -> None:
    for key, value in values.items():
        if not isinstance(key, str):
            raise UsageError(f"protocol {path}: the name of the field {key!r} is not text")
        if top and ("." in key or (key.startswith("_") and key not in (BASE, DELETE))):
            raise UsageError(
                f"protocol {path}: there is no field {key!r}; a table's fields must be indented below its name"
            )
        if isinstance(value, Mapping):
            _check_keys(value, path, top=False)


def _without_marks(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _without_marks(value) for key, value in values.items() if key != DELETE}
    return values


def protocol_names() -> list[str]:
    return sorted(path.stem for path in PROTOCOLS.glob("*.yaml"))


def protocol_path(name: str) -> Path:
    """The file of a protocol, given by name or as the path of a user's own YAML. Raises UsageError: there is no such file."""
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise UsageError(f"protocol file {path} does not exist")
        return path
    path = PROTOCOLS / f"{name.strip().lower().replace('_', '-')}.yaml"
    if not path.is_file():
        raise UsageError(
            f"unknown protocol {name!r}{did_you_mean(name, protocol_names())}, or give the path of a .yaml file"
        )
    return path


def load_protocol(name: str, overrides: Mapping[str, Any] | None = None) -> Protocol:
    """Read a protocol and apply ``overrides``, whose keys may be dotted (``quirks.structure_loss``).

    An override holds for every benchmark, even where the protocol has a rule for one of them. ``benchmarks.camo.epochs`` is for CAMO alone.

    Raises:
        UsageError: no such protocol, unreadable YAML, unknown key, wrong type.
    """
    path = protocol_path(name)
    values, _ = read_protocol(path)
    values["name"] = path.stem
    for key, value in sorted((overrides or {}).items(), key=lambda item: item[0].startswith("benchmarks.")):
        for special in _tables(values.get("benchmarks")):
            special.pop(key, None)
        _assign(values, key, value)
    return from_mapping(Protocol, values, where=f"protocol {path.stem}")


def resolve(protocol: Protocol, benchmark: str) -> Protocol:
    """The rules for one benchmark: the protocol's overrides for it applied, the tables of overrides dropped."""
    overrides = protocol.benchmarks.get(benchmark, {})
    plain = {**as_rules(protocol), "methods": {}, "benchmarks": {}, "tune": {}}
    for key, value in overrides.items():
        _assign(plain, key, value)
    return from_mapping(Protocol, plain, where=f"protocol {protocol.name}, benchmark {benchmark}")


def with_rules(protocol: Protocol, chosen: Mapping[str, Any]) -> Protocol:
    """A resolved protocol with some rules changed. Raises UsageError: an invalid value."""
    return from_mapping(Protocol, {**as_rules(protocol), **chosen}, where=f"protocol {protocol.name}")


def for_backbone(protocol: Protocol, name: str) -> Protocol:
    """The rules with the backbone's own normalisation where they name none. Raises UsageError: unknown backbone."""
    mean, std = backbone(name).pixels
    if protocol.pixel_mean is None and protocol.pixel_std is None:
        return replace(protocol, pixel_mean=mean, pixel_std=std, normalisation="backbone")
    return replace(protocol, pixel_mean=protocol.pixel_mean or mean, pixel_std=protocol.pixel_std or std)


def protocol_hash(protocol: Protocol) -> str:
    """Hash of everything in the protocol that can change a number; its name, its default backbone and execution-only
    fields are left out."""
    return content_hash(hashed_rules(as_rules(protocol)))[:8]


def as_rules(protocol: Protocol) -> dict[str, Any]:
    """The protocol as JSON-ready data, for a run."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(protocol).items()}


@lru_cache(maxsize=256)
def protocol_rules(name: str, benchmark: str) -> dict[str, Any] | None:
    """The rules of a built-in protocol, or of one in a YAML file, for a benchmark ("" for all); None if there is none of this name."""
    if name not in protocol_names() and not name.endswith(".yaml"):
        return None
    protocol = load_protocol(name)
    return as_rules(resolve(protocol, benchmark) if benchmark else protocol)


def from_rules(rules: Mapping[str, Any]) -> Protocol:
    return from_mapping(Protocol, current_rules(rules), where="protocol in the run")


def _tables(benchmarks: Any) -> list[dict[str, Any]]:
    """The well-formed tables of rules for single benchmarks; validation reports the others later."""
    return [table for table in benchmarks.values() if isinstance(table, dict)] if isinstance(benchmarks, dict) else []


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    target = values
    for parent in parents:
        target = target.setdefault(parent, {})
        if not isinstance(target, dict):
            raise UsageError(f"--set {key}: {parent} has no fields of its own")
    target[leaf] = value
