"""The map of the first hour is true: its files exist, and each leads to the next."""

from __future__ import annotations

import ast
import re
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
    for place, path in enumerate(files[1:], start=1):
        module = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
        room, _, name = module.rpartition(".")
        named = rf"\b{re.escape(module)}\b|from {re.escape(room)} import .*\b{name}\b"
        assert any(re.search(named, text) for text in texts[:place]), module


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


def test_what_isinstance_is_asked_of_a_module_are_methods_alone() -> None:
    """Since Python 3.12 a runtime protocol looks at attributes without ``__getattr__``, by which a module has its parts."""
    for package in ("methods", "datasets", "harness"):
        for path in (REPOSITORY / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef) and "runtime_checkable" in map(ast.unparse, node.decorator_list):
                    fields = [ast.unparse(field) for field in node.body if isinstance(field, ast.AnnAssign)]
                    assert not fields, f"{path.name}: {node.name} has {fields}"
