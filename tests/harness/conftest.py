"""Generated benchmarks, the rules of records made up, and a doctor that examines nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.planning.data import write_sample


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two generated benchmarks."""
    root = tmp_path_factory.mktemp("samples")
    for name in ("kvasir", "leaf"):
        write_sample(name, root)
    return root


@pytest.fixture(autouse=True)
def _demo_protocol(request: pytest.FixtureRequest) -> None:
    """The protocol demo has the rules of the records that comparison and report make up (`tests.harness.report.sample`)."""
    if request.path.relative_to(Path(__file__).parent).parts[0] in ("comparison", "report", "test_submission.py"):
        from tests.harness.report.sample import known_rules

        for module in ("comparison.tables", "comparison.papers", "submission", "report.runs"):
            request.getfixturevalue("monkeypatch").setattr(f"harness.{module}.protocol_rules", known_rules)


@pytest.fixture
def unexamined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every method passes, at once: for tests of what the doctor reads and prints, not of what it finds."""
    monkeypatch.setattr("harness.contract.matrix.CHECKS", {})
