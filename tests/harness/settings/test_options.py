"""A folder that nothing can be written to is named before the work begins."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness import figures, report
from harness.errors import UsageError
from harness.settings.options import require_writable


def test_a_folder_that_can_be_made_passes_and_is_not_made(tmp_path: Path) -> None:
    require_writable(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())


def test_a_file_on_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "page.md").touch()
    with pytest.raises(UsageError, match=r"cannot write to .*page\.md/x: .*page\.md is no folder; name another"):
        require_writable(tmp_path / "page.md" / "x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_others_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(UsageError, match="is not yours to write to"):
        require_writable(tmp_path / "x")


def test_a_folder_of_others_is_named_whoever_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UsageError, match="is not yours to write to"):
        require_writable(tmp_path / "x")


def test_verbs_say_so_before_they_read_a_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "page.md").touch()
    nowhere = str(tmp_path / "no results")
    for main, out in ((report.main, "page.md/r.html"), (figures.main, "page.md/x")):
        words = ["forest"] if main is figures.main else []
        assert main([*words, "--results", nowhere, "--out", str(tmp_path / out)]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert "page.md is no folder" in line
