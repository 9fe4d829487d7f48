"""What others wrote is text and nothing else; files are there whole or not at all, and nothing leads out of a results folder."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.archive.store import RecordStore
from harness.cli import show, status
from harness.cli.tables import main as tables
from harness.dispatch.attempts import Holder, Lease
from harness.system.files import (
    create_anew,
    create_exclusively,
    end_of,
    own_folder,
    read_regular,
    write_atomically,
)
from harness.system.text import csv_cell, markdown, printable, printable_line
from harness.training.checkpoint import write_state
from tests.harness.report.sample import record, render

SCRIPT = "<script>alert(1)</script>"


def test_control_characters_and_what_turns_text_are_spelt_out() -> None:
    assert printable("a\x1b[31mb\x07 \x9b \u202e\ud800") == r"a\x1b[31mb\x07 \x9b \u202e\ud800"
    assert printable("one\n\ttwo ± α · 漢") == "one\n\ttwo ± α · 漢"
    assert printable_line("one\r\n\ttwo") == r"one\x0d\n\ttwo"


def test_a_formula_is_text_in_a_spreadsheet_and_numbers_and_labels_stay_as_they_are() -> None:
    for text in ("=1+cmd|' /C calc'!A0", "@SUM(1)", "+1+cmd|x", "-2+3+cmd|' /C calc'!A0", "\t=1", "=1"):
        assert csv_cell(text).startswith("'"), text
    for text in ("-0.52", "-8.38153e-05", "+2E10", "+1.9 [-0.1, +3.9]", "91.2 ± 0.3 (3)", "lora[alpha=3]", "–", ""):
        assert csv_cell(text) == text


def test_a_cell_ends_where_it_should_and_holds_no_html_and_no_link() -> None:
    assert markdown(f"a|b {SCRIPT} ![x](http://y)\n") == r"a\|b &lt;script>alert(1)&lt;/script> ![x]\(http://y)\n"


def test_pages_of_hostile_records_hold_no_html_no_formula_and_no_further_column(tmp_path: Path) -> None:
    hostile = f"=1+cmd|x {SCRIPT}"
    first = record(
        label=hostile, backbone=hostile, split_rule=hostile, data_note=hostile, environment={"commit": hostile}
    )
    second = record(label="plain", method="decoder", backbone=hostile)
    page = render([first, second])
    assert "<script" not in page
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert len({line.replace("\\|", "").count("|") for line in rows}) == 1
    cells = [cell for row in csv.reader(io.StringIO(render([first, second], style="csv"))) for cell in row]
    assert any("cmd" in cell for cell in cells)
    assert not any(cell.startswith("=") for cell in cells)


def test_no_verb_sends_an_escape_of_a_record_or_of_a_file_name_to_the_terminal(tmp_path, says) -> None:
    store = RecordStore(tmp_path)
    evil = "\x1b]0;owned\x07\x9b31m"
    store.write(record(label=f"lora{evil}", data_note=evil, environment={"host": evil}))
    store.write(record(code="ERROR", message=evil, seed=1))
    (store.folder / f"x{evil}.json").write_text("{")
    for verb, words in (
        (status.main, []),
        (status.main, ["--failed"]),
        (show.main, ["lora", "0"]),
        (tables, []),
        (tables, ["--format", "csv"]),
        (tables, ["--format", "latex"]),
    ):
        shown = says(verb, *words, "--results", tmp_path)
        assert "owned" in shown
        assert not set("\x1b\x07\x9b") & set(shown)


@pytest.mark.parametrize("protocol", ["../../NOTES", "/NOTES", "..", ""])
def test_a_record_cannot_overwrite_files_outside_the_results_folder(protocol: str, tmp_path, capsys) -> None:
    notes, results = tmp_path / "NOTES.md", tmp_path / "project" / "results"
    notes.write_text("mine")
    good = RecordStore(results).write(record(method="decoder"))
    bad = RecordStore(results).write(record(protocol=protocol))
    assert tables(["--results", str(results)]) == 0
    assert f"skipped: {bad}: " in capsys.readouterr().err
    assert notes.read_text() == "mine"
    written = {path for path in tmp_path.rglob("*") if path.is_file()} - {notes, good, bad}
    assert written == {results / "tables" / "demo.md"}


KEY = "0123456789abcdef"


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A file of the user's own, in a folder of the user's own."""
    path = tmp_path / "home" / "diary"
    path.parent.mkdir()
    path.write_text("mine")
    path.chmod(0o600)
    return path


@pytest.mark.parametrize(
    "touch",
    [
        lambda folder: write_atomically(folder / "diary", "x"),
        lambda folder: write_atomically(folder / "deeper" / "x.json", "x"),
        lambda folder: create_exclusively(folder / "new", "x"),
        lambda folder: create_anew(folder / "diary"),
        lambda folder: write_state(folder / "best.safetensors", {}, identity=KEY, epoch=1),
        lambda folder: own_folder(folder / "x"),
        lambda folder: own_folder(folder),
        lambda folder: Lease.acquire(folder, holder=Holder.here()),
    ],
)
@pytest.mark.parametrize(
    "where", [f"state/{KEY}", "records", "sweeps", "cache", "cost", "tables", "site", "figures", "sample-data"]
)
def test_a_folder_that_others_replaced_by_a_link_is_not_entered(tmp_path, theirs, where, touch):
    link = tmp_path / "results" / where
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(theirs.parent)
    with pytest.raises(OSError, match="link") as caught:
        touch(link)
    assert str(link) in str(caught.value)
    assert [path.name for path in theirs.parent.iterdir()] == ["diary"]
    assert theirs.read_text() == "mine"


@pytest.mark.parametrize("durable", [True, False])
def test_what_must_survive_a_crash_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch, durable):
    """The file before the rename, its folder after it."""
    calls: list[str] = []

    def noted(name: str, call: Callable[..., None]) -> Callable[..., None]:
        def do(*words: Any, **more: Any) -> None:
            calls.append(name)
            call(*words, **more)

        return do

    for name in ("fsync", "replace", "link"):
        monkeypatch.setattr(os, name, noted(name, getattr(os, name)))
    write_atomically(tmp_path / "record.json", "{}", durable=durable)
    assert calls == (["fsync", "replace", "fsync"] if durable else ["replace"])
    calls.clear()
    create_exclusively(tmp_path / "intent", "{}")
    assert calls[:2] == ["fsync", "link"]


def test_a_results_folder_may_itself_be_a_link(tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "runs").symlink_to("scratch")
    write_atomically(tmp_path / "runs" / "state" / KEY / "a.json", "{}")
    write_atomically(tmp_path / "runs" / "table.md", "x")
    assert (tmp_path / "scratch" / "state" / KEY / "a.json").read_text() == "{}"
    assert read_regular(tmp_path / "runs" / "table.md", largest=10) == b"x"


def test_links_and_pipes_are_neither_read_nor_waited_for(tmp_path, theirs):
    (tmp_path / "link").symlink_to(theirs)
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(ValueError, match=r"link|regular"):
            read_regular(tmp_path / name, largest=10)
        with pytest.raises(ValueError, match=r"link|regular"):
            end_of(tmp_path / name, size=10)
    (tmp_path / "log").write_text("début\nfin\n")
    assert end_of(tmp_path / "log", size=4) == "fin\n"
    assert end_of(tmp_path / "log", size=100) == "début\nfin\n"
