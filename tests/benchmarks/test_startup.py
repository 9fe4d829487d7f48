"""Imports are told by package."""

from __future__ import annotations

import pytest

from benchmarks.startup import by_package, imports, packages_table

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
