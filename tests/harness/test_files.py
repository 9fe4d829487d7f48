"""Files are there whole or not at all, and nothing in a results folder from elsewhere leads out of it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.dispatch.attempts import Holder, Lease, log_path, state_folder
from harness.dispatch.supervise import Start, StopSignals, supervise
from harness.experiment import experiment
from harness.system.files import (
    create_anew,
    create_exclusively,
    end_of,
    own_folder,
    read_regular,
    write_atomically,
)
from harness.training.checkpoint import CheckpointFiles, StateFiles
from tests.harness.dispatch import standin
from tests.harness.dispatch.helpers import make_job

KEY = "0123456789abcdef"


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A file of the user's own, in a folder of the user's own."""
    path = tmp_path / "home" / "diary"
    path.parent.mkdir()
    path.write_text("mine")
    path.chmod(0o600)
    return path


def test_the_files_of_a_run_are_not_written_through_links_that_others_planted(tmp_path, theirs, monkeypatch):
    monkeypatch.setattr("harness.experiment.experiment.run_experiment", standin.run_experiment)
    job = make_job(tmp_path)
    folder = state_folder(tmp_path, job.run.key)
    folder.mkdir(parents=True)
    for name in ("progress.tmp", "progress.json", "error.log", "attempt.1.log"):
        (folder / name).symlink_to(theirs)
    assert supervise(Start(job=job, holder=Holder.here(), limit=1), stop=StopSignals()) == "finished"
    experiment._keep_traceback(folder)
    assert theirs.read_text() == "mine"
    assert "start at step 0" in log_path(folder, 1).read_text()


def test_a_heartbeat_is_not_written_through_a_link(tmp_path, theirs):
    folder = state_folder(tmp_path, KEY)
    lease = Lease.acquire(folder, holder=Holder.here())
    (folder / f".attempt.1.json.{lease.attempt.token}").symlink_to(theirs)  # it reads the token in the file
    lease.beat()
    assert theirs.read_text() == "mine"
    (folder / "attempt.1.json").unlink()
    (folder / "attempt.1.json").symlink_to(theirs)
    lease.beat()
    assert theirs.read_text() == "mine"


@pytest.mark.parametrize(
    "touch",
    [
        lambda folder: write_atomically(folder / "diary", "x"),
        lambda folder: write_atomically(folder / "deeper" / "x.json", "x"),
        lambda folder: create_exclusively(folder / "new", "x"),
        lambda folder: create_anew(folder / "diary"),
        lambda folder: StateFiles(folder, identity=KEY).save_candidate({}, epoch=1),
        lambda folder: own_folder(folder / "x"),
        lambda folder: Lease.acquire(folder, holder=Holder.here()),
    ],
)
@pytest.mark.parametrize("where", [f"state/{KEY}", "state", "records", "sweeps/x", "cache/images"])
def test_a_folder_that_others_replaced_by_a_link_is_not_entered(tmp_path, theirs, where, touch):
    place = tmp_path / "results" / where
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(theirs.parent)
    with pytest.raises(OSError, match="link") as caught:
        touch(place)
    assert str(place) in str(caught.value)
    assert [path.name for path in theirs.parent.iterdir()] == ["diary"]
    assert theirs.read_text() == "mine"


@pytest.mark.parametrize("durable", [True, False])
def test_what_must_survive_a_crash_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch, durable):
    """The file before the rename, its folder after it."""
    calls: list[str] = []

    def noted(name: str, call: Callable[..., None]) -> Callable[..., None]:
        def do(*words: Any, **more: Any) -> None:
            calls.append(name)
            call(*words, **more)

        return do

    for name in ("fsync", "replace", "link"):
        monkeypatch.setattr(os, name, noted(name, getattr(os, name)))
    write_atomically(tmp_path / "record.json", "{}", durable=durable)
    assert calls == (["fsync", "replace", "fsync"] if durable else ["replace"])
    calls.clear()
    create_exclusively(tmp_path / "intent", "{}")
    assert calls[:2] == ["fsync", "link"]


def test_a_results_folder_may_itself_be_a_link(tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "runs").symlink_to("scratch")
    write_atomically(tmp_path / "runs" / "state" / KEY / "a.json", "{}")
    write_atomically(tmp_path / "runs" / "table.md", "x")
    assert (tmp_path / "scratch" / "state" / KEY / "a.json").read_text() == "{}"
    assert read_regular(tmp_path / "runs" / "table.md", largest=10) == b"x"


def test_links_and_pipes_are_neither_read_nor_waited_for(tmp_path, theirs):
    (tmp_path / "link").symlink_to(theirs)
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(ValueError, match=r"link|plain"):
            read_regular(tmp_path / name, largest=10)
        with pytest.raises(ValueError, match=r"link|plain"):
            end_of(tmp_path / name, size=10)
    (tmp_path / "log").write_text("début\nfin\n")
    assert end_of(tmp_path / "log", size=4) == "fin\n"
    assert end_of(tmp_path / "log", size=100) == "début\nfin\n"


def test_who_may_write_to_a_folder_may_write_to_its_files_less_the_umask(tmp_path):
    umask = os.umask(0o002)
    try:
        write_atomically(tmp_path / "state" / KEY / "a.json", "{}")
        StateFiles(tmp_path / "state" / KEY, identity=KEY).save_candidate({}, epoch=1)
        CheckpointFiles(tmp_path / "state" / KEY, identity=KEY).save({})
        write_atomically(own_folder(tmp_path / "sweeps" / "mine") / "a.json", "{}")
    finally:
        os.umask(umask)
    modes = {str(path.relative_to(tmp_path)): stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes == {
        "state": 0o775, f"state/{KEY}": 0o775, f"state/{KEY}/a.json": 0o664,
        f"state/{KEY}/best-0001.safetensors": 0o664, f"state/{KEY}/checkpoint.pt": 0o664, "sweeps": 0o775,
        "sweeps/mine": 0o775, "sweeps/mine/a.json": 0o664,
    }  # fmt: skip
