"""A frozen backbone in 4 or 8 bits, through bitsandbytes where it is installed."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from harness.archive.schema import Run
from harness.experiment.building import attached_segmenter
from harness.experiment.experiment import run_experiment
from harness.experiment.trained import load_adapter, of_results
from harness.methods.parts.placement import MethodError
from harness.models.catalog import backbone_shape
from harness.models.segmenter import count_parameters
from harness.planning import plan as planning
from harness.pricing.forecast import GPU, EarlierRuns
from harness.registry import METHODS, method_config_class
from harness.system.errors import UsageError
from tests.harness.experiment.finished import export_to, finished
from tests.harness.planned import job_of

needs_library = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
ALLOWED = [name for name in METHODS.names() if method_config_class(name).keeps_linears]
CLOSE = {"nf4": 0.3, "int8": 0.05}
"""Of mask logits, relative to their largest: 4 bits miss a weight by up to a sixth of its block's largest."""


def _job(root: Path, method: str = "lora", *, backbone: str = "tiny", **rules: Any) -> Any:
    small = {"image_size": 64, "epochs": 1, "train_limit": 4, "val_limit": 2, "test_limit": 2}
    return job_of(root, method, backbones=(backbone,), **{**small, **rules})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    job: Any = _job(tmp_path_factory.mktemp("runs"))
    return job.run


@needs_library
@pytest.mark.parametrize("how", ["nf4", "int8"])
@pytest.mark.parametrize("method", ALLOWED)
def test_the_same_trains_beside_a_quantised_backbone_and_predicts_nearly_the_same(run: Run, method: str, how: Any):
    config = method_config_class(method)()
    plain = replace(run, method=method, method_config={name: getattr(config, name) for name in vars(config)})
    packed = replace(plain, rules={**run.rules, "quantise": how})
    made = [attached_segmenter(asked, task="binary", num_classes=2, checkpoint=None) for asked in (plain, packed)]
    (segmenter, _), (small, small_method) = made
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    linears = [
        module
        for module in small.encoder.blocks.modules()
        if isinstance(module, nn.Linear) and "bitsandbytes" in str(type(module).__mro__)
    ]
    assert len(linears) >= 4 * 4  # qkv, proj and two of the MLP, in four blocks
    assert count_parameters(small) == count_parameters(segmenter)
    assert [n for n, p in small.named_parameters() if p.requires_grad] == [
        n for n, p in segmenter.named_parameters() if p.requires_grad
    ]
    torch.manual_seed(0)
    if small_method.config.trains:
        small(images).masks.square().mean().backward()
        assert any(p.grad is not None and p.grad.isfinite().all() for p in small.parameters() if p.requires_grad)
    given: set[torch.dtype] = set()
    for linear in linears:
        linear.register_forward_hook(lambda module, inputs, output: given.add(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        small(images)
    assert given == {torch.bfloat16}, "as linear layers that are not quantised"
    with torch.no_grad():
        expected, masks = segmenter.eval()(images).masks, small.eval()(images).masks
    assert 0 < float((masks - expected).abs().max() / expected.abs().max()) < CLOSE[how]


@needs_library
@pytest.mark.parametrize("passes", [0, 1])
def test_what_an_8_bit_layer_multiplies_by_moves_with_the_model_that_it_is_in(run: Run, passes: int) -> None:
    """A copy of every tensor, as a move to a GPU makes, before and after a first pass, which takes the codes from the weight."""
    packed = replace(run, rules={**run.rules, "quantise": "int8"})
    segmenter, _ = attached_segmenter(packed, task="binary", num_classes=2, checkpoint=None)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for _ in range(passes):
            segmenter.eval()(images)
        segmenter._apply(torch.clone)
        layers: list[Any] = [module for module in segmenter.modules() if type(module).__name__ == "Rows"]
        held = [holder for layer in layers for holder in (layer.weight, layer.state) if holder.CB is not None]
        assert len(held) == len(layers) > 0
        assert all(holder.CB.data_ptr() == layer.weight.data_ptr() for holder, layer in zip(held, layers, strict=True))
        segmenter.eval()(images)


@needs_library
def test_a_run_says_so_is_not_merged_and_goes_on_as_an_adapter(tmp_path, capsys) -> None:
    record = run_experiment(_job(tmp_path, quantise="int8"))
    assert record.code == "OK", record.message
    assert record.run.rules["quantise"] == "int8"
    assert set(record.scores) == {"best", "last"}
    for out, arguments in (("sam.pth", []), ("m.onnx", ["--onnx"]), ("peft", ["--peft"])):
        assert export_to(tmp_path, record.run, tmp_path / out, *arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "int8" in line
        assert not (tmp_path / out).exists()
    assert export_to(tmp_path, record.run, tmp_path / "a.safetensors", "--adapter-only") == 0
    segmenter, method = load_adapter(tmp_path / "a.safetensors")
    expected, _ = of_results(tmp_path, record.key).segmenter(None)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(segmenter(images).masks, expected(images).masks)
    with pytest.raises(MethodError, match="int8"):
        method.merge("exact")


def test_the_plan_prices_it_and_refuses_methods_that_read_the_weights(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(planning, "find_spec", lambda name: object())
    shape = backbone_shape("vit_h")
    known = EarlierRuns([], GPU, lambda record: 0.0, shapes=())
    peaks = {}
    for how in ("", "int8", "nf4"):
        peaks[how] = known.memory(replace(_job(tmp_path, quantise=how).run, backbone="vit_h"), shape)[0]
    weights = sum(4 * block.dim**2 + 2 * block.dim * block.mlp_dim for block in shape.blocks)
    assert peaks[""] - peaks["int8"] == pytest.approx(3 * weights)
    assert peaks[""] - peaks["nf4"] == pytest.approx((4 - 0.5625) * weights)
    assert _job(tmp_path).run.key == _job(tmp_path, quantise="").run.key != _job(tmp_path, quantise="nf4").run.key
    for method in ("full", "dora", "bitfit", "ssf"):
        with pytest.raises(UsageError, match="quantise"):
            _job(tmp_path, method, quantise="nf4")
    monkeypatch.setattr(planning, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install"):
        _job(tmp_path, quantise="nf4")


def test_full_precision_is_what_it_was(tmp_path: Path) -> None:
    segmenter, _ = attached_segmenter(finished(tmp_path, "lora"), task="binary", num_classes=2, checkpoint=None)
    assert all(type(module) is nn.Linear or not isinstance(module, nn.Linear) for module in segmenter.encoder.modules())
