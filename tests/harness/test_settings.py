"""Settings: the plain command with some and without, the verb that shows them, and files that are wrong."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from harness.datasets import samples
from harness.planning.understand import understand
from harness.run import main as run
from harness.run import parser
from harness.settings import VARIABLES, load_settings, user_file
from harness.system.errors import UsageError
from tests.values import REPOSITORY

PLAIN = ["--methods", "lora,naslora", "--datasets", "all", "--plan"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder, and settings that are read."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("SAM_PEFT_SETTINGS")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    samples.write_samples("kvasir", root)
    return root


def test_with_nothing_set_the_plain_command_is_the_demo_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(PLAIN) == 0
    shown = capsys.readouterr()
    assert "no data is set: using the protocol demo on generated images, whose scores do not rank methods" in shown.err
    assert "18 runs" in shown.out
    assert "tiny" in shown.out


def test_the_command_line_beats_what_is_set(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(
        Path("harness.toml"),
        'protocol = "nas-lora"\ncluster = "nowhere"\n[datasets]\nkvasir = "/nowhere"\nleaf = "/set"\n'
        '[checkpoints]\n"timm/vit_small_patch14_dinov2" = "/nowhere.pth"',
    )
    given = ["--protocol", "mini", "--seeds", "2", "--executor", "inline", "--data", str(data), "--checkpoint", "none"]
    assert run(["--methods", "lora", "--datasets", "kvasir", "--plan", *given]) == 0
    shown = capsys.readouterr()
    assert "2 runs" in shown.out
    assert "nothing is missing" in shown.out
    words = ["--methods", "lora", "--datasets", "Kvasir=/given,leaf", "--protocol", "mini"]
    roots = understand(parser().parse_args(words), load_settings())[0].dataset_roots
    assert roots == {"kvasir": Path("/given"), "leaf": Path("/set")}


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('[checkpoints]\nvit_x = "/x"', "vit_x"),
        ('plugins = ["x.py"]', "--plugin"),
        ('cluster = "gpuu"', "did you mean 'gpu'"),
        ('protocol = "demoo"', "did you mean 'demo'"),
    ],
)
def test_a_wrong_setting_is_one_line_and_nothing_is_written(text: str, word: str, capsys) -> None:
    write(Path("harness.toml"), text)
    assert run(["--methods", "lora", "--datasets", "kvasir"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert word in line
    assert sorted(path.name for path in Path().iterdir()) == ["harness.toml"]


Environment = dict[str, str]


@pytest.fixture
def user(tmp_path: Path) -> tuple[Path, Environment]:
    """The user's file, not written yet, and an environment that points there."""
    environment = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    file = user_file(environment)
    file.parent.mkdir(parents=True)
    return file, environment


def write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def test_one_file_is_read_and_the_environment_beats_it(user: tuple[Path, Environment], tmp_path: Path) -> None:
    file, environment = user
    assert load_settings(environment).results == Path("runs")
    write(file, 'data = "~/data"\nresults = "/user/runs"\nprotocol = "mini"\n[checkpoints]\nvit_b = "none"')
    settings = load_settings({**environment, "SAM_PEFT_PROTOCOL": "demo"})
    assert (settings.data, settings.results, settings.protocol) == (Path.home() / "data", Path("/user/runs"), "demo")
    assert (settings.checkpoints, settings.source) == ({"vit_b": Path("none")}, str(file))
    write(Path("harness.toml"), 'data = "data"\nprotocol = "mini"\n[datasets]\nkvasir = "/old"')
    settings = load_settings(environment)
    assert (settings.data, settings.results, settings.protocol) == (Path("data"), Path("runs"), "mini")
    assert load_settings({**environment, "SAM_PEFT_DATA": "/new"}).datasets == {}
    write(tmp_path / "other.toml", 'data = "data"')
    assert load_settings({**environment, "SAM_PEFT_SETTINGS": str(tmp_path / "other.toml")}).data == tmp_path / "data"
    assert load_settings({**environment, "SAM_PEFT_SETTINGS": "none"}).data is None


def test_the_page_names_the_variables_that_there_are() -> None:
    page = (REPOSITORY / "docs" / "start.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(SAM_PEFT_\w+)`", page)) == VARIABLES.keys()


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('dta = "/x"', "did you mean 'data'"),
        ('plugins = "a.py"', "list"),
        ('datasets = "/x"', "mapping"),
        ('cluster = ""', "cluster=''"),
        ("[checkpoints]\nvit_h = 1", "vit_h=1"),
        ("protocol = true", "protocol"),
        ("cache_gib = -1", "cache_gib"),
        ('cache_gib = "much"', "cache_gib"),
        ("data = /x", "harness.toml"),
        ("x = " + "[" * 5000, "harness.toml"),
        ("#" * 100_001, "100000 bytes"),
        (b"data = '\xff'", "UTF-8"),
        (os.mkfifo, "not a file"),
        (lambda path: path.symlink_to(path.name), "symbolic"),
        (lambda path: path.symlink_to("nowhere"), "No such file"),
    ],
)
def test_a_wrong_file_is_one_line(text: Any, word: str) -> None:
    path = Path("harness.toml")
    text(path) if callable(text) else path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError) as caught:
        load_settings({})
    assert word in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("variable", "word"), [("SAM_PEFT_DAAT", "did you mean 'data'"), ("SAM_PEFT_SETTINGS", "No such file")]
)
def test_wrong_variables_are_refused(variable: str, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        load_settings({variable: "/nowhere"})


@pytest.mark.parametrize(
    "text",
    [
        'plugins = ["evil.py"]',
        *(f'cluster = "{path}"' for path in ("/elsewhere/evil", "../../evil", "evil.yaml", "~/evil")),
    ],
)
def test_a_downloaded_folder_gives_a_job_no_code(text: str, user: tuple[Path, Environment]) -> None:
    write(Path("harness.toml"), text)
    with pytest.raises(UsageError, match="may have come with this folder"):
        load_settings({})
    assert load_settings({"SAM_PEFT_SETTINGS": "harness.toml"}).source == "harness.toml"
    Path("harness.toml").unlink()
    assert load_settings({"SAM_PEFT_CLUSTER": "mine.yaml"}).cluster.endswith("mine.yaml")
    write(user[0], text)
    assert load_settings(user[1]).source == str(user[0])
    write(Path("harness.toml"), 'cluster = "gpu"')
    assert load_settings({}).cluster == "gpu"
