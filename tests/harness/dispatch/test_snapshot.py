"""Frozen code: whole, made once, compared with its hash, and what a worker imports."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from harness.dispatch import snapshot
from harness.system.errors import UsageError
from tests.harness.dispatch.helpers import make_job


def test_the_same_code_is_frozen_once_and_other_code_apart(tmp_path, monkeypatch):
    first, jobs = snapshot.freeze(tmp_path, [make_job(tmp_path)])
    assert jobs == [make_job(tmp_path)]
    assert (first / "harness" / "methods" / "lora.py").is_file()
    assert not list(first.rglob("__pycache__"))
    assert snapshot.freeze(tmp_path, jobs)[0] == first
    contents = {**snapshot.contents_of_command(()), "harness/new.py": b""}
    monkeypatch.setattr(snapshot, "contents_of_command", lambda plugins=(): contents)
    assert snapshot.freeze(tmp_path, jobs)[0] != first
    assert len(list((tmp_path / "snapshots").iterdir())) == 2


def test_code_that_was_edited_since_is_refused_and_byte_code_beside_it_is_not(tmp_path):
    frozen, _ = snapshot.freeze(tmp_path, [make_job(tmp_path)])
    (frozen / "harness" / "__pycache__").mkdir()
    snapshot.freeze(tmp_path, [make_job(tmp_path)])
    (frozen / "harness" / "run.py").write_text("print('mine')\n")
    with pytest.raises(UsageError, match="altered"):
        snapshot.freeze(tmp_path, [make_job(tmp_path)])


def test_plug_ins_are_frozen_with_it_under_their_own_names(tmp_path):
    plugins = [tmp_path / name / "mine.py" for name in "ab"]
    for number, plugin in enumerate(plugins):
        plugin.parent.mkdir()
        plugin.write_text(f"VALUE = {number}\n")
    jobs = [replace(make_job(tmp_path), plugins=(str(plugin),)) for plugin in plugins]
    frozen, moved = snapshot.freeze(tmp_path, jobs)
    texts = [Path(job.plugins[0]).read_text() for job in moved]
    assert texts == ["VALUE = 0\n", "VALUE = 1\n"]
    assert all(job.plugins[0].startswith(str(frozen)) for job in moved)


def test_a_worker_imports_the_frozen_code_whatever_is_installed_and_wherever_it_is_started(tmp_path):
    frozen, _ = snapshot.freeze(tmp_path, [make_job(tmp_path)])
    (frozen / "harness" / "dispatch" / "worker.py").write_text("def main():\n    print(__file__)\n    return 0\n")
    (tmp_path / "harness.py").write_text("raise RuntimeError('of the working folder')\n")
    command = [sys.executable, str(frozen / snapshot.WORKER)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(frozen / "harness" / "dispatch" / "worker.py")


def test_a_folder_with_more_than_code_is_refused(tmp_path, monkeypatch):
    big = tmp_path / "weights.py"
    with big.open("w") as file:
        file.truncate(snapshot.LARGEST + 1)
    with pytest.raises(UsageError, match=r"weights\.py"):
        snapshot.freeze(tmp_path, [replace(make_job(tmp_path), plugins=(str(big),))])
