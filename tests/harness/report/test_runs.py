"""A run is shown from its record: rules, curve, mixtures, scores, cost, files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from harness.archive.archive import Archive
from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.cli.find import find_key
from harness.cli.show import main
from harness.comparison import grids, leaderboards
from harness.protocols.load import as_rules, load_protocol, resolve
from harness.report.figures import curves
from harness.report.model_card import model_card
from harness.report.runs import command_of, commands_of
from harness.system.errors import UsageError
from tests.harness.report.sample import record, store_of


def history(epochs: int) -> list[dict[str, Any]]:
    return [
        {
            "epoch": epoch, "loss": 1 / epoch, "lr": 0.001 / epoch, "seconds": 2.0, "updates": {"weights": 3},
            "val": {"s_measure": 0.5 + 0.1 * epoch} if epoch % 2 == 0 else {},
        }
        for epoch in range(1, epochs + 1)
    ]  # fmt: skip


CODE = "-".join("abcdefghij" * 3)  # too long for the rest of its line


def searched() -> Record:
    """Of NAS-LoRA under the protocol demo with another number of epochs."""
    return record(
        method="naslora", config={"stagewise": True, "search_start_epoch": 2, "operations": "all"}, history=history(4),
        rules=as_rules(resolve(load_protocol("demo", {"epochs": 7}), "kvasir")), selected_epoch=4,
        architecture=[{"a": [0.5, 0.5], "b": [0.5, 0.5]}] * 3 + [{"a": [0.9, 0.1], "b": [0.7, 0.3]}],
        cost={"step_time_s": 0.25, "peak_memory_bytes": 2.0**31, "train_time_s": 30.0, "wall_time_s": 12345.0,
        "stage_training_s": 30.0, "stage_testing_s": 10.0},
        environment={"begun_by": CODE, "begun_on": "torch 2.1"},
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _demo_protocol() -> None:
    """These runs are held against the protocol demo as it is."""


@pytest.fixture
def results(tmp_path: Path) -> Path:
    store = RecordStore(tmp_path)
    store.write(searched(), "model,split,stem,s_measure\nbest,test,a,0.9\n")
    store.write(record(code="OOM", message="asked for 90 GiB", seed=5))
    state = tmp_path / "state" / searched().key
    state.mkdir(parents=True)
    (state / "attempt.1.log").write_text("epoch 1/4\n")
    (tmp_path / "state" / "fedcba9876543210").mkdir()
    return tmp_path


def test_a_run_is_shown_with_rules_curve_mixture_cost_and_files(results: Path, says) -> None:
    made, epochs = searched(), load_protocol("demo").epochs
    shown = says(main, made.key, "--results", results)
    assert epochs != 7
    assert shown.startswith("naslora on kvasir, seed 0: OK\n")
    words = " ".join(shown.split())
    for said in (
        f"epochs 7 instead of {epochs}", "best checkpoint in epoch 4", "α learns after epoch 2 (T_B)",
        f"1 attempt, begun by other code {CODE}, begun on torch 2.1",
        "train/loss █▃▂▁ 1 to 0.25", "mean share 0.800 (0.700 to 0.900 over 2 sites)", "best test: s_measure 90.00",
        "0.25 s a pass (median), 30 s in updates, 12345 s of training in all, 2.00 GiB at most",
        "40 s in its last attempt: testing 25 %, training 75 %",
    ):  # fmt: skip
        assert said in words
    assert max(map(len, shown.partition("files")[0].splitlines())) <= 80
    assert not [line for line in shown.splitlines() if line.endswith("-")], "a word with a hyphen stays whole"
    for name in (f"records/{made.key}.json", f"records/{made.key}.images.csv", f"state/{made.key}/attempt.1.log"):
        assert f"  {results / name}\n" in shown
    failed = says(main, record(seed=5, code="OOM").key[:8], "--results", results)
    assert failed.startswith("lora on kvasir, seed 5: OOM: asked for 90 GiB\n")
    assert "learning curve" not in failed


def test_json_holds_what_the_page_shows(results: Path, says) -> None:
    data = json.loads(says(main, searched().key, "--results", results, "--json"))
    assert data["rules_changed"]["epochs"] == {"run": 7, "protocol": load_protocol("demo").epochs}
    assert [entry["loss"] for entry in data["history"]] == [1 / epoch for epoch in range(1, 5)]
    assert data["architecture"][-1] == {"a": [0.9, 0.1], "b": [0.7, 0.3]}
    assert str(RecordStore(results).path(searched().key)) in data["files"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lora kvasir 1"], "lora on kvasir, seed 1: OK"),
        (["lora", "Kvasir-SEG", "1"], "lora on kvasir, seed 1: OK"),
        (["LoRA Kvasir-SEG seed 0"], "lora on kvasir, seed 0: OK"),
        (["wide kvasir"], "wide on kvasir, seed 0: OK"),
        (["decoder"], "decoder on kvasir, seed 0: OK"),
    ],
)
def test_a_run_is_found_by_the_words_of_a_cell(words: list[str], said: str, tmp_path: Path, says) -> None:
    made = [record(), record(seed=1), record(method="decoder"), record(config={"rank": 9}, label="wide")]
    store_of(tmp_path, made)
    assert says(main, *words, "--results", tmp_path).startswith(said)


@pytest.mark.parametrize("huge", [1.7e308, -1.7e308, float("inf"), float("nan")])
def test_numbers_that_no_run_computes_are_gaps_in_a_curve(tmp_path: Path, says, huge: float) -> None:
    history = [
        {"epoch": e, "loss": v, "val": {"s_measure": v}} for e, v in enumerate([1.0, huge, -huge, huge, 2.0] * 20, 1)
    ]
    made = record(history=history)
    store_of(tmp_path, [made])
    shown = says(main, made.key, "--results", tmp_path)
    assert "train/loss" in shown
    assert "best checkpoint" not in shown, "none was selected"
    (board,) = leaderboards(grids(Archive(tmp_path)))
    assert curves(board, "kvasir")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "lora --datasets kvasir {} --data DIR"),
        ({"rules": {"data": "sample"}}, "lora --datasets kvasir=DIR {}"),
        ({"rules": {"data": "sample"}, "origin": "generated"}, "lora --datasets kvasir {}"),
        ({"benchmark": "mine", "rules": {"own_classes": ["a"]}}, "lora --datasets mine=DIR {}"),
        ({"benchmark": "mine"}, "lora --datasets mine {} --plugin FILE.py --data DIR"),
        ({"checkpoint": "a", "changed": {"on": True}}, "lora --datasets kvasir {} --set lora.on=true --checkpoint FILE --data DIR"),
    ],
)  # fmt: skip
def test_the_command_of_a_run_has_the_readers_own_folders_and_files(changes: dict[str, Any], words: str) -> None:
    common = "--protocol unknown --backbone tiny --seeds 0,"
    assert command_of([record(protocol="unknown", **changes)]) == f"sam-peft run --methods {words.format(common)}"


def test_runs_of_a_row_that_chose_other_rates_have_a_command_each() -> None:
    made = [record(seed=seed, changed={"lr": rate}) for seed, rate in enumerate((1e-3, 1e-4, 1e-3))]
    rates = [line.split("--seeds ")[1][:22] for line in commands_of(made).splitlines()]
    assert rates == ["0,2 --set lora.lr=0.00", "1, --set lora.lr=0.000"]


@pytest.mark.parametrize(
    ("wanted", "said"),
    [("lora", "fits 2 runs: "), ("nothing", "has the key 'nothing'"), ("ab", "beginning of abc, abd; give")],
)
def test_words_of_no_run_or_of_several_are_one_line(wanted: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        find_key(wanted, ["abc", "abd"], lambda: {"abc": record().run, "abd": record(seed=1).run})


SCORES = {"best": {"test": {"s_measure": 0.75, "e_mean": 0.5, "iou": 0.25}, "val": {"s_measure": 1.0}}}


def test_the_hub_reads_base_model_data_set_and_scores() -> None:
    made = record(scores=SCORES, origin="files", rules={"image_size": 64})
    given: Any = {"base": None, "licence": None, "form": "it", "usage": "so", "merge": "", "source": "here"}
    card: Any = ModelCard(model_card(made, **given, terms="free"))
    own = model_card(made, **given, terms="your own", typed="sam-peft run --datasets 'my tiles=/data'")
    for words in ("The data: your own.", "--datasets 'my tiles=/data'", "stretched to", "first mask token"):
        assert words in own
    assert ("here" in own, "here" in card.text) == (False, True)
    assert card.data.base_model is None  # random weights
    assert (card.data.license, card.data.datasets) == ("apache-2.0", ["kvasir"])
    assert card.data.metrics == ["s_measure", "e_mean"]
    assert "| test | Sα ↑ | 0.7500 |" in card.text
    assert "model-index" not in card.content  # which the Hub no longer asks for
    assert command_of([made]) in card.text
    assert made.run.protocol_hash in card.text


@pytest.mark.parametrize(
    ("merge", "scores", "reported"),
    [
        ("exact", {}, 0.75),
        ("calibrated", {}, None),
        ("calibrated", {"merged-calibrated": {"test": {"s_measure": 0.625}}}, 0.625),
    ],
)
def test_a_merge_that_changes_the_model_is_not_given_the_scores_of_the_unmerged(merge, scores, reported):
    made = record(method="naslora", scores=SCORES | scores, origin="files")
    text = model_card(made, base=None, licence=None, form="it", usage="so", merge=merge, terms="free", source="here")
    assert ("before merging" in text) == (reported is None)
    assert f"{reported or 0.75:.4f}" in text  # the table says whose scores it holds
