"""The notebook of `docs/start.ipynb` runs from its first cell to its last."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.values import REPOSITORY


@pytest.mark.slow
def test_the_notebook_runs_in_an_empty_folder(tmp_path: Path) -> None:
    notebook = json.loads((REPOSITORY / "docs" / "start.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    done = subprocess.run(
        [sys.executable, "-c", "\n\n".join(cells) + "\nprint(len(best), 'scores')"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "MPLBACKEND": "agg", "SAM_PEFT_SETTINGS": "none"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "6 scores" in done.stdout  # three methods, IoU and Dice
    assert list((tmp_path / "masks" / "overlays").glob("*"))
