"""Exports of finished runs: whole SAM checkpoints, trained tensors, the card with each, and what cannot be exported."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save
from segment_anything import sam_model_registry

from harness import run as run_verb
from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.cli import export, predict
from harness.experiment import exporting
from harness.experiment.trained import Trained, of_results
from harness.methods.parts.placement import MethodError
from harness.models.build import build_segmenter
from harness.models.catalog import backbone
from harness.models.original_sam import sam_state_dict
from harness.models.published import published_file
from harness.planning.understand import understand
from harness.registry import METHODS
from harness.report.runs import command_of
from harness.settings import Settings
from harness.system.errors import UsageError
from tests.harness.experiment.finished import export_to, finished, sam_masks
from tests.harness.planned import found_and_planned


@pytest.mark.parametrize(("method", "merge", "name"), [
    ("lora", "exact", "tiny"), ("naslora", "calibrated", "tiny"), ("full", "exact", "tiny"), ("decoder", "exact", "tiny"),
    ("lora", "exact", "tiny_mobile_sam"),
])  # fmt: skip
@torch.no_grad()
def test_export_predicts_alike_under_segment_anything_itself(results, tmp_path, method, merge, name) -> None:
    run, out = finished(results, method, backbone=name), tmp_path / "sam.pth"
    data = results / "sample-data" / "kvasir"
    line, merged, images = exporting.export(of_results(results, run.key), out=out, merge=merge, data=data)
    assert ("validation images" in line) == bool(METHODS.get(method).merge_modes)
    torch.testing.assert_close(sam_masks(run, out, images), merged(images).masks, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_whole_sam_2_keeps_its_memory_and_has_metas_file_layout(results: Path, tmp_path: Path) -> None:
    started, out = tmp_path / "sam2.1_hiera_toy.pt", tmp_path / "sam.pth"
    memory = {"memory_encoder.out_proj.weight": torch.ones(2, 3)}
    torch.save({"model": sam_state_dict(build_segmenter("tiny_sam2", task="binary")) | memory}, started)
    run = finished(results, "lora", backbone="tiny_sam2", checkpoint=started)
    _, merged, images = exporting.export(of_results(results, run.key), out=out, checkpoint=started)
    torch.testing.assert_close(sam_masks(run, out, images), merged(images).masks, rtol=1e-4, atol=1e-4)
    after, before = (torch.load(path, weights_only=True)["model"] for path in (out, started))
    assert after.keys() == before.keys()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert "image_encoder.trunk.blocks.1.attn.qkv.weight" in changed
    assert not changed & {*memory, "no_mem_embed", "image_encoder.trunk.blocks.1.attn.proj.weight"}


@torch.no_grad()
def test_a_sam_3_is_written_as_transformers_reads_it(results: Path, tmp_path: Path, capsys) -> None:
    pytest.importorskip("transformers", minversion="5.0")
    run, out = finished(results, "lora", backbone="tiny_sam3"), tmp_path / "model.safetensors"
    _, merged, images = exporting.export(of_results(results, run.key), out=out)
    torch.testing.assert_close(sam_masks(run, out, images), merged(images).masks, rtol=1e-4, atol=1e-4)
    written = load_file(out).keys()
    assert {name.partition(".")[0] for name in written} == {"detector_model", "tracker_neck", "tracker_model"}
    assert not [name for name in written if "lora" in name or ".qkv." in name]
    code, _, loading = exporting.code_to_load(run, "sam", str(out)).partition("model = ")
    assert loading.startswith("Sam3TrackerModel")
    names: dict[str, Any] = {}
    exec(code, names)
    shape, side = backbone("tiny_sam3").shape, run.rules["image_size"]
    sizes = [[side // shape.patch * k] * 2 for k in (4, 2, 1)]
    assert str(names["config"].vision_config.backbone_feature_sizes) == str(sizes), "whole numbers"
    assert "InferenceSession('m.onnx')" in exporting.code_to_load(run, "onnx", "m.onnx")
    for method, needs_file in (("lora", False), ("mine", True)):
        code = exporting.code_to_load(replace(run, method=method, checkpoint="0" * needs_file), "adapter", "a")
        assert ('load_plugin(Path("FILE.py"))' in code, 'checkpoint="FILE"' in code) == (needs_file, needs_file)
    with pytest.raises(UsageError, match="give their folder with --data"):
        exporting.export(of_results(results, run.key), out=tmp_path / "c", merge="calibrated")
    assert export_to(results, run, tmp_path / "sam3.pth") == 2
    assert "end in .safetensors" in capsys.readouterr().err
    assert export_to(results, run, tmp_path / "sam3.safetensors") == 0
    with pytest.raises(UsageError, match="accept their licence"):
        published_file("sam3")


def test_a_state_whose_class_head_is_one_number_is_refused(results: Path) -> None:
    run = finished(results, "lora")
    wrong = {**of_results(results, run.key).state, "head.weight": torch.zeros(())}
    with pytest.raises(MethodError, match=r"head\.weight"):
        Trained(run=run, state=wrong).segmenter(None)


@pytest.mark.parametrize(
    ("method", "made", "arguments", "message"),
    [
        ("naslora", {}, ["--merge", "exact"], "use --merge calibrated or --adapter-only"),
        ("naslora", {"style": "linear"}, ["--merge", "conv"], "use --merge calibrated or --adapter-only"),
        ("naslora", {}, ["--peft"], "use --merge calibrated or --adapter-only"),
        ("lora", {}, ["--merge", "conv"], "its modes are exact, calibrated"),
        ("adapter", {}, [], "use --adapter-only"),
        ("lora", {"backbone": "tiny_timm"}, [], "use --adapter-only"),
        ("lora", {"benchmark": "trans10k_v2"}, [], "use --adapter-only"),
        ("lora", {"backbone": "tiny_mobile_sam"}, ["--peft"], "leave --peft out"),
        ("lora", {"sites": "qkv,decoder"}, ["--peft"], "adapts the mask decoder too"),
        ("ssf", {}, ["--peft"], "not a low-rank update of linear layers"),
        ("dora", {}, ["--peft"], "not a low-rank update of linear layers"),
        ("peft/miss", {"backbone": "tiny_sam3", "r": 4, "sites": "qkv"}, ["--peft"], "sites=q,k,v"),
        ("lora", {}, ["--peft", "--out", "/nowhere/at/all"], "there is no folder /nowhere/at; make it first"),
        ("lora", {}, ["--out", "/nowhere/sam.pth"], "there is no folder /nowhere; make it first"),
    ],
)
def test_what_cannot_be_exported_is_one_line_with_the_way_that_works(
    results, tmp_path, says, method, made, arguments, message
) -> None:
    run = finished(results, method, **made)
    out = tmp_path / ("adapter" if "--peft" in arguments else "sam.pth")
    words = ["--results", results, "--run", run.key, "--out", out, *arguments]
    assert message in says(export.main, *words, code=2)
    assert list(tmp_path.iterdir()) == []


def test_the_state_of_another_run_is_refused(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, other = finished(results, "lora", rank=2), finished(results, "dora", rank=2)
    own, foreign = (results / "state" / each.key / "best.safetensors" for each in (run, other))
    kept = own.read_bytes()
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
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


def test_bad_input_is_one_line(results: Path, tmp_path: Path, says: Callable[..., str]) -> None:
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
        assert message in says(export.main, *arguments, code=2)
    assert there.read_text() == "kept"
    assert not (tmp_path / "sam.pth").exists()


def test_the_registrys_names_and_size_are_segment_anythings_own(results: Path) -> None:
    run = replace(finished(results, "lora"), backbone="vit_b")
    for side, used in ((1024, True), (512, False)):
        code = exporting.code_to_load(replace(run, rules={**run.rules, "image_size": side}), "sam", "sam.pth")
        assert ("sam_model_registry" in code, f"image_size={side}" in code) == (used, not used)
    assert set(exporting.REGISTRY) == sam_model_registry.keys() - {"default"}
    with torch.device("meta"):
        sam = sam_model_registry["vit_b"]()
    assert sam.image_encoder.img_size == exporting.REGISTRY_SIZE


SCORES = {"best": {"test": {"s_measure": 0.75, "e_mean": 0.5, "iou": 0.25}, "val": {"s_measure": 1.0}}}


@pytest.mark.parametrize(
    ("arguments", "out", "where"),
    [
        (["--adapter-only"], "a.safetensors", "a.README.md"),
        ([], "sam.pth", "sam.README.md"),
        (["--peft"], "p", "p/README.md"),
    ],
)
def test_a_demo_says_so_and_its_use_is_code_that_runs(results, tmp_path, monkeypatch, arguments, out, where):
    run = finished(results, "lora")
    RecordStore(results).write(Record(run=run, key=run.key, code="OK", scores=SCORES))
    assert export_to(results, run, tmp_path / out, *arguments) == 0
    card = ModelCard.load(tmp_path / where)
    assert "generated" in card.text
    code = card.text.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    if arguments == ["--peft"]:  # nobody publishes the random weights that it started from
        assert "PeftModel.from_pretrained(" in code
        return
    names: dict[str, Any] = {}
    exec(code, names)
    assert isinstance(names.get("segmenter", names.get("sam")), torch.nn.Module)


def test_the_command_on_a_card_plans_the_run_of_the_record(results: Path) -> None:
    run = finished(results, "lora", rules={"lr": "2e-4", "merge": ["exact"]}, rank=5, sites="q,v")  # type: ignore[dict-item]
    _, verb, *words = shlex.split(command_of([Record(run=run, key=run.key, code="OK")]))
    assert verb == "run"
    request, _, _ = understand(run_verb.parser().parse_args([*words, "--results", str(results)]), Settings())
    (job,) = found_and_planned(request).jobs
    assert job.run.key == run.key
