"""Frozen copies of the code, in folders to which others may write: what was submitted runs, or nothing."""

from __future__ import annotations

import errno
import json
import os
import py_compile
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

import harness
from harness.dispatch import frozen_start, snapshot
from harness.dispatch.frozen_start import COPY
from harness.dispatch.snapshot import freeze, worker_arguments
from harness.dispatch.sweeps import AttemptLimits, begin_sweep, create_chunk
from harness.system.errors import UsageError
from tests.harness.dispatch.helpers import make_job, use_standin

ROOT = Path(str(harness.__file__)).parents[1]


def test_the_same_code_is_one_snapshot_and_a_change_another(tmp_path):
    first = snapshot.take(tmp_path)
    assert snapshot.take(tmp_path) == first
    assert (first / "harness" / "run.py").is_file()
    assert (first / "harness" / "protocols" / "demo.yaml").is_file()
    plugin = tmp_path / "plug.py"
    plugin.write_text("x = 1\n")
    second = snapshot.take(tmp_path, extra=[plugin])
    assert second.name != first.name
    assert (second / snapshot.plugin_path(0, plugin)).read_text() == "x = 1\n"
    plugin.write_text("x = 2\n")
    assert snapshot.take(tmp_path, extra=[plugin]) == second, "a command's later submissions have the code of its first"
    snapshot.contents_of_command.cache_clear()
    assert snapshot.take(tmp_path, extra=[plugin]).name != second.name


def test_a_copy_that_does_not_fit_on_the_disk_is_taken_away(tmp_path, monkeypatch):
    opened, left = os.open, iter(range(5))

    def fill(path, *how, **where):
        if how[0] & os.O_CREAT and str(path).endswith(".py") and next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(path, *how, **where)

    monkeypatch.setattr(snapshot.os, "open", fill)
    with pytest.raises(OSError, match="No space left"):
        snapshot.take(tmp_path)
    monkeypatch.undo()
    assert list((tmp_path / str(os.getuid())).iterdir()) == []


def test_a_snapshot_has_what_git_lists_and_only_its_user_writes_to_it(tmp_path):
    umask = os.umask(0o002)
    try:
        frozen = snapshot.take(tmp_path / "snapshots")
    finally:
        os.umask(umask)
    there = [path for path in frozen.rglob("*") if path.is_file()]
    if (ROOT / ".git").exists() and shutil.which("git"):
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "methods", "datasets", "harness"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
        expected = {
            name if name.startswith("harness") else f"harness/{name}" for name in listed if (ROOT / name).is_file()
        }
        assert {str(path.relative_to(frozen)) for path in there} == expected
    assert (frozen / "harness" / "methods" / "lora.py").is_file()
    assert not [path for path in frozen.rglob("*") if path.is_symlink()]
    assert not [path for path in (frozen.parent, frozen, *frozen.rglob("*")) if path.stat().st_mode & 0o022]
    assert (tmp_path / "snapshots").stat().st_mode & stat.S_ISVTX, "a member of the group could move the user's folder"


def test_of_two_that_take_the_same_snapshot_at_once_one_makes_it_and_the_other_leaves_nothing(tmp_path, monkeypatch):
    def beaten(source, target):
        shutil.copytree(source, target)
        raise OSError(39, "Directory not empty")

    monkeypatch.setattr(os, "rename", beaten)
    frozen = snapshot.take(tmp_path)
    assert list(frozen.parent.iterdir()) == [frozen]


def test_what_is_too_large_for_code_is_not_frozen(tmp_path, monkeypatch):
    monkeypatch.setattr(snapshot, "LARGEST", 1000)
    snapshot.contents_of_command.cache_clear()
    with pytest.raises(UsageError, match="MiB"):
        snapshot.take(tmp_path)


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_git_is_not_run_in_a_repository_that_others_put_around_a_snapshot(tmp_path):
    frozen = snapshot.take(tmp_path / "snapshots")
    ran = tmp_path / "ran"
    monitor = tmp_path / "monitor"
    monitor.write_text(f"#!/bin/sh\ntouch {ran}\n")
    monitor.chmod(0o755)
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"], ["config", "core.fsmonitor", str(monitor)]):
        command = ["git", "-c", "user.name=x", "-c", "user.email=x@x", *arguments]
        subprocess.run(command, cwd=tmp_path / "snapshots", check=True, capture_output=True)
    code = "from harness.system.machine import code_version; print(code_version())"
    done = subprocess.run([sys.executable, "-c", code], cwd=frozen, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.replace("'", '"')) == {"commit": "", "dirty": ""}
    assert not ran.exists()


class Submitted:
    """A queued chunk of one run with a plug-in, what of it others might edit, and a file that only their code makes."""

    def __init__(self, folder: Path) -> None:
        self.evidence = folder / "evidence"
        self.evil = f"open({str(self.evidence)!r}, 'w').close()\n"
        self.plugin = folder / "plug.py"
        self.plugin.write_text("x = 1\n")
        results = folder / "results"
        job = make_job(results)
        job = type(job)(**{**vars(job), "plugins": (str(self.plugin),)})
        self.frozen, jobs = freeze(results / "snapshots", [job])
        _, self.folder = begin_sweep(results, executor="local", command="", frozen=self.frozen)
        limits = {job.run.key: AttemptLimits(before=0, limit=1)}
        self.chunk = create_chunk(self.folder, number=0, jobs=jobs, shape={}, limits=limits)
        self.command = [sys.executable, *worker_arguments(self.chunk, self.frozen)]
        self.temporary = folder / "tmp"
        self.temporary.mkdir()

    def run(self) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1"}
        return subprocess.run(self.command, capture_output=True, text=True, env=environment)


