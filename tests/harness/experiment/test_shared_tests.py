"""The tests of a run's models share what is equal in them, and say what they say when nothing is shared."""

from __future__ import annotations

from collections import Counter
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import harness.experiment.experiment as experiment_module
from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.experiment.experiment import run_experiment
from harness.training.outcome import Selection
from harness.training.prefix import FrozenPrefix
from tests.harness.planned import job_of

TESTED = 3
"""Images of the test split."""


class FirstIsBest(Selection):
    """Calls the first epoch the best whatever comes, so that the last is another model."""

    def improves(self, value: float, best: float | None) -> bool:
        return best is None


def finished(
    root: Path, monkeypatch: pytest.MonkeyPatch, method: str, **rules: Any
) -> tuple[Record, str, Counter[str]]:
    """The record of a run that trains the last blocks, the scores of its images, and how many images passed the first
    blocks (``front``) and the last ones (``back``) in the test of each model."""
    small: dict[str, Any] = {
        "image_size": 64, "epochs": 2, "train_limit": 6, "batch_size": 1, "val_limit": 2, "test_limit": TESTED, "lr": 5e-3,
        "merge": ["exact", "calibrated"], "calibration_images": 2, "cache_images": False, "keep_masks": 0, **rules,
    }  # fmt: skip
    job = job_of(root, method, {"blocks": "last-half"}, **small)
    stage, passed = [""], Counter[str]()

    def noted(name: str, plain: Any) -> Any:
        def run(self: FrozenPrefix, images: Any, **options: Any) -> Any:
            passed[f"{stage[0]} {name}"] += len(images)
            return plain(self, images, **options)

        return run

    with monkeypatch.context() as patch:
        patch.setattr(experiment_module, "Selection", FirstIsBest)
        patch.setattr(FrozenPrefix, "tokens", noted("front", FrozenPrefix.tokens))
        patch.setattr(FrozenPrefix, "embedding", noted("back", FrozenPrefix.embedding))
        record = run_experiment(job, progress=lambda told: stage.__setitem__(0, told["stage"]))
    assert record.code == "OK", record.message
    images = RecordStore(root).images_path(record.key).read_text(encoding="utf-8")
    return record, images, Counter({name: images for name, images in passed.items() if name.startswith("test ")})


def test_each_test_image_passes_the_frozen_blocks_once_and_equal_merged_models_once(tmp_path, monkeypatch) -> None:
    """Without a cell there is nothing to calibrate: both merged models have the same weights."""
    record, images, passed = finished(tmp_path / "shared", monkeypatch, "lora")
    assert passed == {
        "test best front": TESTED, "test best back": TESTED, "test last back": TESTED, "test merged-exact back": TESTED
    }  # fmt: skip
    assert record.scores["merged-calibrated"] == record.scores["merged-exact"]
    fingerprints = map(str, count())
    monkeypatch.setattr(experiment_module, "weights_fingerprint", lambda _: next(fingerprints))
    apart, others, passed = finished(tmp_path / "apart", monkeypatch, "lora")
    assert passed["test merged-calibrated back"] == TESTED
    assert (record.scores, record.merge, images) == (apart.scores, apart.merge, others)


def test_models_that_differ_are_tested_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"naslora.search_start_epoch": 0}
    record, _, passed = finished(tmp_path / "shared", monkeypatch, "naslora", **options)
    models = ("best", "last", "merged-exact", "merged-calibrated", "decoded")
    assert passed == {"test best front": TESTED, **{f"test {model} back": TESTED for model in models}}
    assert record.merge["calibrated"]["max_deviation"] != record.merge["exact"]["max_deviation"]
    plain, _, passed = finished(tmp_path / "plain", monkeypatch, "naslora", **options, cache_prefix=False)
    assert not passed
    assert record.key == plain.key
    for model in models:
        assert record.scores[model]["test"] == pytest.approx(plain.scores[model]["test"], abs=1e-6)
