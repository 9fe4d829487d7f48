"""Which weights each score of a run is of, where the best epoch is not the last. Every score is compared with that of a state
that is built and scored by hand, outside of the experiment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from harness.archive.schema import Record
from harness.evaluation.resize import resize_bilinear
from harness.experiment.building import RunData, attached_segmenter, open_data
from harness.experiment.experiment import run_experiment
from harness.methods.base import Method
from harness.planning.request import Job
from harness.protocols.load import from_rules
from harness.training import loop
from tests.harness.planned import job_of

CALIBRATION, HELD_OUT = 3, 4


@dataclass(frozen=True, kw_only=True)
class Finished:
    job: Job
    record: Record
    states: dict[str, Path]
    data: RunData


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    root = tmp_path_factory.mktemp("runs")
    rules: dict[str, Any] = {
        "image_size": 64, "epochs": 2, "train_limit": 6, "val_limit": 4, "test_limit": 3, "lr": 5e-3, "flip": 0,
    }  # fmt: skip
    rules |= {
        "merge": ["exact", "calibrated"],
        "calibration_images": CALIBRATION,
        "precision": "bf16",
        "select_by": "iou",
    }
    job = job_of(root, "naslora", {"search_start_epoch": 0}, **rules)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "improves", lambda metric, value, best: best is None)  # so that the last is another model
        record = run_experiment(job)
    assert (record.code, record.selected_epoch, len(record.history)) == ("OK", 1, 2)
    folder = root / "state" / job.run.key
    states = {"best": folder / "best.safetensors", "last": folder / "last.safetensors"}
    return Finished(job=job, record=record, states=states, data=open_data(job.run, Path(job.dataset_root)))


def built(finished: Finished, state: str) -> tuple[nn.Module, Method]:
    segmenter, method = attached_segmenter(finished.job.run, task="binary", num_classes=2, checkpoint=None)
    method.load_state(load_file(finished.states[state]))
    return segmenter.eval(), method


def inputs(finished: Finished, source: Any, count: int) -> Tensor:
    rules = from_rules(finished.job.run.rules)
    images = np.stack([np.asarray(source.image(index), dtype=np.float32) / 255 for index in range(count)])
    mean, std = (np.array(values, dtype=np.float32).reshape(1, 3, 1, 1) for values in rules.pixels)
    return torch.from_numpy((images - mean) / std)


@torch.no_grad()
def ious(finished: Finished, segmenter: nn.Module, source: Any) -> dict[str, float]:
    """stem -> IoU at the mask's own size, by plain arithmetic, in the precision of the protocol and batches as the run has them."""
    images = inputs(finished, source, len(source))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = segmenter(images).masks
    probability = nn.functional.interpolate(
        logits.float(), size=images.shape[-2:], mode="bilinear", align_corners=False
    ).sigmoid()
    scores = {}
    for index in range(len(source)):
        mask = np.asarray(source.mask_native(index)) == 1
        predicted = resize_bilinear(probability[index, 0].numpy(), mask.shape) > 0.5
        union = np.count_nonzero(predicted | mask)
        scores[source.stem(index)] = np.count_nonzero(predicted & mask) / union if union else 1.0
    return scores


def merged(finished: Finished, mode: Any, *, calibration: Any) -> nn.Module:
    segmenter, method = built(finished, "best")
    method.merge(mode, calibration=[inputs(finished, calibration, CALIBRATION)])
    return segmenter.eval()


def recorded(finished: Finished, variant: str) -> float:
    return finished.record.scores[variant]["test"]["iou"]


def by_hand(finished: Finished, segmenter: nn.Module) -> float:
    scores = ious(finished, segmenter, finished.data.tests["test"])
    return sum(scores.values()) / len(scores)


@pytest.mark.parametrize("mode", ["exact", "calibrated"])
def test_a_merged_model_is_made_of_the_best_state(finished: Finished, mode: str) -> None:
    expected = by_hand(finished, merged(finished, mode, calibration=finished.data.train))
    assert recorded(finished, f"merged-{mode}") == pytest.approx(expected, abs=1e-6)


def test_the_decoded_model_is_the_best_state_with_one_operation_a_cell(finished: Finished) -> None:
    segmenter, method = built(finished, "best")
    for site, shares in method.architecture().items():
        cell = segmenter.get_submodule(f"encoder.{site.removesuffix('.qkv')}.attn.qkv.adapters.qkv.core.cell")
        strongest = max(range(1, len(shares)), key=shares.__getitem__)
        cell.alpha.data = 1e4 * torch.eye(len(shares))[strongest]
    assert recorded(finished, "decoded") == pytest.approx(by_hand(finished, segmenter.eval()), abs=1e-6)
    assert recorded(finished, "decoded") != recorded(finished, "best")


def test_calibration_sees_training_images_and_the_deviation_held_out_ones(finished: Finished) -> None:
    report = finished.record.merge["calibrated"]
    before, _ = built(finished, "best")
    held_out = inputs(finished, finished.data.val, HELD_OUT)
    with torch.no_grad():
        plain = before(held_out).masks
    moved = {}
    for name, source in (("train", finished.data.train), ("val", finished.data.val)):
        with torch.no_grad():
            moved[name] = float(
                (merged(finished, "calibrated", calibration=source)(held_out).masks - plain).abs().max()
            )
    assert report["max_deviation"] == pytest.approx(moved["train"], rel=1e-3)
    assert abs(moved["train"] - moved["val"]) > 1e-2 * moved["train"], "or the images would make no difference"


def test_validation_has_the_cards_metric_of_the_best_epoch_and_of_the_last(finished: Finished) -> None:
    assert finished.data.benchmark.selection_metric != "iou"
    for variant, epoch in {"best": 0, "last": 1}.items():
        segmenter, _ = built(finished, variant)
        scores = ious(finished, segmenter, finished.data.val)
        expected = {"iou": pytest.approx(sum(scores.values()) / len(scores), abs=1e-6)}
        assert finished.record.scores[variant]["val"] == finished.record.history[epoch]["val"] == expected
    assert finished.record.history[0]["val"] != finished.record.history[1]["val"]


def test_best_and_last_are_scored_with_their_own_states_as_a_whole_and_by_image(finished: Finished) -> None:
    assert abs(recorded(finished, "best") - recorded(finished, "last")) > 5e-3, "or a swap would not show"
    lines = (Path(finished.job.results) / "records" / f"{finished.job.run.key}.images.csv").read_text().splitlines()
    head, *rows = (line.split(",") for line in lines)
    for variant in ("best", "last"):
        segmenter, _ = built(finished, variant)
        expected = ious(finished, segmenter, finished.data.tests["test"])
        scores = {row[head.index("stem")]: float(row[head.index("iou")]) for row in rows if row[0] == variant}
        assert scores == pytest.approx(expected, abs=1e-6)
        assert recorded(finished, variant) == pytest.approx(sum(expected.values()) / len(expected), abs=1e-6)
