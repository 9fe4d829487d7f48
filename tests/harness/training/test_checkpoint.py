"""Checkpoints: atomic, one step back in reserve, and nothing but a whole file of this run is ever loaded."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import pytest
import torch

from harness.training import checkpoint
from harness.training.checkpoint import CheckpointFiles


def files(folder: Path, *, identity: str = "run") -> CheckpointFiles:
    return CheckpointFiles(folder, identity=identity)


def content(step: int) -> dict[str, object]:
    return {"step": step, "state": {"w": torch.full((50, 50), float(step))}}


def saved(folder: Path, *steps: int) -> Path:
    """The newest of the checkpoints written there, one after the other."""
    for step in steps:
        files(folder).save(content(step))
    return folder / "checkpoint.pt"


def step_of(loaded: dict[str, object] | None) -> object:
    return None if loaded is None else loaded["step"]


def test_the_newest_is_loaded_and_the_one_before_is_kept(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3)
    loaded, problems = files(tmp_path).load()
    assert loaded is not None
    assert (loaded["step"], problems) == (3, [])
    assert torch.equal(loaded["state"]["w"], torch.full((50, 50), 3.0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.previous.pt", "checkpoint.pt"]


@pytest.mark.parametrize("keep", [0, 10, 3000, -1])
def test_a_truncated_checkpoint_falls_back_to_the_one_before(tmp_path: Path, keep: int) -> None:
    path = saved(tmp_path, 1, 2)
    path.write_bytes(path.read_bytes()[:keep])
    loaded, problems = files(tmp_path).load()
    assert step_of(loaded) == 1
    assert len(problems) == 1
    assert "checkpoint.pt is truncated or not a checkpoint" in problems[0]
    assert "\n" not in problems[0]


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = saved(tmp_path, 1, 2)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    loaded, problems = files(tmp_path).load()
    assert step_of(loaded) == 1
    assert "damaged" in problems[0]


@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE, errno.EIO])
def test_a_checkpoint_that_cannot_be_read_for_a_moment_stays(number: int, tmp_path, monkeypatch) -> None:
    saved(tmp_path, 1)
    whole = (tmp_path / "checkpoint.pt").read_bytes()

    def refuse(*_: object) -> None:
        raise OSError(number, "no")

    with monkeypatch.context() as patch:
        patch.setattr("zipfile.ZipFile", refuse)
        with pytest.raises(OSError, match="no"):
            files(tmp_path).load()
    assert (tmp_path / "checkpoint.pt").read_bytes() == whole
    loaded, problems = files(tmp_path).load()
    assert (step_of(loaded), problems) == (1, [])


def test_the_reserve_survives_a_damaged_newest_and_the_next_save(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2).write_bytes(b"junk")
    resumed = files(tmp_path)
    assert step_of(resumed.load()[0]) == 1
    resumed.save(content(3))
    (tmp_path / "checkpoint.pt").write_bytes(b"junk")
    assert step_of(files(tmp_path).load()[0]) == 1


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
    loaded, problems = files(tmp_path).load()
    assert loaded is None
    assert len(problems) == 1
    assert not (tmp_path / "bomb").exists()


@pytest.mark.parametrize("dies_at", [1, 2])
def test_dying_between_the_two_renames_loses_at_most_one_checkpoint(tmp_path, monkeypatch, dies_at: int) -> None:
    saved(tmp_path, 1, 2)
    calls = []
    rename = os.replace

    def dying(source: Path, target: Path, **folders: int) -> None:
        calls.append(target)
        if len(calls) == dies_at:
            raise KeyboardInterrupt
        rename(source, target, **folders)

    monkeypatch.setattr(os, "replace", dying)
    with pytest.raises(KeyboardInterrupt):
        files(tmp_path).save(content(3))
    monkeypatch.undo()
    assert step_of(files(tmp_path).load()[0]) == 2
