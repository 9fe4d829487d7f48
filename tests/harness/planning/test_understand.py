"""A command line becomes a request; what is wrong with it is one line, and nothing is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.planning.understand import (
    checkpoint_of,
    data_folder,
    parse_row,
    parse_rows,
    parse_seeds,
    split_words,
    understand,
)
from harness.protocols.protocol import Protocol
from harness.run import main, parser
from harness.settings import Settings, load_settings
from harness.studies import load_study
from harness.system.errors import UsageError
from tests.harness.report.sample import record

PLAIN = ["--protocol", "demo", "--executor", "inline", "--methods", "lora", "--datasets", "kvasir"]
DEMO = [*PLAIN, "--set", "epochs=1"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--methods", "loora", *PLAIN[-2:]], "unknown method 'loora' (did you mean 'lora'?)"),
        ([*DEMO, "--seeds", "a"], "--seeds 'a': give a number of seeds"),
        ([*DEMO, "--seeds", "0," + "9" * 5000], "(5, at most 1000)"),
        ([*PLAIN[:-2], "--datasets", "kvasir", "--plan", "--cluster", "gpu"], "--cluster gpu and --executor inline"),
        ([*DEMO, "--set", "lr=fast"], "lr='fast' must be a valid number"),
        ([*DEMO, "--set", "lora.rnk=1"], "unknown key 'rnk' (did you mean 'rank'?)"),
        ([*DEMO, "--set", "lr"], "is not KEY=VALUE"),
        (["--methods", "lora[sites=q,v]", *PLAIN[6:], "--protocol", "demo"], "a value with a comma is put in quotes"),
        ([*DEMO, "--set", "precision=int8"], "must be 'fp32', 'bf16' or 'fp16'"),
        ([*PLAIN, "--set", "epochs=0"], "epochs=0 must be at least 1"),
        ([*PLAIN, "--set", "epochs=" + "9" * 5000], "… (5002 characters)"),
        ([*PLAIN, "--set", "benchmarks.leaf.epochs=3"], "nothing runs on leaf; add it to --datasets"),
        ([*PLAIN, "--set", "decoder_lr=-1"], "decoder_lr=-1.0 must be above 0"),
        ([*PLAIN, "--tune", "decoder_lr=0,1e-3"], "decoder_lr=0.0 must be above 0"),
        ([*PLAIN, "--set", "lora.alpha=0"], "method lora: alpha=0.0"),
        (["--methods", "naslora[search_start_epoch=-5]", *PLAIN[4:], "--protocol", "demo"], "search_start_epoch=-5"),
        ([*PLAIN, "--plugin", "nowhere.py"], "--plugin nowhere.py: no such file"),
        ([*PLAIN, "--set", "lr=inf"], "lr=inf must be a finite number"),
        ([*PLAIN, "--set", "lr=nan"], "lr=nan must be above 0"),
        ([*PLAIN, "--set", "lora.lr=inf"], "method lora: lr=inf must be a finite number"),
        ([*PLAIN, "--set", "lora.rank=" + "9" * 30], "must be a finite number"),
        ([*DEMO, "--plan", "--set", "evaluation.threshold=7"], "demo: evaluation: threshold=7 must be in [0, 1]"),
        ([*DEMO, "--set", "image_size=100"], "image size 100 is not a multiple"),
        ([*DEMO, "--checkpoint", "nowhere.pth"], "nowhere.pth does not exist"),
        (
            ["--protocol", "demo", *PLAIN[4:], "--checkpoint", "no.pth", "--cluster", "testcluster", "--cancel"],
            "use scancel",
        ),
        ([*PLAIN[:-1], "kvasir="], "is not NAME=DIR"),
        ([*PLAIN[:-2], "--datasets", "kvasir=/a,kvasir=/b"], "kvasir is given two folders"),
        (["--datasets", "kvasir", "--protocol", "demo"], "--methods lora,naslora"),
        ([*DEMO, "--epochs", "10"], "--set epochs=10"),
        ([*DEMO, "--lr=1e-4"], "--set lr=1e-4"),
        ([*DEMO, "--batch-size", "2"], "--set batch_size=2"),
        ([*DEMO, "--metods", "lora"], "--methods"),
        ([*PLAIN[:-2], "--dataset", "roads"], "did you mean 'road'"),
        ([*PLAIN[:-2], "--datasets", "kvasir=/nowhere"], "a name other than kvasir"),
        (["--methods", "lora]x", *PLAIN[6:]], "a bracket is not closed"),
        (["--methods", "lora[rank=6]x", *PLAIN[6:]], "is not NAME or NAME[option=value,…]"),
        (["--study", "cost"], "has no runs of its own"),
        (["--study", "mian"], "unknown study 'mian' (did you mean 'main'?)"),
    ],
)
def test_wrong_input_is_one_line(arguments: list[str], expected: str, says, tmp_path) -> None:
    assert expected in says(main, *arguments, "--results", tmp_path, code=2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*DEMO, "--data", "."], "--data has no effect with the protocol demo, whose images are generated"),
        ([*DEMO, "--set", "naslora.rank=2"], "--set naslora.… has no effect: naslora is not among the compared"),
        (["--study", "rank", "--plan", "--set", "dora.rank=1"], "among the compared methods (lora, naslora)"),
        ([*PLAIN[:4], "--methods", "lora[rank=4],ssf", *PLAIN[6:], "--set", "lora.rank=2"], "every row of lora sets"),
        ([*DEMO, "--plan", "--cluster", "testcluster", "--cancel"], "give one of them"),
        (["--study", "list", "--plan"], "--plan has no effect with --study list"),
    ],
)
def test_options_without_effect_are_refused_before_anything_is_written(words, said, tmp_path, says, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said in says(main, *words, code=2)
    assert not any(tmp_path.iterdir())


def test_a_row_that_is_named_twice_is_one_row() -> None:
    words = ["--methods", "lora,lora[rank=6],lora[rank=6],all", "--datasets", "kvasir", "--protocol", "demo"]
    rows = understand(parser().parse_args(words), Settings())[0].rows
    assert [row.name for row in rows].count("lora") == [row.name for row in rows].count("lora[rank=6]") == 1


NEAR_MISSES = [
    (["--datasets", "/data/tiles"], "tiles=/data/tiles"),
    (["--datasets", "kvasir", "--set", "rank=6"], "lora.rank=6"),
    (["--datasets", "kvasir", "--protocol", "standard", "--backbone", "vit_b", "--checkpoint", "."], ". is a folder"),
    (["--datasets", "kvasir", "--protocol", "mini", "--checkpoint", "none", "--data", "a.txt"], "a.txt is a file"),
]


@pytest.mark.parametrize(("words", "said"), NEAR_MISSES, ids=[said for _, said in NEAR_MISSES])
def test_a_near_miss_gets_the_right_word(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAM_PEFT_SETTINGS", "none")
    (tmp_path / "a.txt").write_text("")
    assert main(["--methods", "lora", "--plan", *words]) in (1, 2)
    shown = capsys.readouterr()
    assert said in shown.out + shown.err


@pytest.mark.parametrize("how", ["--data", "--datasets", "data = ", "[datasets]"])
def test_data_given_or_set_in_any_way_asks_for_the_papers_card(how: str, tmp_path: Path, monkeypatch) -> None:
    words = ["--methods", "lora", "--datasets", "kvasir=/d" if how == "--datasets" else "kvasir"]
    words += ["--data", "/d"] if how == "--data" else []
    settings = {"data = ": 'data = "/d"', "[datasets]": '[datasets]\nkvasir = "/d"'}.get(how, "")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "harness.toml").write_text(settings)
    assert understand(parser().parse_args(words), load_settings({}))[0].protocol.name == "nas-lora"


@pytest.mark.parametrize(
    ("given", "expected"),
    [("c.pth", {"": Path("c.pth")}), ("vit_b=b.pth", {"tiny": Path("none"), "vit_b": Path("b.pth")})],
)
def test_one_file_of_weights_beats_the_settings_and_one_of_a_backbone_joins_them(given: str, expected: Any) -> None:
    words = ["--methods", "lora", "--datasets", "kvasir", "--checkpoint", given]
    settings = Settings(checkpoints={"tiny": Path("none")}, results=Path("runs"))
    request = understand(parser().parse_args(words), settings)[0]
    assert (request.checkpoints, request.protocol.name, request.results) == (expected, "nas-lora", Path("runs"))


@pytest.mark.parametrize(
    ("words", "left_out"),
    [
        (PLAIN[4:], False),
        (["--methods", "lora,all", *PLAIN[6:]], True),
        (["--methods", "lora,peft/all", *PLAIN[6:]], True),
        (["--study", "main"], True),
    ],
)
def test_rows_that_nobody_named_may_be_left_out(words: list[str], left_out: bool) -> None:
    assert understand(parser().parse_args(words), Settings())[0].leave_out_unfit is left_out


@pytest.mark.parametrize(
    ("words", "root", "roots"),
    [([], "set", {"kvasir": Path("k")}), (["--data", "given"], "given", {}), (["--protocol", "demo"], "set", {})],
)
def test_a_data_folder_given_or_generated_images_leave_out_the_folders_of_the_settings(words, root, roots) -> None:
    settings = Settings(data=Path("set"), datasets={"kvasir": Path("k")})
    request = understand(parser().parse_args([*PLAIN[4:], *words]), settings)[0]
    assert (request.data_root, request.dataset_roots) == (Path(root), roots)


def test_plug_ins_reach_the_request() -> None:
    words = ["--methods", "lora", "--datasets", "kvasir", "--protocol", "demo", "--plugin", "mine.py"]
    assert understand(parser().parse_args(words), Settings())[0].plugins == (str(Path("mine.py").absolute()),)


def test_methods_with_options_in_brackets() -> None:
    assert split_words("lora[rank=6,sites='q,v'],all") == ["lora[rank=6,sites='q,v']", "all"]
    assert [row.method for row in parse_rows("mona,all", ["lora", "vpt"])] == ["mona", "lora", "vpt"]
    assert parse_row("lora[blocks=[0,1]]").options == {"blocks": ["0", "1"]}
    assert parse_row("lora[rank=[3]]").options == {"rank": ["3"]}  # which the method's configuration refuses
    entry = parse_row("lora[rank=6,sites='q,v']")
    assert entry.method == "lora"
    assert entry.options == {"rank": "6", "sites": "q,v"}
    with pytest.raises(UsageError, match="not closed"):
        split_words("lora[rank=6")


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", (0, 1, 2)), ("1000", tuple(range(1000))), ("0,3,7", (0, 3, 7)), ("7,", (7,))]
)
def test_seeds_are_a_number_of_them_or_a_list(text: str, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "0", "1001", "3,3", "1,,2", "-1", "²", "1" * 10, "1.0"])
def test_other_seeds_are_refused_under_the_name_of_the_option(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--tune-seeds '.*: give a number of seeds"):
        parse_seeds(text, name="--tune-seeds")


def test_weights_and_images_of_a_finished_run_are_those_given_or_those_of_the_settings(tmp_path: Path) -> None:
    run = replace(record(backbone="vit_b").run, checkpoint="f" * 16, origin="files")
    settings = Settings(checkpoints={"vit-b": Path("b.pth")}, datasets={"Kvasir": Path("k")}, data=Path("all"))
    assert checkpoint_of(run, settings, given=Path("mine.pth")) == Path("mine.pth")
    assert checkpoint_of(run, settings) == Path("b.pth")
    assert checkpoint_of(run, Settings()) is checkpoint_of(run, Settings(checkpoints={"vit_b": Path("none")})) is None
    random = replace(run, checkpoint="")
    assert checkpoint_of(random, settings) is None
    assert checkpoint_of(random, settings, given=Path("a.pth")) == Path("a.pth")
    with pytest.raises(UsageError, match="started from random weights"):
        checkpoint_of(random, settings, given=Path("published"))
    of: dict[str, Any] = {"given": None, "results": tmp_path}
    assert data_folder(run, settings, given=Path("mine"), results=tmp_path) == Path("mine")
    assert (data_folder(run, settings, **of), data_folder(run, None, **of)) == (Path("k"), None)
    assert data_folder(replace(run, benchmark="leaf"), settings, **of) == Path("all")
    generated = replace(run, origin="generated")
    assert data_folder(generated, settings, **of) is None
    (samples := tmp_path / "sample-data" / "kvasir").mkdir(parents=True)
    assert data_folder(generated, settings, **of) == samples


def test_a_users_study_has_its_card_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "quick.yaml").write_text("_base_: demo.yaml\nepochs: 1\n")
    (tmp_path / "mine.yaml").write_text("title: t\nprotocol: mine/quick.yaml\nbenchmarks: kvasir\nentries: [lora]\n")
    (tmp_path / "quick.yaml").write_text((tmp_path / "mine.yaml").read_text())
    with pytest.raises(UsageError, match="a protocol of this name"):
        load_study(str(tmp_path / "quick.yaml"))
    study = load_study(str(tmp_path / "mine.yaml"))
    assert (study.protocol, study.protocol_file) == ("quick", str(tmp_path / "mine" / "quick.yaml"))
    words = ["--study", str(tmp_path / "mine.yaml")]
    assert understand(parser().parse_args(words), Settings())[0].protocol.name == "quick"


def test_the_leaderboard_on_a_sam_is_the_same_grid_at_its_own_size() -> None:
    def protocol(*words: str) -> Protocol:
        return understand(parser().parse_args(["--study", "leaderboard-short", *words]), Settings())[0].protocol

    own = protocol()
    at_1024 = replace(own, image_size=1024, precision="bf16")
    assert protocol("--backbone", "mobile_sam") == own
    assert protocol("--backbone", "vit_b") == protocol("--backbone", "vit-b") == at_1024
    assert protocol("--backbone", "vit_b", "--set", "image_size=512") == replace(at_1024, image_size=512)
