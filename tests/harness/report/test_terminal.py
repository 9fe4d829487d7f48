"""A terminal gets aligned tables of its own width; a pipe and a file get markdown."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

from harness.archive.store import RecordStore
from harness.comparison.scores import Mark
from harness.report.formats import fitted, write
from harness.report.page import Page, Score, Table, heads
from harness.system.streams import show_text
from tests.harness.report.sample import grid_of, record
from tests.values import REPOSITORY


def shown(results: Path, *, columns: int) -> list[str]:
    """What ``sam-peft tables`` prints on a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    command = [sys.executable, "-m", "harness", "tables", "--results", str(results)]
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    streams: Any = {"stdin": theirs, "stdout": theirs, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, **streams)
    os.close(theirs)
    data = b""
    with contextlib.suppress(OSError):  # once the other end is closed
        while chunk := os.read(ours, 65536):
            data += chunk
    os.close(ours)
    assert process.wait() == 0
    return data.decode().splitlines()


def test_words_of_a_row_are_folded_and_numbers_are_not() -> None:
    name = "scale=10.667, lr=0.001; alternate=iteration; style=linear, norm=batch"
    rows = [[name, "88.0 ± 0.1 (3)"], ["lora", "1"]]
    lines = fitted(Table(heading="", columns=heads("", "kvasir"), rows=rows), width=60)
    assert max(map(len, lines)) <= 60
    words = [word for line in lines for word in line.split()]
    assert [word for word in words if word in name.split()] == name.split()
    assert sum("88.0 ± 0.1 (3)" in line for line in lines) == 1


def test_long_lines_are_folded_between_words_on_a_terminal_alone(monkeypatch, capsys) -> None:
    text = "    " + " ".join(["Kvasir-SEG,"] * 20) + "\n\nshort\n"
    monkeypatch.setattr("harness.system.streams.terminal_width", lambda stream: 0)
    show_text(text)
    assert capsys.readouterr().out == text
    monkeypatch.setattr("harness.system.streams.terminal_width", lambda stream: 80)
    show_text(text)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].startswith("      Kvasir-SEG, ")
    assert lines[-2:] == ["", "short"]


def test_a_terminal_gets_tables_of_its_width_and_the_file_markdown(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    for method, seed, benchmark in itertools.product(("lora", "decoder"), range(3), ("kvasir", "leaf", "sbu", "camo")):
        store.write(record(0.5 + 0.01 * seed, method=method, seed=seed, benchmark=benchmark))
    lines = shown(tmp_path, columns=90)
    assert 80 < max(map(len, lines)) <= 90
    assert any(line.startswith("LoRA ") for line in lines)
    assert not any(line.startswith("|") for line in lines)
    assert "| LoRA |" in (tmp_path / "tables" / "demo.md").read_text(encoding="utf-8")


def test_numbers_stand_below_each_other_whatever_their_marks() -> None:
    marks: tuple[Mark, ...] = ("best", "tied", "")
    grid = grid_of([record(value, seed=seed) for value in (0.9,) for seed in range(3)])
    cell = next(iter(grid.cells.values()))
    rows = [[name, Score(cell=cell, mark=mark)] for name, mark in zip("abc", marks, strict=True)]
    text = write(Page(title="t", tables=[Table(heading="h", columns=heads("method", "Sα ↑"), rows=rows)]), style="text")
    lines = {line[0]: line for line in text.splitlines() if line[:2] in ("a ", "b ", "c ")}
    assert len({line.index("(") for line in lines.values()}) == 1
    assert (lines["a"][-2:], lines["b"][-2:], lines["c"][-1]) == (" *", " ≈", ")")
    assert "*: the best row" in text


def test_a_column_wider_than_the_terminal_is_shown_whole() -> None:
    table = Table(heading="h", columns=heads("method", "long", "short"), rows=[["a", "x" * 90, "y"]])
    assert "x" * 90 in write(Page(title="t", tables=[table]), style="text", width=80)


def test_what_a_terminal_would_obey_is_spelt_out() -> None:
    page = Page(title="\x1b[2J", note="\x1b]0;x\x07", tables=[Table(heading="\x9b1m", columns=heads("a\x1b"))])
    text = write(page, style="text")
    assert "\x1b" not in text
    assert "\x9b" not in text
