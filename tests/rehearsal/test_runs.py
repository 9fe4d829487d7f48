"""Every method on a tiny SAM goes through a whole run on a pretended GPU: no tensor meets one of another device, and no step waits more
often than its budget."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rehearsal.runs import FIRST, METHOD_NAMES, within_budget


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rehearsal")


CASES = [
    pytest.param(method, marks=[] if method in FIRST["sam"] else [pytest.mark.slow])
    for method in (*METHOD_NAMES, "peft/oft", "peft/vera")
]


@pytest.mark.parametrize("method", CASES)
def test_no_device_mismatch_and_no_wait_beyond_the_budget(results: Path, method: str) -> None:
    within_budget(results, "sam", method)
