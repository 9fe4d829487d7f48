"""Every cell can be traced to runs, seeds, hashes and files, and to what was left out."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness.archive.merge import merge
from harness.archive.store import RecordStore
from harness.cli.show import main
from harness.report.runs import _choose
from harness.system.errors import UsageError
from tests.harness.report.sample import record


@pytest.fixture
def results(tmp_path: Path) -> Path:
    store, later = RecordStore(tmp_path), {"commit": "b" * 40, "device": "NVIDIA H100", "host": "n1"}
    for made in (
        record(0.91, seed=0, selected_epoch=3),
        record(0.92, seed=1, environment=later, finished="2026-02-01"),
        record(seed=2, code="OOM", message="asked for 90 GiB"),
        record(0.5, seed=0, config={"rank": 6}, changed={"rank": 6}, variant="lora[rank=6]"),
        record(0.5, seed=0, protocol_hash="bbbb"),
        record(0.8, seed=0, method="decoder"),
        record(0.7, seed=0, benchmark="leaf"),
    ):
        store.write(made, "variant,split,stem,s_measure\nbest,test,a,0.9\n")
    return tmp_path


@pytest.fixture
def why(results: Path, says) -> Callable[..., str]:
    return lambda *words, code=0: says(main, "--cell", *words, "--results", results, code=code)


def test_a_cell_names_seeds_keys_hashes_files_and_reasons_and_what_is_left_out(results: Path, why) -> None:
    shown = why("demo", "lora", "kvasir.s_measure")
    first = shown.split("\n\n")[0]
    assert " · lora · Kvasir-SEG Sα ↑: OOM (2/3)" in first.splitlines()[0]
    paths = [results / "records" / f"{record(seed=s).key}.{end}" for s in range(3) for end in ("json", "images.csv")]
    for said in (
        "hash aaaa0000aaaa0000", "split manifest manifest-kvasir", "seed 0: 91.0000, epoch 3 selected",
        "on NVIDIA H100, n1", "seed 2: OOM: asked for 90 GiB", "code 0000000000 (not the latest of this table)",
        *(f"key {path.name.partition('.')[0]}" for path in paths), *map(str, paths),
    ):  # fmt: skip
        assert said in first
    for said in ("(lora[rank=6], seed 0): configuration", "(rank=6)", "left out", "protocol demo bbbb"):
        assert said in shown
    assert "decoder" not in shown


def test_conflicting_copies_and_missing_seeds_are_named(results: Path, tmp_path_factory, why) -> None:
    other = tmp_path_factory.mktemp("other")
    RecordStore(other).write(replace(record(0.99, seed=0), finished="2027"))
    merge([other], results)
    assert "conflicting copy, kept apart" in why("demo", "lora", "kvasir.s_measure")
    RecordStore(results).write(record(0.8, seed=0, method="full", planned_seeds=[0, 1]))
    shown = why("demo", "full", "Kvasir-SEG Sα")
    for said in ("MISSING (1/2)", "seeds planned: 0, 1", "seed 1: no record"):
        assert said in shown


def test_a_study_and_a_file_are_tables_too(results: Path, why) -> None:
    why("results/tables/demo.md", "lora", "leaf.iou")
    study = results / "mine.yaml"
    study.write_text("title: t\nprotocol: demo\nbenchmarks: [kvasir]\nentries: [lora]\n")
    assert "OOM (2/3)" in why(study, "lora", "Sα")


def test_a_tables_file_is_explained_from_its_own_folder(results: Path, monkeypatch, says) -> None:
    runs = results.parent / "elsewhere" / "runs"  # another value for the same cell
    RecordStore(runs).write(record(0.11, seed=0, method="decoder"))
    page = results / "tables" / "demo.md"
    page.parent.mkdir()
    page.write_text("")
    for folder, table, value in (
        (runs.parent, page, "80.0000"), (page.parent, "demo.md", "80.0000"), (runs.parent, "demo", "11.0000"),
    ):  # fmt: skip
        monkeypatch.chdir(folder)
        shown = says(main, "--cell", table, "decoder", "kvasir.s_measure")
        assert f"seed 0: {value}" in shown
        assert (str(results / "records") in shown) == (table == page)


STUDY = """
title: t
protocol: demo
benchmarks: [kvasir, leaf]
entries: [lora, decoder]
seeds: 2
table: {baseline: lora, paper: true}
"""


def test_differences_verdicts_means_and_parameters_are_explained(results: Path, why) -> None:
    for seed in range(2):
        RecordStore(results).write(record(0.7 + 0.1 * seed, seed=seed, benchmark="leaf"))
        for benchmark in ("kvasir", "leaf"):
            RecordStore(results).write(record(0.6 + 0.01 * seed, seed=seed, method="decoder", benchmark=benchmark))
    study = results / "mine.yaml"
    study.write_text(STUDY)
    for row, column, told in (
        ("decoder", "Δ (n)", [
            "decoder · Kvasir-SEG Sα · Δ (n): -31.00 (2)", "decoder − lora, by seed: -31.0000, -31.0000",
            "its parts: seeds SE", f"key {record(0.9).key}",
            "p over seeds n too small (2), over images – (Holm over the rows of this benchmark)",
        ]),
        ("decoder", "mean Δ", ["Kvasir-SEG Sα: -31.0000", "Leaf IoU: "]),
        ("lora", "params (M)", ["trainable 3,616,128"]),
        ("lora", "IQM", ["seed 1: 92.0000"]),
    ):  # fmt: skip
        shown = why(study, row, column)
        assert all(said in shown for said in told), shown


def test_a_tuned_row_is_found_by_what_each_table_calls_it(tmp_path: Path, says) -> None:
    trials = [{"options": {"lr": rate}, "score": rate} for rate in (1e-3, 3e-3)]
    tuning = {
        "grid": {"lr": [1e-3, 3e-3]}, "chosen": {"lr": 3e-3}, "edge": [], "trials": trials,
        "metric": "s_measure", "on": ["kvasir"], "hours": 1.0,
    }  # fmt: skip
    for seed, benchmark in itertools.product(range(2), ("kvasir", "leaf")):
        RecordStore(tmp_path).write(record(0.9, seed=seed, benchmark=benchmark, tuning=tuning))
        RecordStore(tmp_path).write(record(0.8, seed=seed, benchmark=benchmark, method="decoder"))
    study = tmp_path / "mine.yaml"
    study.write_text(STUDY)
    for row, column in itertools.product(("lora, tuned, 2 trials", "lora"), ("kvasir.s_measure", "IQM")):
        assert " · lora · " in says(main, "--cell", study, row, column, "--results", tmp_path)


def test_of_many_runs_that_are_left_out_the_number_is_told_and_json_has_all(results: Path, why) -> None:
    for rank in range(7, 11):
        RecordStore(results).write(record(0.5, config={"rank": rank}, changed={"rank": rank}, variant=f"r{rank}"))
    shown = why("demo", "lora", "kvasir.s_measure")
    assert "left out: " not in shown
    assert "  6 other runs left out (--json lists them)\n" in shown
    cells = json.loads(why("demo", "lora", "kvasir.s_measure", "--json"))
    assert sum("left out: " in line for line in cells[0]["why"]) == 6
    assert cells[0]["cell"] == shown.splitlines()[0]


def test_a_row_is_found_without_its_hyphens_and_labels_with_commas_are_told_apart() -> None:
    rows = {label: {label} for label in ("NAS-LoRA", "NAS-LoRA, no search", "LoRA")}
    assert _choose("row", "naslora", rows) == "NAS-LoRA"
    with pytest.raises(UsageError, match="choose from LoRA; NAS-LoRA; NAS-LoRA, no search"):
        _choose("row", "vpt", rows)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("dmeo", "lora", "kvasir.s_measure"), "did you mean 'demo'"),
        (("demo", "lorra", "kvasir.s_measure"), "no row 'lorra'"),
        (("demo", "lora", "kvasir.iouu"), "no column"),
        (("demo", "lora", "kvasir"), "fits"),
        (("rank", "lora", "leaf.iou"), "no record"),
    ],
)
def test_wrong_words_are_one_line(results, words: tuple[str, ...], message: str, why) -> None:
    if message == "no record":
        for path in (results / "records").glob("*.json"):
            path.unlink()
    assert message in why(*words, code=2)
