"""Settings: the plain command with some and without, the verb that shows them, where each comes from, and files that are wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.cli.settings import main as show
from harness.cli.settings import template
from harness.datasets import samples
from harness.planning.asked import understand
from harness.run import main as run
from harness.run import parser
from harness.settings import _writable_by_others, load_settings, trusted_cluster, trusted_plugins, user_file
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


def test_the_list_says_what_a_run_would_refuse_and_still_prints_everything(capsys) -> None:
    write(
        Path("harness.toml"),
        'protocol = "nas-lorra"\nseeds = "a"\ncluster = "gpuu"\n[checkpoints]\nvit_z = "x"\n[datasets]\nkvasr = "/x"',
    )
    assert show([]) == 2
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 8
    wrong = ("protocol 'nas-lorra'", "cluster 'gpuu'", "seeds 'a'", "benchmark 'kvasr'", "backbone 'vit_z'")
    lines = shown.err.splitlines()
    assert all(word in line and "harness.toml: " in line for word, line in zip(wrong, lines, strict=True))
    write(Path("harness.toml"), 'protocol = "nas-lora"\nseeds = 3\ncluster = "gpu"\n[datasets]\nmine = "/x"')
    assert show([]) == 0
    assert capsys.readouterr().err == ""


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


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """The working folder, the user's file (not written yet), and an environment that points there."""
    environment = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    file = user_file(environment)
    file.parent.mkdir(parents=True, mode=0o755)
    return tmp_path / "here", file, environment


Places = tuple[Path, Path, dict[str, str]]


def write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o644)


def test_environment_beats_the_folder_beats_the_user_key_by_key(places: Places) -> None:
    here, user, environment = places
    settings = load_settings(environment)
    assert (settings.protocol, settings.data, settings.results) == ("", None, Path("runs"))
    assert not settings.origins
    paths = 'data = "/user"\nresults = "/user/runs"\nseeds = 3\n[checkpoints]\nvit_b = "/user/b"\nvit_h = "/user/h"'
    write(user, paths)
    write(here / "harness.toml", 'data = "data"\nseeds = [0, 7]\n[checkpoints]\nvit_h = "h.pth"')
    settings = load_settings({**environment, "SAM_PEFT_SEEDS": "5"})
    assert (settings.data, settings.results, settings.seeds) == (Path("data"), Path("/user/runs"), "5")
    assert settings.checkpoints == {"vit_b": Path("/user/b"), "vit_h": Path("h.pth")}
    assert {name: origin.name for name, origin in settings.origins.items()} == {
        **dict.fromkeys(("data", "checkpoints.vit_h"), "harness.toml"), "seeds": "SAM_PEFT_SEEDS",
        **dict.fromkeys(("results", "checkpoints.vit_b"), str(user)),
    }  # fmt: skip


def test_a_data_folder_beats_single_folders_of_lower_levels_only(places: Places) -> None:
    here, user, environment = places
    write(user, '[datasets]\nkvasir = "/old"')
    write(here / "harness.toml", 'data = "/new"\n[datasets]\nleaf = "/leaf"')
    settings = load_settings(environment)
    assert settings.datasets == {"leaf": Path("/leaf")}
    assert "datasets.kvasir" not in settings.origins


def test_variables_hold_lists_and_tables(places: Places) -> None:
    variables = {"SAM_PEFT_PLUGINS": "a.py:b.py", "SAM_PEFT_DATASETS": "kvasir=/k:leaf=/l", "SAM_PEFT_CHECKPOINTS": ""}
    settings = load_settings({**places[2], **variables})
    assert settings.plugins == (Path("a.py"), Path("b.py"))
    assert settings.datasets == {"kvasir": Path("/k"), "leaf": Path("/l")}


def test_seeds_keep_a_number_and_a_list_apart(places: Places) -> None:
    from harness.planning.asked import parse_seeds

    for text, seeds in (("3", (0, 1, 2)), ("[3]", (3,)), ("[0, 3]", (0, 3)), ('"0,3"', (0, 3))):
        write(places[0] / "harness.toml", f"seeds = {text}")
        assert parse_seeds(load_settings(places[2]).seeds) == seeds


