"""MobileSAM through a whole run at a small size: resumed, under bf16, cells on whole maps; exported, loaded again, predicted with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from harness.archive.schema import Record
from harness.cli import predict
from harness.experiment.experiment import run_experiment
from harness.experiment.trained import of_results
from harness.models.build import build_segmenter
from harness.training.outcome import Interrupted, StopRequest
from tests.harness.experiment.finished import export_to, finished
from tests.harness.planned import job_of

SIDE = "64"


def trained(results: Path, samples: Path, *, stopped: bool) -> Record:
    """A short run of NAS-LoRA on whole maps under bf16; ``stopped`` after its first update and started again."""
    small = {
        "image_size": SIDE,
        "precision": "bf16",
        "epochs": 2,
        "epoch_images": 4,
        "val_limit": 2,
        "test_limit": 2,
        "merge": [],
    }
    options = {"scope": "image", "search_start_epoch": 1}
    job = job_of(results, "naslora", options, samples=samples, backbones=("mobile_sam",), **small)
    if stopped:
        stop = StopRequest()

        def tell(said: dict[str, Any]) -> None:
            if said["stage"] == "training" and said.get("kind") == "step":
                stop.request()

        with pytest.raises(Interrupted):
            run_experiment(job, progress=tell, stop=stop)
    return run_experiment(job)


def test_a_run_that_is_stopped_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    alone, resumed = (trained(tmp_path / name, tmp_path, stopped=name == "resumed") for name in ("alone", "resumed"))
    assert (alone.code, resumed.code) == ("OK", "OK"), (alone.message, resumed.message)
    untimed = [[{**entry, "seconds": 0} for entry in record.history] for record in (alone, resumed)]
    assert untimed[0] == untimed[1]
    assert alone.scores == resumed.scores
    assert np.isfinite([entry["loss"] for entry in alone.history]).all()


def test_a_merged_export_loads_as_a_checkpoint_and_draws_the_same(tmp_path: Path) -> None:
    run = finished(tmp_path, "lora", backbone="mobile_sam", rules={"image_size": SIDE})
    out = tmp_path / "merged.pth"
    assert export_to(tmp_path, run, out, "--merge", "exact") == 0
    merged = build_segmenter("mobile_sam", task="binary", image_size=int(SIDE), checkpoint=out)
    attached, _ = of_results(tmp_path, run.key).segmenter(None)
    for model in (merged, attached):
        model.double().eval().get_submodule("prompt_encoder.pe_layer").float()  # which computes in float32 alone
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        expected, masks = attached(images).masks, merged(images).masks
    # Folding rounds weights to float32, which moves logits by some times its relative precision of 6e-8.
    assert float((masks - expected).norm() / expected.norm()) < 1e-5

    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)).save(photo)
    words = ["--run", run.key, "--results", str(tmp_path), "--images", str(photo), "--out", str(tmp_path / "masks")]
    assert predict.main([*words, "--point", "45,25"]) == 0
    with Image.open(tmp_path / "masks" / "photo.png") as mask:
        assert mask.size == (90, 50)
