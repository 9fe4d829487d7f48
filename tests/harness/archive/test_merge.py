"""Merging loses nothing, overwrites nothing and does not depend on the order."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.archive.cost import CostStore
from harness.archive.masks import KeptMask, encoded_masks, read_masks
from harness.archive.merge import conflicts, merge
from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.cli.records import main
from tests.harness.report.sample import record
from tests.harness.report.test_costs import session


def images(one: Record, *, newline: str = "\n") -> str:
    """Per-image scores that agree with a record."""
    value = one.scores["best"]["test"]["s_measure"]
    rows = [f"best,test,{number},{value}" for number in range(one.counts["test"])]
    return newline.join(["variant,split,stem,s_measure", *rows, ""])


def folder(root: Path, *records: Record) -> Path:
    store = RecordStore(root)
    for one in records:
        store.write(one, images(one) if one.scores else "")
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
    again = merged.read(record(seed=1).key)
    assert again is not None
    assert again.architecture == alpha


def test_masks_travel_with_their_record_and_a_conflict_keeps_both(tmp_path: Path) -> None:
    def kept(predicted: int) -> bytes:
        picture = np.full((8, 8), predicted, np.uint8)
        return encoded_masks([KeptMask(split="test", stem="a", predicted=picture, truth=picture)])

    one, other = record(0.9, finished="2026-01-01"), record(0.8, finished="2026-01-02")
    for name, made, masks in (("a", one, kept(1)), ("b", other, kept(0))):
        RecordStore(tmp_path / name).write(made, images(made), masks)
    assert main(["merge", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "c")]) == 0
    merged = RecordStore(tmp_path / "c")
    found = merged.find(one.key)
    assert found is not None
    (mask,) = read_masks(merged.masks_path(one.key), expected=found.beside["masks.png"])
    assert mask.predicted.min() == 1
    (apart,) = conflicts(tmp_path / "c")
    assert apart.with_name(apart.name.replace(".json", ".masks.png")).read_bytes() == kept(0)
    assert main(["check", str(tmp_path / "c")]) == 0
    merged.masks_path(one.key).write_bytes(kept(0))
    assert main(["check", str(tmp_path / "c")]) == 1


def test_a_conflict_is_reported_and_both_contents_stay(tmp_path: Path) -> None:
    one, other = record(0.9, finished="2026-01-01"), record(0.8, finished="2026-01-02")
    a, b = folder(tmp_path / "a", one), folder(tmp_path / "b", other)
    report = merge([a, b], tmp_path / "c")
    (conflict,) = report.conflicts
    assert conflict.differs == ("finished", "scores")
    assert list(RecordStore(tmp_path / "c")) == [one]
    (apart,) = conflicts(tmp_path / "c")
    assert apart.read_bytes() == (b / "records" / f"{other.key}.json").read_bytes()
    assert apart.with_name(apart.name.replace(".json", ".images.csv")).read_text() == images(other)


def test_the_result_does_not_depend_on_the_order_of_the_folders(tmp_path: Path) -> None:
    contents = [
        record(0.9, finished="2026-01-02"),
        record(0.8, finished="2026-01-01"),
        record(code="OOM", finished="2025-01-01"),
    ]
    roots = [folder(tmp_path / name, one) for name, one in zip("abc", contents, strict=True)]
    trees = []
    for number, order in enumerate(itertools.permutations(roots)):
        merge(list(order), tmp_path / f"out{number}")
        trees.append(tree(tmp_path / f"out{number}"))
    assert all(found == trees[0] for found in trees)
    assert len(trees[0]) == 5  # three records, two of them with images


def test_merging_again_changes_nothing(tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a", record(0.9)), folder(tmp_path / "b", record(0.8))
    merge([a, b], tmp_path / "c")
    before = tree(tmp_path / "c")
    report = merge([a, b], tmp_path / "c")
    assert tree(tmp_path / "c") == before
    assert report.added == 0


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


def test_truncated_and_foreign_files_are_reported_and_the_rest_is_merged(tmp_path: Path) -> None:
    a = folder(tmp_path / "a", record())
    (a / "records" / "half.json").write_text('{"run": {')
    (a / "records" / "other.json").write_text('["not a record"]')
    report = merge([a], tmp_path / "c")
    assert sorted(path.name for path in report.skipped) == ["half.json", "other.json"]
    assert len(list(RecordStore(tmp_path / "c"))) == 1


@pytest.mark.parametrize("content", ['"schema_version": 3', "truncated"])
def test_a_record_of_the_destination_that_this_code_cannot_read_is_kept_apart(tmp_path, content: str, capsys) -> None:
    one = record(0.9)
    a, b = folder(tmp_path / "a", one), folder(tmp_path / "b", record(0.8))
    path = RecordStore(b).path(one.key)
    text = path.read_text(encoding="utf-8")
    path.write_text(
        text[:40] if content == "truncated" else text.replace('"schema_version": 2', content), encoding="utf-8"
    )
    before = path.read_bytes()
    assert main(["merge", str(a), str(b)]) == 0
    shown = capsys.readouterr()
    assert f"skipped: {path}" in shown.err
    assert "cannot be read" in shown.out
    assert "1 added, 0 the same, 1 conflicts, 1 skipped" in shown.out
    assert list(RecordStore(b)) == [one]
    (apart,) = conflicts(b)
    assert apart.read_bytes() == before
    assert apart.with_name(apart.name.replace(".json", ".images.csv")).read_text() == images(record(0.8))
    after = tree(b)
    assert main(["merge", str(a), str(b)]) == 0
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


def test_publishing_one_protocol(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = folder(tmp_path / "runs", record(), record(protocol="mini", seed=1))
    assert main(["merge", str(runs), str(tmp_path / "results"), "--protocol", "mini"]) == 0
    assert [one.run.protocol for one in RecordStore(tmp_path / "results")] == ["mini"]
    assert "1 added" in capsys.readouterr().out
    assert main(["merge", str(runs), str(tmp_path / "none"), "--protocol", "minni"]) == 2
    assert "no record is of the card 'minni' (did you mean 'mini'?)" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_wrong_folders_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", str(tmp_path / "nothing"), str(tmp_path / "c")]) == 2
    assert "holds no records" in capsys.readouterr().err
    assert main(["merge", str(tmp_path)]) == 2
    assert "two folders" in capsys.readouterr().err


def test_check_exits_1_on_an_unreadable_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder(tmp_path / "runs", record())
    assert main(["check", str(root)]) == 0
    (root / "records" / "x.json").write_text("{")
    assert main(["check", str(root)]) == 1
    assert "x.json" in capsys.readouterr().out


def test_equal_results_with_other_timings_are_the_same(tmp_path: Path) -> None:
    """Of two clusters, or of one that ran a run twice: when, where and how fast is no result."""
    history = [{"epoch": 1, "loss": 0.5, "lr": 0.1, "seconds": 1.0, "val": {}}]
    one = record(history=history, cost={"step_time_s": 0.1}, finished="2026-01-01")
    other = replace(
        one,
        history=[{**history[0], "seconds": 2.0}],
        cost={"step_time_s": 0.2},
        finished="2026-01-02",
        environment={"host": "elsewhere"},
        attempts=2,
    )
    a, b = folder(tmp_path / "a", other), folder(tmp_path / "b", one)
    report = merge([a, b], tmp_path / "c")
    assert (report.added, report.same, report.conflicts) == (1, 1, [])
    assert list(RecordStore(tmp_path / "c")) == [one]
    assert conflicts(tmp_path / "c") == []


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


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_of_two_successes_that_the_destination_does_not_have_the_earliest_stands(tmp_path: Path, order: str) -> None:
    late, early = record(0.9, finished="2026-01-02"), record(0.8, finished="2026-01-01")
    roots = {"a": folder(tmp_path / "a", late), "b": folder(tmp_path / "b", early)}
    merge([roots[name] for name in order], tmp_path / "c")
    assert list(RecordStore(tmp_path / "c")) == [early]


def test_what_is_in_the_place_of_a_record_and_no_file_is_kept_apart(tmp_path: Path) -> None:
    a, c = folder(tmp_path / "a", record()), tmp_path / "c" / "records"
    (c / f"{record().key}.json").mkdir(parents=True)
    report = merge([a], tmp_path / "c")
    assert len(report.conflicts) == 1
    assert list(RecordStore(tmp_path / "c")) == [record()]
