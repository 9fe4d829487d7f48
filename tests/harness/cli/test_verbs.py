"""One entry, many verbs: every verb is listed, speaks the same words, and refuses a wrong word before torch is loaded."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from harness.__main__ import main
from harness.cli.command import version
from harness.cli.verbs import GROUPS, VERBS, summaries
from harness.datasets import samples
from tests.values import REPOSITORY, RESULTS


def python(*words: str, cwd: Path = REPOSITORY, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": str(REPOSITORY), "PATH": os.environ["PATH"], "SAM_PEFT_SETTINGS": "none", **variables}
    return subprocess.run(
        [sys.executable, *words], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def test_every_verb_is_listed() -> None:
    verbs = set()
    for path in (REPOSITORY / "harness").rglob("*.py"):
        if re.search(r"^@verb\ndef main", path.read_text(encoding="utf-8"), re.MULTILINE):
            verbs.add(".".join(path.relative_to(REPOSITORY).with_suffix("").parts))
    assert verbs == set(VERBS.values())


def test_help_lists_every_verb_with_what_it_does_and_imports_none(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"]):
        assert main(words) == 0
        shown = capsys.readouterr().out
        for name, summary in summaries().items():
            assert f"  {name}" in shown
            assert summary in shown
            assert re.fullmatch(r"[A-Z][^`:]*\.", summary), summary
        assert all(f"\n{group}:\n" in shown for group in GROUPS)
    imported = python(
        "-c", "import sys, harness.__main__ as m; m.main([]); print(*sys.modules, file=sys.stderr)"
    ).stderr
    assert not {"torch", "pandas", "harness.run", "harness.cli.tables"} & set(imported.split())


def test_a_wrong_word_is_one_line_before_torch_is_loaded() -> None:
    words = {name: ["--nonsense"] for name in VERBS}
    words |= {"doctor": ["--backbone", "vit_x"], "cost": ["--methods", "lora", "--backbone", "vit_x"]}
    words |= {"run": ["--methods", "lora", "--datasets", "all", "--retry", "oom"]}
    words |= {"data": ["check", "kvazir"]}
    words |= {"export": ["--run", "nowhere", "--out", "a.pth"]}
    words |= {"predict": ["--run", "nowhere", "--images", ".", "--out", "masks"]}
    code = f"""
import sys
from harness.__main__ import main
for name, words in {words!r}.items():
    assert main([name, *words]) == 2, name
assert 'torch' not in sys.modules
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == len(VERBS)
    assert all(line.startswith("error: ") for line in lines)


def test_verbs_that_only_read_load_neither_torch_nor_peft(tmp_path: Path) -> None:
    """Of committed records, among them rows of a search, of a tuner of peft and of a study."""
    records = tmp_path / "records"
    records.mkdir()
    kept = 0
    for file in sorted((RESULTS / "records").glob("*.json")):
        if kept < 8 and re.search(r'"method": "(naslora|naspclora|convlora|peft/vera)"', file.read_text("utf-8")):
            shutil.copy(file, records)
            kept += 1
    assert kept == 8
    key = next(records.iterdir()).stem
    at = ["--results", str(tmp_path)]
    words = [
        ["--help"], ["status", *at], ["show", key, *at], ["tables", *at], ["records", "check", str(tmp_path)],
        ["protocols", "list"], ["settings"], ["data", "list"],
    ]  # fmt: skip
    code = f"""
import sys
from harness.__main__ import main
for line in {words!r}:
    try:
        done = main(line)
    except SystemExit as stop:
        done = stop.code
    print(done, {{'torch', 'peft'}} & sys.modules.keys(), line, file=sys.stderr)
"""
    done = python("-c", code)
    lines = [line for line in done.stderr.splitlines() if " set() " in line or "{" in line]
    assert len(lines) == len(words), done.stderr
    for line in lines:
        assert line.startswith(("0 set() ", "1 set() ")), (
            line
        )  # these records have no sidecar files, which the check names


def test_version_names_the_running_copy(tmp_path: Path, monkeypatch) -> None:
    shown = python("-m", "harness", "--version", cwd=tmp_path).stdout
    assert re.fullmatch(rf"sam-peft [\d.]+(, commit [0-9a-f]{{12}}( with changes)?)?, in {REPOSITORY}\n", shown)
    monkeypatch.setattr("harness.cli.command.code_version", lambda: {"commit": "0123456789abcdef", "dirty": True})
    assert ", commit 0123456789ab with changes, in " in version()


def test_every_verb_that_prints_a_table_prints_it_as_json_too(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results" / "records").mkdir(parents=True)
    for path in (RESULTS / "records").glob("0208a83a*"):
        shutil.copy(path, tmp_path / "results" / "records")
    results = "results"
    samples.write_samples("kvasir", tmp_path / "data", images=12, size=32)
    (tmp_path / "empty" / "records").mkdir(parents=True)
    for folder in ("predicted", "masks"):
        (tmp_path / folder).mkdir()
        Image.new("L", (8, 8), 255).save(tmp_path / folder / "a.png")
    grid = ["--methods", "lora", "--datasets", "kvasir", "--protocol", "demo"]
    for words, look in (
        (["run", *grid, "--plan"], lambda data: data["runs"][0]["hours"] > 0 and not data["missing"]),
        (["status", "--results", results], lambda data: data[0]["state"] == "OK"),
        (["show", "0208a83a", "--results", results], lambda data: data["history"] and data["files"]),
        (["tables", "--results", results], lambda data: data[0]["tables"][0]["rows"] and data[0]["numbers"]),
        (["data", "score", "predicted", "masks"], lambda data: data["scores"]["iou"] == 1),
        (["settings"], lambda data: data[2] == {"setting": "results", "value": "runs"}),
        (["data", "check", "kvasir", "--data", "data"], lambda data: data["verdicts"]),
        (["run", "--study", "list"], lambda data: data[0]["study"] and data[0]["title"]),
        (["protocols", "list"], lambda data: {"protocol", "hash", "purpose"} == set(data[0])),
        (["protocols", "show", "demo"], lambda data: data["fields"]["epochs"]),
    ):
        main([*words, "--json"])
        out = capsys.readouterr().out
        of_lines = words[0] in ("status", "settings")  # an object a line
        assert look([json.loads(line) for line in out.splitlines()] if of_lines else json.loads(out)), words
    assert not (tmp_path / "runs").exists()
