"""Figures of evidence: always the difference to the frozen backbone, and only rows that saw the same images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.archive.measured import EvidenceRecord, EvidenceStore
from harness.archive.store import RecordStore
from harness.comparison.evidence import cka_to_frozen, distance_change, frequency_change, mean_change
from harness.report.figures import draw
from harness.report.figures.insides import between, measured
from harness.report.figures.material import NothingToDrawError
from tests.harness.report.figures.sample import material_of
from tests.harness.report.sample import evidence, record


def _write(root: Path, method: str, *, seed: int = 0, shift: float = 0.0, **changes: Any) -> EvidenceRecord:
    made = record(0.7, method=method, seed=seed)
    RecordStore(root).write(made)
    seen = replace(evidence(made.key, shift=shift), **changes)
    EvidenceStore(root).write(seen)
    return seen


def test_numbers_are_differences_to_the_frozen_backbone():
    seen = evidence("k", shift=3.0)
    assert [distance_change(block) for block in seen.blocks] == pytest.approx([3.0] * 4)
    assert [frequency_change(block) for block in seen.blocks] == pytest.approx([0.3] * 4)
    assert mean_change(seen, "attention distance", "windowed") == pytest.approx(3.0)
    assert cka_to_frozen(replace(seen.blocks[0], frozen=seen.blocks[0].trained)) == pytest.approx(1.0)


def test_blocks_are_chosen_by_kind():
    seen = evidence("k")
    update = lambda kind: mean_change(seen, "update", kind)  # noqa: E731
    assert update("all") == update("first-half") == pytest.approx(0.2)
    plain = replace(seen, blocks=[replace(block, window=0) for block in seen.blocks])
    assert mean_change(plain, "update", "windowed") is None


def test_a_line_holds_every_seed_and_their_mean(tmp_path: Path):
    for seed, shift in enumerate((1.0, 2.0, 6.0)):
        _write(tmp_path, "lora", seed=seed, shift=shift)
    material = material_of(tmp_path)
    (curve,) = measured(material)["kvasir"]
    assert curve.by_block(distance_change)[0] == pytest.approx([1.0, 2.0, 6.0])
    ((_, drawing),) = draw("attention-distance", material)
    line = next(line for line in drawing.figure.axes[1].lines if np.size(line.get_xdata()) == 4)
    assert np.asarray(line.get_ydata()).tolist() == pytest.approx([3.0] * 4)
    assert "seeds measured: lora: 3" in drawing.caption
    assert "Small symbols: windowed blocks" in drawing.caption


def test_rows_compare_at_the_same_seed_and_a_row_with_itself_over_seeds(tmp_path: Path):
    _write(tmp_path, "lora", seed=0)
    _write(tmp_path, "lora", seed=1)
    _write(tmp_path, "naslora", seed=1)
    lora, nas = measured(material_of(tmp_path))["kvasir"]
    assert between(lora, nas) == pytest.approx(1.0)  # made up alike
    assert between(lora, lora) == pytest.approx(1.0)
    assert between(nas, nas) is None


def test_a_row_that_saw_other_images_is_left_out(tmp_path: Path):
    _write(tmp_path, "lora")
    _write(tmp_path, "naslora", images=[("test", f"other{number}") for number in range(8)])
    material = material_of(tmp_path)
    assert [line.row.method for line in measured(material)["kvasir"]] == ["lora"]


def test_without_evidence_or_a_merge_a_line_says_how_to_get_some(tmp_path: Path):
    RecordStore(tmp_path).write(record(0.7))
    for name in ("attention-distance", "frequency", "cka", "update"):
        with pytest.raises(NothingToDrawError, match="evidence"):
            list(draw(name, material_of(tmp_path)))
    _write(tmp_path, "lora")
    with pytest.raises(NothingToDrawError, match="--merge MODE"):
        list(draw("merging-blocks", material_of(tmp_path)))


def test_the_scale_of_updates_is_the_one_that_its_caption_names(tmp_path: Path):
    _write(tmp_path, "lora")
    ((_, drawing),) = draw("update", material_of(tmp_path))
    shown: Any = drawing.figure.axes[0].collections[0].norm
    assert (shown.vmin, shown.vmax) == (1e-3, 1.0)
    assert "from 0.001 to 1" in drawing.caption
