"""What lies beside a record is its own: nothing of a record whose place it took, and nothing of that is lost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from harness.archive.files import BESIDE
from harness.archive.masks import KeptMask, encoded_masks
from harness.archive.merge import conflicts, merge
from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.cli.records import main
from tests.harness.archive.test_merge import TUNING, images, tree
from tests.harness.report.sample import record
from tests.values import there

ALPHA = [{"blocks.0.q": [0.25, 0.75]}]
_PICTURE = np.zeros((8, 8), np.uint8)
MASKS = encoded_masks([KeptMask(split="test", stem="a", predicted=_PICTURE, truth=_PICTURE)])


def whole(root: Path, value: float = 0.9) -> Record:
    """A record with all that may lie beside one."""
    one = record(value, architecture=ALPHA, finished="2026-01-01")
    RecordStore(root).write(one, images(one), MASKS)
    return one


def plain(root: Path, value: float = 0.8, finished: str = "2026-01-02") -> Record:
    """A record of the same run with per-image scores alone."""
    one = record(value, finished=finished)
    RecordStore(root).write(one, images(one))
    return one


def names(root: Path) -> set[str]:
    """Endings of the files of the run."""
    return {path.name.partition(".")[2] for path in (root / "records").glob(f"{record().key}*")}


def displaced(root: Path) -> dict[str, bytes]:
    """A later schema's record, and what lies beside it."""
    path = RecordStore(root).path(whole(root).key)
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), "schema_version": 3}), encoding="utf-8")
    return {name: path.with_suffix(f".{name}").read_bytes() for name in ("json", *BESIDE)}


def test_what_lies_beside_a_file_that_is_no_record_is_set_aside_with_it(tmp_path: Path) -> None:
    first = displaced(tmp_path)
    one = plain(tmp_path)
    assert RecordStore(tmp_path).read(one.key) == one
    second = displaced(tmp_path)
    plain(tmp_path)
    found = {path.name.partition(".")[2]: path.read_bytes() for path in (tmp_path / "records").iterdir()}
    for ending, kept in ((".unreadable", first), (".unreadable.2", second)):
        assert {name: found[f"{name}{ending}"] for name in kept} == kept
    assert set(found) == {"json", "images.csv"} | {
        f"{name}{e}" for name in first for e in (".unreadable", ".unreadable.2")
    }
    assert main(["check", str(tmp_path)]) == 0


def test_a_success_leaves_nothing_of_another_record_beside_it_and_a_failure_deletes_nothing(tmp_path: Path) -> None:
    path = RecordStore(tmp_path).path(whole(tmp_path).key)
    path.unlink()  # as who wants to run it again does
    failed = record(code="ERROR", message="CUDA error")
    RecordStore(tmp_path).write(failed)
    assert names(tmp_path) == {"json", *BESIDE}
    assert RecordStore(tmp_path).read(failed.key) == failed
    one = plain(tmp_path)
    assert names(tmp_path) == {"json", "images.csv"}
    assert RecordStore(tmp_path).read(one.key) == one


def test_a_label_that_is_given_later_takes_no_file_away(tmp_path: Path) -> None:
    """Also from records that are older than digests and name none."""
    store = RecordStore(tmp_path)
    one = whole(tmp_path)
    path = store.path(one.key)
    content = json.loads(path.read_text(encoding="utf-8"))
    for older in (content, {name: value for name, value in content.items() if name not in ("beside", "seal")}):
        path.write_text(json.dumps(older), encoding="utf-8")
        before = {name: path.with_suffix(f".{name}").read_bytes() for name in BESIDE}
        found = there(store.find(one.key))
        store.relabel(replace(found, run=replace(found.run, variant="named later")))
        assert {name: path.with_suffix(f".{name}").read_bytes() for name in BESIDE} == before
        again = there(store.read(one.key))
        assert (again.run.variant, again.architecture) == ("named later", ALPHA)
        assert main(["check", str(tmp_path)]) == 0


def test_files_that_a_record_does_not_name_are_not_read_and_the_check_reports_them(tmp_path, capsys) -> None:
    whole(tmp_path / "other")
    one = plain(tmp_path)
    store, other = RecordStore(tmp_path), RecordStore(tmp_path / "other")
    for left in (store.architecture_path, store.masks_path):
        left(one.key).write_bytes((other.folder / left(one.key).name).read_bytes())
    assert store.read(one.key) == one
    assert main(["check", str(tmp_path)]) == 1
    said = f"does not name {one.key}.architecture.csv and {one.key}.masks.png"
    assert said in capsys.readouterr().out
    assert merge([tmp_path], tmp_path / "c").added == 1
    assert names(tmp_path / "c") == {"json", "images.csv"}
    again = tree(tmp_path / "c")
    assert merge([tmp_path], tmp_path / "c").added == 0
    assert tree(tmp_path / "c") == again


def test_a_record_that_wins_a_merge_has_nothing_of_the_losing_one_beside_it(tmp_path: Path) -> None:
    """The destination's loses to one that knows how it was tuned."""
    tuned = record(0.8, tuning=TUNING)
    RecordStore(tmp_path / "a").write(tuned, images(tuned))
    whole(tmp_path / "b")
    before = {name: (tmp_path / "b" / "records" / f"{tuned.key}.{name}").read_bytes() for name in ("json", *BESIDE)}
    assert len(merge([tmp_path / "a"], tmp_path / "b").conflicts) == 1
    assert RecordStore(tmp_path / "b").read(tuned.key) == tuned
    assert names(tmp_path / "b") == {"json", "images.csv"}
    (apart,) = conflicts(tmp_path / "b")
    assert {name: apart.with_suffix(f".{name}").read_bytes() for name in before} == before
    assert main(["check", str(tmp_path / "b")]) == 0
