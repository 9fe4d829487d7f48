"""Every method on every family of models goes through a whole run on a pretended GPU. No tensor meets one of another device, and no step
waits more often than its budget. Likewise a run that stops and is resumed, and predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from harness.cli import predict
from harness.experiment.building import open_data
from harness.training.outcome import Interrupted, StopRequest
from tests.rehearsal import runs
from tests.rehearsal.device import pretended
from tests.rehearsal.runs import FAMILIES, FIRST, MERGED, METHOD_NAMES, REFUSED, rehearse, small_job, within_budget

TUNERS = ("peft/adalora", "peft/frod", "peft/oft", "peft/pvera", "peft/vblora", "peft/vera", "peft/waveft")
CASES = [
    pytest.param(family, method, id=f"{family}-{method}", marks=[] if method in FIRST[family] else [pytest.mark.slow])
    for family in FAMILIES
    for method in (*METHOD_NAMES, *(TUNERS if family == "sam" else ()))
    if (family, method) not in REFUSED
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rehearsal")


@pytest.mark.parametrize(("family", "method"), CASES)
def test_no_device_mismatch_and_no_wait_beyond_the_budget(results: Path, family: str, method: str) -> None:
    within_budget(results, family, method)


@pytest.mark.slow
def test_linear_cells_stay_on_the_device(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(runs.OPTIONS, "naslora", {**runs.OPTIONS["naslora"], "style": "linear"})
    within_budget(results, "sam", "naslora")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_run_that_stopped_goes_on_to_the_same_end(tmp_path: Path, precision: str) -> None:
    whole = rehearse(small_job(tmp_path / "whole", "lora", precision=precision))
    job = small_job(tmp_path / "stopped", "lora", precision=precision)
    with pytest.raises(Interrupted):
        rehearse(job, stop=StopRequest(), stop_after=3)
    rest = rehearse(job)
    assert [entry["loss"] for entry in rest.record.history] == [entry["loss"] for entry in whole.record.history]
    assert rest.record.scores == whole.record.scores


def test_predictions_are_those_of_the_processor(tmp_path: Path) -> None:
    job = small_job(tmp_path, "lora", precision="fp32", **MERGED)
    assert rehearse(job).record.code == "OK"
    image = open_data(job.run, Path(job.dataset_root)).tests["test"].pairs[0].image
    model = ["--run", job.run.key, "--results", str(tmp_path), "--images", str(image), "--probabilities"]
    assert predict.main([*model, "--out", str(tmp_path / "cpu")]) == 0
    with pretended():
        assert predict.main([*model, "--out", str(tmp_path / "gpu")]) == 0
    cpu, gpu = (np.load(next((tmp_path / name).rglob("*.npy"))) for name in ("cpu", "gpu"))
    np.testing.assert_allclose(gpu, cpu, atol=1e-5)
