"""Benchmarks write what they measured, so that a claim can point at it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import evaluation, memory, step

pytestmark = pytest.mark.usefixtures("nobody_else")

TINY = ["--backbone", "tiny", "--image-size", "64", "--device", "cpu"]


def _written(main: Any, path: Path, *arguments: str) -> dict[str, Any]:
    assert main([*TINY, "--json", str(path), *arguments]) == 0
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["options"]["backbone"] == "tiny"
    assert content["environment"]["torch"]
    return content


def test_memory_is_written_in_bytes(tmp_path: Path) -> None:
    content = _written(memory.main, tmp_path / "memory.json", "--methods", "lora,decoder", "--device", "meta")
    assert content["bytes"]["lora"]["activations"] > content["bytes"]["decoder"]["activations"] > 0


@pytest.mark.parametrize("main", [step.main, evaluation.main, memory.main])
def test_a_folder_that_is_not_there_is_refused_before_measuring(main: Any, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*TINY, "--json", str(tmp_path / "no" / "x.json")])
    assert "is no folder; create it first" in capsys.readouterr().err
