"""Plug-in files: what they define joins the registry."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from harness.registry import BENCHMARKS, METHODS, Registry, canonical_spelling
from harness.system.errors import UsageError


def load_plugins(paths: Iterable[str | Path]) -> tuple[list[Path], list[str]]:
    """Load plug-in files; a broken one stops no other. Returns those loaded, and a line for each that is not."""
    loaded, reasons = [], []
    for path in map(Path, paths):
        try:
            load_plugin(path)
        except UsageError as error:
            reasons.append(f"plug-in left out: {error}")
        else:
            loaded.append(path)
    return loaded, reasons


def load_plugin(path: Path) -> list[str]:
    """Import a plug-in file and register every method and benchmark it defines; returns their names.

    Raises:
        UsageError: the file is missing, fails on import, defines neither, takes a name that exists, or brings a method
            whose configuration cannot be used; nothing of it is registered then.
    """
    if not path.is_file():
        raise UsageError(f"--plugin {path}: no such file")
    # Dataclasses and type hints look their module up by name. The hash keeps two files of one name apart and lets a
    # worker load the copy that a sweep has frozen.
    name = f"harness_plugin_{path.stem}_{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"--plugin {path}: is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        found = _defined(module)
        reasons = [reason for one in found if (reason := one[0].refusal(*one[1:]))]  # its classes may run code too
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UsageError(
            f"--plugin {path} fails on import: {type(error).__name__}: {error}{_old_names(path)}"
        ) from error
    if not found:
        raise UsageError(
            f"--plugin {path} defines no named subclass of harness.methods.base:Method or harness.datasets.base:Benchmark"
            f"{_old_names(path)}"
        )
    if reasons:
        raise UsageError(f"--plugin {path}: {reasons[0]}")
    for registry, called, value in found:
        registry.add(called, value)
    return [canonical_spelling(called) for _, called, _ in found]


def _defined(module: ModuleType) -> list[tuple[Registry, str, type]]:
    """Registry, name and class of every method and benchmark that a plug-in's own module defines."""
    found = []
    for value in vars(module).values():
        called = getattr(value, "name", None)
        if isinstance(value, type) and value.__module__ == module.__name__ and isinstance(called, str):
            found += [(registry, called, value) for registry in (METHODS, BENCHMARKS) if registry.accepts(value)]
    return found


def _old_names(path: Path) -> str:
    """What to write where a plug-in imports the packages by the names that they had before 0.2."""
    old = re.search(
        r"^\s*(?:from|import)\s+((?:methods|datasets)\.\w+)", path.read_text(errors="replace"), re.MULTILINE
    )
    return f" ({old[1]} is harness.{old[1]} since 0.2: import it by that name)" if old else ""
