"""Per-image scores and groups as their readers take them."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.archive.files import all_image_scores, image_groups, image_scores

WITH_GROUPS = (
    "variant,split,stem,group,iou,mae\nbest,test,a,p1,0.5,0.25\nbest,test,b,p2,1.0,0.0\nlast,test,a,p3,0.75,0\n"
)
WITHOUT = "variant,split,stem,iou\nbest,test,a,0.5\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.images.csv"


def test_groups_are_those_of_the_model_and_split(path: Path) -> None:
    path.write_text(WITH_GROUPS)
    assert image_groups(path, variant="best", split="test") == {"a": "p1", "b": "p2"}
    assert image_groups(path, variant="last", split="test") == {"a": "p3"}
    path.write_text(WITHOUT)
    assert image_groups(path, variant="best", split="test") == {}


def test_a_group_is_no_score(path: Path) -> None:
    path.write_text(WITH_GROUPS)
    assert image_scores(path, variant="best", split="test", metric="mae") == {"a": 0.25, "b": 0.0}
    assert image_scores(path, variant="best", split="test", metric="group") is None
    assert all_image_scores(path)["best", "test"] == {"iou": {"a": 0.5, "b": 1.0}, "mae": {"a": 0.25, "b": 0.0}}


def test_an_image_that_is_there_twice_has_no_score(path: Path) -> None:
    path.write_text(WITHOUT + "best,test,a,0.75\n")
    assert image_scores(path, variant="best", split="test", metric="iou") is None
    with pytest.raises(ValueError, match="image 'a' is there twice"):
        all_image_scores(path)
