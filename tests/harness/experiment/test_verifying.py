"""``export --verify``: the written file is loaded again and has to predict the same."""

from __future__ import annotations

import io
import subprocess
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from segment_anything import sam_model_registry

from harness.archive.schema import Run
from harness.experiment import exporting, reloading
from harness.experiment.reloading import print_difference, sam_masks
from harness.models.original_sam import plain_sam
from tests.harness.experiment.finished import export_to, finished


def test_a_fresh_process_verifies_the_export(results: Path, tmp_path, capsys, monkeypatch) -> None:
    run = finished(results, "lora")
    (tmp_path / "harness").mkdir()
    (tmp_path / "harness" / "__init__.py").write_text("raise SystemExit('a module of the working folder was run')\n")
    monkeypatch.chdir(tmp_path)
    assert export_to(results, run, tmp_path / "sam.pth", "--verify") == 0
    output = capsys.readouterr().out
    assert "verified in a fresh process" in output
    assert "lora on kvasir, seed 0, merged by exact: 4 sites folded" in output


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
    monkeypatch.setattr(reloading, "subprocess", SimpleNamespace(run=within))  # spares the import of torch

    assert export_to(results, run, out, "--verify") == 2
    assert "predicts otherwise" in capsys.readouterr().err
