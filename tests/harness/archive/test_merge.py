"""Merging loses nothing, overwrites nothing and does not depend on the order.

What was measured on a trained model goes with the record of that model, and with no other of the same key.
What lies beside a record is its own: nothing of a record whose place it took, and nothing of that is lost.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.archive.files import BESIDE
from harness.archive.masks import KeptMask, encoded_masks, read_masks
from harness.archive.measured import CostStore, Elsewhere, EvidenceStore, ForgettingRecord, ForgettingStore
from harness.archive.merge import conflicts, merge
from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.cli.records import main
from tests.harness.report.sample import evidence, record
from tests.harness.report.test_costs import session
from tests.values import there

TUNING = {
    "grid": {"lr": [1e-4]}, "chosen": {"lr": 1e-4}, "edge": [], "metric": "s_measure", "on": ["kvasir"], "seeds": [0],
    "trials": [{"options": {"lr": 1e-4}, "score": 0.5, "keys": ["0" * 16], "hours": 0.0}], "hours": 0.0,
}  # fmt: skip
"""What a record says that knows how it was tuned."""


def images(record: Record, *, newline: str = "\n") -> str:
    """Per-image scores that agree with a record."""
    value = record.scores["best"]["test"]["s_measure"]
    rows = [f"best,test,{number},{value}" for number in range(record.counts["test"])]
    return newline.join(["variant,split,stem,s_measure", *rows, ""])


def folder(root: Path, *records: Record) -> Path:
    store = RecordStore(root)
    for made in records:
        store.write(made, images(made) if made.scores else "")
    return root


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_records_of_two_clusters_come_together_with_what_lies_beside(tmp_path: Path) -> None:
    alpha = [{"blocks.0.q": [0.25, 0.75]}]
    a = folder(tmp_path / "a", record(seed=0), replace(record(seed=1), architecture=alpha))
    b = folder(tmp_path / "b", record(seed=1, method="decoder"), record(seed=0))
    report = merge([a, b], tmp_path / "c")
    assert (report.added, report.same, report.conflicts, report.skipped) == (3, 1, [], {})
    merged = RecordStore(tmp_path / "c")
    assert len(list(merged)) == 3
    assert {path.name: path.read_bytes() for path in merged.folder.iterdir()} == {
        path.name: path.read_bytes() for root in (a, b) for path in (root / "records").iterdir()
    }
    assert there(merged.read(record(seed=1).key)).architecture == alpha


def test_masks_travel_with_their_record_and_a_conflict_keeps_both(tmp_path: Path) -> None:
    def kept(predicted: int) -> bytes:
        picture = np.full((8, 8), predicted, np.uint8)
        return encoded_masks([KeptMask(split="test", stem="a", predicted=picture, truth=picture)])

    first, second = record(0.9, finished="2026-01-01"), record(0.8, finished="2026-01-02")
    for name, made, masks in (("a", first, kept(1)), ("b", second, kept(0))):
        RecordStore(tmp_path / name).write(made, images(made), masks)
    assert main(["merge", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "c")]) == 0
    merged = RecordStore(tmp_path / "c")
    (mask,) = read_masks(merged.masks_path(first.key), expected=there(merged.find(first.key)).beside["masks.png"])
    assert mask.predicted.min() == 1
    (apart,) = conflicts(tmp_path / "c")
    assert apart.with_name(apart.name.replace(".json", ".masks.png")).read_bytes() == kept(0)
    assert main(["check", str(tmp_path / "c")]) == 0
    merged.masks_path(first.key).write_bytes(kept(0))
    assert main(["check", str(tmp_path / "c")]) == 1


def test_a_conflict_is_reported_and_both_contents_stay(tmp_path: Path) -> None:
    first, second = record(0.9, finished="2026-01-01"), record(0.8, finished="2026-01-02")
    a, b = folder(tmp_path / "a", first), folder(tmp_path / "b", second)
    report = merge([a, b], tmp_path / "deep" / "c")
    (conflict,) = report.conflicts
    assert (report.added, report.same, conflict.differs) == (1, 0, ("finished", "scores"))
    (tmp_path / "deep" / "c").rename(tmp_path / "c")
    assert list(RecordStore(tmp_path / "c")) == [first]
    (apart,) = conflicts(tmp_path / "c")
    assert apart.read_bytes() == (b / "records" / f"{second.key}.json").read_bytes()
    assert apart.with_name(apart.name.replace(".json", ".images.csv")).read_text() == images(second)
    before = tree(tmp_path / "c")
    assert merge([a, b], tmp_path / "c").added == 0
    assert tree(tmp_path / "c") == before


def test_the_earliest_success_stands_whatever_the_order_of_the_folders(tmp_path: Path) -> None:
    early = record(0.8, finished="2026-01-01")
    contents = [record(0.9, finished="2026-01-02"), early, record(code="OOM", finished="2025-01-01")]
    roots = [folder(tmp_path / name, content) for name, content in zip("abc", contents, strict=True)]
    trees = []
    for number, order in enumerate(itertools.permutations(roots)):
        merge(list(order), tmp_path / f"out{number}")
        trees.append(tree(tmp_path / f"out{number}"))
    assert all(each == trees[0] for each in trees)
    assert len(trees[0]) == 5  # three records, two of them with images
    assert list(RecordStore(tmp_path / "out0")) == [early]


def test_what_the_destination_has_stays_and_sources_are_not_touched(tmp_path: Path) -> None:
    here = record(0.7, finished="2026-12-31")
    a, c = folder(tmp_path / "a", record(0.9, finished="2026-01-01")), folder(tmp_path / "c", here)
    before = tree(a)
    for _ in range(2):  # then with what the first kept apart
        merge([a], c)
        assert list(RecordStore(c)) == [here]
        assert len(conflicts(c)) == 1
    assert tree(a) == before


def test_a_success_takes_the_place_of_a_failure_which_is_kept_apart(tmp_path: Path) -> None:
    failed, done = record(code="OOM"), record(0.9)
    a, c = folder(tmp_path / "a", done), folder(tmp_path / "c", failed)
    merge([a], c)
    assert list(RecordStore(c)) == [done]
    assert '"code": "OOM"' in conflicts(c)[0].read_text()


@pytest.mark.parametrize("content", ['"schema_version": 3', "truncated"])
def test_a_record_of_the_destination_that_this_code_cannot_read_is_kept_apart(tmp_path, content: str, says) -> None:
    original = record(0.9)
    a, b = folder(tmp_path / "a", original), folder(tmp_path / "b", record(0.8))
    path = RecordStore(b).path(original.key)
    text = path.read_text(encoding="utf-8")
    path.write_text(text[:40] if content == "truncated" else text.replace('"schema_version": 2', content))
    before = path.read_bytes()
    said = says(main, "merge", a, b)
    assert f"skipped: {path}" in said
    assert "cannot be read" in said
    assert "1 added, 0 the same, 1 conflicts, 1 skipped" in said
    assert list(RecordStore(b)) == [original]
    (apart,) = conflicts(b)
    assert apart.read_bytes() == before
    assert apart.with_name(apart.name.replace(".json", ".images.csv")).read_text() == images(record(0.8))
    after = tree(b)
    says(main, "merge", a, b)
    assert tree(b) == after


def test_what_lies_beside_a_record_is_copied_byte_for_byte(tmp_path: Path) -> None:
    text = images(record(), newline="\r\n")
    RecordStore(tmp_path / "a").write(record(), text)
    assert merge([tmp_path / "a"], tmp_path / "c").added == 1
    assert RecordStore(tmp_path / "c").images_path(record().key).read_bytes() == text.encode()


def cost(root: Path, **changes: Any) -> Path:
    """A results folder with a record and a cost record."""
    folder(root, record())
    return CostStore(root).write(session(**changes))


@pytest.mark.parametrize(
    ("content", "reason"), [(b'{"x": "\xe9"}', "utf-8"), (b'{"x": 1}', "no cost record"), (b"[1]", "no cost record")]
)
def test_what_is_no_cost_record_is_skipped_with_the_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    good = cost(tmp_path / "a")
    good.with_name("bad.json").write_bytes(content)
    report = merge([tmp_path / "a"], tmp_path / "c")
    assert [path.name for path in report.skipped] == ["bad.json"]
    assert reason in next(iter(report.skipped.values()))
    assert [path.name for path in (tmp_path / "c" / "cost").iterdir()] == [good.name]


def test_cost_records_of_one_name_and_other_content_both_stay(tmp_path: Path) -> None:
    texts = {cost(tmp_path / name, rounds=rounds).read_text() for name, rounds in (("a", 5), ("b", 7))}
    assert merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c").added == 3  # both, and the record of both folders
    assert merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c").added == 0
    assert {path.read_text() for path in (tmp_path / "c" / "cost").iterdir()} == texts
    assert len(list(CostStore(tmp_path / "c"))) == 2


def test_publishing_one_protocol(tmp_path: Path, says) -> None:
    runs = folder(tmp_path / "runs", record(), record(protocol="mini", seed=1))
    assert "1 added" in says(main, "merge", runs, tmp_path / "results", "--protocol", "mini")
    assert [read.run.protocol for read in RecordStore(tmp_path / "results")] == ["mini"]
    said = says(main, "merge", runs, tmp_path / "none", "--protocol", "zzz", "--protocol", "minni", code=2)
    assert "no record is of the card 'minni' (did you mean 'mini'?)" in said
    assert not (tmp_path / "none").exists()


def test_wrong_folders_are_one_line(tmp_path: Path, says) -> None:
    assert "holds no records" in says(main, "merge", tmp_path / "nothing", tmp_path / "c", code=2)
    assert "two folders" in says(main, "merge", tmp_path, code=2)


def test_equal_results_with_other_timings_are_the_same(tmp_path: Path) -> None:
    """Of two clusters, or of one that ran a run twice: when, where and how fast is no result."""
    history = [{"epoch": 1, "loss": 0.5, "lr": 0.1, "seconds": 1.0, "val": {}}]
    first = record(history=history, cost={"step_time_s": 0.1}, finished="2026-01-01")
    other = replace(
        first, history=[{**history[0], "seconds": 2.0}], cost={"step_time_s": 0.2}, finished="2026-01-02",
        environment={"host": "elsewhere"}, attempts=2,
    )  # fmt: skip
    a, b = folder(tmp_path / "a", other), folder(tmp_path / "b", first)
    report = merge([a, b], tmp_path / "c")
    assert (report.added, report.same, report.conflicts) == (1, 1, [])
    assert list(RecordStore(tmp_path / "c")) == [first]
    assert conflicts(tmp_path / "c") == []


def test_a_run_of_a_wider_command_is_the_same_run(tmp_path: Path) -> None:
    """The labels that say how much a command planned are in no key."""
    first = record()
    wider = replace(first, run=replace(first.run, planned_seeds=[0, 1], planned_benchmarks=["camo", "kvasir"]))
    other = replace(wider, scores={"best": {"test": {"s_measure": 0.125}}})
    report = merge([folder(tmp_path / "a", first), folder(tmp_path / "b", wider)], tmp_path / "c")
    assert (report.added, report.same, report.conflicts) == (1, 1, [])
    (conflict,) = merge([tmp_path / "a", folder(tmp_path / "d", other)], tmp_path / "e").conflicts
    assert conflict.differs == ("scores",)


@pytest.mark.parametrize(
    "changes",
    [
        {"value": 0.9000001},
        {"history": [{"epoch": 1, "loss": 0.50001, "lr": 0.1, "val": {}}]},
        {"data_fingerprint": "other files"},
        {"counts": {"train": 21, "val": 4, "test": 8}},
        {"architecture": [{"blocks.0.q": [0.5, 0.5]}]},
    ],
)
def test_another_score_history_or_data_is_no_equal_result(tmp_path: Path, changes: dict[str, Any]) -> None:
    a, b = folder(tmp_path / "a", record()), folder(tmp_path / "b", record(**changes))
    assert len(merge([a, b], tmp_path / "c").conflicts) == 1


def test_other_scores_of_single_images_are_no_equal_result(tmp_path: Path) -> None:
    store, other = RecordStore(tmp_path / "a"), RecordStore(tmp_path / "b")
    text = images(record())
    store.write(record(), text)
    other.write(record(), text.replace("0,0.9", "0,0.8").replace("1,0.9", "1,1.0"))
    assert len(merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c").conflicts) == 1


def test_what_is_in_the_place_of_a_record_and_no_file_is_kept_apart(tmp_path: Path) -> None:
    a, c = folder(tmp_path / "a", record()), tmp_path / "c" / "records"
    (c / f"{record().key}.json").mkdir(parents=True)
    assert len(merge([a], tmp_path / "c").conflicts) == 1
    assert list(RecordStore(tmp_path / "c")) == [record()]


def measured(root: Path, record: Record, state: str = "") -> Path:
    """A folder with a record, and with what was measured on its model where that has a ``state``."""
    folder(root, record)
    if state:
        EvidenceStore(root).write(replace(evidence(record.key), state=state))
        elsewhere = {"leaf": Elsewhere(like="0" * 16, scores={"test": {"iou": 0.5}})}
        ForgettingStore(root).write(ForgettingRecord(key=record.key, state=state, elsewhere=elsewhere))
    return root


def states(root: Path) -> list[str]:
    """Of the models that evidence and forgetting below a folder were measured on."""
    records = [store.find(record().key) for store in (EvidenceStore(root), ForgettingStore(root))]
    return [kept.state for kept in records if kept is not None]


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


ALPHA = [{"blocks.0.q": [0.25, 0.75]}]
_PICTURE = np.zeros((8, 8), np.uint8)
MASKS = encoded_masks([KeptMask(split="test", stem="a", predicted=_PICTURE, truth=_PICTURE)])


def whole(root: Path, value: float = 0.9) -> Record:
    """A record with all that may lie beside one."""
    made = record(value, architecture=ALPHA, finished="2026-01-01")
    RecordStore(root).write(made, images(made), MASKS)
    return made


def plain(root: Path, value: float = 0.8, finished: str = "2026-01-02") -> Record:
    """A record of the same run with per-image scores alone."""
    made = record(value, finished=finished)
    RecordStore(root).write(made, images(made))
    return made


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
    original = plain(tmp_path)
    assert RecordStore(tmp_path).read(original.key) == original
    second = displaced(tmp_path)
    plain(tmp_path)
    files = {path.name.partition(".")[2]: path.read_bytes() for path in (tmp_path / "records").iterdir()}
    for ending, kept in ((".unreadable", first), (".unreadable.2", second)):
        assert {name: files[f"{name}{ending}"] for name in kept} == kept
    assert set(files) == {"json", "images.csv"} | {
        f"{name}{e}" for name in first for e in (".unreadable", ".unreadable.2")
    }
    assert main(["check", str(tmp_path)]) == 0


def test_a_success_leaves_nothing_of_another_record_beside_it_and_a_failure_deletes_nothing(tmp_path: Path) -> None:
    RecordStore(tmp_path).path(whole(tmp_path).key).unlink()  # as who wants to run it again does
    failed = record(code="ERROR", message="CUDA error")
    RecordStore(tmp_path).write(failed)
    assert names(tmp_path) == {"json", *BESIDE}
    assert RecordStore(tmp_path).read(failed.key) == failed
    original = plain(tmp_path)
    assert names(tmp_path) == {"json", "images.csv"}
    assert RecordStore(tmp_path).read(original.key) == original


def test_a_label_that_is_given_later_takes_no_file_away(tmp_path: Path) -> None:
    """Also from records that are older than digests and name none."""
    store = RecordStore(tmp_path)
    original = whole(tmp_path)
    path = store.path(original.key)
    content = json.loads(path.read_text(encoding="utf-8"))
    for older in (content, {name: value for name, value in content.items() if name not in ("beside", "seal")}):
        path.write_text(json.dumps(older), encoding="utf-8")
        before = {name: path.with_suffix(f".{name}").read_bytes() for name in BESIDE}
        read = there(store.find(original.key))
        store.relabel(replace(read, run=replace(read.run, variant="named later")))
        assert {name: path.with_suffix(f".{name}").read_bytes() for name in BESIDE} == before
        again = there(store.read(original.key))
        assert (again.run.variant, again.architecture) == ("named later", ALPHA)
        assert main(["check", str(tmp_path)]) == 0


def test_files_that_a_record_does_not_name_are_not_read_and_the_check_reports_them(tmp_path, capsys) -> None:
    whole(tmp_path / "other")
    original = plain(tmp_path)
    store, other = RecordStore(tmp_path), RecordStore(tmp_path / "other")
    for left in (store.architecture_path, store.masks_path):
        left(original.key).write_bytes((other.folder / left(original.key).name).read_bytes())
    assert store.read(original.key) == original
    assert main(["check", str(tmp_path)]) == 1
    said = f"does not name {original.key}.architecture.csv and {original.key}.masks.png"
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
