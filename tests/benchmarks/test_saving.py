"""Benchmarks write what they measured, so that a claim can point at it; shares of a run, and of a start."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import evaluation, memory, step
from benchmarks.products import Recorded, flops
from benchmarks.shares import shares, table
from benchmarks.startup import by_package, imports, packages_table

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


TOLD = """import time: self [us] | cumulative | imported package
import time:       100 |        100 |     json.decoder
import time:       200 |        300 |   json
import time:   1500000 |    2000000 | torch.nn
import time:    500000 |     500000 |   torch
a line of the program | with bars | in it
"""


def test_seconds_are_those_of_a_package_without_what_it_imports() -> None:
    assert by_package(TOLD) == {"torch": 2.0, "standard library": pytest.approx(300e-6)}


def test_small_packages_are_one_row_and_nothing_is_lost() -> None:
    table = packages_table({"one": {"torch": 2.0, "tiny": 0.004}, "other": {"tiny": 0.002}})
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    assert rows == [["torch", "2.00", ""], ["others", "0.00", "0.00"], ["all", "2.00", "0.00"]]


def test_the_help_of_status_imports_no_table_and_no_torch() -> None:
    command = [
        "-c",
        "import sys; from harness.cli import status; status.parser(); assert 'harness.report' not in sys.modules",
    ]
    assert "torch" not in imports(command)


COST = {
    "stage_start_s": 1.0, "stage_loading_s": 2.0, "stage_training_s": 50.0, "stage_validating_s": 10.0, "stage_testing_s": 30.0,
    "stage_merging_s": 3.0, "stage_other_s": 4.0, "train_time_s": 49.0, "data_wait_s": 0.1, "steps": 40.0, "passes_s": 84.0,
}  # fmt: skip


def _record(**changed: Any) -> Any:
    return SimpleNamespace(**{"code": "OK", "attempts": 1, "cost": COST, **changed})


def test_shares_of_a_run_add_up_to_it() -> None:
    parts = shares(_record())
    assert parts["minutes"] == pytest.approx(100 / 60)
    assert parts["updates"] == pytest.approx(0.45)  # without the images waited for
    assert parts["outside passes"] == pytest.approx(0.16)
    assert sum(value for name, value in parts.items() if name not in ("minutes", "outside passes")) == pytest.approx(1)
    assert "45.0 %" in table({"lora": [parts]})
    assert "16.0 % (16.0 to 16.0)" in table({"lora": [parts]})


@pytest.mark.parametrize(
    "changed", [{"code": "OOM"}, {"attempts": 2}, {"cost": {"steps": 3.0}}, {"cost": {**COST, "steps": 0.0}}]
)
def test_a_run_that_says_nothing_of_them_is_left_out(changed: dict[str, Any]) -> None:
    assert shares(_record(**changed)) == {}


def test_products_of_forward_and_backward_are_those_that_torch_counts() -> None:
    layer, images = torch.nn.Linear(6, 5), torch.ones(4, 6, requires_grad=True)
    left, right = torch.ones(2, 3, 4, requires_grad=True), torch.ones(2, 4, 7, requires_grad=True)

    def step() -> None:
        (layer(images).sum() + torch.bmm(left, right).sum()).backward()

    with Recorded() as recorded:
        step()
    with FlopCounterMode(display=False) as counted:
        step()
    assert sum(count * flops(*pair) for pair, count in recorded.counts.items()) == counted.get_total_flops()
