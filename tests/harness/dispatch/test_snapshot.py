"""Frozen copies of the code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.code import code_version
from harness.dispatch import snapshot, worker
from harness.dispatch.submitting import begin_sweep
from harness.dispatch.sweeps import AttemptLimits, create_chunk
from harness.errors import UsageError
from tests.harness.dispatch.helpers import make_job


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
    code = "import harness, harness.methods as m, harness.datasets.base as d; print(harness.__file__, m.__file__, d.__file__)"
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


def test_byte_code_that_comes_and_goes_while_a_snapshot_is_hashed_is_not_looked_at(tmp_path, monkeypatch):
    """Workers write it and a second command removes it."""
    frozen = snapshot.take(tmp_path)
    (frozen / "harness" / "__pycache__").mkdir()
    (frozen / "harness" / "__pycache__" / "a.pyc").write_bytes(b"x")
    scan = os.scandir

    def gone(path="."):
        if Path(path).name == "__pycache__":
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return scan(path)

    monkeypatch.setattr("os.scandir", gone)
    assert snapshot.hash_of(frozen) == frozen.name


def _appended(frozen: Path) -> None:
    with (frozen / "harness" / "cli.py").open("a") as file:
        file.write("print('altered')\n")


def _added(frozen: Path) -> None:
    (frozen / "json.py").write_text("print('instead of the standard library')\n")


def _removed(frozen: Path) -> None:
    (frozen / "harness" / "methods" / "lora.py").unlink()


def _linked(frozen: Path) -> None:
    (frozen / "more").symlink_to("/tmp")


def _pipe(frozen: Path) -> None:
    os.mkfifo(frozen / "harness" / "pipe.py")


@pytest.mark.parametrize("alter", [_appended, _added, _removed, _linked, _pipe])
def test_an_altered_snapshot_is_used_neither_by_a_submission_nor_by_a_worker(tmp_path, capsys, alter):
    frozen = snapshot.take(tmp_path / "snapshots")
    snapshot.require_unaltered(frozen)
    alter(frozen)
    with pytest.raises(UsageError, match=r"was altered since it was taken .* move that folder away"):
        snapshot.take(tmp_path / "snapshots")
    _, folder = begin_sweep(tmp_path, executor="local", command="", frozen=frozen)
    job = make_job(tmp_path)
    chunk = create_chunk(folder, number=0, jobs=[job], shape={}, limits={job.run.key: AttemptLimits(before=0, limit=1)})
    assert worker.main([str(chunk.path)]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: the frozen code in {frozen} was altered")


def test_byte_code_in_a_snapshot_is_no_alteration_and_is_removed_before_use(tmp_path):
    frozen = snapshot.take(tmp_path)
    byte_code = frozen / "harness" / "__pycache__" / "cli.cpython-313.pyc"
    byte_code.parent.mkdir()
    byte_code.write_bytes(b"anything")
    snapshot.require_unaltered(frozen)
    assert snapshot.take(tmp_path) == frozen
    assert not byte_code.parent.exists()
