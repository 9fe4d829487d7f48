"""The plain command with nothing set, with data set, and with everything set; and the verb that shows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.cli.settings import main as show
from harness.cli.settings import template
from harness.datasets import samples
from harness.planning.asked import understand
from harness.run import main as run
from harness.run import parser
from harness.settings import load_settings
from tests.harness.settings.test_read import write

REPOSITORY = Path(__file__).parents[3]
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
    assert "no data is set, so the card demo: generated images, numbers that rank nothing" in shown.err
    assert "18 runs" in shown.out
    assert "tiny" in shown.out


def test_with_data_set_it_is_the_papers_card_on_it(data: Path, capsys, monkeypatch) -> None:
    write(Path("harness.toml"), f'data = "{data}"\nseeds = 3\n[checkpoints]\nvit_h = "none"')
    assert run([*PLAIN, "--skip-missing"]) == 0
    shown = capsys.readouterr()
    assert "no --protocol, so the card nas-lora" in shown.err
    assert "6 runs" in shown.out
    assert "vit_h" in shown.out
    Path("harness.toml").unlink()
    for given in (["--data", str(data)], ["--dataset-root", f"kvasir={data}"]):
        assert run([*PLAIN, *given, "--checkpoint", "none", "--skip-missing"]) == 0
        assert "so the card nas-lora" in capsys.readouterr().err
    monkeypatch.setenv("SAM_PEFT_PROTOCOL", "mini")
    assert run([*PLAIN, "--data", str(data), "--checkpoint", "none", "--skip-missing"]) == 0
    assert "timm/vit_small_patch14_dinov2" in capsys.readouterr().out


def test_what_is_set_of_data_does_not_touch_a_card_of_generated_images(data: Path, capsys) -> None:
    write(Path("harness.toml"), f'[datasets]\nkvasir = "{data}"')
    plain = ["--methods", "lora", "--datasets", "kvasir", "--protocol", "demo", "--plan"]
    assert run(plain) == 0
    assert "generated samples" in capsys.readouterr().out


def test_the_command_line_beats_what_is_set(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(
        Path("harness.toml"),
        'protocol = "nas-lora"\nseeds = 9\ncluster = "nowhere"\n[datasets]\nkvasir = "/nowhere"\nleaf = "/set"\n'
        '[checkpoints]\n"timm/vit_small_patch14_dinov2" = "/nowhere.pth"',
    )
    given = ["--protocol", "mini", "--seeds", "2", "--executor", "inline", "--data", str(data), "--checkpoint", "none"]
    assert run(["--methods", "lora", "--datasets", "kvasir", "--plan", *given]) == 0
    shown = capsys.readouterr()
    assert "2 runs" in shown.out
    assert "nothing is missing" in shown.out
    words = ["--methods", "lora", "--datasets", "kvasir,leaf", "--protocol", "mini", "--dataset-root"]
    roots = understand(parser().parse_args([*words, "Kvasir=/given"]), load_settings()).request.dataset_roots
    assert roots == {"kvasir": Path("/given"), "leaf": Path("/set")}


@pytest.mark.parametrize("how", ["--data", "--dataset-root", "data = ", "[datasets]"])
def test_data_given_or_set_in_any_way_asks_for_the_papers_card(how: str) -> None:
    words = {"--data": ["--data", "/d"], "--dataset-root": ["--dataset-root", "kvasir=/d"]}.get(how, [])
    settings = {"data = ": 'data = "/d"', "[datasets]": '[datasets]\nkvasir = "/d"'}.get(how, "")
    write(Path("harness.toml"), settings)
    asked = understand(parser().parse_args(["--methods", "lora", "--datasets", "kvasir", *words]), load_settings())
    assert asked.request.protocol == "nas-lora"


def test_plug_ins_and_what_is_not_to_be_cached_reach_the_request() -> None:
    words = ["--methods", "lora", "--datasets", "kvasir", "--protocol", "demo", "--plugin", "mine.py"]
    plain, without = (
        understand(parser().parse_args([*words, *more]), load_settings()) for more in ([], ["--no-cache"])
    )
    assert plain.request.plugins == (str(Path("mine.py").absolute()),)
    assert (plain.request.overrides, without.request.overrides) == ({}, {"cache_images": "false"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[datasets]\nkvazir = "/x"', "harness.toml: datasets: unknown benchmark 'kvazir' (did you mean 'kvasir'?)"),
        ('[checkpoints]\nvit_x = "/x"', "harness.toml: checkpoints: unknown backbone 'vit_x'"),
        ('seeds = "x"', "harness.toml: seeds 'x' is neither a number of seeds"),
        ('plugins = ["x.py"]', "--trust-settings"),
        ('cluster = "x.yaml"', "--trust-settings"),
        ('cluster = "gpuu"', "unknown cluster 'gpuu' (did you mean 'gpu'?)"),
        ('protocol = "demoo"', "unknown protocol 'demoo' (did you mean 'demo'?)"),
    ],
)
def test_a_wrong_setting_is_one_line_and_nothing_is_written(text: str, said: str, capsys) -> None:
    write(Path("harness.toml"), text)
    assert run(["--methods", "lora", "--datasets", "kvasir"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert said in line
    assert sorted(path.name for path in Path().iterdir()) == ["harness.toml"]


def test_plugins_that_are_set_are_named_before_they_are_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    plugin = REPOSITORY / "docs" / "examples" / "plugin.py"
    write(Path("harness.toml"), f'plugins = ["{plugin}"]')
    grid = ["--methods", "ia3", "--datasets", "kvasir", "--protocol", "demo", "--plan"]
    assert run(grid) == 2
    capsys.readouterr()
    assert run([*grid, "--trust-settings"]) == 0
    assert f"plug-ins of harness.toml: {plugin}\n" in capsys.readouterr().err


def test_show_prints_every_value_and_where_it_comes_from(capsys, monkeypatch) -> None:
    write(Path("harness.toml"), 'data = "d"\nplugins = ["p.py"]\n[checkpoints]\nvit_b = "b.pth"')
    monkeypatch.setenv("SAM_PEFT_SEEDS", "0,7")
    assert show([]) == 0
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in capsys.readouterr().out.splitlines()}
    assert rows["data"] == ["d", "harness.toml"]
    assert rows["seeds"] == ["0,7", "SAM_PEFT_SEEDS"]
    assert rows["checkpoints.vit_b"] == ["b.pth", "harness.toml"]
    assert rows["results"] == ["runs", "default"]
    assert rows["plugins"][1].startswith("harness.toml (needs --trust-settings")


def test_init_writes_a_file_that_sets_nothing_and_explains_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert show(["--init"]) == 0
    assert not load_settings().origins
    lines = Path("harness.toml").read_text(encoding="utf-8").splitlines()
    uncommented = [line.removeprefix("# ") for line in lines if " = " in line or line.startswith("# [")]
    write(Path("harness.toml"), "\n".join(uncommented))
    assert set(load_settings().origins) == {
        "protocol", "data", "results", "cluster", "seeds", "plugins", "datasets.kvasir", "checkpoints.vit_h",
    }  # fmt: skip
    assert show(["--init"]) == 2
    assert "harness.toml exists; edit it" in capsys.readouterr().err


def test_the_committed_example_is_what_init_writes() -> None:
    assert (REPOSITORY / "docs" / "examples" / "harness.toml").read_text(encoding="utf-8") == template()
