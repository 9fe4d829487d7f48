"""Protocols and what overrides do to them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.protocols.load import load_protocol, protocol_hash, resolve
from harness.system.errors import UsageError
from tests.values import REPOSITORY


def test_an_override_holds_for_every_benchmark_whatever_the_card_says_for_one() -> None:
    protocol = load_protocol("conv-lora")
    assert resolve(protocol, "camo").epochs == 20
    short = load_protocol("conv-lora", {"epochs": "1"})
    assert [resolve(short, name).epochs for name in ("camo", "sbu", "kvasir")] == [1, 1, 1]
    assert resolve(short, "road").lr == resolve(protocol, "road").lr != protocol.lr  # other fields stay


@pytest.mark.parametrize("names", [("epochs", "benchmarks.camo.epochs"), ("benchmarks.camo.epochs", "epochs")])
def test_an_override_for_one_benchmark_beats_one_for_all_in_any_order(names: tuple[str, str]) -> None:
    values = {"epochs": "1", "benchmarks.camo.epochs": "2"}
    protocol = load_protocol("conv-lora", {name: values[name] for name in names})
    assert (resolve(protocol, "camo").epochs, resolve(protocol, "sbu").epochs) == (2, 1)


ANALYSIS = REPOSITORY / "results" / "analysis" / "protocols"


def test_cards_have_the_hashes_that_they_had() -> None:
    hashes = {name: protocol_hash(load_protocol(name)) for name in ("conv-lora", "demo", "mini", "mobile", "standard")}
    assert hashes == {
        "conv-lora": "5ee5acbf", "demo": "59017c6f", "mini": "47defd50", "mobile": "854fae60", "standard": "3e299ad6",
    }  # fmt: skip
    moved = {path.stem: protocol_hash(load_protocol(str(path))) for path in ANALYSIS.glob("*.yaml")}
    assert moved == {"small": "fef063d1", "small-fair": "4f29638d", "small-labels": "e77515d4"}
    assert protocol_hash(resolve(load_protocol("conv-lora"), "road")) == "af57161d"
    assert protocol_hash(resolve(load_protocol("standard"), "sbu")) == "454fb8b7"


def test_a_card_without_new_fields_has_its_former_rules(tmp_path: Path) -> None:
    """Its hash holds every default that can change a number; the normalisation is left to a backbone."""
    protocol = load_protocol(str(_protocols(tmp_path, mine="{}\n")))
    assert protocol_hash(protocol) == "22f4ff45"
    with pytest.raises(ValueError, match="leaves pixel_mean"):
        _ = protocol.pixels


def _protocols(folder: Path, **content: str) -> Path:
    for name, text in content.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / "mine.yaml"


def test_a_card_is_based_on_one_of_its_folder_or_on_a_shipped_one(tmp_path: Path) -> None:
    path = _protocols(
        tmp_path,
        rules="_base_: mini.yaml\n",
        mine="_base_: rules.yaml\nlr: 0.5\nmethods:\n  lora: {rank: 2}\n",
    )
    protocol, mini = load_protocol(str(path)), load_protocol("mini")
    assert (protocol.lr, protocol.epochs, protocol.methods) == (0.5, mini.epochs, {**mini.methods, "lora": {"rank": 2}})
    _protocols(tmp_path, rules="epochs: 7\nimage_size: 64\nbenchmarks:\n  sbu: {epochs: 2}\n")
    _protocols(tmp_path, mine="_base_: rules.yaml\nbenchmarks:\n  camo: {epochs: 1}\n")
    assert load_protocol(str(path)).benchmarks == {"sbu": {"epochs": 2}, "camo": {"epochs": 1}}
    _protocols(tmp_path, mine="_base_: rules.yaml\nbenchmarks:\n  _delete_: true\n  camo: {epochs: 1}\n")
    assert load_protocol(str(path)).benchmarks == {"camo": {"epochs": 1}}
    _protocols(tmp_path, mine="benchmarks:\n  _delete_: true\n  camo: {epochs: 1}\n")
    assert load_protocol(str(path)).benchmarks == {"camo": {"epochs": 1}}


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("x.py", "is not a YAML file"),
        ("'mmdet::x.yaml'", "is not a YAML file"),
        ("../other.yaml", "is outside its folder; copy that protocol"),
        ("/etc/passwd.yaml", "is outside its folder"),
        ("nowhere.yaml", "does not exist"),
        ("mine.yaml", "leads back to itself"),
        ("back.yaml", "leads back to itself"),
        ("[one.yaml, back.yaml]", "the name of one protocol's file"),
        ("7", "the name of one protocol's file"),
        ("long0.yaml", "more than 20 protocols"),
        ("scalar.yaml", "it has a table of fields where its _base_ has a single value"),
    ],
)
def test_a_base_that_cannot_be_used_is_one_line(base: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("epochs: 2\n")
    (tmp_path / "protocols").mkdir()
    (tmp_path / "protocols" / "x.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    path = _protocols(
        tmp_path / "protocols",
        mine=f"_base_: {base}\nquirks: {{}}\n",
        one="lr: 1.0\n",
        back="_base_: mine.yaml\n",
        scalar="quirks: 3\n",
        **{f"long{n}": f"_base_: long{n + 1}.yaml\n" for n in range(30)},
    )
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        load_protocol(str(path))
    assert str(path) in str(caught.value)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("flip: 1.5", "at most 1"),
        ("select_by: iuo", "did you mean 'iou'"),
        ("attention: flex", "attention"),
        ("prompt_jitter: 0.6", "at most 0.5"),
        ("prompt_noise: 0.1", "set prompt=box"),
        ("pixel_std: [0.0, 1.0, 1.0]", "above 0"),
        ("betas: [0.9, 1.0]", "in [0, 1)"),
        ("epochs: yes", "epochs"),
        ("lr: no", "lr"),
        ("benchmarks: {kvasir: 3}", "benchmarks"),
        ("benchmarks: [kvasir]", "benchmarks"),
        ("1: 2", "protocol"),
        ("quirks.selection: released", "protocol"),
        ("_bse_: x.yaml", "protocol"),
        ("quirks: {1: 2}", "protocol"),
        ("custom_imports: {imports: [evil], allow_failed_imports: false}", "protocol"),
        ("filename: x", "protocol"),  # which mmengine keeps for itself
    ],
)
def test_what_is_wrong_in_a_card_is_one_line(text, word, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text("open('executed', 'w')\n")
    path = _protocols(tmp_path, mine="_base_: base.yaml\n", base=f"_base_: demo.yaml\n{text}\n")
    with pytest.raises(UsageError, match=re.escape(word)) as caught:
        load_protocol(str(path), {"batch_size": "1"})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["../../NOTES", "a/b", ".hidden", "-rf", "", "a\nb", "x" * 151, "a\\b"])
def test_a_protocols_name_cannot_move_its_table(name: str) -> None:
    with pytest.raises(UsageError, match="files are named after it"):
        load_protocol("demo", {"name": name})
