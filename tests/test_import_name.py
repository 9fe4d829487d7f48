"""One import name: ours is ``harness`` alone, so that Hugging Face's ``datasets`` and whatever needs it work beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.registry import load_plugin
from harness.system.errors import UsageError

ROOT = Path(__file__).parents[1]


def python(code: str, *, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(one) for one in (path, ROOT) if one)}
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("place", ["clone", "elsewhere"])
def test_another_package_named_datasets_is_what_that_name_finds(tmp_path: Path, place: str) -> None:
    """Behind the clone's root on the path, too: a folder without ``__init__.py`` gives way to a package."""
    theirs = tmp_path / "site" / "datasets"
    theirs.mkdir(parents=True)
    (theirs / "__init__.py").write_text("Dataset = 'theirs'\n")
    code = (
        f"import sys; sys.path.append({str(theirs.parent)!r}); import datasets; assert datasets.Dataset == 'theirs'\n"
        "import harness.datasets.kvasir, harness.methods.lora\n"
        "from harness.registry import BENCHMARKS, METHODS\n"
        "assert BENCHMARKS.get('kvasir').__module__ == 'harness.datasets.kvasir'\n"
        "assert METHODS.get('lora').__module__ == 'harness.methods.lora'\n"
    )
    done = python(code, cwd=ROOT if place == "clone" else tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("old", ["methods.base import Method", "datasets.base import Benchmark"])
def test_a_plugin_with_the_old_names_is_told_the_new_one(tmp_path: Path, old: str) -> None:
    plugin = tmp_path / "old.py"
    plugin.write_text(f"from {old}\n\n\nclass Mine({old.split()[-1]}):\n    name = 'mine'\n")
    with pytest.raises(UsageError, match=rf"is harness\.{old.split()[0]} since 0\.2"):
        load_plugin(plugin)


def test_listing_names_imports_no_torch() -> None:
    code = (
        "import sys, harness.registry, harness.run, harness.cli.status, harness.cli.tables, harness.planning.plan, harness.studies\n"
        "harness.registry.METHODS.names(); harness.run.parser()\n"
        "from harness.protocols.load import load_protocol; load_protocol('nas-lora')\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = python(code, cwd=ROOT)
    assert done.returncode == 0, done.stderr
