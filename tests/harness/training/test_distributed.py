"""Two workers on one run, through gloo: the numbers of one worker with the same batches; only the first one writes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.harness.training.forks import run_pair

CASES = [
    pytest.param({"method": "lora"}, id="lora"),
    pytest.param({"rules": {"accumulate": 2, "loss": "balanced-bce"}}, id="lora, accumulated balanced bce"),
    pytest.param(
        {"method": "naslora", "config": {"search_start_epoch": 1}, "rules": {"epochs": 2}},
        id="naslora: batch norm, two optimisers",
    ),
    pytest.param({"method": "naslora", "config": {"fused": False}}, id="naslora, cell not fused"),
    pytest.param({"method": "decoder", "task": "multiclass", "classes": 4}, id="multi-class"),
]


@pytest.mark.parametrize("options", CASES)
def test_two_workers_equal_one_with_the_same_global_batch(forks, tmp_path, options: dict[str, Any]) -> None:
    # Five images in batches of two: the last batch of an epoch has one image, and the first worker none of its own.
    # Where a gradient is zero but for rounding, Adam makes whole steps of the rounding, unless eps is larger than that.
    options = {"images": 5, **options, "rules": {"epochs": 1, "eps": 1e-3, **options.get("rules", {})}}
    alone = json.loads(forks.run({**options, "folder": str(tmp_path / "one")})[-1])
    two = json.loads(run_pair(forks, {**options, "folder": str(tmp_path / "two")})[-1])
    for a, b in zip(alone["history"], two["history"], strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-5)
        assert b["val"] == pytest.approx(a["val"], abs=1e-5)
        assert b["updates"] == a["updates"]
    assert two["selected"] == alone["selected"]
    last = [load_file(tmp_path / folder / "last.safetensors") for folder in ("one", "two")]
    assert any(name.endswith("running_mean") for name in last[0]) == (options.get("method") == "naslora")
    for name, tensor in last[0].items():
        torch.testing.assert_close(last[1][name], tensor, atol=1e-5, rtol=1e-5, msg=name)
