"""Dependencies say the truth: what the packages import is declared, and what is declared is imported."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

from tests.values import REPOSITORY

PACKAGES = ("harness", "methods", "datasets")
OF_OTHERS = {"torchvision": "segment_anything"}
"""Declared for a package that imports it and does not say so itself."""
OUT_OF_SIGHT = {"tensorboard", "datasets"}
"""Imported by torch's writer of it, and by name, as the folder of benchmarks is called like it."""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported(folder: Path) -> set[str]:
    """Top-level names that the modules below a folder import, wherever in them."""
    names: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(str(node.module).partition(".")[0])
    return names - set(sys.stdlib_module_names)


@cache
def used() -> dict[str, set[str]]:
    """Imported name -> the distributions that give it here."""
    names = set().union(*(imported(REPOSITORY / package) for package in PACKAGES)) - {"harness"}
    given = packages_distributions()
    # what an extra gives may not be installed here; those are called as they are imported
    return {name: {normal(distribution) for distribution in given.get(name, [name])} for name in names}


@cache
def declared() -> set[str]:
    """What the wheel needs, and what its options for users need."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    ours = ("test", "dev", "mutants", "docs")
    lines = [*project["dependencies"], *(line for name in extras if name not in ours for line in extras[name])]
    return {normal(re.split(r"[\[<>=!~; ]", line, maxsplit=1)[0]) for line in lines}


def test_what_is_imported_is_declared() -> None:
    assert not {name: given for name, given in used().items() if not given & declared()}


def test_what_is_declared_is_imported() -> None:
    assert declared() - set().union(*used().values()) == {*OF_OTHERS, *OUT_OF_SIGHT}
    for name, package in OF_OTHERS.items():
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        assert name in imported(Path(spec.origin).parent)
