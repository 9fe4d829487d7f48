"""``records check``, ``merge`` and ``seal`` hold a record against itself and against what lies beside it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.archive.agreement import disagreement, rounding
from harness.archive.archive import Archive
from harness.archive.files import image_scores, sealed
from harness.archive.measured import CostStore
from harness.archive.merge import merge
from harness.archive.reading import load
from harness.archive.store import RecordStore, is_sealed
from harness.cli.records import main
from harness.system.errors import UsageError
from tests.harness.report.sample import record
from tests.harness.report.test_costs import session
from tests.values import RESULTS, there

COMMITTED = RESULTS / "records"
NASPCLORA = "0208a83a876e42cc"  # of mini on kvasir: with an α history, and a best epoch that is the last
TRANS10K = "3ad2cd27c6cedd5a"  # of demo: a split that joins two others


def copied(tmp_path: Path, key: str, *, with_seal: bool) -> Path:
    """A committed record in a folder of its own; older records have no seal."""
    folder = tmp_path / "runs" / "records"
    folder.mkdir(parents=True)
    for path in COMMITTED.glob(f"{key}*"):
        shutil.copy(path, folder)
    path = folder / f"{key}.json"
    if not with_seal:
        content = json.loads(path.read_text(encoding="utf-8"))
        del content["seal"], content["beside"]
        path.write_text(json.dumps(content), encoding="utf-8")
    return path


def edited(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_the_committed_records_and_costs_pass_and_all_have_a_seal(says) -> None:
    said = says(main, "check", COMMITTED.parent)
    assert re.fullmatch(r"\S+: \d{2,} records \(\d+ of failed runs\), 0 wrong, 0 conflicts\n", said)


@pytest.mark.parametrize("key", [NASPCLORA, TRANS10K])
def test_a_record_that_is_older_than_seals_passes_is_told_and_can_be_sealed(tmp_path, says, key: str) -> None:
    path = copied(tmp_path, key, with_seal=False)
    before, root = load(path), path.parent.parent
    assert "1 records are older than seals" in says(main, "check", root)
    says(main, "seal", root)
    assert is_sealed(path)
    assert "older than seals" not in says(main, "check", root)
    assert load(path) == before
    assert path.read_bytes() == (COMMITTED / path.name).read_bytes()


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "a mean over images": lambda c: c["scores"]["best"]["test"].update(s_measure=0.9),
    "a mean of a merged model": lambda c: c["scores"]["merged-exact"]["test"].update(iou=0.9),
    "a mean of the last epoch": lambda c: c["scores"]["last"]["test"].update(dice=0.9),
    "a curve's maximum": lambda c: c["scores"]["best"]["test"].update(e_max=0.999),
    "a validation score": lambda c: c["scores"]["best"]["val"].update(s_measure=0.9),
    "a model that was not scored": lambda c: c["scores"].update(other=c["scores"]["best"]),
    "a count": lambda c: c["counts"].update(test=99),
    "the selected epoch": lambda c: c.update(selected_epoch=7),
    "a rule": lambda c: c["run"]["rules"].update(epochs=40),
    "the seed": lambda c: c["run"].update(seed=5),
    "the split hash": lambda c: c["run"].update(manifest="f" * 16),
}


@pytest.mark.parametrize("with_seal", [True, False], ids=["sealed", "older"])
@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_record_is_found_and_neither_merged_nor_sealed(tmp_path, says, edit: str, with_seal: bool) -> None:
    path = copied(tmp_path, NASPCLORA, with_seal=with_seal)
    edited(path, EDITS[edit])
    before, root = path.read_bytes(), path.parent.parent
    assert f"wrong: {path}: " in says(main, "check", root, "--debug", code=1)
    says(main, "seal", root, code=1)
    assert path.read_bytes() == before
    report = merge([root], tmp_path / "merged")
    assert (report.added, list(report.skipped)) == (0, [path])


@pytest.mark.parametrize("split", ["all", "easy"])
def test_an_edited_accuracy_of_classes_is_found_beyond_its_images_and_by_the_seal_within(tmp_path, says, split: str):
    older = copied(tmp_path / "older", TRANS10K, with_seal=False)
    edited(older, lambda c: c["scores"]["best"][split].update(accuracy=0.99))
    assert f"best {split}: accuracy is 0.990000" in says(main, "check", older.parent.parent, code=1)
    new = copied(tmp_path / "new", TRANS10K, with_seal=True)
    edited(new, lambda c: c["scores"]["best"][split].update(miou=c["scores"]["best"][split]["miou"] + 1e-4))
    assert "seal" in says(main, "check", new.parent.parent, code=1)


def exchange(path: Path) -> None:
    """Two images' rows, so that every mean stays."""
    lines = path.read_text(encoding="utf-8").splitlines()
    first, second = (line.split(",", 3) for line in lines[1:3])
    lines[1:3] = [",".join([*first[:3], second[3]]), ",".join([*second[:3], first[3]])]
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")


