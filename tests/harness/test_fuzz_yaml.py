"""Damaged and hostile cards, studies and profiles in every verb that reads them: exit 0, 1 or 2, one line, no file elsewhere.

``FUZZ_EXAMPLES=2000`` tries more of them, at random; without it the same few are tried each time.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.archive.store import RecordStore
from harness.cli.command import Main
from harness.cli.protocols import main as protocols
from harness.cli.tables import main as tables
from harness.run import main as run
from tests.harness.report.sample import record
from tests.values import REPOSITORY

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
GRID = ["--methods", "lora,naslora", "--datasets", "kvasir", "--plan", "--results", "results"]

Call = tuple[Main, list[str]]
VERBS: dict[str, tuple[list[Path], list[Call]]] = {
    "card": (
        sorted(REPOSITORY.glob("harness/protocols/*.yaml")),
        [(protocols, ["show", "cards/mine.yaml"]), (run, [*GRID, "--protocol", "cards/mine.yaml"])],
    ),
    "study": (
        sorted(REPOSITORY.glob("harness/studies/*.yaml")),
        [
            (run, ["--study", "cards/mine.yaml", "--plan", "--results", "results"]),
            (tables, ["--study", "cards/mine.yaml", "--results", "results"]),
        ],
    ),
    "profile": (
        sorted(REPOSITORY.glob("slurm/profiles/*.yaml")),
        [(run, [*GRID, "--protocol", "mini", "--cluster", "cards/mine.yaml"])],
    ),
}

HOSTILE = [
    "!!python/object/apply:os.system ['touch executed']", "!!python/name:os.system", "'{{$ENV:HOME}}'", "{{ fileDirname }}",
    "&a [*a]", "&a {x: *a}", "*missing", "[" * 5000, "{" * 30 + "}" * 30, "9" * 30, "9" * 5000, "-1", "0", "1e400", ".inf", "-.inf",
    ".nan", "1e-320", "null", "~", "true", "[]", "{}", "[1, [2, [3]]]", "{a: {b: 1}}", "2026-01-02", "0x7fffffffffffffffffff",
    "''", "' '", "../../NOTES", "/etc/passwd", "../cards/mine.yaml", "x.py", "'a\\0b'", '"\\e[2J"', '"\\ud800"', "é", "'=1+cmd'",
    "<script>", "!", "%x", "@", "`", "x" * 300, "|\n  text", "lora", "all", "[lora, lora]", "[kvasir, nowhere]",
]  # fmt: skip
KEYS = [
    "_base_", "_delete_", "custom_imports", "name", "epochs", "lr", "image_size", "pixel_std", "betas", "quirks", "evaluation",
    "methods", "benchmarks", "merge", "title", "set", "seeds", "entries", "table", "backbones", "protocol", "time", "gres", "shapes",
    "extra", "setup", "expected", "tolerance", "numerator", "quantity", "filename", "text", "<<", "1", "a.b", "''", "? [1]", "__class__",
]  # fmt: skip
ORDINARY = st.one_of(st.text(max_size=20), st.integers().map(str), st.floats().map(str))
VALUES = st.one_of(st.sampled_from(HOSTILE), st.sampled_from(HOSTILE), ORDINARY)
Edit = Callable[[list[str]], list[str]]


@st.composite
def edits(draw: st.DrawFn) -> Edit:
    """One change of a file's lines: a value, a key, a line more, less or elsewhere, or noise in the middle."""
    kind = draw(
        st.sampled_from(["value", "value", "value", "key", "add", "nest", "drop", "double", "move", "noise", "cut"])
    )
    where, there = draw(st.floats(0, 1)), draw(st.floats(0, 1))
    value, key, noise = draw(VALUES), draw(st.sampled_from(KEYS)), draw(st.text(min_size=1, max_size=8))

    def edit(lines: list[str]) -> list[str]:
        at, to = (min(int(share * len(lines)), max(len(lines) - 1, 0)) for share in (where, there))
        line = lines[at] if lines else ""
        changed = {
            "value": [re.sub(r":.*$", lambda _: f": {value}", line, count=1)],
            "key": [re.sub(r"[\w-]+:", lambda _: f"{key}:", line, count=1)],
            "add": [line, f"{key}: {value}"],
            "nest": [line, f"  {key}: {value}"],
            "drop": [],
            "double": [line, line],
            "move": [line],
            "noise": [line[: len(line) // 2] + noise + line[len(line) // 2 :]],
            "cut": [line[: len(line) // 2]],
        }[kind]
        rest = [*lines[:at], *changed, *lines[at + 1 :]]
        if kind == "move" and rest:
            rest.insert(to, rest.pop(at))
        return rest[: at + 1] if kind == "cut" else rest

    return edit


@contextlib.contextmanager
def place() -> Iterator[Path]:
    """A folder to run in, with results that hold records, and something to overwrite beside them."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "cards").mkdir()
        (folder / "NOTES.md").write_text("mine")
        for seed in range(2):
            RecordStore(folder / "results").write(record(seed=seed))
        os.chdir(folder)
        try:
            yield folder
        finally:
            os.chdir(before)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).parts[0] != "results"
    }


def answer(verb: Main, words: list[str]) -> tuple[int, str]:
    error = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(error):
        try:
            code = verb(words)
        except SystemExit as end:
            code = int(end.code or 0)
    return code, error.getvalue()


@pytest.mark.parametrize("kind", VERBS)
def test_no_file_brings_a_traceback_or_leaves_the_results_folder(kind: str) -> None:
    originals, calls = VERBS[kind]

    @settings(
        max_examples=EXAMPLES or 25,
        deadline=None,
        derandomize=not EXAMPLES,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        original=st.sampled_from(originals),
        changes=st.lists(edits(), min_size=1, max_size=4),
        raw=st.binary(max_size=40),
    )
    def every_file_is_answered(original: Path, changes: list[Edit], raw: bytes) -> None:
        lines = original.read_text(encoding="utf-8").splitlines()
        for change in changes:
            lines = change(lines)
        content = "\n".join(lines).encode("utf-8", "surrogatepass") + (raw if len(changes) == 4 else b"\n")
        with place() as folder:
            Path("cards/mine.yaml").write_bytes(content)
            before = files(folder)
            for verb, words in calls:
                code, error = answer(verb, words)
                assert code in (0, 1, 2), error
                assert "not foreseen" not in error, (error, content)
                assert "Traceback" not in error, (error, content)
                assert error.replace("\n", "").isprintable(), error
                if code == 2:
                    assert error.splitlines()[-1].startswith("error: "), error
            assert files(folder) == before

    every_file_is_answered()
