"""Every cell can be traced to runs, seeds, hashes and files, and to what was left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.archive.archive import Archive
from harness.archive.cost import CostStore
from harness.archive.merge import merge
from harness.archive.store import RecordStore
from harness.cli.show import main
from harness.report.costs import Measured
from harness.report.pages import page_of, pages_below
from harness.report.runs import explain
from tests.harness.report.sample import record

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    store = RecordStore(tmp_path)
    for one in (
        record(0.91, seed=0, selected_epoch=3),
        record(
            0.92, seed=1, environment={"commit": "b" * 40, "device": "NVIDIA H100", "host": "n1"}, finished="2026-02-01"
        ),
        record(seed=2, code="OOM", message="asked for 90 GiB"),
        record(0.5, seed=0, config={"rank": 6}, changed={"rank": 6}, variant="lora[rank=6]"),
        record(0.5, seed=0, protocol_hash="bbbb"),
        record(0.8, seed=0, method="decoder"),
        record(0.7, seed=0, benchmark="leaf"),
    ):
        store.write(one, "variant,split,stem,s_measure\nbest,test,a,0.9\n")
    return tmp_path


def why(results: Path, *words: str) -> int:
    return main(["--cell", *words, "--results", str(results)])


def test_a_cell_names_seeds_keys_hashes_files_and_reasons(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert why(results, "demo", "lora", "kvasir.s_measure") == 0
    shown = capsys.readouterr().out
    first = shown.split("\n\n")[0]
    assert " · lora · Kvasir-SEG Sα ↑: OOM (2/3)" in first.splitlines()[0]
    assert "hash aaaa0000aaaa0000" in first
    assert "split manifest manifest-kvasir" in first
    assert "seed 0: 91.0000, epoch 3 selected" in first
    assert "on NVIDIA H100, n1" in first
    assert "seed 2: OOM: asked for 90 GiB" in first
    for seed in range(3):
        key = record(0.9, seed=seed).key
        assert f"key {key}" in first
        assert str(results / "records" / f"{key}.json") in first
        assert str(results / "records" / f"{key}.images.csv") in first
    assert "code 0000000000 (not the latest of this table)" in first


def test_what_is_left_out_is_named_with_the_reason(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    why(results, "demo", "lora", "kvasir.s_measure")
    shown = capsys.readouterr().out
    assert "(lora[rank=6], seed 0): configuration" in shown
    assert "(rank=6)" in shown
    assert "left out" in shown
    assert "protocol demo bbbb" in shown
    assert "decoder" not in shown


def test_conflicting_copies_are_named(results, tmp_path_factory, capsys) -> None:
    other = tmp_path_factory.mktemp("other")
    RecordStore(other).write(replace(record(0.99, seed=0), finished="2027"))
    merge([other], results)
    why(results, "demo", "lora", "kvasir.s_measure")
    assert "conflicting copy, kept apart" in capsys.readouterr().out


def test_missing_seeds_are_named(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RecordStore(results).write(record(0.8, seed=0, method="full", planned_seeds=[0, 1]))
    why(results, "demo", "full", "Kvasir-SEG Sα")
    shown = capsys.readouterr().out
    assert "MISSING (1/2)" in shown
    assert "seeds planned: 0, 1" in shown
    assert "seed 1: no record" in shown


def test_a_study_and_a_file_are_tables_too(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert why(results, "results/tables/demo.md", "lora", "leaf.iou") == 0
    study = results / "mine.yaml"
    study.write_text("title: t\nprotocol: demo\nbenchmarks: [kvasir]\nentries: [lora]\n")
    assert why(results, str(study), "lora", "Sα") == 0
    assert "OOM (2/3)" in capsys.readouterr().out


def test_a_tables_file_is_explained_from_its_own_folder(results, monkeypatch, capsys) -> None:
    runs = results.parent / "elsewhere" / "runs"  # another value for the same cell
    RecordStore(runs).write(record(0.11, seed=0, method="decoder"))
    monkeypatch.chdir(runs.parent)
    (results / "tables").mkdir()
    (results / "tables" / "demo.md").write_text("")
    assert main(["--cell", str(results / "tables" / "demo.md"), "decoder", "kvasir.s_measure"]) == 0
    shown = capsys.readouterr().out
    assert "seed 0: 80.0000" in shown
    assert str(results / "records") in shown
    monkeypatch.chdir(results / "tables")
    assert main(["--cell", "demo.md", "decoder", "kvasir.s_measure"]) == 0
    assert "seed 0: 80.0000" in capsys.readouterr().out
    monkeypatch.chdir(runs.parent)
    assert main(["--cell", "demo", "decoder", "kvasir.s_measure"]) == 0
    assert "seed 0: 11.0000" in capsys.readouterr().out


STUDY = """
title: t
protocol: demo
benchmarks: [kvasir, leaf]
entries: [lora, decoder]
seeds: 2
table: {baseline: lora, paper: true}
"""


def test_differences_verdicts_means_and_parameters_are_explained(results, capsys) -> None:
    for seed in range(2):
        RecordStore(results).write(record(0.7 + 0.1 * seed, seed=seed, benchmark="leaf"))
        for benchmark in ("kvasir", "leaf"):
            RecordStore(results).write(record(0.6 + 0.01 * seed, seed=seed, method="decoder", benchmark=benchmark))
    study = results / "mine.yaml"
    study.write_text(STUDY)
    assert why(results, str(study), "decoder", "Δ (n)") == 0
    shown = capsys.readouterr().out
    assert "decoder · Kvasir-SEG Sα · Δ (n): -31.00 (2)" in shown
    assert "decoder − lora, by seed: -31.0000, -31.0000" in shown
    assert "its parts: seeds SE" in shown
    assert "p over seeds n too small (2), over images – (Holm over the rows of this benchmark)" in shown
    assert f"key {record(0.9).key}" in shown
    assert why(results, str(study), "decoder", "mean Δ") == 0
    shown = capsys.readouterr().out
    assert "Kvasir-SEG Sα: -31.0000" in shown
    assert "Leaf IoU: " in shown
    assert why(results, str(study), "lora", "params (M)") == 0
    assert "trainable 3,616,128" in capsys.readouterr().out
    assert why(results, str(study), "lora", "IQM") == 0
    assert "seed 1: 92.0000" in capsys.readouterr().out


def test_every_cell_of_committed_pages_is_explained() -> None:
    """Tables, differences, means, ranks, costs, ratios, claims on cost; and the page of a study that has none there."""
    archive = Archive(REPOSITORY / "results")
    pages = pages_below(archive).content
    found = {name: pages[name] for name in ("mini", "demo", "cost", "small-search", "question-sam")}
    found["real-images"] = page_of(archive, "real-images")
    cells = 0
    for page in found.values():
        for table in page.tables:
            for line in table.rows:
                for cell in line.cells:
                    assert cell.of is not None, (table.heading, cell.text)
                    assert list(cell.of.why(archive)), (table.heading, cell.text)
                    cells += 1
    assert cells > 500
    by_name = explain(found["cost"], archive, row="lora", column="FLOPs (%)")
    assert "session" in by_name
    assert "aten.gelu ×" in explain(found["cost"], archive, row="naslora", column="forward (GFLOP)")
    assert "on a CPU" in explain(found["cost"], archive, row="training-cost", column="verdict")


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
def test_wrong_words_are_one_line(results, words: tuple[str, ...], message: str, capsys) -> None:
    if message == "no record":
        for path in (results / "records").glob("*.json"):
            path.unlink()
    assert why(results, *words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_session_beside_others_says_so() -> None:
    session = next(iter(CostStore(REPOSITORY / "results")))
    said = [
        Measured(session=replace(session, shared=words), cost=session.methods[0], label="").why(Archive(REPOSITORY))
        for words in ("", "two others")
    ]
    told = [line for line in said[1] if line not in said[0]]
    assert told == ["  the device was not exclusive: two others"]
