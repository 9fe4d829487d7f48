"""Records survive what file systems and clusters do to them; nothing replaces one that cannot be read for a moment."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.archive.files import sealed
from harness.archive.store import RecordStore, finished_run
from harness.cli.records import main
from harness.planning.plan import earlier
from harness.planning.request import Job
from harness.system.errors import UsageError
from harness.system.files import write_atomically
from tests.harness.archive.test_merge import folder, tree
from tests.harness.report.sample import record

ALPHA = [{"blocks.0.q": [0.125 + 1e-17, 1 / 3], "blocks.1.q": [0.1, 0.2]}, {}, {"blocks.0.q": [0.5, 0.25]}]


def test_a_record_reads_back_as_it_was_written(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    written = replace(record(0.1 + 0.2), architecture=ALPHA, history=[{"epoch": 1, "loss": 0.25, "val": {"iou": 0.5}}])
    path = store.write(written, "model,split,stem,iou\nbest,test,a,0.5\n")
    assert "architecture" not in json.loads(path.read_text(encoding="utf-8"))  # α is in its sidecar file, bit for bit
    assert store.read(written.key) == written
    assert list(store) == [written]
    assert store.images_path(written.key).read_text(encoding="utf-8").endswith("a,0.5\n")


@pytest.mark.parametrize(
    ("rule", "note", "origin", "split"),
    [
        ("official test; val carved (seed 0, 3 of 29 train images by hashed stem)", "", "files", "published"),
        ("carved (seed 0, 7 test and 4 val by hashed stem)", "generated samples", "generated", "carved"),
        ("given val; test carved (seed 0, 9 of train by hashed stem)", "generated sample", "generated-files", "carved"),
        ("lists in splits/ (800/100/100)", "352 px copy", "files", "given"),
    ],
)
def test_records_of_schema_2_say_in_words_what_are_fields_now(tmp_path: Path, rule, note, origin, split) -> None:
    store = RecordStore(tmp_path)
    path = store.write(record(split_rule=rule, data_note=note))
    old = json.loads(path.read_text(encoding="utf-8"))
    old["schema_version"] = 2
    old["counts"] |= {"test ignored": 3}
    old["run"]["variant"] = old["run"].pop("label")
    del old["run"]["origin"], old["run"]["split"], old["ignored"]
    path.write_bytes(sealed(old))
    (reread,) = store.summaries()[0]
    assert (reread.run.origin, reread.run.split, reread.ignored) == (origin, split, {"test": 3})
    assert reread.run.label == "lora"
    assert (reread.counts, reread.tested) == ({"train": 20, "val": 4, "test": 8}, {"test": 5})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"schema_version": 2, "run": {"meth', "truncated"),
        (b"[1, 2]", "mapping"),
        (b'{"a": 1}', "missing"),
        (b'{"schema_version": 2, "run": {"method": "lora"}}', "missing"),
        (b"\xff\xfe\x00", "JSON"),
        (b"[" * 200_000, ""),
        (b'{"run":' * 200_000, ""),
        (b'{"a": ' + b"9" * 10_000 + b"}", ""),
    ],
)
def test_truncated_and_foreign_files_are_reported_and_skipped(tmp_path: Path, content: bytes, reason: str) -> None:
    store = RecordStore(tmp_path)
    good = record()
    store.write(good)
    bad = store.folder / "0000.json"
    bad.write_bytes(content)
    records, problems = store.summaries()
    assert [read.key for read in records] == [good.key]
    assert list(problems) == [bad]
    assert reason in problems[bad]
    assert "\n" not in problems[bad]
    assert [read.key for read in store] == [good.key]
    with pytest.raises(UsageError, match="0000"):
        store.read("0000")


def test_a_copy_under_another_name_does_not_count_twice(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    (store.folder / "backup.json").write_bytes(store.write(record()).read_bytes())
    records, problems = store.summaries()
    assert len(records) == 1
    assert "copy" in next(iter(problems.values()))


def test_a_failed_write_is_one_line_and_older_records_stay_whole(tmp_path: Path, monkeypatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = RecordStore(tmp_path)
    path = store.write(record(seed=0))
    before = path.read_bytes()
    monkeypatch.setattr("harness.archive.store.write_atomically", full)
    for key in (path.stem, "another"):
        with pytest.raises(UsageError, match=r"^cannot write the record .*No space left.*intact"):
            store.write(replace(record(seed=0), key=key, message="new"))
    assert path.read_bytes() == before
    assert [file.name for file in store.folder.iterdir()] == [path.name]


@pytest.mark.parametrize("crash", ["images.csv", "architecture.csv", "json"])
def test_a_crash_while_a_record_is_written_leaves_no_record(tmp_path, monkeypatch, crash: str) -> None:
    """Sidecar files come first: whoever sees the record sees all of it."""

    def write(path: Path, content: bytes) -> None:
        if path.name.endswith(crash):
            raise KeyboardInterrupt
        write_atomically(path, content)

    monkeypatch.setattr("harness.archive.store.write_atomically", write)
    original = replace(record(), architecture=ALPHA)
    store = RecordStore(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        store.write(original, "model,split,stem,iou\nbest,test,a,0.5\n")
    assert store.find(original.key) is None
    assert store.summaries() == ([], {})


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
    original = record()
    path = RecordStore(folder(tmp_path, original)).path(original.key)
    before, job = tree(tmp_path), Job(run=original.run, dataset_root="", checkpoint="", results=str(tmp_path))
    with monkeypatch.context() as context:
        refuse(context, path, number)
        for look in (
            lambda: RecordStore(tmp_path).find(original.key),
            lambda: earlier(tmp_path, {original.key: job}),
            lambda: RecordStore(tmp_path).write(replace(original, code="ERROR", scores={}, message="CUDA error")),
        ):
            with pytest.raises(UsageError, match=rf"^{path} cannot be read \(.*umask 002.*repeat.*$"):
                look()
    assert tree(tmp_path) == before
    assert RecordStore(tmp_path).find(original.key) == original


@pytest.mark.parametrize("ending", ["json", "images.csv", "architecture.csv"])
def test_merging_changes_no_record_of_the_destination_that_it_may_not_read(tmp_path, monkeypatch, says, ending):
    alpha = [{"blocks.0.q": [0.25, 0.75]}]
    a, b = folder(tmp_path / "a", record(0.9)), folder(tmp_path / "b", record(0.8, architecture=alpha))
    path, before = (b / "records" / f"{record().key}.{ending}").resolve(), tree(tmp_path)
    with monkeypatch.context() as context:
        refuse(context, path, errno.EIO)
        says(main, "merge", a, b, code=1)
        says(main, "check", b, code=1)
    assert tree(tmp_path) == before


def test_a_record_whose_history_is_damaged_is_not_read_whole(tmp_path: Path) -> None:
    store, made = RecordStore(tmp_path), replace(record(), architecture=ALPHA)
    store.write(made)
    store.architecture_path(made.key).write_text("x")
    with pytest.raises(UsageError, match="cannot be read whole"):
        store.read(made.key)
    with pytest.raises(UsageError, match="no record below"):
        finished_run(tmp_path, "another")
