"""A name that somebody else chose cannot move a file out of its folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.archive.store import RecordStore
from harness.cli.tables import main as tables
from tests.harness.report.sample import record


@pytest.mark.parametrize("protocol", ["../../NOTES", "/NOTES", "..", "a/b", ""])
def test_a_record_cannot_overwrite_files_outside_the_results_folder(
    protocol: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = tmp_path / "NOTES.md"
    notes.write_text("mine")
    results = tmp_path / "project" / "results"
    good = RecordStore(results).write(record(method="decoder"))
    bad = RecordStore(results).write(record(protocol=protocol))
    assert tables(["--results", str(results)]) == 0
    err = capsys.readouterr().err
    assert f"skipped: {bad}: " in err
    assert "protocol" in err
    assert notes.read_text() == "mine"
    written = {path for path in tmp_path.rglob("*") if path.is_file()} - {notes, good, bad}
    assert written == {results / "tables" / "demo.md"}
