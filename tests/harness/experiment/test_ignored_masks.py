"""Test images whose every pixel is ignored, as a run, its record and its page have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from harness.archive.merge import merge
from harness.archive.schema import Record
from harness.cli import records, tables
from harness.experiment.experiment import run_experiment
from harness.training.images import ImageSource
from tests.harness.experiment.test_prompted import SMALL
from tests.harness.planned import job_of


def run_with(results: Path, monkeypatch: pytest.MonkeyPatch, *, ignored: int) -> Record:
    """A run on three test images, the first ``ignored`` of which are."""
    job = job_of(results, "zeroshot", **SMALL)
    read = ImageSource.mask_native

    def mask(source: ImageSource, index: int) -> np.ndarray:
        drawn = read(source, index)
        return np.full_like(drawn, 255) if len(source) == 3 and index < ignored else drawn

    monkeypatch.setattr(ImageSource, "mask_native", mask)
    return run_experiment(job)


def test_an_image_left_out_is_counted_and_its_record_agrees_with_its_images(tmp_path, monkeypatch) -> None:
    record = run_with(tmp_path, monkeypatch, ignored=1)
    assert record.counts == {"train": 4, "val": 2, "test": 3, "test ignored": 1}
    assert (record.tested, record.ignored) == ({"test": 2}, {"test": 1})
    assert records.main(["check", str(tmp_path)]) == 0
    assert merge([tmp_path], tmp_path / "merged").added == 1
    assert tables.main(["--results", str(tmp_path)]) == 0
    (page,) = (tmp_path / "tables").glob("*.md")
    assert "4/2/2 training/validation/test images; test images left out" in page.read_text()


def test_a_split_of_such_images_alone_is_refused_before_training(tmp_path, monkeypatch) -> None:
    record = run_with(tmp_path, monkeypatch, ignored=3)
    assert record.code != "OK"
    assert "test cannot be scored" in record.message
    assert record.parameters == {}  # counted once the model is there
