"""Benchmarks write what they measured, so that a claim can point at it."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import evaluation, step

pytestmark = pytest.mark.usefixtures("nobody_else")

TINY = ["--backbone", "tiny", "--image-size", "64", "--device", "cpu"]


@pytest.mark.parametrize("main", [step.main, evaluation.main])
def test_a_folder_that_is_not_there_is_refused_before_measuring(main: Any, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*TINY, "--json", str(tmp_path / "no" / "x.json")])
    assert "is no folder; create it first" in capsys.readouterr().err
