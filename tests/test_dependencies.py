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

ROOT = Path(__file__).parents[1]
PACKAGES = ("harness", "methods", "datasets")
OF_OTHERS = {"torchvision": "segment_anything"}
"""Declared for a package that imports it and does not say so itself."""


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
    names = set().union(*(imported(ROOT / package) for package in PACKAGES)) - {"harness"}
    given = packages_distributions()
    return {name: {normal(distribution) for distribution in given.get(name, [])} for name in names}


@cache
def declared() -> set[str]:
    """What the wheel needs, and what its options for users need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *extras["mask2former"], *extras["coco"]]
    return {normal(re.split(r"[\[<>=!~; ]", line, maxsplit=1)[0]) for line in lines}


def test_what_is_imported_is_declared() -> None:
    assert not {name: given for name, given in used().items() if not given & declared()}


def test_what_is_declared_is_imported() -> None:
    assert declared() - set().union(*used().values()) == set(OF_OTHERS)
    for name, package in OF_OTHERS.items():
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        assert name in imported(Path(spec.origin).parent)
