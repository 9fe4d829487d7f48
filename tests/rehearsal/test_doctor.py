"""`sam-peft doctor --device cuda` on the pretended GPU, and where there is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from harness import accept
from harness.cli import doctor
from harness.contract import gpu
from tests.rehearsal.device import pretended
from tests.rehearsal.test_faults import left_on_the_processor, planted

ON_A_TINY_MODEL = ["--device", "cuda", "--backbone", "tiny"]


@pytest.fixture
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accept, "DECODERS", ("sam",))
    monkeypatch.setattr(gpu, "SCORED", 4)
    monkeypatch.setattr(gpu, "PHOTOGRAPHS", 2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("accept", [[], ["--accept"]])
def test_without_a_gpu_it_says_so_in_one_line(accept: list[str], says: Callable[..., str]) -> None:
    assert "run this where there is a GPU" in says(doctor.main, "--device", "cuda", *accept, code=2)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        (["--accept"], "--device cuda"),
        (["--out", "gpu.json"], "--device cuda"),
        (["--device", "cuda", "--cluster", "gpu"], "--accept"),
    ],
)
def test_options_that_do_not_fit_are_refused(given: list[str], word: str, says: Callable[..., str]) -> None:
    assert word in says(doctor.main, *given, code=2)


@pytest.mark.parametrize("methods", ["zeroshot,convlora", pytest.param("all", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("few_images")
def test_all_is_right_on_the_pretended_gpu(methods: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pretended():
        assert doctor.main([*ON_A_TINY_MODEL, "--methods", methods]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["gpu-step.json"]  # gpu.json is that of --accept
    (part,) = json.loads((tmp_path / "gpu-step.json").read_text())["parts"].values()
    found = part["found"]
    assert found["failures"] == []
    assert {step["where"] for step in found["steps"]} == {"fp32", "bf16", "fp16"}
    assert all(step["deviations"][0] < 1e-6 for step in found["steps"] if step["where"] == "fp32")
    assert {(way["where"], way["name"]) for way in found["attention"]} >= {("global", "widened"), ("window", "math")}
    assert all(found["rates"][name] > 0 for name in ("step", "passes", "scoring", "loading"))


@pytest.mark.usefixtures("few_images")
def test_rates_are_those_of_the_attention_that_a_run_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    applied: list[dict[str, str]] = []
    monkeypatch.setattr(gpu, "choose", lambda *_, **named: {"global": "bias", "window": named["precision"]})
    monkeypatch.setattr(gpu, "apply_choice", lambda segmenter, choice: applied.append(choice))
    with pretended():
        assert gpu.rates("tiny", torch.device("cuda"))["step"] > 0
    assert applied == [{"global": "bias", "window": "bf16"}]


@pytest.mark.usefixtures("few_images")
def test_what_is_not_right_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    line = planted(monkeypatch, left_on_the_processor)
    with pretended():
        assert doctor.main([*ON_A_TINY_MODEL, "--methods", "lora", "--out", str(tmp_path / "gpu.json")]) == 1
    shown = capsys.readouterr().out
    assert shown.count(line) >= 1 + 3  # of the rates, and of a step in each precision
