"""Checkpoints: atomic, and nothing but a whole file of this run is ever loaded."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.training import checkpoint
from harness.training.checkpoint import CheckpointFile


def file(folder: Path) -> CheckpointFile:
    return CheckpointFile(folder, identity="run")


def content(step: int) -> dict[str, object]:
    return {"step": step, "state": {"w": torch.full((50, 50), float(step))}}


def saved(folder: Path, *steps: int) -> Path:
    """The newest of the checkpoints written there, one after the other."""
    for step in steps:
        file(folder).save(content(step))
    return folder / "checkpoint.pt"


def step_of(loaded: dict[str, object] | None) -> object:
    return None if loaded is None else loaded["step"]


def test_the_newest_is_loaded(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3)
    loaded, problem = file(tmp_path).load()
    assert loaded is not None
    assert (loaded["step"], problem) == (3, "")
    assert torch.equal(loaded["state"]["w"], torch.full((50, 50), 3.0))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def _cut(keep: int) -> Any:
    return lambda content: content[:keep]


def _flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    ("change", "word"),
    [*((_cut(keep), "truncated or not a checkpoint") for keep in (0, 10, 3000, -1)), (_flipped, "damaged")],
)
def test_a_damaged_checkpoint_is_set_aside(tmp_path: Path, change: Any, word: str) -> None:
    path = saved(tmp_path, 1)
    path.write_bytes(change(path.read_bytes()))
    loaded, problem = file(tmp_path).load()
    assert loaded is None
    assert word in problem
    assert "restarts from the beginning" in problem
    assert "\n" not in problem
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt.unusable"]


def test_half_written_files_are_deleted_and_a_checkpoint_of_another_format_is_set_aside(tmp_path: Path) -> None:
    path = saved(tmp_path, 1)
    (tmp_path / ".checkpoint.pt.0123.tmp").touch()
    assert step_of(file(tmp_path).load()[0]) == 1
    torch.save({**torch.load(path, weights_only=True), "format": "another"}, path)
    loaded, problem = file(tmp_path).load()
    assert loaded is None
    assert "not a checkpoint of this version" in problem
    assert [kept.name for kept in tmp_path.iterdir()] == ["checkpoint.pt.unusable"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE, errno.EIO])
def test_a_checkpoint_that_cannot_be_read_for_a_moment_stays(number: int, tmp_path, monkeypatch) -> None:
    saved(tmp_path, 1)
    whole = (tmp_path / "checkpoint.pt").read_bytes()

    def refuse(*_: object) -> None:
        raise OSError(number, "no")

    with monkeypatch.context() as patch:
        patch.setattr("zipfile.ZipFile", refuse)
        with pytest.raises(OSError, match="no"):
            file(tmp_path).load()
    assert (tmp_path / "checkpoint.pt").read_bytes() == whole
    loaded, problem = file(tmp_path).load()
    assert (step_of(loaded), problem) == (1, "")


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("bomb",)


@pytest.mark.parametrize("plain", [True, False])
def test_code_in_a_checkpoint_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: bool) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "checkpoint.pt"
    if plain:
        path.write_bytes(pickle.dumps(Bomb()))
    else:
        torch.save({"format": checkpoint.FORMAT, "identity": "run", "bomb": Bomb()}, path)
    loaded, problem = file(tmp_path).load()
    assert loaded is None
    assert problem
    assert not (tmp_path / "bomb").exists()


def test_dying_before_the_rename_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, 1, 2)

    def dying(*paths: Path, **folders: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", dying)
    with pytest.raises(KeyboardInterrupt):
        file(tmp_path).save(content(3))
    monkeypatch.undo()
    assert step_of(file(tmp_path).load()[0]) == 2