@pytest.mark.parametrize("name", ["images.csv", "architecture.csv"])
@pytest.mark.parametrize(
    "edit",
    [
        lambda path: exchange(path),
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:-40]),
        lambda path: path.write_bytes(b"\xff" + path.read_bytes()),
        lambda path: path.write_text("nothing\n"),
    ],
    ids=["exchanged", "gone", "cut off", "no text", "another table"],
)
def test_an_edited_file_beside_a_record_is_found(tmp_path, says, name: str, edit: Callable[[Path], object]) -> None:
    path = copied(tmp_path, NASPCLORA, with_seal=True)
    edit(path.with_suffix(f".{name}"))
    assert f"{NASPCLORA}.{name}" in says(main, "check", path.parent.parent, "--debug", code=1)
    assert list(merge([path.parent.parent], tmp_path / "merged").skipped) == [path]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("0.791832", "0.991832", "over its images"),
        ("best,test,test_0000", "best,test,test_0001", "twice"),
        ("best,test,test_0000", "other,test,test_0000", "images, not 100"),
        ("0.791832", "nan", "s_measure is nan"),
        ("0.791832", "7.91832", "s_measure is 7.91832"),
        ("0.791832", "", "could not convert"),
        ("0.791832", "0,791832", "columns"),
        ("s_measure", "e_mean", "columns"),
    ],
)
def test_an_edited_image_file_of_an_older_record_is_found_by_what_it_says(tmp_path, old: str, new: str, reason: str):
    path = copied(tmp_path, NASPCLORA, with_seal=False)
    images = path.with_suffix(".images.csv")
    images.write_text(images.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    assert reason in disagreement(load(path), path)


def test_shares_that_do_not_sum_to_one_are_found_in_an_older_record(tmp_path: Path) -> None:
    path = copied(tmp_path, NASPCLORA, with_seal=False)
    history = path.with_suffix(".architecture.csv")
    first = history.read_text(encoding="utf-8").splitlines()[1].rpartition(",")[2]
    history.write_text(history.read_text(encoding="utf-8").replace(first, "0.9", 1), encoding="utf-8")
    assert "do not sum to 1" in disagreement(load(path), path)


def test_an_edited_image_file_gives_no_paired_interval(tmp_path: Path) -> None:
    path = copied(tmp_path, NASPCLORA, with_seal=True)
    asked, root = (load(path), "best", "test", "iou"), path.parent.parent
    assert len(there(Archive(root).images(*asked)).scores) == 100
    exchange(path.with_suffix(".images.csv"))
    assert Archive(root).images(*asked) is None
    assert image_scores(path.with_suffix(".images.csv"), variant="best", split="test", metric="iou") is not None


@pytest.mark.parametrize(
    ("old", "new"),
    [('"rounds": 9', '"rounds": 8'), ("0.21", "0.01"), ('"device": "NVIDIA H100"', '"device": "cpu"'), ("0.5", "-0.5")],
)
def test_an_edited_cost_record_is_found_and_not_shown(tmp_path, says, old: str, new: str) -> None:
    RecordStore(tmp_path).write(record())
    replaced_in_cost(CostStore(tmp_path).write(session()), old, new, says)


@pytest.mark.parametrize(("old", "new"), [('"rounds": 5', '"rounds": 50'), ('"threads": 1', '"threads": 8')])
def test_an_edited_cost_record_that_is_older_than_seals_is_found_by_its_session(tmp_path, says, old: str, new: str):
    RecordStore(tmp_path).write(record())
    (source,) = (COMMITTED.parent / "cost").glob("089f*-de744ca3.json")
    path = tmp_path / "cost" / source.name
    path.parent.mkdir()
    shutil.copy(source, path)
    edited(path, lambda content: content.pop("seal", None))
    replaced_in_cost(path, old, new, says)


def replaced_in_cost(path: Path, old: str, new: str, says: Callable[..., str]) -> None:
    """The cost record passes the check before the edit, and not after it."""
    root = path.parent.parent
    says(main, "check", root)
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    assert f"wrong: {path}: " in says(main, "check", root, code=1)
    assert list(CostStore(root)) == []


@pytest.mark.parametrize("with_seal", [True, False], ids=["sealed", "older"])
def test_an_alpha_history_that_was_cut_off_is_not_read(tmp_path: Path, with_seal: bool) -> None:
    path = copied(tmp_path, NASPCLORA, with_seal=with_seal)
    history = path.with_suffix(".architecture.csv")
    history.write_bytes(history.read_bytes()[:-21])  # one share of the last site
    with pytest.raises(UsageError, match=r"cannot be read whole: .*architecture\.csv holds no α history"):
        RecordStore(path.parent.parent).read(NASPCLORA)


def test_sealing_says_the_same_twice(tmp_path: Path) -> None:
    path = copied(tmp_path, NASPCLORA, with_seal=True)
    content = json.loads(path.read_text(encoding="utf-8"))
    del content["seal"]
    assert sealed(content) == path.read_bytes()


def test_means_of_scores_above_one_fit_the_digits_that_are_written() -> None:
    """An NLL of several nats has fewer decimals in six digits; a score in [0, 1] has all of them."""
    values = [1.0000049, 4.5678949, 12.345649, 0.1234564]
    written = [float(f"{value:.6g}") for value in values]
    assert 1e-6 < abs(sum(values) - sum(written)) / len(values) <= rounding(written)
    assert rounding([0.5, 1.0]) == 1e-6
