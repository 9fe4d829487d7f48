"""Records that come from elsewhere: what is absent is copied with its sidecar files, nothing that stands there is changed, and every
damaged byte is found."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.archive.files import SIDECARS, sealed
from harness.archive.measured import CostStore
from harness.archive.merge import checked, merge
from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.cli.records import main
from tests.harness.report.sample import record
from tests.harness.report.test_costs import session
from tests.values import there

ALPHA = [{"blocks.0.q": [0.25, 0.75]}]


def images(record: Record) -> str:
    """Per-image scores that agree with a record."""
    value = record.scores["best"]["test"]["s_measure"]
    rows = [f"best,test,{number},{value}" for number in range(record.counts["test"])]
    return "\n".join(["model,split,stem,s_measure", *rows, ""])


def folder(root: Path, *records: Record) -> Path:
    store = RecordStore(root)
    for made in records:
        store.write(made, images(made) if made.scores else "")
    return root


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_records_of_two_clusters_come_together_with_their_sidecar_files(tmp_path: Path) -> None:
    a = folder(tmp_path / "a", record(seed=0), replace(record(seed=1), architecture=ALPHA))
    b = folder(tmp_path / "b", record(seed=1, method="decoder"), record(seed=0))
    assert main(["merge", str(a), str(b), str(tmp_path / "c")]) == 0
    merged = RecordStore(tmp_path / "c")
    assert len(list(merged)) == 3
    assert {path.name: path.read_bytes() for path in merged.folder.iterdir()} == {
        path.name: path.read_bytes() for root in (a, b) for path in (root / "records").iterdir()
    }
    assert there(merged.read(record(seed=1).key)).architecture == ALPHA
    before = tree(tmp_path / "c")
    assert merge(a, tmp_path / "c") == (0, 2, [])
    assert tree(tmp_path / "c") == before


@pytest.mark.parametrize("other", [{"scores": {"best": {"test": {"s_measure": 0.8}}}}, {"fingerprint": "f" * 16}])
def test_a_conflict_is_named_and_changes_nothing(tmp_path: Path, says, other: dict[str, Any]) -> None:
    theirs = record(0.9)
    if fingerprint := other.pop("fingerprint", ""):
        theirs = replace(theirs, run=replace(theirs.run, data_fingerprint=fingerprint))
    a, b = folder(tmp_path / "a", replace(theirs, **other)), folder(tmp_path / "b", record(0.9))
    before = tree(tmp_path)
    assert f"conflict: {theirs.key}" in says(main, "merge", a, b, code=1)
    assert tree(tmp_path) == before


def test_a_success_takes_the_place_of_a_failure_and_never_the_reverse(tmp_path: Path) -> None:
    failed, done = record(code="OOM"), record(0.9)
    a, b = folder(tmp_path / "a", done), folder(tmp_path / "b", failed)
    assert merge(a, b) == (1, 0, [])
    assert list(RecordStore(b)) == [done]
    assert merge(folder(tmp_path / "c", failed), b) == (0, 1, [])
    assert list(RecordStore(b)) == [done]


@pytest.mark.parametrize("first", [0, 1])
def test_a_result_does_not_become_a_trial_of_a_tuning(tmp_path: Path, first: int) -> None:
    both = [record(0.9), record(0.9, tuning={"grid": {"lr": [1e-4, 1e-3]}})]
    a, b = folder(tmp_path / "a", both[first]), folder(tmp_path / "b", both[1 - first])
    assert merge(a, b)[2] == []
    assert list(RecordStore(b)) == [record(0.9)]


def test_the_score_of_all_test_images_is_their_mean(tmp_path: Path, says) -> None:
    made = record(
        scores={"best": {"test": {"s_measure": 0.8}, "untrained": {"s_measure": 0.6}, "all": {"s_measure": 0.7}}}
    )
    rows = [
        f"best,{split},{split}{n},{value}" for split, value in (("test", 0.8), ("untrained", 0.6)) for n in range(4)
    ]
    csv = "\n".join(["model,split,stem,s_measure", *rows, ""])
    RecordStore(tmp_path).write(made, csv)
    assert "0 wrong" in says(main, "check", tmp_path)
    RecordStore(tmp_path).write(replace(made, scores={"best": made.scores["best"] | {"all": {"s_measure": 0.75}}}), csv)
    assert "the mean s_measure of best on all is 0.7 " in says(main, "check", tmp_path, code=1)


def test_a_damaged_record_is_not_copied_and_one_of_the_destination_stays(tmp_path: Path, says) -> None:
    a, b = folder(tmp_path / "a", record(0.9, seed=0), record(0.9, seed=1)), folder(tmp_path / "b", record(0.9, seed=1))
    store = RecordStore(a)
    store.images_path(record(seed=0).key).write_text("model,split,stem,s_measure\nbest,test,0,1\n")
    RecordStore(b).path(record(seed=1).key).write_bytes(b"{")
    before = tree(tmp_path)
    shown = says(main, "merge", a, b, code=1)
    assert shown.count("not copied: ") == 2
    assert "0 copied" in shown
    assert tree(tmp_path) == before


def test_cost_records_are_copied_once_and_a_changed_one_is_named(tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a", record()), folder(tmp_path / "b", record())
    path = CostStore(a).write(session())
    assert merge(a, b)[0] == 1
    assert merge(a, b) == (0, 2, [])
    CostStore(a).write(replace(session(), finished="2027"))
    (line,) = merge(a, b)[2]
    assert line.startswith("conflict: ")
    assert path.name in line


def test_a_copied_cost_record_does_not_count_twice(tmp_path: Path) -> None:
    path = CostStore(tmp_path).write(session())
    copy = path.with_name("copy.json")
    copy.write_bytes(path.read_bytes())
    sessions, problems = CostStore(tmp_path).sessions()
    assert len(sessions) == 1
    assert path.name in problems[copy]


@pytest.mark.parametrize("name", ["json", *SIDECARS[:2]])
def test_every_flipped_byte_is_found(tmp_path: Path, name: str) -> None:
    path = RecordStore(tmp_path).write(replace(record(), architecture=ALPHA), images(record()))
    file = path.with_suffix(f".{name}")
    content, original = file.read_bytes(), checked(path)
    for index in range(len(content)):
        file.write_bytes(content[:index] + bytes([content[index] ^ 1]) + content[index + 1 :])
        try:
            read = checked(path)
        except ValueError:
            continue
        assert name == "json", index
        assert read == original, index  # a blank between two words
    file.write_bytes(content)
    assert checked(path) == original


def forged(tmp_path: Path, scores: dict[str, float], *, sealing: bool = True) -> Path:
    """A record whose key fits, with other scores than its images'."""
    path = RecordStore(tmp_path).write(record(), images(record()))
    content = json.loads(path.read_text(encoding="utf-8"))
    content["scores"]["best"]["test"] |= scores
    del content["seal"]
    path.write_bytes(sealed(content) if sealing else json.dumps(content).encode())
    return path