def test_one_file_in_the_place_of_both_and_none_at_all(places: Places, tmp_path: Path) -> None:
    here, _, environment = places
    write(here / "harness.toml", 'data = "/here"')
    write(tmp_path / "other.toml", 'data = "data"')
    instead = {**environment, "SAM_PEFT_SETTINGS": str(tmp_path / "other.toml")}
    assert load_settings(instead).data == tmp_path / "data"
    assert load_settings({**environment, "SAM_PEFT_SETTINGS": "/dev/null"}).data is None
    assert load_settings({**environment, "SAM_PEFT_SETTINGS": "none", "SAM_PEFT_DATA": "/x"}).data is None
    with pytest.raises(UsageError, match="no such file"):
        load_settings({**environment, "SAM_PEFT_SETTINGS": str(tmp_path / "nowhere.toml")})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('dta = "/x"', r"harness\.toml: unknown key 'dta' \(did you mean 'data'\?\)"),
        ('plugins = "a.py"', "plugins='a.py' must be a list"),
        ('datasets = "/x"', "datasets='/x' must be a mapping"),
        ('cluster = ""', "cluster='' is empty"),
        ("[checkpoints]\nvit_h = 1", "checkpoints.vit_h=1 must be text"),
        ("seeds = true", "neither a number of seeds"),
        ("data = /x", r"settings harness\.toml: Invalid value"),
        ("x = " + "[" * 5000, "settings harness.toml: "),
        ("#" * 100_001, "more than 100000 bytes"),
        ('data = "~nobody-of-this-name/x"', "data='~nobody"),
    ],
)
def test_a_wrong_file_is_one_line(places: Places, text: str, said: str) -> None:
    write(places[0] / "harness.toml", text)
    with pytest.raises(UsageError, match=said) as caught:
        load_settings(places[2])
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_that_is_no_text_no_file_or_no_ones_is_one_line(places: Places) -> None:
    path = places[0] / "harness.toml"
    path.write_bytes(b"data = '\xff'")
    with pytest.raises(UsageError, match="not UTF-8"):
        load_settings(places[2])
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UsageError, match="it is no file"):
        load_settings(places[2])
    path.unlink()
    user = user_file(places[2])
    user.parent.mkdir(parents=True, exist_ok=True)
    for link in (path, user):
        for target, said in ((link.name, "symbolic links"), ("nowhere", "No such file")):
            link.symlink_to(target)
            with pytest.raises(UsageError, match=said):
                load_settings(places[2])
            link.unlink()


def test_unknown_and_malformed_variables_are_refused(places: Places) -> None:
    with pytest.raises(UsageError, match=r"SAM_PEFT_DAAT .*did you mean 'data'"):
        load_settings({**places[2], "SAM_PEFT_DAAT": "/x"})
    for text in ("/x", "kvasir=", "=/x"):
        with pytest.raises(UsageError, match="is not NAME=PATH"):
            load_settings({**places[2], "SAM_PEFT_DATASETS": text})


def test_relative_paths_start_from_the_folder_and_have_no_meaning_in_the_users_file(places: Places) -> None:
    for folder in ("data", "none"):  # a word for checkpoints alone
        write(places[1], f'data = "{folder}"')
        with pytest.raises(UsageError, match="is relative, and this file serves every folder"):
            load_settings(places[2])
    write(places[1], 'data = "~/data"\n[checkpoints]\nvit_b = "none"')
    settings = load_settings(places[2])
    assert settings.data == Path.home() / "data"
    assert settings.checkpoints == {"vit_b": Path("none")}


def test_a_card_is_a_name_or_a_file_and_a_clusters_file_is_absolute(places: Places) -> None:
    for text, protocol, cluster in (
        ("nas-lora", "nas-lora", "gpu"),
        ("cards/mine.yaml", "cards/mine.yaml", str(Path.cwd() / "gpu.yaml")),
        ("mine 1.2", "mine 1.2", str(Path.cwd() / "gpu.profile")),
    ):
        write(places[0] / "harness.toml", f'protocol = "{text}"\ncluster = "{Path(cluster).name}"')
        settings = load_settings(places[2])
        assert (settings.protocol, settings.cluster) == (protocol, cluster)
    write(places[1], 'protocol = "mine.yaml"')
    (places[0] / "harness.toml").unlink()
    with pytest.raises(UsageError, match="relative"):
        load_settings(places[2])


@pytest.mark.skipif(Path("/").stat().st_uid != 0, reason="needs a folder of root's")
def test_what_is_roots_is_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getuid", lambda: 4711)
    assert "somebody else" not in _writable_by_others(Path("/"))


def test_code_that_the_working_folder_names_needs_the_command_lines_word(places: Places) -> None:
    write(places[0] / "harness.toml", 'plugins = ["evil.py"]\ncluster = "evil.yaml"')
    settings = load_settings(places[2])
    with pytest.raises(UsageError, match=r"plug-ins, which are code \(evil\.py\).*--trust-settings"):
        trusted_plugins(settings, trust=False)
    with pytest.raises(UsageError, match=r"cluster profile.*commands \(.*evil\.yaml\)"):
        trusted_cluster(settings, trust=False)
    assert trusted_plugins(settings, trust=True) == (Path("evil.py"),)
    for elsewhere in ("/elsewhere/evil", "../../evil", "evil.yaml", "./evil", "~/evil"):
        write(places[0] / "harness.toml", f'cluster = "{elsewhere}"')
        with pytest.raises(UsageError, match="--trust-settings"):
            trusted_cluster(load_settings(places[2]), trust=False)
    write(places[0] / "harness.toml", 'cluster = "gpu"')
    assert trusted_cluster(load_settings(places[2]), trust=False) == "gpu"


def test_code_that_the_users_own_file_or_variable_names_is_theirs_until_others_may_write_it(places: Places) -> None:
    write(places[1], 'plugins = ["/mine.py"]')
    assert trusted_plugins(load_settings(places[2]), trust=False) == (Path("/mine.py"),)
    for path, mode in ((places[1], 0o664), (places[1].parent, 0o777)):
        before = path.stat().st_mode
        path.chmod(mode)
        with pytest.raises(UsageError, match=r"others may write to .* \(chmod go-w mends that\)"):
            trusted_plugins(load_settings(places[2]), trust=False)
        path.chmod(before)
    assert trusted_plugins(load_settings({**places[2], "SAM_PEFT_PLUGINS": "x.py"}), trust=False) == (Path("x.py"),)
