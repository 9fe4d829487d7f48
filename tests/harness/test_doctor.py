"""The doctor: its matrix, its JSON, its place in docs/methods.md, and its answers to bad input."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from harness import methods
from harness.cli.doctor import main as doctor
from harness.contract.matrix import BEGIN, END, Capability, capability, matrix_markdown, replace_section
from harness.methods.configs.peft import LEFT_OUT, TUNERS
from harness.methods.parts.placement import MethodError
from harness.models.catalog import backbone_shape
from harness.registry import METHODS, load_plugin, method_config_class
from harness.system.errors import UsageError
from tests.values import REPOSITORY


def _matrix(backbone: str, names: list[str]) -> str:
    """The table for methods that pass; whether they do is what tests/methods/test_contract.py says."""
    rows = [
        capability(METHODS.get(name), method_config_class(name)(), name=name, backbone=backbone, failures={})
        for name in names
    ]
    return matrix_markdown(rows)


def test_the_page_of_methods_holds_the_current_matrix() -> None:
    text = (REPOSITORY / "docs" / "methods.md").read_text(encoding="utf-8")
    stale = (
        "the matrix is stale; run: sam-peft doctor --methods all,peft/all --backbone vit_b --markdown docs/methods.md"
    )
    names = [*methods.BUILTIN, *methods.TUNERS]
    assert text.partition(BEGIN)[2].partition(END)[0].strip() == _matrix("vit_b", names), stale


def test_the_page_of_methods_says_what_tuners_lack_and_which_are_left_out() -> None:
    text = (REPOSITORY / "docs" / "methods.md").read_text(encoding="utf-8")
    for entry in TUNERS.values():
        for words in (entry.differs, entry.start, entry.unmerged, *entry.lacks.values()):
            assert words in text
    assert all(f"`{name}`" in text and why in text for name, why in LEFT_OUT.items())


def test_the_page_of_methods_says_what_does_not_attach_to_a_backbone() -> None:
    text = (REPOSITORY / "docs" / "methods.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| `") and line.count("|") == 5]
    told = {cells[1].strip(" `").partition("`")[0]: cells[3] for cells in rows}
    for row, names in {
        "vit_b": ["vit_b", "vit_l", "vit_h"],
        "mobile_sam": ["mobile_sam"],
        "sam2_hiera_tiny": [f"sam2_hiera_{size}" for size in ("tiny", "small", "base_plus", "large")],
        "timm/NAME": ["timm/vit_base_patch16_dinov3", "timm/vit_base_patch16_224"],
    }.items():
        refused = {method for name in names for method in methods.BUILTIN if _refuses(method, name)}
        assert {word for word in re.findall(r"`(\w+)`", told[row]) if word in methods.BUILTIN} == refused, row


def _refuses(method: str, backbone: str) -> bool:
    try:
        method_config_class(method)().encoder_parameters(backbone_shape(backbone))
    except MethodError:
        return True
    return False


def test_plugin_page_shows_what_the_doctor_prints() -> None:
    load_plugin(REPOSITORY / "docs" / "examples" / "plugin.py")
    assert _matrix("vit_b", ["ia3"]) in (REPOSITORY / "docs" / "plugins.md").read_text(encoding="utf-8")


def test_what_the_contract_finds_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(case: object) -> str:
        raise AssertionError("as seen")

    monkeypatch.setattr("harness.contract.matrix.CHECKS", {"holds": lambda case: "", "does not": broken})
    assert doctor(["--methods", "decoder", "--backbone", "vit_b", "--json"]) == 1
    shown = capsys.readouterr()
    (row,) = json.loads(shown.out)
    assert row["passed"] is False
    assert row["failures"].keys() == {"does not@tiny", "does not@tiny_timm"}
    assert shown.err.startswith("decoder: contract broken\n")
    assert all("as seen" in line for line in shown.err.splitlines()[1:])


@pytest.mark.usefixtures("unexamined")
def test_json_is_a_list_of_objects_with_counts_on_the_named_backbone(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(["--methods", "bitfit,vpt", "--backbone", "vit_h", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in rows] == ["bitfit", "vpt"]
    assert [row["encoder_parameters"] for row in rows] == [452_352, 491_520]
    assert [row["trainable_parameters"] for row in rows] == [452_352 + 3_505_536, 491_520 + 3_505_536]
    assert rows[1]["total_parameters"] - rows[0]["total_parameters"] == 491_520
    assert [row["identity_at_init"] for row in rows] == [True, False]
    assert [row["merge_modes"] for row in rows] == [["exact"], []]
    assert all(row["backbone"] == "vit_h" and row["passed"] is True and row["failures"] == {} for row in rows)


@pytest.mark.usefixtures("unexamined")
def test_options_reach_the_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(["--methods", "lora", "--backbone", "vit-b", "--set", "lora.rank=6", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["encoder_parameters"] == 2 * 110_592


@pytest.mark.usefixtures("unexamined")
def test_table_goes_between_the_markers_and_nowhere_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert doctor(["--methods", "decoder", "--markdown", str(page)]) == 0
    once = page.read_text()
    assert once == f"before\n{BEGIN}\n{_matrix('vit_h', ['decoder'])}\n{END}\nafter\n"
    assert doctor(["--methods", "decoder", "--markdown", str(page)]) == 0
    assert page.read_text() == once
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("unexamined")
def test_a_terminal_gets_the_table_in_parts_that_fit(capsys, monkeypatch) -> None:
    monkeypatch.setattr("harness.cli.doctor.terminal_width", lambda stream: 80)
    assert doctor(["--methods", "decoder,lora"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.count("\nlora ") == 2
    assert doctor(["--methods", "decoder", "--markdown"]) == 0
    assert capsys.readouterr().out == _matrix("vit_h", ["decoder"]) + "\n"


def test_page_without_markers_is_refused() -> None:
    for text in ("", f"{BEGIN} only", f"{END}\n{BEGIN}"):
        with pytest.raises(UsageError, match="no place for the table"):
            replace_section(text, "table")


def test_broken_method_shows_in_the_table() -> None:
    row = Capability(method="mine", backbone="vit_h", failures={"import": "no module"})
    assert "| broken (1)" in matrix_markdown([row])


@pytest.mark.parametrize(("words", "message"), [
    (["--methods", "loar"], "did you mean 'lora'?"),
    (["--methods", ","], "names no method"),
    (["--methods", "lora[rank=2,alpha=2]"], "as in --set lora.rank=8"),
    (["--backbone", "vit_x"], "unknown backbone 'vit_x'"),
    (["--set", "lora.rnk=3"], "unknown key 'rnk' (did you mean 'rank'?)"),
    (["--set", "decoder.blocks=0"], "method decoder: blocks= has no meaning for it; methods with blocks: bitfit, ssf"),
    (["--set", "ssf.sites=qkv"], "method ssf: sites= has no meaning for it; methods with sites: adapter, lora"),
    (["--set", "rank=3"], "METHOD.KEY=VALUE"),
    (["--methods", "vpt", "--set", "lora.rank=3"], "lora is not among --methods"),
    (["--markdown", "/no/such/file.md"], "no such file"),
])  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(words: list[str], message: str, capsys) -> None:
    assert doctor(words) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""
