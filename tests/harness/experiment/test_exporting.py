"""Exports of finished runs: whole SAM checkpoints, trained tensors, and everything that cannot be exported; ``--verify``."""

from __future__ import annotations

import errno
import io
import subprocess
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from segment_anything import sam_model_registry

from harness.archive.schema import Run
from harness.cli import export, predict
from harness.experiment import exporting
from harness.experiment.exporting import print_difference, sam_masks
from harness.models.build import build_segmenter
from harness.models.original_sam import plain_sam, sam_state_dict
from tests.harness.experiment.finished import export_to, finished


@pytest.mark.parametrize(
    ("method", "merge"), [("lora", "exact"), ("naslora", "calibrated"), ("full", "exact"), ("decoder", "exact")]
)
def test_export_predicts_alike_under_segment_anything_itself(results: Path, tmp_path, method: str, merge: Any) -> None:
    run, out = finished(results, method), tmp_path / "sam.pth"
    exported = exporting.export(exporting.Export(results=results, run=run.key, out=out, merge=merge))
    masks = sam_masks(run, out, exported.held_out)
    assert exported.real
    torch.testing.assert_close(masks, exported.masks, rtol=1e-4, atol=1e-4)


def test_a_whole_sam_2_keeps_its_memory_and_lies_in_the_file_as_metas_does(results: Path, tmp_path: Path) -> None:
    started, out = tmp_path / "sam2.1_hiera_toy.pt", tmp_path / "sam.pth"
    memory = {"memory_encoder.out_proj.weight": torch.ones(2, 3)}
    torch.save({"model": sam_state_dict(build_segmenter("tiny_sam2", task="binary")) | memory}, started)
    run = finished(results, "lora", backbone="tiny_sam2", checkpoint=started)
    exported = exporting.export(exporting.Export(results=results, run=run.key, out=out, checkpoint=started))
    assert "build_sam2" in exported.summary()
    torch.testing.assert_close(sam_masks(run, out, exported.held_out), exported.masks, rtol=1e-4, atol=1e-4)
    after, before = (torch.load(path, weights_only=True)["model"] for path in (out, started))
    assert after.keys() == before.keys()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert "image_encoder.trunk.blocks.1.attn.qkv.weight" in changed
    assert not changed & {*memory, "no_mem_embed", "image_encoder.trunk.blocks.1.attn.proj.weight"}


def test_the_summary_says_which_images_the_merge_was_compared_on(results: Path, tmp_path: Path) -> None:
    run = finished(results, "lora")
    exported = exporting.export(exporting.Export(results=results, run=run.key, out=tmp_path / "sam.pth", merge="exact"))
    assert exported.real
    assert f"on {len(exported.held_out)} validation images" in exported.summary()
    assert "lora on kvasir, seed 0, merged by exact: 4 sites folded" in exported.summary()
    assert f"on {len(exported.held_out)} random images" in replace(exported, real=False).summary()


def test_the_summary_says_what_loads_a_file_that_the_registry_refuses(results: Path, tmp_path, capsys, monkeypatch):
    run, side = finished(results, "lora"), 128
    assert export_to(results, run, tmp_path / "sam.pth") == 0
    assert (
        f"positions fitted to {side} px; load with harness.models.original_sam.plain_sam('tiny', image_size={side}); "
        "segment_anything's registry takes vit_b, vit_l, vit_h at 1024 px only"
    ) in capsys.readouterr().out
    assert export_to(results, run, tmp_path / "adapter.safetensors", "--adapter-only") == 0
    assert "positions" not in capsys.readouterr().out
    monkeypatch.setattr(exporting, "REGISTRY", ("tiny",))
    monkeypatch.setattr(exporting, "REGISTRY_SIZE", side)
    assert export_to(results, run, tmp_path / "again.pth") == 0
    assert "positions" not in capsys.readouterr().out