@pytest.mark.parametrize(
    ("scores", "sealing", "said"),
    [
        ({}, False, "no seal"),
        ({"s_measure": 0.95}, True, "mean s_measure of best on test is"),
        ({"e_max": 0.95}, True, ""),
    ],
)
def test_a_record_without_seal_or_with_scores_that_are_not_its_images_fails(tmp_path, says, scores, sealing, said):
    path = forged(tmp_path, scores, sealing=sealing)
    assert RecordStore(tmp_path).summary(path.stem) is not None
    assert said in says(main, "check", tmp_path, code=1 if said else 0)


def test_a_sidecar_file_that_is_gone_or_anothers_is_found(tmp_path: Path, says) -> None:
    store = RecordStore(tmp_path)
    path = store.write(record(), images(record()))
    assert "0 wrong" in says(main, "check", tmp_path)
    store.architecture_path(path.stem).write_text("epoch,site,w0\n1,a,1.0\n")
    assert "left by another record" in says(main, "check", tmp_path, code=1)
    store.architecture_path(path.stem).unlink()
    store.images_path(path.stem).unlink()
    assert "images.csv is gone" in says(main, "check", tmp_path, code=1)


@pytest.mark.parametrize(
    ("of", "name", "said"), [("", "rounds", "seal does not fit"), ("comparability", "batch", "comparability")]
)
def test_an_edited_cost_record_is_refused(tmp_path: Path, of: str, name: str, said: str) -> None:
    path = CostStore(folder(tmp_path / "a", record())).write(session())
    content = json.loads(path.read_text(encoding="utf-8"))
    content.get(of, content)[name] = 8
    path.write_text(json.dumps(content))
    (reason,) = CostStore(tmp_path / "a").sessions()[1].values()
    assert said in reason
    (line,) = merge(tmp_path / "a", tmp_path / "b")[2]
    assert said in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["check", "DIR"], "holds no records"),
        (["check", "DIR", "--study", "leaderboard"], "holds no records"),
        (["merge", "DIR"], "needs two folders"),
        (["merge", "DIR", "DIR/more"], "holds no records"),
        (["export", "--to", "csv", "DIR/out", "--results", "DIR"], "no finished run"),
    ],
)
def test_a_folder_without_records_is_one_line(tmp_path: Path, says, words: list[str], said: str) -> None:
    assert said in says(main, *(word.replace("DIR", str(tmp_path)) for word in words), code=2)
