"""Whatever a results folder holds, every verb that reads it ends with 0, 1 or 2 in words, and writes nothing elsewhere.

Records and cost records are mutated: values, names, types. Half of the mutants have the key and the seal that fit them, as a forger's
would. ``FUZZ_EXAMPLES=2000`` tries more of them.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from harness import run
from harness.archive.files import sealed
from harness.archive.measured import Comparability
from harness.archive.schema import Run
from harness.cli import show, status, tables
from harness.cli.records import main as records
from harness.datasets import samples
from tests.values import RESULTS

Main = Callable[..., int]

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "3"))
KEYS = ("0208a83a876e42cc", "3ad2cd27c6cedd5a", "123f3554271b5168", "04a8a1629e3d5826")
HOSTILE: tuple[Any, ...] = (
    *(None, True, 0, -1, 1, 0.5, 1e308, 10**30, float("nan"), float("inf")),
    "", "../../NOTES", "/etc/passwd", "a/b", "\0", "\x1b]0;owned\x07", "\u202e", "x" * 100_000, "<script>alert(1)</script>", "a|b",
    "=1+cmd|' /C calc'!A0", "\\write18{ls}", "1e999", "mini", "kvasir", "lora", "best", "val", "all", "OK", "OOM", "2026-13-45",
    [], {}, [1, "x", None], {"a": {"b": []}}, {"": ""}, {"../x": {"y": 0.5}}, [[[[[[]]]]]], {"val": {"iou": 0.5}},
)  # fmt: skip
Keys = tuple[Any, ...]


def paths(value: Any, here: Keys = ()) -> Iterator[Keys]:
    """The path of every value in nested mappings and lists."""
    if here:
        yield here
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        yield from paths(item, (*here, name))


def mutate(content: Any, data: st.DataObject) -> None:
    """One change somewhere in a file's content; the fields of the run as often as everything else together."""
    if not (known := list(paths(content))):
        return
    in_run = [where for where in known if where[0] in ("run", "comparability", "scores")]
    half: bool = data.draw(st.booleans())
    where = data.draw(st.sampled_from(in_run if in_run and half else known))
    target = content
    for name in where[:-1]:
        target = target[name]
    how, value = data.draw(st.sampled_from(["replace", "drop", "add", "nest"])), data.draw(st.sampled_from(HOSTILE))
    if how == "drop":
        del target[where[-1]]
    elif how == "add" and isinstance(target, dict):
        target[str(data.draw(st.sampled_from(HOSTILE)))] = value
    else:
        target[where[-1]] = {"x": [target[where[-1]]]} if how == "nest" else value


def forged(content: Any) -> tuple[str, bytes]:
    """The key that fits a changed content, where it has one, and its file with a seal that fits."""
    with contextlib.suppress(TypeError, KeyError, AttributeError, ValueError):
        kind = Run if "run" in content else Comparability
        content["key"] = kind(**content["run" if kind is Run else "comparability"]).key
    with contextlib.suppress(TypeError, KeyError, ValueError):
        return str(content["key"]), sealed(content)
    return "", json.dumps(content).encode(errors="replace")


def spoil(root: Path, data: st.DataObject) -> None:
    """A few changes in what one file of a results folder holds, under the key that fits them where it was forged."""
    path = data.draw(st.sampled_from(sorted(root.rglob("*.json"))))
    content = json.loads(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        mutate(content, data)
    key, text = forged(content) if data.draw(st.booleans()) else ("", json.dumps(content).encode(errors="replace"))
    path.write_bytes(text)
    if path.parent.name == "records" and len(key) == 16 and key.isalnum():
        for of_record in path.parent.glob(f"{path.stem}.*"):
            of_record.rename(of_record.with_name(of_record.name.replace(path.stem, key)))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder as small as it can be and with everything in it."""
    root = tmp_path_factory.mktemp("original")
    for folder in ("records", "cost"):
        (root / folder).mkdir()
    for key in KEYS:
        for path in (RESULTS / "records").glob(f"{key}*"):
            shutil.copy(path, root / "records")
    for path in (RESULTS / "cost").glob("*.json"):
        shutil.copy(path, root / "cost")
    return root


@pytest.fixture(scope="module")
def kvasir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated images for plans."""
    return samples.write_samples("kvasir", tmp_path_factory.mktemp("data"))


def verbs(root: Path, kvasir: Path) -> list[tuple[Main, list[str]]]:
    results = ["--results", str(root)]
    plan = ["--protocol", "demo", "--methods", "lora", "--datasets", f"kvasir={kvasir}"]
    return [
        (tables.main, results),
        (tables.main, [*results, "--check"]),
        (tables.main, [*results, "--study", "real-images", "--format", "latex"]),
        (tables.main, [*results, "--study", "main", "--format", "csv"]),
        (tables.main, [*results, "--study", "cost"]),
        (status.main, results),
        (status.main, [*results, "--failed"]),
        (status.main, [*results, "--json"]),
        (status.main, [*results, "--logs", KEYS[0]]),
        (show.main, [KEYS[0], *results]),
        (tables.main, [*results, "--json"]),
        (run.main, [*plan, *results, "--plan"]),
        (records, ["check", str(root)]),
        (records, ["merge", str(root), str(root.parent / "out")]),
        (records, ["merge", str(root.parent / "out"), str(root)]),
    ]


def outside(box: Path) -> dict[str, bytes]:
    """The content of the folder around the results folders."""
    files = (path for path in box.rglob("*") if path.is_file() and not path.is_symlink())
    rest = (path for path in files if path.relative_to(box).parts[0] not in ("results", "out"))
    return {str(path): path.read_bytes() for path in rest}


@pytest.mark.timeout(0)
@pytest.mark.slow
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],  # a mutant has one to nine changes: nothing to shrink
    derandomize=True,
    database=None,
)
@given(st.data())
def test_no_verb_falls_over_or_writes_outside(original: Path, kvasir: Path, data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        box = Path(folder)
        root = box / "results"
        shutil.copytree(original, root)
        (box / "NOTES.md").write_text("mine")
        for _ in range(data.draw(st.integers(1, 3))):
            spoil(root, data)
        before = outside(box)
        for verb, words in verbs(root, kvasir):
            shown = io.StringIO()
            with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
                code = verb([*words, "--debug"])
            text = shown.getvalue()
            assert code in (0, 1, 2), (verb, words, text)
            assert "Traceback" not in text
            assert not {"\x1b", "\x07", "\0"} & set(text), (verb, words)
        assert outside(box) == before
