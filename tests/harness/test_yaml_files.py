"""Cards, studies, profiles and claims are data: nothing in them is executed, guessed or unbounded."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from harness.comparison.papers import Papers
from harness.dispatch.slurm.profile import load_profile
from harness.protocols.load import load_protocol
from harness.studies import load_study
from harness.system.errors import UsageError
from harness.system.yaml_files import read_yaml
from tests.values import REPOSITORY, RESULTS

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + below] * 10)}]\n" for below, name in zip("abcdefg", "bcdefgh", strict=True)
)
HOSTILE: dict[str, tuple[str | bytes, str]] = {
    "python tag": ("epochs: !!python/object/apply:os.system ['touch executed']\n", "line 1: the tag"),
    "harmless tag": ("epochs: !!int '3'\n", "line 1: the tag"),
    "alias bomb": (BOMB, "more than 20000 values, aliases expanded"),
    "endless alias": ("a: &a [*a]\n", "*a is part of itself"),
    "brackets": ("a: " + "[" * 50, "more than 20 levels of nesting"),
    "brackets without end": ("a: " + "[" * 50_000, "nesting"),
    "key twice": ("quirks:\n  lr: 2\n  lr: 3\n", "line 3: the key 'lr' stands here twice"),
    "template": ("backbone: '{{$ENV:SECRET:none}}'\n", "line 1: a template"),
    "bare template": ("epochs: {{$ENV:SECRET:3}}\n", "line 1: a key that is no word"),
    "longer number": (f"epochs: {'9' * 5000}\n", "beyond 64 bits"),
    "longest number": (f"epochs: 0x{'f' * 5000}\n", "beyond 64 bits"),
    "not UTF-8": (b"epochs: 3 # caf\xe9\n", "is not UTF-8 text"),
    "not YAML": ("a: [1, 2\n", "expected ',' or ']'"),
    "escape character": ("a: \x1b[2J\n", "characters are not allowed"),
    "two documents": ("a: 1\n---\nb: 2\n", "expected a single document"),
    "huge": ("# " + "x" * 300_000, "more than 200000 bytes"),
}
READERS: dict[str, Callable[[Path], object]] = {
    "card": lambda path: load_protocol(str(path)),
    "study": lambda path: load_study(str(path)),
    "profile": lambda path: load_profile(str(path)),
    "claims": lambda path: Papers.read(claims=path),
}


@pytest.mark.parametrize(
    ("case", "reader"),
    [(case, reader) for case in HOSTILE for reader in READERS if not (reader == "profile" and "number" in case)],
)  # a profile's values are text, whatever they look like
def test_hostile_yaml_is_one_line(case: str, reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    monkeypatch.chdir(tmp_path)
    content, message = HOSTILE[case]
    path = tmp_path / "mine.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UsageError) as caught:
        READERS[reader](path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert os.listdir(tmp_path) == ["mine.yaml"]


@pytest.mark.parametrize(
    "path",
    sorted([*REPOSITORY.glob("harness/*/*.yaml"), *REPOSITORY.glob("slurm/profiles/*.yaml"), RESULTS / "claims.yaml"]),
    ids=str,
)
def test_committed_files_hold_what_plain_yaml_says(path: Path) -> None:
    assert read_yaml(path, what="file") == yaml.safe_load(path.read_text(encoding="utf-8"))


def test_aliases_and_merge_keys_within_bounds_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: [*a, *a]\nday: 2026-01-02\n")
    assert read_yaml(path, what="file") == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 1, "y": 3},
        "c": [{"x": 1, "y": 2}] * 2,
        "day": "2026-01-02",
    }
