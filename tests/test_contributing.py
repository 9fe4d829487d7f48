"""Who follows CONTRIBUTING.md finds what it names; the commands in Python run in `tests.test_documented_commands`."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import subprocess
import tomllib
from importlib import import_module

import pytest

from tests.documented import code_of
from tests.values import REPOSITORY

PAGE = [line for _, line in code_of(REPOSITORY / "CONTRIBUTING.md")]
MAKE = [words for line in PAGE if (words := shlex.split(line, comments=True)) and words[0] == "make"]
PATHS = [
    code for code in PAGE if re.fullmatch(r"[\w./-]+/[\w./-]*|[\w/-]+\.(md|toml|yaml)", code) and "NAME" not in code
]
NAMES = [code for code in PAGE if re.fullmatch(r"(harness|methods|datasets|tests)(\.\w+)+", code)]


def dry(words: list[str]) -> str:
    """What make would run last."""
    clean = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "FILE")}
    done = subprocess.run([*words, "--dry-run"], cwd=REPOSITORY, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("words", [pytest.param(words, id=" ".join(words)) for words in MAKE])
def test_every_target_of_make_is_there(words: list[str]) -> None:
    assert dry(words)


def test_the_page_names_files_that_are_there() -> None:
    assert {"methods/dora.py", "harness/studies/", "datasets/samples.py"} <= set(PATHS)
    assert [path for path in PATHS if not (REPOSITORY / path).exists()] == []


@pytest.mark.parametrize("name", NAMES)
def test_the_page_names_code_that_is_there(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    try:
        import_module(name)
    except ModuleNotFoundError:
        assert hasattr(import_module(module), attribute)


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-cu12.lock", "requirements-cu13.lock"])
def test_a_lock_has_a_version_of_all_that_is_installed(lock: str) -> None:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    project = settings["project"]
    extras = [*project["optional-dependencies"].values(), *settings["dependency-groups"].values()]
    wanted = {re.split(r"[\[><=]", line)[0] for group in (project["dependencies"], *extras) for line in group}
    lines = (REPOSITORY / lock).read_text(encoding="utf-8").splitlines()
    locked = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    assert {name for name in wanted if name.lower().replace("_", "-") not in locked} == {project["name"]}


def test_the_site_and_the_index_lead_to_every_page() -> None:
    pages = {path.name for path in (REPOSITORY / "docs").glob("*.md")} - {"README.md"}
    site, index = ((REPOSITORY / "docs" / name).read_text() for name in ("mkdocs.yml", "README.md"))
    assert {page for page in pages if f"docs/{page}\n" not in site} == set()
    assert {page for page in pages if f"]({page})" not in index} == set()


@pytest.mark.parametrize("name", ["api", "gpu"])
def test_the_page_is_what_the_source_says(name: str) -> None:
    """Signatures of public names; estimates of the plan."""
    assert runpy.run_path(str(REPOSITORY / f"docs/{name}.py"))["page"]() == (REPOSITORY / f"docs/{name}.md").read_text()
