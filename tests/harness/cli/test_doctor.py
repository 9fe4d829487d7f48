"""The doctor: its matrix, its JSON, its table in docs/methods.md, and its answers to bad input."""

from __future__ import annotations

import json
import re

import pytest

from harness import methods
from harness.cli.doctor import main as doctor
from harness.contract.matrix import capability, matrix_markdown
from harness.methods.parts.placement import MethodError
from harness.models.catalog import backbone_shape
from harness.registry import METHODS, load_plugin, method_config_class
from tests.values import REPOSITORY


def _matrix(backbone: str, names: list[str]) -> str:
    """The table for methods that pass; whether they do is what tests/methods/test_contract.py says."""
    rows = [
        capability(METHODS.get(name), method_config_class(name)(), method=name, backbone=backbone, failures={})
        for name in names
    ]
    return matrix_markdown(rows)


def _cells(table: str) -> dict[str, list[str]]:
    """Method -> its cells."""
    rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines())
    return {name.strip("`"): cells for name, *cells in rows}


def test_the_page_of_methods_holds_the_current_matrix() -> None:
    """Every name, and the cells of some: all of them take minutes."""
    text = (REPOSITORY / "docs" / "methods.md").read_text(encoding="utf-8")
    stale = "the table is stale; paste what sam-peft doctor --methods all,peft/all --backbone vit_b prints into a pipe"
    _, page, _ = re.split("<!-- doctor:(?:begin|end) -->", text)
    some = ["lora", "naslora", "vpt", "lst", "peft/miss"]
    shown = _cells(page)
    assert [*shown][2:] == [*methods.BUILTIN, *methods.PEFT_METHODS], stale
    for name, cells in [*_cells(_matrix("vit_b", some)).items()][2:]:
        assert shown[name] == cells, stale


def test_the_page_of_backbones_lists_what_does_not_attach() -> None:
    text = (REPOSITORY / "docs" / "backbones.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| `") and line.count("|") == 5]
    listed = {cells[1].strip(" `").partition("`")[0]: cells[3] for cells in rows}
    for row, names in {
        "vit_b": ["vit_b", "vit_l", "vit_h"],
        "mobile_sam": ["mobile_sam"],
        "sam2_hiera_tiny": [f"sam2_hiera_{size}" for size in ("tiny", "small", "base_plus", "large")],
        "timm/NAME": ["timm/vit_base_patch16_dinov3", "timm/vit_base_patch16_224"],
    }.items():
        refused = {method for name in names for method in methods.BUILTIN if _refuses(method, name)}
        assert {word for word in re.findall(r"`(\w+)`", listed[row]) if word in methods.BUILTIN} == refused, row


def _refuses(method: str, backbone: str) -> bool:
    try:
        method_config_class(method)().encoder_parameters(backbone_shape(backbone))
    except MethodError:
        return True
    return False


def test_plugin_page_shows_what_the_doctor_prints() -> None:
    load_plugin(REPOSITORY / "docs" / "examples" / "plugin.py")
    assert _matrix("vit_b", ["ia3"]) in (REPOSITORY / "docs" / "plugins.md").read_text(encoding="utf-8")


def test_what_the_contract_finds_is_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(case: object) -> str:
        raise AssertionError("as seen")

    monkeypatch.setattr("harness.contract.matrix.CHECKS", {"holds": lambda case: None, "does not": broken})
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


@pytest.mark.parametrize(("words", "message"), [
    (["--methods", "loar"], "did you mean 'lora'?"),
    (["--methods", ","], "names no method"),
    (["--methods", "lora[rank=2]", "--device", "cuda"], "leave them out"),
    (["--backbone", "vit_x"], "unknown backbone 'vit_x'"),
    (["--methods", "lora[rnk=3]"], "unknown key 'rnk' (did you mean 'rank'?)"),
    (["--methods", "decoder[blocks=0]"], "method decoder: unknown key 'blocks'"),
    (["--methods", "ssf[sites=qkv]"], "method ssf: unknown key 'sites'"),
])  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(words: list[str], message: str, says) -> None:
    assert message in says(doctor, *words, code=2)