@pytest.mark.parametrize(("method", "backbone"), [("naslora", "tiny"), ("lora", "tiny_timm")])
def test_adapter_only_holds_the_trained_tensors_and_names_its_run(results: Path, tmp_path, method: str, backbone: str):
    """`test_own_data` verifies one in a fresh process."""
    run, out = finished(results, method, backbone=backbone), tmp_path / "adapter.safetensors"
    assert export_to(results, run, out, "--adapter-only") == 0
    state = load_file(results / "state" / run.key / "best.safetensors")
    tensors = load_file(out)
    assert tensors.keys() == state.keys()
    assert all(torch.equal(tensors[name], state[name]) for name in state)
    with safe_open(out, framework="pt") as file:
        assert run.method in file.metadata()["sam-peft-harness"]


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
    results, tmp_path, capsys, method, options, arguments, message
) -> None:
    run, out = finished(results, method, **options), tmp_path / "sam.pth"
    assert export_to(results, run, out, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_what_is_no_sam_is_refused_with_the_way_that_works(results: Path, tmp_path, capsys) -> None:
    for run in (finished(results, "lora", backbone="tiny_timm"), finished(results, "lora", benchmark="trans10k_v2")):
        assert export_to(results, run, tmp_path / "sam.pth") == 2
        assert "use --adapter-only" in capsys.readouterr().err
    run = finished(results, "lora", backbone="tiny_mobile_sam")
    assert export_to(results, run, tmp_path / "peft", "--peft") == 2
    assert "leave --peft out" in capsys.readouterr().err


def test_the_state_of_another_run_is_refused(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, other = finished(results, "lora", rank=2), finished(results, "dora", rank=2)
    own, foreign = (results / "state" / each.key / "best.safetensors" for each in (run, other))
    kept = own.read_bytes()
    for content in (foreign.read_bytes(), save({"x": torch.zeros(1)})):
        own.write_bytes(content)
        assert export_to(results, run, tmp_path / "sam.pth") == 2
        images = ["--images", str(tmp_path), "--out", str(tmp_path / "masks")]
        assert predict.main(["--results", str(results), "--run", run.key, *images]) == 2
        error = capsys.readouterr().err
        assert error.count(f"not that of {run.key}") == 2
        assert error.count("\n") == 2
    own.write_bytes(kept)
    assert export_to(results, run, tmp_path / "sam.pth") == 0


def test_bad_input_is_one_line(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = finished(results, "lora")
    failed = finished(results, "lora", code="OOM", rank=5)
    stateless = finished(results, "lora", rank=7)
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


def test_a_card_is_not_overwritten_without_being_asked_and_never_lies_there_alone(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out, card = finished(results, "lora"), tmp_path / "a.safetensors", tmp_path / "a.README.md"
    card.write_text("mine")
    assert export_to(results, run, out, "--adapter-only") == 2
    assert "a.README.md exists" in capsys.readouterr().err
    assert ([*tmp_path.glob("a.*")], card.read_text()) == ([card], "mine")
    assert export_to(results, run, out, "--adapter-only", "--force") == 0
    assert run.key in card.read_text()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(exporting, "replace_atomically", full)
    assert export_to(results, run, tmp_path / "b.safetensors", "--adapter-only") == 2
    assert not [*tmp_path.glob("b.*")]


def test_calibration_without_images_says_where_to_give_them(results: Path, tmp_path, capsys) -> None:
    run = finished(results, "naslora")
    folder = results / "sample-data"
    hidden = folder.rename(folder.with_name("hidden"))
    try:
        assert export_to(results, run, tmp_path / "sam.pth", "--merge", "calibrated") == 2
        assert "--data" in capsys.readouterr().err
        assert (
            export_to(results, run, tmp_path / "sam.pth", "--merge", "calibrated", "--data", str(hidden / "kvasir"))
            == 0
        )
    finally:
        hidden.rename(folder)


def test_a_run_without_sams_spare_tokens_is_no_sam_checkpoint(results: Path, tmp_path, capsys) -> None:
    run = finished(results, "lora", rules={"quirks.spare_tokens": "released"})
    assert export_to(results, run, tmp_path / "sam.pth") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "without SAM's mask tokens 1-3 (quirk 14)" in line
    assert "--adapter-only" in line
    assert not (tmp_path / "sam.pth").exists()
    assert export_to(results, run, tmp_path / "adapter.safetensors", "--adapter-only") == 0


def test_verification_loads_by_the_registry_itself_where_it_can(results: Path, tmp_path, monkeypatch) -> None:
    run, out = finished(results, "lora"), tmp_path / "sam.pth"
    exported = exporting.export(exporting.Export(results=results, run=run.key, out=out))
    asked: list[str] = []

    def build(checkpoint: str) -> Any:
        asked.append(checkpoint)
        sam = plain_sam("tiny", image_size=128)
        sam.load_state_dict(torch.load(checkpoint, weights_only=True))
        return sam

    monkeypatch.setattr(exporting, "REGISTRY", ("tiny",))
    monkeypatch.setattr(exporting, "REGISTRY_SIZE", 128)
    monkeypatch.setitem(sam_model_registry, "tiny", build)

    masks = sam_masks(run, out, exported.held_out)

    assert asked == [str(out)]
    torch.testing.assert_close(masks, exported.masks, rtol=1e-4, atol=1e-4)


def test_the_registrys_names_and_size_are_segment_anythings_own() -> None:
    assert set(exporting.REGISTRY) == sam_model_registry.keys() - {"default"}
    with torch.device("meta"):
        sam = sam_model_registry["vit_b"]()
    assert sam.image_encoder.img_size == exporting.REGISTRY_SIZE


def test_verification_fails_on_a_file_that_predicts_otherwise(results: Path, tmp_path, monkeypatch, capsys) -> None:
    run, out = finished(results, "lora"), tmp_path / "sam.pth"
    write = exporting._write

    def damage(request: Any, run: Run, content: dict[str, torch.Tensor]) -> None:
        write(request, run, {**content, "image_encoder.pos_embed": content["image_encoder.pos_embed"] + 1})

    def within(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        with redirect_stdout(io.StringIO()) as printed:
            print_difference(command[-1])
        return subprocess.CompletedProcess(command, 0, printed.getvalue())

    monkeypatch.setattr(exporting, "_write", damage)
    monkeypatch.setattr(exporting, "subprocess", SimpleNamespace(run=within))  # spares the import of torch

    assert export_to(results, run, out, "--verify") == 2
    assert "predicts otherwise" in capsys.readouterr().err
