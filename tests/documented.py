"""The commands that README, CONTRIBUTING and docs show, word by word."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from tests.values import REPOSITORY

PAGES = (
    REPOSITORY / "README.md",
    REPOSITORY / "ARCHITECTURE.md",
    REPOSITORY / "CONTRIBUTING.md",
    REPOSITORY / "datasets" / "README.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
)
COMMAND = re.compile(r"^(?:\$ )?((?:[A-Z_]+=\S+ )*)(?:python -m harness(?:\.(\w+))?|sam-peft)(?![\w/.])(.*)$")


def code_of(page: Path) -> Iterator[tuple[int, str]]:
    """(line, code) of every line of code, in blocks and within sentences."""
    for start, code in _codes(page.read_text(encoding="utf-8")):
        for offset, line in enumerate(_joined(code)):
            yield start + offset, line


def commands() -> Iterator[tuple[str, list[str]]]:
    """(page:line, verb and its arguments) for every one, from blocks of code and from code within a line."""
    for page in PAGES:
        for number, line in code_of(page):
            if match := COMMAND.match(line):
                words = shlex.split(match[3], comments=True)
                verb = [match[2]] if match[2] else []
                yield f"{page.relative_to(REPOSITORY)}:{number}", [*verb, *words]


def _codes(text: str) -> Iterator[tuple[int, str]]:
    """(line, code) of fenced blocks, and of spans outside of them."""
    fenced = False
    block: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("```"):
            if fenced:
                yield number - len(block), "\n".join(block)
            fenced, block = not fenced, []
        elif fenced:
            block.append(line)
        else:
            for span in re.findall(r"`([^`]+)`", line):
                yield number, span


def _joined(code: str) -> list[str]:
    """Lines, those that end in a backslash joined with the next; empty ones keep the count."""
    lines: list[str] = []
    open_line = ""
    pad = 0
    for line in code.splitlines():
        if line.endswith("\\"):
            open_line += line[:-1]
            pad += 1
            continue
        lines += [open_line + line, *[""] * pad]
        open_line, pad = "", 0
    return lines
