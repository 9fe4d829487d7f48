"""Exports of finished runs: whole SAM checkpoints, trained tensors, and everything that cannot be exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from segment_anything import sam_model_registry

from harness import export
from harness.experiment import exporting
from harness.experiment.building import attached_segmenter
from harness.experiment.reloading import sam_masks
from harness.models.original_sam import plain_sam
from harness.planning.plan import plan
from harness.planning.request import Request, Variant
from harness.planning.samples import sample_writer
from harness.records.schema import Record, Run
from harness.records.store import RecordStore
from harness.registry import BENCHMARKS


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with generated sample data, shared by the runs of this file."""
    return tmp_path_factory.mktemp("runs")


def _finished(
    results: Path,
    method: str,
    *,
    benchmark: str = "kvasir",
    backbone: str = "vit_t",
    code: Any = "OK",
    rules: dict[str, str] | None = None,
    **options: Any,
) -> Run:
    """A run with a record and a state as training leaves them; the state is far from its start, not learnt."""
    request = Request(
        entries=(Variant(method=method, options=options),),
        benchmarks=(benchmark,),
        protocol="demo",
        overrides=rules or {},
        backbones=(backbone,),
        results=results,
    )
    run = plan(request, prepare_samples=sample_writer(results)).jobs[0].run
    task = BENCHMARKS.get(benchmark).task
    _, attached = attached_segmenter(run, task=task, num_classes=BENCHMARKS.get(benchmark).num_classes, checkpoint=None)
    generator = torch.Generator().manual_seed(0)
    state = {
        name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in attached.state().items()
    }
    state |= {name: tensor.abs() + 0.5 for name, tensor in state.items() if name.endswith("running_var")}
    folder = results / "state" / run.key
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "best.safetensors")
    RecordStore(results).write(Record(run=run, key=run.key, code=code, message="" if code == "OK" else "it failed"))
    return run


def _export(results: Path, run: Run, out: Path, *arguments: str) -> int:
    return export.main(["--results", str(results), "--run", run.key, "--out", str(out), *arguments])


@pytest.mark.parametrize(
    ("method", "merge"), [("lora", "exact"), ("naslora", "calibrated"), ("full", "exact"), ("decoder", "exact")]
)
def test_export_predicts_alike_under_segment_anything_itself(
    results: Path, tmp_path: Path, method: str, merge: Any
) -> None:
    run, out = _finished(results, method), tmp_path / "sam.pth"

    exported = exporting.export(exporting.Export(results=results, run=run.key, out=out, merge=merge))

    found = sam_masks(run, out, exported.held_out)
    assert exported.real
    torch.testing.assert_close(found, exported.masks, rtol=1e-4, atol=1e-4)


