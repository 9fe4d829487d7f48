"""Frames of a results folder, and per-image scores and groups as their readers take them."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from harness.archive.archive import Archive, frame
from harness.archive.files import digest, image_tables, read_architecture, read_sidecar, sidecar
from harness.archive.store import RecordStore
from tests.harness.report.sample import record
from tests.values import RESULTS, there


@pytest.fixture(scope="module")
def archive() -> Archive:
    return Archive(RESULTS)


def test_the_mean_over_images_is_the_score(archive: Archive) -> None:
    records = [record for record in archive.records if record.run.benchmark == "kvasir"][:5]
    where = ["key", "model", "split", "metric"]
    images = frame(archive, "images", records).groupby(where)["value"].mean()
    scores = frame(archive, "scores", records).set_index(where)["value"]
    both = scores.index.intersection(images.index)
    both = both[both.get_level_values("metric") == "s_measure"]
    assert len(both) >= len(records)
    assert (images[both] - scores[both]).abs().max() < 1e-6


def test_shares_of_operations_sum_to_one_at_every_site_and_epoch(archive: Archive) -> None:
    records = [record for record in archive.records if record.run.method == "naslora"][:3]
    alphas = frame(archive, "alphas", records)
    sums = alphas.groupby(["key", "epoch", "site"])["share"].sum()
    assert len(sums)
    assert (sums - 1).abs().max() < 1e-4
    assert set(alphas.key) <= {record.key for record in records}


def test_a_folder_without_records_gives_empty_frames(tmp_path: Path) -> None:
    for kind in ("scores", "images", "alphas", "costs"):
        assert frame(Archive(tmp_path), kind).empty


WITH_GROUPS = "model,split,stem,group,iou,mae\nbest,test,a,p1,0.5,0.25\nbest,test,b,p2,1.0,0.0\nlast,test,a,p3,0.75,0\n"


def read(path: Path, *, metric: str = "iou", model: str = "best") -> tuple[dict[str, float], Mapping[str, str]]:
    """Scores and clusters by stem of one metric."""
    table = image_tables(path)[model, "test"]
    return dict(zip(table.stems, table.scores[metric].tolist(), strict=True)), table.clusters


def test_groups_are_those_of_the_model_and_split_whatever_older_files_call_the_model(tmp_path: Path) -> None:
    for name in ("model", "variant"):
        (path := tmp_path / f"{name}.images.csv").write_text(WITH_GROUPS.replace("model", name))
        assert read(path, metric="mae") == ({"a": 0.25, "b": 0.0}, {"a": "p1", "b": "p2"})
        assert read(path, model="last") == ({"a": 0.75}, {"a": "p3"})
        assert image_tables(path)["best", "test"].scores.keys() == {"iou", "mae"}


def test_all_splits_are_one_table_and_a_last_state_that_is_the_best_has_its_images(tmp_path: Path) -> None:
    scores: Any = {"val": {"iou": 0.5}, "test": {"iou": 0.5}}
    for last, stems in {0.5: ("a", "b", "c"), 0.4: None}.items():
        of_last = {**scores, "val": {"iou": last}}
        made = record(scores={"best": scores, "last": of_last})
        RecordStore(tmp_path).write(made, WITH_GROUPS.replace("last,test,a", "best,untrained,c"))
        (read_back,) = Archive(tmp_path).records
        table = Archive(tmp_path).image_table(read_back, "last", "all")
        assert (table.stems if table else None) == stems
    table = there(Archive(tmp_path).image_table(read_back, "best", "all"))
    assert table.scores["iou"].tolist() == [0.5, 1.0, 0.75]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("model,split,stem,iou\nbest,test,b,0.5\nbest,test,a,0.25\n", ""),
        ("model,split,stem,iou\nbest,test,a,0.5\nbest,test,a,0.75\n", "'a' occurs twice"),
        ("model,split,stem,iou,mae\nbest,test,a,0.5,x\n", "x"),
        ("model,split,stem,iou\nbest,test,a,1.5\n", "iou is not between 0 and 1"),
        ("model,split,stem,iou\nbest,test,a,-0.5\n", "iou is not between 0 and 1"),
        ("model,split,stem,iou\nbest,test,a,nan\n", "iou is not between 0 and 1"),
        ('model,split,stem,iou\nbest,test,a,"0.5,0.5"\n', "0.5,0.5"),
        ("model,split,stem,iou\nbest,test,a\n", "line 2 has 3 columns"),
        ("model,split,stem,iou\nbest,test,a,\n", "float"),
        ("split,model,stem,iou\nbest,test,a,1\n", "columns are not model"),
        ("", "columns are not model"),
        (f'model,split,stem,iou\nbest,test,"{"x" * 200_000}",1\n', "field larger"),
    ],
)
def test_scores_by_image_are_read_whole_or_not_at_all(content: str, said: str, tmp_path: Path) -> None:
    made, archive = record(), Archive(tmp_path)
    path = tmp_path / "records" / f"{made.key}.images.csv"
    assert archive.image_table(made, "best", "test") is None
    path.parent.mkdir()
    path.write_text(content)
    if not said:
        assert read(path) == ({"a": 0.25, "b": 0.5}, {})
        return
    with pytest.raises(ValueError, match=said):
        image_tables(path)
    assert Archive(tmp_path).image_table(made, "best", "test") is None


def test_packed_scores_are_read_as_they_were_written(tmp_path: Path) -> None:
    text = WITH_GROUPS.encode()
    (tmp_path / "x.images.csv.gz").write_bytes(gzip.compress(text))
    path = sidecar(tmp_path / "x.json", "images.csv")
    assert read_sidecar(path, expected=digest(text)) == text
    assert read(path, model="last")[0] == {"a": 0.75}
    (tmp_path / "x.images.csv").write_bytes(text)
    assert sidecar(tmp_path / "x.json", "images.csv").suffix == ".csv"


@pytest.mark.parametrize(
    ("packed", "word"),
    [
        (gzip.compress(b"0" * 1001, mtime=0), "1000 bytes"),
        (gzip.compress(b"0" * 500, mtime=0)[:-4], "cut off"),
        (gzip.compress(b"a", mtime=0) + b"more", "cut off"),
        (b"plain", "unpacked"),
    ],
)
def test_a_packed_file_that_is_too_large_or_damaged_is_refused(tmp_path: Path, packed: bytes, word: str) -> None:
    path = tmp_path / "x.images.csv.gz"
    path.write_bytes(packed)
    with pytest.raises(ValueError, match=word):
        read_sidecar(path, expected="", largest=1000)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a,b\n", "columns are not epoch"),
        ("epoch,site,w0\n2,q,1\n", "epoch 2 follows 0"),
        ("epoch,site,w0,w1\n1,q,1,0\n2,q,1\n", "has 3 columns"),
    ],
)
def test_a_file_that_holds_no_history_of_alpha_is_refused(tmp_path: Path, content: str, said: str) -> None:
    (path := tmp_path / "x.architecture.csv").write_text(content)
    with pytest.raises(ValueError, match=said):
        read_architecture(path)
