"""Images that are not independent reach the file of per-image scores by their group."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.archive.files import all_image_scores, image_groups, image_scores, images_csv
from harness.datasets.base import Pair
from harness.experiment.building import RunData, open_data
from harness.registry import BENCHMARKS, groups_by_rule
from harness.training.images import ImageSource
from tests.harness.planned import job_of


def data(name: str, *stems: str) -> RunData:
    benchmark = BENCHMARKS.get(name)()
    source = ImageSource(benchmark, [Pair(stem=stem, image=Path(), mask=Path()) for stem in stems], image_size=8)
    return RunData(benchmark=benchmark, train=source, val=source, tests={"test": source})


def test_frames_of_a_sequence_share_a_group_and_other_images_have_none() -> None:
    assert data("cvc612", "1", "25", "26").groups("test") == {
        "1": "sequence 01",
        "25": "sequence 01",
        "26": "sequence 02",
    }
    assert data("cvc612", "1", "26").groups("test") == {}, "each stands alone here"
    assert data("kvasir", "a", "b").groups("test") == {}
    assert data("road", "7_r0c0", "7_r0c1", "8_r0c0").groups("test")["7_r0c1"] == "7"


def test_the_group_is_a_column_that_is_no_metric(tmp_path: Path) -> None:
    scores = {"best": {"test": {"1": {"iou": 0.5}, "25": {"iou": 0.25}}}}
    path = tmp_path / "a.images.csv"
    path.write_text(images_csv(scores, {"test": {"1": "sequence 01", "25": "sequence 01"}}), encoding="utf-8")
    assert path.read_text(encoding="utf-8").startswith("variant,split,stem,group,iou\nbest,test,1,sequence 01,0.5\n")
    assert image_scores(path, variant="best", split="test", metric="iou") == {"1": 0.5, "25": 0.25}
    assert image_scores(path, variant="best", split="test", metric="group") is None
    assert image_groups(path, variant="best", split="test") == {"1": "sequence 01", "25": "sequence 01"}
    assert all_image_scores(path) == {("best", "test"): {"iou": {"1": 0.5, "25": 0.25}}}
    path.write_text(images_csv(scores, {"test": {}}), encoding="utf-8")
    assert path.read_text(encoding="utf-8").startswith("variant,split,stem,iou\n")
    assert image_groups(path, variant="best", split="test") == {}


@pytest.mark.parametrize("name", ["kvasir", "elsewhere", "cvc612"])
def test_a_rule_that_does_not_know_the_stems_gives_no_groups(name: str) -> None:
    assert groups_by_rule(name, ["x", "y"]) == {}
    assert groups_by_rule("cvc612", ["1", "2"]) == {"1": "sequence 01", "2": "sequence 01"}


@pytest.mark.parametrize("name", ["kvasir", "cvc612"])
def test_images_that_nothing_trains_on_are_tested_but_for_relatives_of_those_that_do(tmp_path: Path, name: str) -> None:
    def opened(**rules: object) -> RunData:
        limits = {"train_limit": 2, "val_limit": 2, "test_limit": 0, **rules}
        job = job_of(tmp_path, "decoder", benchmarks=(name,), **limits)
        return open_data(job.run, Path(job.dataset_root))

    plain, more = opened(), opened(test_untrained=True)
    group = plain.benchmark.group
    used = [*more.train.pairs, *more.val.pairs]
    assert (plain.train.pairs, plain.val.pairs) == (more.train.pairs, more.val.pairs)
    rest = [pair for pair in opened(train_limit=0).train.pairs if group(pair) not in {group(pair) for pair in used}]
    assert [pair.stem for pair in more.tests["test"].pairs] == [p.stem for p in (*plain.tests["test"].pairs, *rest)]
    assert rest or name == "cvc612"
    assert len(opened(test_untrained=True, test_limit=3).tests["test"].pairs) == 3
