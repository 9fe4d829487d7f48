"""Methods and benchmarks from outside: entry points, files, broken ones of both, and the worked example of `docs/plugins.md`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness import registry
from harness.archive.store import RecordStore
from harness.cli import tables
from harness.cli.data import main as data
from harness.cli.doctor import main as doctor
from harness.contract.checks import CHECKS
from harness.experiment.trained import of_results
from harness.registry import BENCHMARKS, METHODS, load_plugin
from harness.report.runs import command_of
from harness.run import main as run
from harness.system.errors import UsageError
from tests.values import REPOSITORY

EXAMPLE = REPOSITORY / "docs" / "examples" / "plugin.py"
SHORTEST = EXAMPLE.with_name("shortest.py")


def _package(folder: Path, *, entries: dict[str, str], code: str) -> Path:
    """An installed distribution with entry points, as an installer leaves it on disk."""
    (folder / "outside.py").write_text(code)
    info = folder / "outside-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    lines = [f"[{registry.METHOD_GROUP}]", *(f"{name} = {value}" for name, value in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder


def test_an_option_named_like_one_with_a_quirk_is_the_plug_ins_own(tmp_path: Path, capsys) -> None:
    own = tmp_path / "own_init.py"
    own.write_text(
        "from dataclasses import dataclass\n"
        "from harness.methods.lora import LoRA, LoRAConfig\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Config(LoRAConfig):\n"
        "    init: float = 0.5\n"
        "class OwnInit(LoRA):\n"
        "    name = 'own_init'\n"
        "    config_class = Config\n"
    )
    words = ["--plugin", str(own), "--methods", "own_init", "--datasets", "kvasir", "--protocol", "demo", "--plan"]
    assert run([*words, "--results", str(tmp_path / "runs")]) == 0
    assert "own_init" in capsys.readouterr().out


def test_method_that_breaks_the_contract_is_named_with_the_clause(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("harness.contract.matrix.CHECKS", {name: CHECKS[name] for name in ("identity", "gradient")})
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "from harness.methods.lora import LoRA\n"
        "class Wrong(LoRA):\n"
        "    name = 'wrong'\n"
        "    identity_at_init = False\n"
        "    def auxiliary_loss(self):\n"
        "        raise RuntimeError('no such thing')\n"
    )
    assert doctor(["--plugin", str(wrong), "--methods", "wrong,decoder"]) == 1
    shown = capsys.readouterr()
    assert "wrong: identity@tiny: declares a deviation at init, but there is none" in shown.err
    assert "wrong: gradient@tiny_timm: RuntimeError: no such thing (wrong.py, line 6)" in shown.err
    assert "decoder: contract holds" in shown.err
    (row,) = (line for line in shown.out.splitlines() if line.startswith("| `wrong`"))
    assert "declared deviation" in row


def test_entry_points_join_and_a_broken_one_is_named(tmp_path, monkeypatch, says) -> None:
    code = "from harness.methods.lora import LoRA\nclass Mine(LoRA):\n    name = 'mine'\n"
    folder = _package(tmp_path, entries={"mine": "outside:Mine"}, code=code)
    script = "from harness.registry import METHODS\nprint(METHODS.names()); print(METHODS.get('mine').name)"
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{REPOSITORY}"}
    command = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    names, name = done.stdout.splitlines()
    assert "'mine'" in names
    assert "'naslora'" in names
    assert name == "mine"
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setitem(METHODS._entries, "gone", EntryPoint("gone", "outside:Gone", registry.METHOD_GROUP))
    monkeypatch.setitem(METHODS._entries, "odd", EntryPoint("odd", "json:dumps", registry.METHOD_GROUP))
    with pytest.raises(UsageError, match="must be a subclass"):
        METHODS.get("odd")
    printed = says(doctor, "--methods", "gone,decoder", "--backbone", "tiny", code=1)
    assert "method 'gone' (outside:Gone) cannot be imported" in printed


def test_plugin_may_not_take_a_name_that_exists(tmp_path: Path) -> None:
    thief = tmp_path / "thief.py"
    thief.write_text("from harness.methods.lora import LoRA\nclass Mine(LoRA):\n    name = 'LoRA'\n")
    with pytest.raises(UsageError, match="'lora' exists already"):
        load_plugin(thief)
    twin = tmp_path / "twin.py"
    twin.write_text("from harness.methods.lora import LoRA\nclass Twin(LoRA):\n    name = 'ia3'\n")
    load_plugin(EXAMPLE)
    with pytest.raises(UsageError, match="'ia3' exists already"):
        load_plugin(twin)
    copy = tmp_path / "plugin.py"  # as a sweep freezes it
    copy.write_bytes(EXAMPLE.read_bytes())
    assert load_plugin(copy) == ["ia3", "pets"]


@pytest.mark.parametrize(("name", "text", "message"), [
    ("none.py", None, "no such file"),
    ("empty.py", "x = 1\n", "defines no named subclass"),
    ("notes.txt", "name = 1\n", "must end in .py"),
    ("syntax.py", "def (:\n", "SyntaxError"),
    (
        "odd.py", "class Meta(type):\n    def __getattribute__(cls, name):\n        raise RuntimeError('no')\n\n\n"
        "class Mine(metaclass=Meta):\n    pass\n", "fails on import",
    ),
])  # fmt: skip
def test_unusable_plugin_file_is_one_clear_line(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=message) as refused:
        load_plugin(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


FROZEN = "@dataclass(frozen=True, kw_only=True)\n"
OPTIONS = f"{FROZEN}class Options(DecoderOnlyConfig):\n    rank: int = 3\n"
BROKEN = "class Broken(Method):\n    name = 'broken'\n"
CONFIGURED = f"{BROKEN}    config_class = Options\n"
FAULTS = {
    "no_config": (BROKEN, "its config_class must be a dataclass below"),
    "no_count": (
        f"{FROZEN}class Options(MethodConfig):\n    rank: int = 3\n{CONFIGURED}",
        "its config_class has no encoder_parameters(shape)",
    ),
    "no_dataclass": (
        OPTIONS.removeprefix(FROZEN) + CONFIGURED,
        "rank is not a field of its config_class: Options lacks @dataclass(frozen=True, kw_only=True)",
    ),
    "no_default": (
        OPTIONS.replace(" = 3", "") + CONFIGURED,
        "its config_class cannot be made from its defaults: TypeError",
    ),
    "exits": ("raise SystemExit(3)\n", "fails on import: SystemExit: 3"),
    "counts": (
        f"{OPTIONS}    def encoder_parameters(self, shape):\n        return shape.nothing\n{CONFIGURED}",
        "method broken: its encoder_parameters fails: Attr",
    ),
    "divides": (
        f"{OPTIONS}    def __post_init__(self):\n        1 / (self.rank - 2)\n{CONFIGURED}",
        "method broken: its configuration fails: ZeroDivisionError",
    ),
}
HEAD = (
    "from dataclasses import dataclass\nfrom harness.methods.base import Method\n"
    "from harness.methods.base import MethodConfig\nfrom harness.methods.plain import DecoderOnlyConfig\n"
)


@pytest.mark.parametrize("fault", FAULTS)
def test_plugin_without_a_usable_configuration_is_refused(fault, tmp_path, says):
    """When it is loaded, or when what its method says of itself fails."""
    code, message = FAULTS[fault]
    plugin = tmp_path / f"{fault}.py"
    plugin.write_text(HEAD + code + "class Fine(Method):\n    name = 'fine'\n    config_class = DecoderOnlyConfig\n")
    grid = ["--protocol", "demo", "--datasets", "kvasir", "--results", str(tmp_path / "runs"), "--plan"]
    line = says(run, *grid, "--plugin", plugin, "--methods", "broken[rank=2]", code=2)
    loaded = message.startswith("method ")
    assert line.startswith(f"error: {message}" if loaded else f"error: --plugin {plugin}")
    assert message in line
    assert loaded or not {"broken", "fine"} & set(METHODS.names())


def test_the_shortest_benchmark_is_planned_and_checked_with_its_splits(tmp_path: Path, capsys, says) -> None:
    for split, count in (("train", 12), ("test", 3)):
        for kind in ("images", "masks"):
            folder = tmp_path / "scans" / split / kind
            folder.mkdir(parents=True)
            for index in range(count):
                Image.new("RGB" if kind == "images" else "L", (8, 8)).save(folder / f"{split}{index}.png")
    words = ["--methods", "gainlora[rank=2]", "--datasets", "scans", "--data", str(tmp_path), "--protocol", "demo"]
    assert run([*words, "--plugin", str(SHORTEST), "--set", "data=files", "--checkpoint", "none", "--plan"]) == 0
    shown = capsys.readouterr().out
    assert re.search(
        r"^scans .*official test; val carved \(seed 0, 1 of 12 train images by hashed stem\)", shown, re.MULTILINE
    )
    assert "nothing is missing" in shown
    of_data = ("--plugin", SHORTEST, "--data", tmp_path)
    listed = "Scans: terms: ours", "get it: our server", "layouts: original", f"found: {tmp_path / 'scans'}"
    assert f"\n{'':13}".join(listed) in says(data, "list", *of_data)
    checked = json.loads(says(data, "check", "scans", *of_data, "--json", code=1))  # black masks
    assert (checked["layout"], checked["rule"][:13]) == ("original", "official test")


def test_worked_example_runs_with_the_flags_of_a_built_in_method(tmp_path: Path, capsys) -> None:
    generator = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        for kind in ("images", "masks"):
            (tmp_path / "data" / "pets" / split / kind).mkdir(parents=True)
        for index in range(count):
            mask = np.zeros((40, 48), np.uint8)
            mask[8 : 8 + generator.integers(8, 24), 8 : 8 + generator.integers(8, 30)] = 255
            image = (generator.integers(0, 80, (40, 48, 3)) + (mask[..., None] > 0) * 120).astype(np.uint8)
            Image.fromarray(image).save(tmp_path / "data" / "pets" / split / "images" / f"{index}.png")
            Image.fromarray(mask).save(tmp_path / "data" / "pets" / split / "masks" / f"{index}.png")
    words = ["--plugin", str(EXAMPLE), "--methods", "ia3[mlp=false]", "--datasets", "pets", "--protocol", "demo"]
    words += ["--data", str(tmp_path / "data"), "--set", "data=files", "--set", "epochs=1", "--checkpoint", "none"]
    assert run([*words, "--results", str(tmp_path / "runs"), "--executor", "inline"]) == 0
    shown = capsys.readouterr().out
    assert "| IA³ (mlp=False) |" in shown
    records = [json.loads(path.read_text()) for path in tmp_path.glob("runs/records/**/*.json")]
    assert [record["run"]["method"] for record in records] == ["ia3"]
    assert [record["run"]["benchmark"] for record in records] == ["pets"]
    (header,) = [line for line in shown.splitlines() if line.startswith("| method |")]
    scores = [cell.strip() for cell in header.strip("| ").split("|")][1:3]
    assert scores == ["Pets IoU ↑", "Pets Dice ↑"]
    (finished,) = RecordStore(tmp_path / "runs").summaries()[0]
    assert "--plugin FILE.py" in command_of([finished])
    METHODS._loaded.pop("ia3"), BENCHMARKS._loaded.pop("pets")  # as in a process that loads no plug-in
    with pytest.raises(UsageError, match=r"ia3.* is a plug-in's; give its file with --plugin"):
        of_results(tmp_path / "runs", finished.key)
    edited = tmp_path / "plugin.py"
    edited.write_text(EXAMPLE.read_text().replace("self.base(tokens * self.scale)", "self.base(self.scale * tokens)"))
    words[1] = str(edited)
    assert run([*words, "--results", str(tmp_path / "runs"), "--executor", "inline"]) == 0
    assert "ia3: 1 finished run of an earlier version of its plug-in or of harness.methods" in capsys.readouterr().err
    of_results(tmp_path / "runs", finished.key)
    assert f"the plug-in of ia3, or harness.methods, has changed since run {finished.key}" in capsys.readouterr().err
    METHODS._loaded.pop("ia3"), BENCHMARKS._loaded.pop("pets")
    load_plugin(EXAMPLE)
    of_results(tmp_path / "runs", finished.key)
    assert capsys.readouterr().err == ""
    METHODS._loaded.pop("ia3"), BENCHMARKS._loaded.pop("pets")
    assert tables.main(["--results", str(tmp_path / "runs")]) == 0
    assert "| Pets IoU ↑ | Pets Dice ↑ |" in (tmp_path / "runs" / "tables" / "demo.md").read_text()
