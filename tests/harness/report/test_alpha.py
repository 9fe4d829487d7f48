"""The detector of an α that says nothing."""

from dataclasses import replace
from pathlib import Path

import pytest

from harness.archive.archive import Archive, Joined
from harness.archive.older import filled
from harness.report.formats import write
from harness.report.pages import pages_below
from harness.report.runs import search_start
from harness.report.scores import alpha_code, alpha_codes
from tests.harness.report.sample import record, store_of
from tests.values import there

UNIFORM = {"blocks.0.qkv": [0.25] * 4, "blocks.1.qkv": [0.26, 0.24, 0.25, 0.25]}
CHOSEN = {"blocks.0.qkv": [0.25] * 4, "blocks.1.qkv": [0.4, 0.2, 0.2, 0.2]}


def test_alpha_that_could_not_move_and_alpha_that_did_not_have_different_codes():
    free, capped = {"alpha_updates": 400.0, "share_cap": 0.9}, {"alpha_updates": 4.0, "share_cap": 0.26}
    assert alpha_code(record(budget=free), UNIFORM) == "ALPHA_UNIFORM"
    assert alpha_code(record(budget=capped), UNIFORM) == "ALPHA_STUCK"
    assert alpha_code(record(budget={"alpha_updates": 0.0}), UNIFORM) == "ALPHA_STUCK"
    assert alpha_code(record(budget={"share_cap": 0.9}), CHOSEN) == ""  # one site that chose is enough
    # a control whose search would begin after its last epoch
    for start, code in ((3, "ALPHA_STUCK"), (4, ""), (5, "")):
        config = {"stagewise": True, "search_start_epoch": start}
        made = filled(record(method="naslora", config=config, rules={"epochs": 4}, budget={"alpha_updates": 0.0}))
        assert alpha_code(made, UNIFORM) == code
    assert alpha_code(record(), {}) == alpha_code(record(), {"blocks.0.qkv": [1.0]}) == ""


def test_codes_are_read_from_the_sidecar_file_unless_another_left_it_or_it_was_edited(tmp_path: Path):
    flat = record(method="naslora", architecture=[UNIFORM], seed=1)
    store = store_of(tmp_path, [flat, record(method="naslora", architecture=[UNIFORM, CHOSEN], seed=2)])
    for archive in (Joined(tmp_path / "mine", tmp_path), Archive(tmp_path)):
        codes = {read.run.seed: alpha_codes([read], archive) for read in archive.records}
        assert codes == {1: ["ALPHA_UNIFORM"], 2: []}
    assert alpha_codes([record()], archive) == []
    stored, history = there(store.find(flat.key)), store.architecture_path(flat.key)
    assert alpha_codes([replace(stored, sidecars={"images.csv": "of-another"})], Archive(tmp_path)) == []
    history.write_text(history.read_text() + "2,\n")
    assert alpha_codes([stored], Archive(tmp_path)) == []


def test_tables_flag_a_row_whose_alpha_stayed_uniform(tmp_path: Path):
    made = [
        record(method="naslora", architecture=[UNIFORM], budget={"share_cap": 0.9}),
        record(method="naslora", config={"rank": 4}, changed={"rank": 4}, architecture=[CHOSEN]),
        record(),
    ]
    (make,) = pages_below(Archive(store_of(tmp_path, made).root))[0].values()
    page = write(make())
    (flagged,) = [line for line in page.splitlines() if line.startswith("| ") and "ALPHA_UNIFORM" in line]
    assert flagged.startswith("| NAS-LoRA ALPHA_UNIFORM |")
    assert "ALPHA_UNIFORM: α stayed uniform" in page


@pytest.mark.parametrize(
    ("stagewise", "first", "expected"), [(True, 1, 1), (False, 1, None), (True, 0, None), (True, 4, None)]
)
def test_the_start_of_the_search_is_that_of_stagewise_runs(
    *, stagewise: bool, first: int, expected: int | None
) -> None:
    config = {"stagewise": stagewise, "search_start_epoch": first}
    assert search_start(record(method="naslora", config=config, history=[{"loss": 1.0}] * 4)) == expected
