"""Exports as ONNX, run by onnxruntime."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.experiment import exporting_onnx
from harness.experiment.exporting_onnx import ONNX_TOLERANCE, OPSET, Graph
from harness.experiment.trained import METADATA, of_results
from tests.harness.experiment.finished import export_to, finished

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def _run(file: Path, images: torch.Tensor) -> Sequence[Any]:
    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, {"images": images.numpy()})


@pytest.mark.parametrize(
    ("method", "backbone_name", "rules", "benchmark"),
    [
        ("naslora", "tiny", {}, "kvasir"),  # a DARTS cell folds in part and stays
        pytest.param("adapter", "tiny_mobile_sam", {}, "kvasir", marks=pytest.mark.slow),  # nothing of it folds
        pytest.param("lst", "tiny", {}, "kvasir", marks=pytest.mark.slow),  # pads its windows itself
        pytest.param("lora", "tiny_sam3", {}, "kvasir", marks=pytest.mark.slow),  # transformers' windows
        ("lora", "tiny_timm", {"decoder": "mask-transformer"}, "trans10k_v2"),
    ],
)
@torch.no_grad()
def test_onnxruntime_predicts_what_the_trained_segmenter_predicts_for_any_batch(
    results: Path, tmp_path: Path, method: str, backbone_name: str, rules: dict[str, str], benchmark: str
) -> None:
    run, out = finished(results, method, backbone=backbone_name, rules=rules, benchmark=benchmark), tmp_path / "m.onnx"

    assert export_to(results, run, out, "--onnx") == 0

    segmenter, _ = of_results(results, run.key).segmenter(None)  # unmerged
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (run.rules["pixel_mean"], run.rules["pixel_std"]))
    side = run.rules["image_size"]
    images = torch.rand(5, 3, side, side, generator=torch.Generator().manual_seed(0))
    expected = segmenter((images - mean) / std).masks
    for batch in (images[:1], images):
        masks, shares = _run(out, batch)
        assert np.abs(masks - expected[: len(batch)].numpy()).max() <= ONNX_TOLERANCE * float(expected.abs().max())
        assert shares.shape[0] == len(batch)
        assert shares.shape[-2:] == (side, side)
    model = onnx.load(out)
    assert model.opset_import[0].version == OPSET
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(said[METADATA])["run"]["method"] == method
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.README.md", "m.onnx"]


@pytest.mark.parametrize("broken", ["gives other outputs", "cannot be traced", "is not installed", "prompts"])
def test_what_cannot_be_written_is_one_line_and_no_file(results: Path, tmp_path, monkeypatch, capsys, broken: str):
    rules = {"prompt": "box"} if broken == "prompts" else {}
    run = finished(results, "decoder", backbone="tiny_timm", rules=rules)
    if broken == "gives other outputs":
        monkeypatch.setattr(exporting_onnx, "ONNX_TOLERANCE", -1.0)
    elif broken == "cannot be traced":

        def fft(self: Graph, images: torch.Tensor) -> Any:
            return torch.fft.fft2(images).real, images

        monkeypatch.setattr(Graph, "forward", fft)
    elif broken == "is not installed":
        monkeypatch.setitem(sys.modules, "onnx", None)
        monkeypatch.setattr(exporting_onnx, "find_spec", lambda name: None)

    assert export_to(results, run, tmp_path / "m.onnx", "--onnx") == 2

    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert {"cannot be traced": "fft", "is not installed": "pip install"}.get(broken, broken) in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("merge", "ways"), [((), "use --merge calibrated"), (("--merge", "calibrated"), "")])
def test_a_gate_that_sorts_is_written_once_it_is_folded(results: Path, tmp_path, capfd, merge, ways: str) -> None:
    run = finished(results, "convlora")
    assert export_to(results, run, tmp_path / "m.onnx", "--onnx", *merge) == (2 if ways else 0)
    said = capfd.readouterr()
    assert ways in said.err
    assert len(said.out) < 1000  # torch prints the graph that it cannot write
    assert (tmp_path / "m.onnx").exists() != bool(ways)


def test_a_deviation_is_in_shares_of_the_largest_logit(monkeypatch: pytest.MonkeyPatch) -> None:
    class Session:
        def __init__(self, *file: object, **providers: object) -> None: ...

        def run(self, names: object, given: dict[str, np.ndarray]) -> list[np.ndarray]:
            return [np.full((len(given["images"]), 1), value, dtype=np.float32) for value in (11.0, 0.5)]

    monkeypatch.setattr("onnxruntime.InferenceSession", Session)
    expected = torch.full((2, 1), 10.0), torch.full((2, 1), 0.5)
    assert exporting_onnx._difference(Path("model.onnx"), torch.zeros(2, 1), expected) == pytest.approx(0.1)
