"""What was measured on a trained model goes with the record of that model, and with no other of the same key."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.archive.measured import Elsewhere, EvidenceStore, ForgettingRecord, ForgettingStore
from harness.archive.merge import merge
from harness.archive.schema import Record
from harness.archive.store import RecordStore
from tests.harness.archive.test_beside import TUNING
from tests.harness.archive.test_merge import folder, tree
from tests.harness.report.sample import evidence, record


def measured(root: Path, one: Record, state: str = "") -> Path:
    """A folder with a record, and with what was measured on its model where that has a ``state``."""
    folder(root, one)
    if state:
        EvidenceStore(root).write(replace(evidence(one.key), state=state))
        elsewhere = {"leaf": Elsewhere(like="0" * 16, scores={"test": {"iou": 0.5}})}
        ForgettingStore(root).write(ForgettingRecord(key=one.key, state=state, elsewhere=elsewhere))
    return root


def states(root: Path) -> list[str]:
    """Of the models that evidence and forgetting below a folder were measured on."""
    found = [store.find(record().key) for store in (EvidenceStore(root), ForgettingStore(root))]
    return [one.state for one in found if one is not None]


EARLY, LATE = record(0.9, finished="2026-01-01"), record(0.8, finished="2026-01-02")


def test_what_was_measured_on_the_model_of_a_losing_record_is_left_out_with_a_reason(tmp_path: Path) -> None:
    a, b = measured(tmp_path / "a", LATE, "late"), measured(tmp_path / "b", EARLY)
    report = merge([a, b], tmp_path / "c")
    assert list(RecordStore(tmp_path / "c")) == [EARLY]
    assert states(tmp_path / "c") == []
    assert {path.parent.name: reason for path, reason in report.skipped.items()} == dict.fromkeys(
        ("evidence", "forgetting"), f"the record of this run that stands below {tmp_path / 'c'} is not that of {a}"
    )


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_of_two_trainings_that_were_both_measured_the_standing_ones_is_taken(tmp_path: Path, order: str) -> None:
    roots = {"a": measured(tmp_path / "a", LATE, "late"), "b": measured(tmp_path / "b", EARLY, "early")}
    assert len(merge([roots[name] for name in order], tmp_path / "c").skipped) == 2
    assert states(tmp_path / "c") == ["early", "early"]


def test_a_copy_of_the_record_brings_what_was_measured_on_its_model(tmp_path: Path) -> None:
    """Also where it does not know yet what tuning chose, or was made at another time."""
    tuned = record(0.9, tuning=TUNING, variant="named later")
    a = measured(tmp_path / "a", record(0.9), "one")
    for name, other in (("b", tuned), ("c", record(0.9, finished="2027-01-01"))):
        b = folder(tmp_path / name, other)
        assert merge([a], b).skipped == {}
        assert list(RecordStore(b)) == [other]
        assert states(b) == ["one", "one"]


def test_what_was_measured_on_a_displaced_model_is_kept_apart(tmp_path: Path) -> None:
    """The destination's record loses to one that knows how it was tuned."""
    a, b = folder(tmp_path / "a", record(0.8, tuning=TUNING)), measured(tmp_path / "b", EARLY, "early")
    before = EvidenceStore(b).path(EARLY.key).read_bytes()
    report = merge([a], b)
    assert states(b) == []
    assert {path.parent.name for path in report.skipped} == {"evidence", "forgetting"}
    (apart,) = (b / "evidence" / "conflicts").iterdir()
    assert apart.read_bytes() == before
    again = tree(b)
    assert merge([a], b).skipped == {}
    assert tree(b) == again


def test_a_label_of_the_same_training_leaves_what_was_measured_where_it_is(tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a", record(0.9, tuning=TUNING)), measured(tmp_path / "b", record(0.9), "one")
    assert merge([a], b).skipped == {}
    assert states(b) == ["one", "one"]