def _byte_code(it: Submitted) -> None:
    """Of a kind that Python never compares with the file beside it."""
    source = it.temporary / "__init__.py"
    source.write_text(it.evil)
    cache = it.frozen / "harness" / "__pycache__" / f"__init__.{sys.implementation.cache_tag}.pyc"
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(source), cfile=str(cache), doraise=True, invalidation_mode=mode)
    source.unlink()


def _linked_byte_code(it: Submitted) -> None:
    _byte_code(it)
    cache = it.frozen / "harness" / "__pycache__"
    shutil.move(cache, it.evidence.with_name("elsewhere"))
    cache.symlink_to(it.evidence.with_name("elsewhere"))


ALTERATIONS: dict[str, Callable[[Submitted], object]] = {
    "appended to": lambda it: (it.frozen / "harness/run.py").open("a").write(it.evil),
    "edited where the check lay once": lambda it: (it.frozen / "harness/dispatch/worker.py").write_text(it.evil),
    "added": lambda it: (it.frozen / "json.py").write_text(it.evil),
    "removed": lambda it: (it.frozen / "harness/methods/lora.py").unlink(),
    "linked": lambda it: (it.frozen / "more").symlink_to("/tmp"),
    "pipe": lambda it: os.mkfifo(it.frozen / "harness/pipe.py"),
    "byte code": _byte_code,
    "linked byte code": _linked_byte_code,
}


@pytest.mark.parametrize("alter", ALTERATIONS)
def test_of_an_altered_snapshot_nothing_is_run_and_nothing_submitted(tmp_path, alter):
    it = Submitted(tmp_path)
    ALTERATIONS[alter](it)
    done = it.run()
    assert not it.evidence.exists()
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: the frozen code in {it.frozen} was altered")
    with pytest.raises(UsageError, match=r"was altered since it was taken .* move that folder away"):
        snapshot.take(tmp_path / "results" / "snapshots", extra=[it.plugin])


@pytest.mark.parametrize(
    "path", ["{evil}/plugins/0/plug.py", "../evil/plugins/0/plug.py", "plugins/0/../../harness/run.py"]
)
def test_what_others_write_into_a_queued_sweep_leads_to_no_other_code(tmp_path, path):
    """Neither another snapshot, whole in itself, nor a plug-in out of it."""
    it = Submitted(tmp_path)
    it.plugin.write_text(it.evil)
    snapshot.contents_of_command.cache_clear()
    evil = snapshot.take(tmp_path / "results" / "snapshots", extra=[it.plugin])
    evil.rename(evil.with_name("evil")) if path.startswith("..") else None
    jobs, sweep = it.folder / "chunk.000.jobs.jsonl", it.folder / "sweep.json"
    jobs.write_text(json.dumps({**json.loads(jobs.read_text()), "plugins": [path.format(evil=evil)]}) + "\n")
    sweep.write_text(json.dumps({**json.loads(sweep.read_text()), "snapshot": str(evil)}))
    done = it.run()
    assert not it.evidence.exists()
    assert done.returncode == 3
    assert "plug-in" in done.stderr


def test_a_worker_runs_a_copy_of_its_users_alone_and_leaves_none(tmp_path, monkeypatch):
    use_standin(monkeypatch)
    it = Submitted(tmp_path)
    left = it.temporary / f"{COPY}{os.uname().nodename}-of-a-worker-that-was-killed"
    left.mkdir()
    os.utime(left, (0, 0))
    done = it.run()
    assert done.returncode == 0, done.stderr
    assert json.loads((it.folder / "sweep.json").read_text())["snapshot"] == str(it.frozen)
    (log,) = (tmp_path / "results" / "state").glob("*/attempt.1.log")
    (code,) = re.findall(r"with the code in (.+)/harness/experiment/experiment.py \(mode (\d+)\)", log.read_text())
    assert Path(code[0]).parent == it.temporary
    assert code[1] == "700"
    assert not list(it.temporary.iterdir())
    assert not list(it.frozen.rglob("__pycache__"))


def test_a_copy_in_use_stays_however_old_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    copy = frozen_start.private_copy({"harness/a.py": b"x = 1\n"})
    os.utime(copy, (0, 0))
    frozen_start.remove_unused_copies()
    assert (Path(copy) / "harness" / "a.py").read_bytes() == b"x = 1\n"


def test_a_copy_of_another_machine_stays_where_machines_share_their_temporary_folder(tmp_path, monkeypatch):
    """On a file system whose locks are each machine's own nothing says that it is in use."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(nodename="there"))
    copy = frozen_start.private_copy({"harness/a.py": b"x = 1\n"})
    os.utime(copy, (0, 0))
    monkeypatch.setattr("fcntl.flock", lambda *_: None)
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(nodename="here"))
    frozen_start.remove_unused_copies()
    assert Path(copy).is_dir()
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(nodename="there"))
    frozen_start.remove_unused_copies()
    assert not Path(copy).exists()


@pytest.mark.parametrize(("own", "behind"), [("", []), ("/home/me/lib", ["/home/me/lib"])])
def test_a_worker_finds_the_frozen_code_first_and_then_what_its_user_does(own, behind, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setenv("PYTHONPATH", own)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(frozen_start, "verified", lambda *_: {})
    monkeypatch.setattr(frozen_start, "remove_unused_copies", lambda: None)
    monkeypatch.setattr(frozen_start, "private_copy", lambda _: str(tmp_path))
    monkeypatch.setattr(os, "execve", lambda program, command, environment: seen.update(environment))
    frozen_start.start("frozen", "hash")
    assert seen["PYTHONPATH"].split(os.pathsep) == [str(tmp_path), *behind]
