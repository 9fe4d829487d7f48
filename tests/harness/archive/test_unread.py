"""A record that the system does not let us read for a moment is no damage: nothing takes its place."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.archive.store import RecordStore
from harness.cli.records import main
from harness.dispatch.sweeps import fingerprint_at, settled
from harness.planning.earlier import earlier, under_short_fingerprints
from harness.planning.job import Job
from harness.system.errors import UsageError
from tests.harness.archive.test_merge import folder, images, tree
from tests.harness.report.sample import record

NUMBERS = [errno.EACCES, errno.ESTALE, errno.EIO]


def refuse(monkeypatch: pytest.MonkeyPatch, path: Path, number: int, *, times: int = 1000) -> None:
    """Have the system refuse to open a file; tests run as root, whom permissions do not stop."""
    left, opened = [times], os.open

    def refused(name: Any, *arguments: Any, **options: Any) -> int:
        if str(name) == str(path) and left[0]:
            left[0] -= 1
            raise OSError(number, os.strerror(number), str(path))
        return opened(name, *arguments, **options)

    monkeypatch.setattr(os, "open", refused)


@pytest.mark.parametrize("number", NUMBERS)
def test_no_start_takes_it_for_missing_and_no_record_takes_its_place(tmp_path, monkeypatch, number: int) -> None:
    one = record()
    path = RecordStore(folder(tmp_path, one)).path(one.key)
    before, job = tree(tmp_path), Job(run=one.run, dataset_root="", checkpoint="", results=str(tmp_path))
    with monkeypatch.context() as context:
        refuse(context, path, number)
        for look in (
            lambda: settled(tmp_path, one.key, replaces=""),
            lambda: fingerprint_at(tmp_path, one.key),
            lambda: earlier(tmp_path, {one.key: job}),
            lambda: under_short_fingerprints(tmp_path, {one.key: job}, {one.run.checkpoint: "0" * 16}),
            lambda: RecordStore(tmp_path).write(replace(one, code="ERROR", scores={}, message="CUDA error")),
        ):
            with pytest.raises(UsageError, match=rf"^{path} cannot be read \(.*umask 002.*try again.*$"):
                look()
    assert tree(tmp_path) == before
    assert settled(tmp_path, one.key, replaces="") == one


def test_a_plan_takes_what_the_second_look_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = record()
    refuse(monkeypatch, RecordStore(folder(tmp_path, one)).path(one.key), errno.ESTALE, times=1)
    found = earlier(tmp_path, {one.key: Job(run=one.run, dataset_root="", checkpoint="", results=str(tmp_path))})
    assert (found.finished, found.problems) == ({one.key}, ())


def test_what_is_no_picture_is_damage(tmp_path: Path, says) -> None:
    """The decoder's error is of the same class as the system's, and has no number."""
    RecordStore(tmp_path).write(record(), images(record()), b"no picture")
    assert "masks.png holds no masks (" in says(main, "check", tmp_path, code=1)


@pytest.mark.parametrize("ending", ["json", "images.csv", "architecture.csv"])
def test_merging_puts_no_record_of_the_destination_aside_that_it_may_not_read(tmp_path, monkeypatch, says, ending):
    alpha = [{"blocks.0.q": [0.25, 0.75]}]
    a, b = folder(tmp_path / "a", record(0.9)), folder(tmp_path / "b", record(0.8, architecture=alpha))
    path, before = (b / "records" / f"{record().key}.{ending}").resolve(), tree(tmp_path)
    with monkeypatch.context() as context:
        refuse(context, path, errno.EIO)
        assert f"error: {path} cannot be read (" in says(main, "merge", a, b, code=2)
        says(main, "check", b, code=1)
    assert tree(tmp_path) == before


def test_merging_skips_what_it_may_not_read_of_a_source(tmp_path, monkeypatch, says) -> None:
    a, b = folder(tmp_path / "a", record(0.9)), folder(tmp_path / "b", record(0.8, seed=1))
    refuse(monkeypatch, (a / "records" / f"{record().key}.json").resolve(), errno.EIO)
    assert "1 skipped" in says(main, "merge", a, b)
