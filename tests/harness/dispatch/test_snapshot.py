"""Frozen copies of the code."""

from __future__ import annotations

import subprocess
import sys

from harness.dispatch import snapshot
from harness.records.code import code_version


def test_the_same_code_is_one_snapshot_and_a_change_another(tmp_path, monkeypatch):
    first = snapshot.take(tmp_path)
    assert snapshot.take(tmp_path) == first
    assert (first / "harness" / "run.py").is_file()
    assert (first / "harness" / "protocols" / "demo.yaml").is_file()
    assert not list(first.rglob("__pycache__"))
    assert not list(first.rglob("*.pyc"))
    plugin = tmp_path / "plug.py"
    plugin.write_text("x = 1\n")
    second = snapshot.take(tmp_path, extra=[plugin])
    assert second.name != first.name
    assert (second / snapshot.plugin_path(0, plugin)).read_text() == "x = 1\n"
    plugin.write_text("x = 2\n")
    assert snapshot.take(tmp_path, extra=[plugin]).name != second.name


def test_a_process_in_a_snapshot_runs_the_frozen_code(tmp_path):
    frozen = snapshot.take(tmp_path)
    code = "import harness, methods, datasets; print(harness.__file__, methods.__file__, datasets.__file__)"
    where = subprocess.run(
        [sys.executable, "-c", code], cwd=frozen, capture_output=True, text=True, check=True
    ).stdout.split()
    assert all(path.startswith(str(frozen)) for path in where)


def test_an_installation_without_git_is_copied_too(tmp_path, monkeypatch):
    with_git = snapshot.take(tmp_path / "a")
    monkeypatch.setattr(snapshot.shutil, "which", lambda name: None)
    without = snapshot.take(tmp_path / "b")
    names = [{path.relative_to(root) for path in root.rglob("*.py")} for root in (with_git, without)]
    assert names[0] == names[1]


def test_the_version_of_the_code_is_known_in_a_checkout():
    version = code_version()
    assert len(version["commit"]) in (0, 40)  # none in an exported tree
    assert len(version["dirty"]) in (0, 12)
