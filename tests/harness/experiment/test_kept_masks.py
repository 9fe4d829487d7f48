"""The masks that a run keeps: those that were scored, the same images for every method and seed, and no number more."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.archive.masks import KeptMask, read_masks
from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.experiment.experiment import run_experiment
from tests.harness.planned import job_of


def _run(root: Path, method: str, *, benchmark: str = "kvasir", seed: int = 0, **rules: Any) -> Record:
    small = {
        "image_size": 64, "epochs": 1, "train_limit": 4, "val_limit": 2, "test_limit": 5, "merge": [],
        "cache_images": False, "evaluation.resolution": "input",
    }  # fmt: skip
    record = run_experiment(job_of(root, method, benchmarks=(benchmark,), seeds=(seed,), **{**small, **rules}))
    assert record.code == "OK", record.message
    return record


def _masks(root: Path, record: Record) -> list[KeptMask]:
    return read_masks(RecordStore(root).masks_path(record.key), expected=record.beside.get("masks.png", ""))


def test_kept_masks_are_those_that_were_scored_and_of_the_same_images(tmp_path: Path):
    decoder, lora = _run(tmp_path, "decoder", keep_masks=3), _run(tmp_path, "lora", seed=1, keep_masks=3)
    assert [mask.stem for mask in _masks(tmp_path, decoder)] == [mask.stem for mask in _masks(tmp_path, lora)]
    for record in (decoder, lora):
        rows = csv.DictReader(RecordStore(tmp_path).images_path(record.key).read_text().splitlines())
        scores = {row["stem"]: float(row["iou"]) for row in rows if row["variant"] == "best"}
        for mask in _masks(tmp_path, record):
            predicted, truth = mask.predicted == 1, mask.truth == 1
            assert mask.predicted.shape == (64, 64)
            union = np.count_nonzero(predicted | truth)
            iou = np.count_nonzero(predicted & truth) / union if union else 1.0
            assert iou == pytest.approx(scores[mask.stem], abs=1e-6)
    assert RecordStore(tmp_path).masks_path(lora.key).stat().st_size < 4000


def test_keeping_masks_changes_neither_key_nor_number(tmp_path: Path):
    some, none = _run(tmp_path / "a", "lora", keep_masks=2), _run(tmp_path / "b", "lora", keep_masks=0)
    assert some.key == none.key
    assert some.scores == none.scores
    assert len(_masks(tmp_path / "a", some)) == 2
    assert not RecordStore(tmp_path / "b").masks_path(none.key).exists()


def test_classes_are_kept_as_their_indices(tmp_path: Path):
    masks = _masks(tmp_path, _run(tmp_path, "decoder", benchmark="trans10k_v2", keep_masks=2))
    assert len(masks) == 2
    assert max(int(mask.truth[mask.truth != 255].max()) for mask in masks) > 1
