"""Names to classes, lazily: what is built in, what an installed package declares as an entry point, what ``--plugin FILE.py`` brings.

Listing names imports nothing. A plug-in file calls nothing here: it defines subclasses of `methods.base.Method` or
`datasets.base.Benchmark` with a ``name``, and they are found by that.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import datasets
import methods
from harness.errors import UsageError, did_you_mean

METHOD_GROUP = "sam_peft_harness.methods"
BENCHMARK_GROUP = "sam_peft_harness.benchmarks"


def normalise(name: str) -> str:
    """Aliases with hyphens or underscores and any case are accepted: ``NAS-LoRA`` is ``naslora``, ``trans10k-v1`` is ``trans10k_v1``."""
    return name.strip().lower().replace("-", "_")


class Registry:
    """Lazy ``name -> module:Class``.

    Args:
        kind: what an entry is, for messages (``method``, ``benchmark``).
        builtin: the project's own entries.
        group: entry-point group by which installed packages join.
        base: ``module:Class`` that every loaded entry must subclass.
    """

    def __init__(self, kind: str, *, builtin: Mapping[str, str], group: str, base: str) -> None:
        self.kind = kind
        self._base = base
        self._entries = {name: EntryPoint(name, value, group) for name, value in builtin.items()}
        self._loaded: dict[str, type] = {}
        for point in entry_points(group=group):
            self._entries.setdefault(normalise(point.name), point)

    def names(self) -> list[str]:
        return [*self._entries, *(name for name in self._loaded if name not in self._entries)]

    def resolve(self, name: str) -> str:
        """The canonical name.

        Raises:
            UsageError: unknown, with the nearest name.
        """
        wanted = normalise(name)
        by_letters = {known.replace("_", ""): known for known in self.names()}
        if wanted.replace("_", "") in by_letters:
            return by_letters[wanted.replace("_", "")]
        raise UsageError(f"unknown {self.kind} {name!r}{did_you_mean(name, self.names())}")

    def get(self, name: str) -> Any:
        """The class behind ``name``; imports its module.

        Raises:
            UsageError: unknown, broken on import, or not of the right base class.
        """
        name = self.resolve(name)
        if name not in self._loaded:
            entry = self._entries[name]
            try:
                loaded = entry.load()
            except Exception as error:
                raise UsageError(f"{self.kind} {name!r} ({entry.value}) cannot be imported: {type(error).__name__}: {error}") from error
            self.add(name, loaded)
        return self._loaded[name]

    def add(self, name: str, loaded: type) -> None:
        base = EntryPoint("base", self._base, "").load()
        if not (isinstance(loaded, type) and issubclass(loaded, base)):
            raise UsageError(f"{self.kind} {name!r} must be a subclass of {self._base}, not {loaded!r}")
        self._loaded[normalise(name)] = loaded


METHODS = Registry("method", builtin=methods.BUILTIN, group=METHOD_GROUP, base="methods.base:Method")
BENCHMARKS = Registry("benchmark", builtin=datasets.BUILTIN, group=BENCHMARK_GROUP, base="datasets.base:Benchmark")


def method_config_class(name: str) -> Any:
    """The configuration dataclass of a method, without importing torch where the method is built in."""
    name = METHODS.resolve(name)
    if name in methods.CONFIGS:
        return EntryPoint(name, methods.CONFIGS[name], "").load()
    return METHODS.get(name).config_class


def load_plugin(path: Path) -> list[str]:
    """Import a plug-in file and register every method and benchmark it defines; returns their names.

    Raises:
        UsageError: the file is missing, fails on import, or defines neither.
    """
    if not path.is_file():
        raise UsageError(f"--plugin {path}: no such file")
    spec = importlib.util.spec_from_file_location(f"harness_plugin_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"--plugin {path} fails on import: {type(error).__name__}: {error}") from error
    found = []
    for value in vars(module).values():
        if not isinstance(value, type) or value.__module__ != module.__name__ or not getattr(value, "name", None):
            continue
        for registry in (METHODS, BENCHMARKS):
            if issubclass(value, EntryPoint("base", registry._base, "").load()):
                registry.add(value.name, value)
                found.append(normalise(value.name))
    if not found:
        raise UsageError(f"--plugin {path} defines no subclass of methods.base:Method or datasets.base:Benchmark with a name")
    return found
