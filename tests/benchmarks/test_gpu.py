"""One command fills every row of a GPU: rehearsed on the CPU, each row failing by itself."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from benchmarks import gpu
from benchmarks.gpu import Row


def rehearsed(file: Path, *words: str) -> tuple[int, dict[str, Any]]:
    code = gpu.main(["--rehearse", "--json", str(file), *words])
    return code, json.loads(file.read_text(encoding="utf-8"))["rows"]


def in_this_process(words: list[str]) -> CompletedProcess[str]:
    """Instead of a process a row, each of which would import torch anew."""
    with redirect_stdout(io.StringIO()) as said:
        code = import_module(words[0]).main(words[1:])
    return CompletedProcess(words, code, stdout=said.getvalue(), stderr="")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("nobody_else")
def test_every_row_runs_on_a_tiny_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_run", in_this_process)
    code, rows = rehearsed(tmp_path / "gpu.json")
    assert code == 0, rows
    measured = {name.removesuffix("-tiny"): row["measured"] for name, row in rows.items()}
    assert measured["step"]["ratios"].keys() >= {"lora / lora plain", "lora / lora hf-sdpa", "naslora / naslora plain"}
    ratio = measured["step"]["ratios"]["naslora / lora"]
    assert ratio["low"] < ratio["value"] < ratio["high"]
    assert ratio["rounds"] == 2
    assert measured["evaluation"]["peers"].keys() == {"plain", "hf-sdpa", "hf-eager"}
    assert measured["evaluation"]["ratio"]["low"] < measured["evaluation"]["ratio"]["high"]
    seconds = measured["evaluation"]["seconds"]
    assert seconds.keys() == {"forward", "evaluation", "forward plain", "forward hf-sdpa", "forward hf-eager"}
    assert {len(of_rounds) for of_rounds in seconds.values()} == {2}
    assert [method["variant"] for method in measured["cost"]["methods"]] == ["full", "lora", "naslora", "decoder"]
    full = set(gpu.rows(**gpu.FULL))  # type: ignore[arg-type]
    assert full == {f"{name}-{backbone}" for name in measured for backbone in ("vit_b", "vit_h")}


def test_a_row_that_fails_leaves_its_reason_and_the_others_as_they_were(tmp_path: Path, monkeypatch, capsys) -> None:
    file = tmp_path / "gpu.json"
    other = {"command": "python -m benchmarks.step", "measured": {"shared": ""}, "seconds": 1.0}
    file.write_text(json.dumps({"rows": {"two": other}}), encoding="utf-8")
    monkeypatch.setattr(gpu, "rows", lambda **_: {"misspelt": Row(words="harness tabels")})
    code, rows = rehearsed(file, "--only", "misspelt")
    assert code == 1
    assert "unknown verb 'tabels'" in rows["misspelt"]["failed"]
    assert rows["two"] == other
    assert "unknown verb" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--json", "x.json"], "no CUDA device here"),
        (["--rehearse"], "give --json FILE"),
        (["--rehearse", "--json", "x.json", "--only", "step-vit_x"], "did you mean 'step-tiny'?"),
    ],
)
def test_what_cannot_be_measured_is_one_line(words: list[str], reason: str, monkeypatch, tmp_path: Path, says) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    assert reason in says(gpu.main, *words, code=2)
    assert not list(tmp_path.iterdir())
