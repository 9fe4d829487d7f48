"""Fingerprints of the code that makes numbers: hashes of its files' syntax, whatever their names, comments, docstrings and layout. Another
version of Python may change them."""

from __future__ import annotations

import ast
import functools
import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path

from harness.archive.schema import Record
from harness.registry import METHODS, method_config_class

HARNESS = Path(__file__).parents[1]
ROOMS = ("models", "training", "evaluation", "experiment")
"""Folders that every run uses."""
NO_NUMBERS = {
    "environment",
    "number_code",
    "predicting",
    "exporting",
    "exporting_onnx",
    "exporting_peft",
    "adopting",
    "trained",
}
"""Modules there that do not affect the numbers of a run."""


def number_code(method: type, config: type, benchmark: type) -> dict[str, str]:
    """``numbers`` of `ROOMS`, ``numbers_method`` and ``numbers_benchmark``: 12 hex digits each. A class counts with its bases and with what
    its kind shares (``methods/parts``, ``datasets/readers``)."""
    rooms = (file for room in ROOMS for file in (HARNESS / room).glob("*.py") if file.stem not in NO_NUMBERS)
    return {
        "numbers": _digest(rooms),
        "numbers_method": _of_method(method, config),
        "numbers_benchmark": _digest(_sources(benchmark, "readers")),
    }


def has_changed(record: Record) -> bool:
    """Whether a finished run's plug-in method has changed since: its file, or the parts of `harness.methods` that it uses.

    The key does not show that, since an edited plug-in keeps its name. Built-in methods have a version, which tables show.
    """
    made, name = record.environment.get("numbers_method"), record.run.method
    if not made or METHODS.is_fixed(name):
        return False
    return _of_method(METHODS.get(name), method_config_class(name)) != made


def _of_method(method: type, config: type) -> str:
    return _digest(_sources(method, "parts") | _sources(config, "parts"))


def _sources(kind: type, shared: str) -> set[Path]:
    """The files of a class and of its bases, and those in a folder ``shared`` next to them."""
    files = {
        Path(file) for base in kind.__mro__[:-1] if (file := getattr(sys.modules[base.__module__], "__file__", None))
    }
    return files | {path for file in files for path in (file.parent / shared).glob("*.py")}


def _digest(files: Iterable[Path]) -> str:
    trees = sorted(_syntax(file, file.stat().st_mtime_ns) for file in files)
    return hashlib.sha256("\n\n".join(trees).encode()).hexdigest()[:12]


class _WithoutDocstrings(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:  # the name that ast looks for
        return None if isinstance(node.value, ast.Constant) else node


@functools.cache
def _syntax(file: Path, changed: int) -> str:
    return ast.dump(_WithoutDocstrings().visit(ast.parse(file.read_text(encoding="utf-8"))))
