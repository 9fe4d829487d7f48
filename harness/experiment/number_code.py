"""Fingerprints of the code that makes numbers, so that a table tells records of other code from records of moved comments.

A fingerprint is over the top-level definitions of the modules behind something, each without comments, docstrings and
imports, and whatever the order of modules: code that moves to another file keeps it. Python's own version enters through
how it writes code back.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import importlib.util
import inspect
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness.archive.schema import Record
from harness.registry import METHODS, method_config_class

ROOMS = ("harness.models", "harness.training", "harness.evaluation", "harness.experiment")
"""What every run goes through, whatever its method and benchmark."""
NO_NUMBERS = tuple(f"harness.experiment.{name}" for name in ("environment", "number_code"))
"""What is in these rooms and only tells of a run."""


def number_code(method: type, config: type, benchmark: type) -> dict[str, str]:
    """``numbers`` of the rooms, ``numbers_method``, ``numbers_benchmark``: 12 hex digits each.

    Args:
        method, config, benchmark: the classes of a run; their bases and what their modules import from their own
            packages count too.
    """
    shared = _definitions(_behind("harness.experiment.experiment", ROOMS, without=NO_NUMBERS))
    files = _definitions(_behind(benchmark.__module__, ("harness.datasets",)))
    return {
        "numbers": _digest(shared),
        "numbers_method": _of_method(method, config),
        "numbers_benchmark": _digest(files),
    }


def _of_method(method: type, config: type) -> str:
    code = _definitions(_behind(method.__module__, ("harness.methods",), without=("harness.methods.configs",)))
    return _digest([*code, *(_of_class(base) for base in config.__mro__ if base.__module__ != "builtins")])


def _of_class(config: Any) -> str:
    try:
        return _stripped(ast.parse(textwrap.dedent(inspect.getsource(config))))
    except OSError:  # made from a table at run time: no more than its fields
        return "\n".join(f"{field.name}: {field.type} = {field.default!r}" for field in dataclasses.fields(config))


def has_changed(record: Record) -> bool:
    """Whether the plug-in method of a finished run has other code now than it was made with: its file, or what that takes from
    `harness.methods`. No key says so: whoever edits a plug-in keeps its name. Built-in methods are of a version, which tables tell."""
    made, name = record.environment.get("numbers_method"), record.run.method
    if not made or METHODS.is_fixed(name):
        return False
    return _of_method(METHODS.get(name), method_config_class(name)) != made


def _digest(definitions: Iterable[str]) -> str:
    return hashlib.sha256("\n\n".join(sorted(definitions)).encode()).hexdigest()[:12]


def _definitions(modules: Iterable[str]) -> list[str]:
    return [text for module in modules for text in _of_module(module)]


@functools.cache
def _of_module(module: str) -> tuple[str, ...]:
    nodes = [node for node in _tree(module).body if not isinstance(node, ast.Import | ast.ImportFrom)]
    return tuple(filter(None, (_stripped(ast.Module(body=[node], type_ignores=[])) for node in nodes)))


def _stripped(tree: ast.Module) -> str:
    """The source without docstrings and other strings that stand alone; comments went with parsing. Changes the tree."""
    for node in ast.walk(tree):
        body: Any = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [part for part in body if not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))]
            node.body = kept or ([] if isinstance(node, ast.Module) else [ast.Pass()])  # type: ignore[attr-defined]
    return ast.unparse(tree)


def _behind(module: str, prefixes: tuple[str, ...], *, without: tuple[str, ...] = ()) -> list[str]:
    """``module`` and what it imports from ``prefixes``, directly or not."""
    modules: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in modules or _path(name) is None:
            continue
        modules.add(name)
        for imported in _imported(name):
            if _is_below(imported, prefixes) and not _is_below(imported, without):
                waiting.append(imported)
    return sorted(modules)


@functools.cache
def _imported(module: str) -> tuple[str, ...]:
    imported: list[str] = []
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(imported)


def _is_below(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


@functools.cache
def _path(module: str) -> Path | None:
    """The file of a module; None where there is none, as for a class named in an import."""
    loaded = getattr(sys.modules.get(module), "__file__", None)
    if loaded:
        return Path(loaded)
    above = _path(module.rpartition(".")[0]) if "." in module else None
    if above is not None and above.name != "__init__.py":  # a name in a module, which asking for it would import
        return None
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


@functools.cache
def _tree(module: str) -> ast.Module:
    path = _path(module)
    return ast.parse(path.read_text(encoding="utf-8")) if path else ast.parse("")
