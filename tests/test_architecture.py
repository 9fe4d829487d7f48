"""The map of the first hour is true: its files exist, and each leads to the next; what is imported is declared."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.values import REPOSITORY

PAGE = REPOSITORY / "ARCHITECTURE.md"


def walk() -> list[Path]:
    """The files of a local run, in the order of the page."""
    if not PAGE.is_file():
        pytest.skip("this checkout has no ARCHITECTURE.md")
    rows = re.findall(r"^\| `(harness/\S+\.py)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return [REPOSITORY / name for name in rows]


def test_every_file_of_the_walk_is_named_by_one_before_it() -> None:
    """As an import or in the command that starts it: a reader gets from one to the next by their names."""
    files = walk()
    texts = [path.read_text(encoding="utf-8") for path in files]
    for index, path in enumerate(files[1:], start=1):
        module = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
        room, _, name = module.rpartition(".")
        named = rf"\b{re.escape(module)}\b|from {re.escape(room)} import .*\b{name}\b"
        assert any(re.search(named, text) for text in texts[:index]), module


def test_every_module_that_the_page_names_exists() -> None:
    if not PAGE.is_file():
        pytest.skip("this checkout has no ARCHITECTURE.md")
    named = re.findall(r"`((?:harness|methods|datasets)/[\w/]+\.py)`", PAGE.read_text(encoding="utf-8"))
    assert named
    assert [name for name in named if not (REPOSITORY / name).is_file()] == []


def test_what_code_cites_and_pages_link_is_in_the_repository() -> None:
    missing = []
    for package in ("methods", "datasets", "harness", "benchmarks", "slurm"):
        for path in (REPOSITORY / package).rglob("*.py"):
            cited = re.findall(r"\bdocs/[\w./-]+\.\w+", path.read_text(encoding="utf-8"))
            missing += [f"{path}: {name}" for name in cited if not (REPOSITORY / name).is_file()]
    for path in [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")]:
        linked = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8"))
        missing += [f"{path}: {name}" for name in linked if not (path.parent / name).exists()]
    assert missing == []


PACKAGES = ("harness", "methods", "datasets")
OUT_OF_SIGHT = {"tensorboard"}
"""Imported by torch's writer of it, and by name, since an extra may not be installed."""


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
    ours = ("test", "dev", "docs")
    lines = [*project["dependencies"], *(line for name in extras if name not in ours for line in extras[name])]
    return {normal(re.split(r"[\[<>=!~; ]", line, maxsplit=1)[0]) for line in lines}


def test_what_is_imported_is_declared() -> None:
    assert not {name: given for name, given in used().items() if not given & declared()}


def test_what_is_declared_is_imported() -> None:
    assert declared() - set().union(*used().values()) == OUT_OF_SIGHT