def test_a_fresh_process_verifies_the_export(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = _finished(results, "lora")

    assert _export(results, run, tmp_path / "sam.pth", "--verify") == 0

    output = capsys.readouterr().out
    assert "verified in a fresh process" in output
    assert "lora on kvasir, seed 0, merged by exact: 4 sites folded" in output


def test_the_summary_says_what_loads_a_file_that_the_registry_refuses(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, side = _finished(results, "lora"), 128
    assert _export(results, run, tmp_path / "sam.pth") == 0
    assert (
        f"positions fitted to {side} px; load with harness.models.original_sam.plain_sam('vit_t', image_size={side}); "
        "segment_anything's registry takes vit_b, vit_l, vit_h at 1024 px only"
    ) in capsys.readouterr().out
    assert _export(results, run, tmp_path / "adapter.safetensors", "--adapter-only") == 0
    assert "positions" not in capsys.readouterr().out

    monkeypatch.setattr(exporting, "REGISTRY", ("vit_t",))
    monkeypatch.setattr(exporting, "REGISTRY_SIZE", side)
    assert _export(results, run, tmp_path / "again.pth") == 0
    assert "positions" not in capsys.readouterr().out


def test_verification_loads_by_the_registry_itself_where_it_can(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = _finished(results, "lora"), tmp_path / "sam.pth"
    exported = exporting.export(exporting.Export(results=results, run=run.key, out=out))
    asked: list[str] = []

    def build(checkpoint: str) -> Any:
        asked.append(checkpoint)
        sam = plain_sam("vit_t", image_size=128)
        sam.load_state_dict(torch.load(checkpoint, weights_only=True))
        return sam

    monkeypatch.setattr(exporting, "REGISTRY", ("vit_t",))
    monkeypatch.setattr(exporting, "REGISTRY_SIZE", 128)
    monkeypatch.setitem(sam_model_registry, "vit_t", build)

    found = sam_masks(run, out, exported.held_out)

    assert asked == [str(out)]
    torch.testing.assert_close(found, exported.masks, rtol=1e-4, atol=1e-4)


def test_the_registrys_names_and_size_are_segment_anythings_own() -> None:
    assert set(exporting.REGISTRY) == sam_model_registry.keys() - {"default"}
    with torch.device("meta"):
        sam = sam_model_registry["vit_b"]()
    assert sam.image_encoder.img_size == exporting.REGISTRY_SIZE


def test_export_may_be_read_by_whom_the_umask_lets(results: Path, tmp_path: Path) -> None:
    ordinary, out = tmp_path / "ordinary", tmp_path / "sam.pth"
    ordinary.touch()
    _export(results, _finished(results, "lora"), out)

    assert out.stat().st_mode == ordinary.stat().st_mode


def test_exported_checkpoint_differs_from_the_weights_that_the_run_started_from(results: Path, tmp_path: Path) -> None:
    run, out = _finished(results, "lora"), tmp_path / "sam.pth"
    _export(results, run, out)
    found = torch.load(out, weights_only=True)
    started, _ = attached_segmenter(run, task="binary", num_classes=2, checkpoint=None)

    own = dict(started.encoder.named_parameters())
    assert not torch.equal(found["image_encoder.blocks.0.attn.qkv.weight"], own["blocks.0.attn.qkv.base.weight"])
    assert torch.equal(found["image_encoder.blocks.0.attn.proj.weight"], own["blocks.0.attn.proj.weight"])


@pytest.mark.parametrize(
    ("method", "backbone", "arguments"), [("naslora", "vit_t", ["--verify"]), ("lora", "vit_t_timm", [])]
)
def test_adapter_only_holds_the_trained_tensors_and_names_its_run(
    results: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    method: str,
    backbone: str,
    arguments: list[str],
) -> None:
    run, out = _finished(results, method, backbone=backbone), tmp_path / "adapter.safetensors"

    assert _export(results, run, out, "--adapter-only", *arguments) == 0

    assert ("verified" in capsys.readouterr().out) == bool(arguments)
    state = load_file(results / "state" / run.key / "best.safetensors")
    found = load_file(out)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)
    with safe_open(out, framework="pt") as file:
        assert run.method in file.metadata()["sam-peft-harness"]


def test_verification_fails_on_a_file_that_predicts_otherwise(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = _finished(results, "lora"), tmp_path / "sam.pth"
    write = exporting._write

    def damage(request: Any, run: Run, content: dict[str, torch.Tensor]) -> None:
        write(request, run, {**content, "image_encoder.pos_embed": content["image_encoder.pos_embed"] + 1})

    monkeypatch.setattr(exporting, "_write", damage)

    assert _export(results, run, out, "--verify") == 2
    assert "predicts otherwise" in capsys.readouterr().err


def test_a_beginning_of_the_key_is_enough_where_one_run_has_it(results: Path, tmp_path: Path) -> None:
    run = _finished(results, "lora")

    assert export.main(["--results", str(results), "--run", run.key[:10], "--out", str(tmp_path / "sam.pth")]) == 0


@pytest.mark.parametrize(
    ("method", "options", "arguments", "message"),
    [
        ("naslora", {}, ["--merge", "exact"], "use --merge calibrated or --adapter-only"),
        ("naslora", {"style": "linear"}, ["--merge", "conv"], "use --merge calibrated or --adapter-only"),
        ("lora", {}, ["--merge", "conv"], "its modes are exact, calibrated"),
        ("adapter", {}, [], "use --adapter-only"),
    ],
)
def test_a_model_that_keeps_parts_of_its_method_is_refused(
    results: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    method: str,
    options: dict[str, Any],
    arguments: list[str],
    message: str,
) -> None:
    run, out = _finished(results, method, **options), tmp_path / "sam.pth"

    assert _export(results, run, out, *arguments) == 2

    assert message in capsys.readouterr().err
    assert not out.exists()


def test_what_is_no_sam_is_refused_with_the_way_that_works(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in (_finished(results, "lora", backbone="vit_t_timm"), _finished(results, "lora", benchmark="trans10k_v2")):
        assert _export(results, run, tmp_path / "sam.pth") == 2
        assert "use --adapter-only" in capsys.readouterr().err


def test_bad_input_is_one_line(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = _finished(results, "lora")
    failed = _finished(results, "lora", code="OOM", rank=5)
    stateless = _finished(results, "lora", rank=7)
    (results / "state" / stateless.key / "best.safetensors").unlink()
    weights, there = tmp_path / "weights.pth", tmp_path / "there.pth"
    torch.save({"x": torch.zeros(1)}, weights)
    there.write_text("kept")
    base, out = ["--results", str(results)], ["--out", str(tmp_path / "sam.pth")]
    cases = {
        "has the key 'zzz'": [*base, *out, "--run", "zzz"],
        "ended with OOM (it failed)": [*base, *out, "--run", failed.key],
        "has no trained state": [*base, *out, "--run", stateless.key],
        "is not the file that run": [*base, *out, "--run", run.key, "--checkpoint", str(weights)],
        "must end in .pth": [*base, "--run", run.key, "--out", str(tmp_path / "sam.safetensors")],
        "must end in .safetensors": [*base, "--run", run.key, "--out", str(tmp_path / "sam.pth"), "--adapter-only"],
        "exists; choose another name": [*base, "--run", run.key, "--out", str(there)],
    }
    for message, arguments in cases.items():
        assert export.main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert there.read_text() == "kept"
    assert not (tmp_path / "sam.pth").exists()


def test_calibration_without_images_says_where_to_give_them(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _finished(results, "naslora")
    folder = results / "sample-data"
    hidden = folder.rename(folder.with_name("hidden"))
    try:
        assert _export(results, run, tmp_path / "sam.pth", "--merge", "calibrated") == 2
        assert "--data" in capsys.readouterr().err
        assert (
            _export(results, run, tmp_path / "sam.pth", "--merge", "calibrated", "--data", str(hidden / "kvasir")) == 0
        )
    finally:
        hidden.rename(folder)


def test_a_run_without_sams_spare_tokens_is_no_sam_checkpoint(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _finished(results, "lora", rules={"quirks.spare_tokens": "released"})
    assert _export(results, run, tmp_path / "sam.pth") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "without SAM's mask tokens 1-3 (quirk 14)" in line
    assert "--adapter-only" in line
    assert not (tmp_path / "sam.pth").exists()
    assert _export(results, run, tmp_path / "adapter.safetensors", "--adapter-only") == 0
