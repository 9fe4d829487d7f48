"""Pages: the same numbers in every format, what a table says about its rules, and the verb that writes and checks them."""

from __future__ import annotations

import csv
import io
import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.archive.archive import Archive
from harness.archive.store import RecordStore
from harness.cli.tables import main
from harness.comparison.differences import Difference
from harness.comparison.names import benchmark_title
from harness.registry import BENCHMARKS, SEGMENTED
from harness.report.formats import Number, text_of
from harness.report.pages import page_of_study
from harness.studies import study_from_dict
from tests.harness.report.sample import DEMO, record, render, store_of, table_rows, three
from tests.values import REPOSITORY


def rows(page: str) -> dict[str, list[str]]:
    """Row -> cells of the only table of a markdown page; the heading row under ``method``."""
    return {row[0]: row[1:] for row in table_rows(page)}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Number(value=None), "–"),
        (Number(value=1.25, form=".2f"), "1.25"),
        (Number(value=110.0, low=105.0, high=115.0), "110.0 [105.0, 115.0]"),
        (Number.span([2e6, 4e6, None], unit=1e6, form=".1f"), "2.0–4.0"),
        (Number.span([2e6, 2e6], unit=1e6), "2"),
        (Difference(mean=0.5, low=-0.25, high=1.25, n=3), "+0.50 [-0.25, +1.25]"),
        (Difference(mean=-0.001, low=None, high=None, n=1), "+0.00"),
        (None, "–"),
        ("exact", "exact"),
    ],
)
def test_a_value_is_printed_as(value: Any, text: str) -> None:
    assert text_of(value) == text


def test_a_plain_table_has_scores_and_one_mark_and_details_have_the_rest() -> None:
    cost = {"step_time_s": 0.25, "peak_memory_bytes": 3 * 2**29}
    searched = {"weight_updates": 40.0, "alpha_updates": 20.0}
    best = three(0.05, method="naslora", budget=searched, config={"lr": 0.01}, environment={"driver": "12"}, cost=cost)
    records = three(0.10, budget={"weight_updates": 60.0}, config={"lr": None}, rules={**DEMO, "lr": 0.003}) + best
    plain, details = render(records), render(records, details=True)
    assert rows(plain) == {"method": ["SBU BER ↓"], "LoRA": ["11.0 ± 1.0 (3)"], "NAS-LoRA": ["**6.0 ± 1.0 (3)**"]}
    assert "Rows had 40 to 60 weight updates" in plain
    assert rows(details)["method"][1:] == [
        "params (M)", "encoder (M)", "updates", "α updates", "rate", "pass (s)", "peak (GiB)",
    ]  # fmt: skip
    assert rows(details)["NAS-LoRA"][1:] == ["3.616", "0.111", "40", "20", "lr 0.01", "0.25", "1.50"]
    assert "lr 0.003" in rows(details)["LoRA"], "the protocol's, where the method has none of its own"
    elsewhere = [records[0], record(benchmark="leaf", budget={"weight_updates": 30.0})]
    assert "weight updates" not in render(elsewhere)


def test_a_tuned_rate_shows_how_many_values_were_tried_and_whether_it_is_at_an_end() -> None:
    trials = [{"options": {"lr": lr}, "score": score, "keys": ["k"]} for lr, score in ((0.1, None), (0.01, 0.876))]
    tuning: dict[str, Any] = {"grid": {"lr": [0.1, 0.01]}, "chosen": {"lr": 0.01}, "edge": ["lr"], "trials": trials}
    own = {**tuning, "chosen": {"lr": 0.1}, "trials": trials[:1], "edge": []}
    made = [record(benchmark="road", tuning=tuning), record(benchmark="isic2017", tuning=own)]
    assert "lr 0.1 of 1; lr 0.01 of 2§" in render(made, details=True)
    assert "§" not in render(made)


@pytest.mark.parametrize("style", ["markdown", "latex", "text"])
def test_a_page_says_what_was_run_instead_of_the_card(style: Any) -> None:
    rules = {**DEMO, "image_size": 32, "epochs": 1}
    changed = record(benchmark="sbu", rules=rules)
    other = record(benchmark="leaf", rules={**rules, "loss": "bce"})
    page = " ".join(render([changed, other], style=style, width=1000).replace("\\_", "_").split())
    assert "with epochs 1 instead of nothing, image_size 32 instead of 64; loss bce instead of nothing on leaf" in page
    unknown = render([record(protocol="mine")])
    assert ("not a built-in protocol" in unknown, "64 px" in unknown) == (True, False)
    assert " with " not in render([record(rules=DEMO)]).split("- Backbone")[0]


def test_csv_has_a_line_a_run_and_metric_and_tells_rules_checkpoints_and_splits_apart() -> None:
    leaf = record(0.5, benchmark="leaf", config={"rank": 6}, changed={"rank": 6})
    records = [*three(0.1), record(seed=1, benchmark="leaf", code="OOM"), leaf]
    names = ("method", "options", "benchmark", "seed", "metric", "code", "value")
    table = csv.DictReader(io.StringIO(render(records, style="csv")))
    lines = {tuple(line[name] for name in names) for line in table}
    assert {line for line in lines if line[5] != "MISSING"} == {
        *(("lora", "", "sbu", str(seed), "ber", "OK", str(0.1 + 0.01 * seed)) for seed in range(3)),
        *(("lora", "", "leaf", "1", metric, "OOM", "") for metric in ("iou", "dice")),
        ("lora", "rank=6", "leaf", "0", "iou", "OK", "0.5"), ("lora", "rank=6", "leaf", "0", "dice", "NO_SCORE", ""),
    }  # fmt: skip
    apart: list[dict[str, Any]] = [{}, {"protocol_hash": "bbbb"}, {"checkpoint": "sha256-c"}, {"manifest": "other"}]
    records = [record(0.1 * (index + 1), benchmark="sbu", **changes) for index, changes in enumerate(apart)]
    apart_by = [dict(row) for row in csv.DictReader(io.StringIO(render(records, style="csv")))]
    assert sorted(float(line.pop("value")) for line in apart_by) == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert len({tuple(line.items()) for line in apart_by}) == 4


def test_every_format_is_the_same_bytes_whatever_the_order_of_the_records() -> None:
    records = three(0.1) + three(0.05, method="decoder") + [record(), record(protocol_hash="bbbb")]
    for style in ("markdown", "latex", "csv", "text", "json"):
        pages = set()
        for seed in range(2):
            shuffled = list(records)
            random.Random(seed).shuffle(shuffled)
            pages.add(render(shuffled, style=style))
        assert len(pages) == 1


def test_latex_and_a_terminal_have_marks_and_escapes() -> None:
    six: dict[str, Any] = {"config": {"rank": "a_b&"}, "changed": {"rank": "a_b&"}}
    records = three(0.10, **six) + three(0.05, method="decoder")
    text = render(records, style="text", width=40).splitlines()
    assert text[:4] + text[10:14] == [
        "demo", "====", "", "demo · tiny", "", "                         SBU BER ↓",
        "Decoder alone      6.0 ± 1.0 (3) *", "LoRA (rank=a_b&)  11.0 ± 1.0 (3)",
    ]  # fmt: skip
    assert max(map(len, text)) <= 40
    page = render(records, style="latex", details=True)
    assert r"\begin{tabular}{lrrrrlr}" in page
    assert re.findall(r"footnotesize (\w+)", page) == ["Protocol", "Backbone", "Seeds", "SBU", "Cells", "Bold"]
    assert r"LoRA (rank=a\_b\&)" in page
    assert r"\textbf{6.0 $\pm$ 1.0 (3)}" in page
    for brace in ("{", "}"):
        assert page.count(brace) == page.count({"{": "}", "}": "{"}[brace])
    assert page.count(r"\begin{tabular}") == page.count(r"\end{tabular}") == 1


def study(**changes: Any) -> Any:
    data = {"title": "t", "protocol": "demo", "benchmarks": ["kvasir", "sbu"], "entries": ["lora", "decoder"]}
    return study_from_dict({**data, "seeds": 3, "table": {"baseline": "lora"}, **changes}, name="mine")


def test_a_study_shows_differences_to_its_baseline_and_their_mean() -> None:
    on_kvasir = [record(0.8 + 0.05 * seed, seed=seed) for seed in range(3)]
    on_kvasir += [record(0.79 + 0.05 * seed, seed=seed, method="decoder") for seed in range(3)]
    records = [*on_kvasir, *three(0.2), *three(0.18, method="decoder")]
    _, _, differences = render(records, study=study(note="made up")).partition(": differences to LoRA")
    table = rows(differences)
    assert table["method"] == ["Kvasir-SEG Sα", "SBU BER", "mean"]
    assert table["Decoder alone"][:2] == ["-1.00 [-1.00, -1.00]", "+2.00 [+2.00, +2.00]"]
    assert table["Decoder alone"][2].startswith("+0.50 [")
    assert "LoRA" not in table
    assert render(records, study=study(note="made up")).replace("- made up\n", "") == render(records, study=study())
    _, _, gap = render(records[:-1], study=study()).partition(": differences to LoRA")
    assert rows(gap)["Decoder alone"][2] == "–", "no mean over a gap"


BOARD: dict[str, Any] = {"table": {"kind": "leaderboard", "baseline": "lora"}}


def test_a_leaderboard_is_one_table_and_tells_failed_rows_from_those_that_did_not_run(monkeypatch) -> None:
    board = study(entries=["lora", "decoder", "bitfit", "full"], **BOARD)
    collapsed = [record(value, seed=seed, method="decoder") for seed, value in enumerate((0.9, 0.91, 0.2))]
    failed = [record(seed=seed, method="full", code="DIVERGED") for seed in range(3)]
    page = render([*(record(0.8 + 0.01 * seed, seed=seed) for seed in range(3)), *collapsed, *failed], study=board)
    table = rows(page)
    assert table["LoRA"] == [
        "–", "81.0 ± 1.0 (3)", "baseline", "0.111", "3.616", "1.00", "1.00", "–",
    ]  # fmt: skip
    assert table["Decoder alone"][:3] == ["–", "67.0 ± 40.7 (3) COLLAPSED", "-14.00"]
    assert table["Full fine-tuning"][1:3] == ["DIVERGED (0/3)", "–"]
    assert "Still to run: BitFit, SBU." in page
    assert page.count("| method |") == 1
    assert page_of_study(Archive(Path("nowhere")), board).numbers is None
    assert "State: " not in page
    monkeypatch.setattr(Archive, "state_of", lambda *_: "submitted")
    submitted = render(three(0.1), study=board)
    assert (rows(submitted)["LoRA"][-1], "State: submitted" in submitted) == ("submitted", True)


def test_a_leaderboard_has_a_mean_with_its_interval_once_two_sets_have_all_seeds() -> None:
    board = study(entries=["lora", "decoder", "bitfit"], **BOARD)
    first = [record(0.8 + 0.01 * seed, seed=seed, method=m) for m in ("lora", "decoder", "bitfit") for seed in range(3)]
    second = three(0.2) + three(0.18, method="decoder")
    assert "mean Δ" not in rows(render([*first, *second[:5]], study=board))["method"], "half of its rows are whole"
    for further in ([], three(0.16, method="bitfit")[:2]):
        assert rows(render([*first, *second, *further], study=board))["BitFit"][0] == "–"
    table = rows(render([*first, *second, *three(0.16, method="bitfit")], study=board))
    at = table["method"].index("mean Δ")
    assert table["LoRA"][at] == "baseline"
    assert table["Decoder alone"][at].startswith("+1.00 [")
    assert table["BitFit"][at].startswith("+2.00 [")
    assert list(table)[1] == "BitFit", "ordered by the mean"


def test_all_test_images_rank_by_the_model_of_the_study_and_the_official_ones_stand_beside() -> None:
    table = {"kind": "leaderboard", "baseline": "lora", "scores": ["last"], "metrics": ["iou"]}
    board = study(benchmarks=["kvasir"], entries=["lora", "full"], table=table)

    def run(method: str, every: float, official: float, seed: int) -> Any:
        last = {"all": {"iou": every}, "test": {"iou": official}, "untrained": {"iou": 0.9}}
        best = {name: {"iou": 0.1} for name in last}
        return record(method=method, seed=seed, scores={"best": best, "last": last}, counts={"test": 2, "untrained": 8})

    runs = [run(*scores, seed) for seed in range(3) for scores in (("lora", 0.6, 0.8), ("full", 0.7 + seed / 100, 0.5))]
    page = render(runs, study=board)
    found = rows(page)
    assert found["method"][:4] == ["verdict", "Kvasir-SEG IoU (%)", "Kvasir-SEG IoU Δ", "Kvasir-SEG official IoU (%)"]
    assert list(found)[1:] == ["Full fine-tuning", "LoRA"]
    assert found["LoRA"][:4] == ["–", "60.0 ± 0.0 (3)", "baseline", "80.0 ± 0.0 (3)"]
    assert found["Full fine-tuning"][:2] == ["better", "71.0 ± 1.0 (3)"]
    assert "Official: the given test images" in page


def test_a_leaderboard_fits_a_terminal() -> None:
    board = study(entries=["lora", "decoder", "full"], **BOARD)
    first = [record(0.8 + 0.01 * seed, seed=seed, method=method) for method in ("lora", "full") for seed in range(3)]
    collapsed = [record(value, seed=seed, method="decoder") for seed, value in enumerate((0.9, 0.91, 0.2))]
    lines = render([*first, *collapsed, *three(0.2)], study=board, style="text", width=100).splitlines()
    assert max(map(len, lines)) <= 100
    shown = " ".join(line for line in lines if line.startswith("Decoder alone"))
    assert "67.0 ± 40.7 (3) COLLAPSED" in shown
    assert "MISSING (0/3)" in shown


def test_codes_and_selection_on_the_test_split_are_explained_where_a_row_shows_them() -> None:
    released = render([record(rules={"quirks": {"selection": "released"}})])
    assert ("| LoRA ‡ |" in released, "selected on the test split" in released) == (True, True)
    values = {0: 0.9, 1: 0.91, 2: 0.2}
    for seeds, code in (3, "COLLAPSED"), (4, "MISSING"):  # a cell with a gap shows its code alone
        page = render(
            [record(value, seed=seed) for seed, value in values.items()],
            study=study(benchmarks=["kvasir"], entries=["lora"], seeds=seeds),
        )
        explained = [
            line.partition(":")[0] for line in page.splitlines() if line.startswith(("COLLAPSED:", "MISSING:"))
        ]
        assert explained == [code]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return store_of(tmp_path, three(0.1) + three(0.2, method="decoder")).root


def test_check_finds_a_stale_a_missing_and_an_orphaned_table(results: Path, says) -> None:
    words = ["--results", results]
    assert "run something first" in says(main, "--results", results / "nothing", code=2)
    assert "demo.md: is missing" in says(main, *words, "--check", code=1)
    says(main, *words)
    says(main, *words, "--check")
    page = results / "tables" / "demo.md"
    page.write_text(page.read_text(encoding="utf-8").replace("11.0", "11.1"), encoding="utf-8")
    assert "differs" in says(main, *words, "--check", code=1)
    says(main, *words)
    (results / "tables" / "orphan.md").write_text("# ?\n", encoding="utf-8")
    assert "nothing makes this table" in says(main, *words, "--check", code=1)
    assert "orphan.md: no record and no built-in study makes this page" in says(main, *words)


def test_details_json_and_joined_folders_are_printed_and_not_written(tmp_path: Path, says) -> None:
    store, words = RecordStore(tmp_path), ["--results", tmp_path]
    store.write(record(scores={"best": {"test": {"s_measure": 0.9, "iou": 0.7, "dice": 0.8}}}))
    store.write(record(benchmark="trans10k_v2", scores={"best": {"test": {"miou": 2 / 3}}}))
    assert "params (M)" in rows(says(main, *words, "--details"))["method"]
    (data,) = json.loads(says(main, *words, "--json"))
    assert data["tables"][0]["rows"][0]["Kvasir-SEG Sα ↑"] == "90.0 (1)"
    values = {line["value"] for line in data["numbers"]}
    assert {None if value is None else round(value, 14) for value in values} == {0.9, round(2 / 3, 14), None}
    assert not (tmp_path / "tables").exists()
    study, text = tmp_path / "mine.yaml", "title: t\nprotocol: demo\nbenchmarks: [kvasir]\nentries: [lora]\nseeds: 1\n"
    study.write_text(text + "table: {metrics: [dice]}\n")
    assert "80.0 (1)" in says(main, *words, "--study", study)
    assert (tmp_path / "tables" / "mine.md").is_file()
    store_of(tmp_path / "more", [record(method="decoder")])
    joined = says(main, "--results", tmp_path / "more", "--with", tmp_path, "--study", study)
    assert [row[0] for row in table_rows(joined)[1:]] == ["Decoder alone (yours)", "LoRA"]


def test_tables_import_no_large_library_and_help_is_quick() -> None:
    """Nor does the help of the report."""
    script = """
import sys, time, harness.cli.tables as tables
heavy = {"torch", "pandas", "scipy", "matplotlib", "mmengine"}
quick, early = time.process_time() < 1, sorted(heavy & set(sys.modules))
tables.parser().format_help()
from harness.cli import report, status
report.parser().format_help()
print(quick, early, sorted({"torch", "pandas", "matplotlib"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "True [] []\n"


def test_a_benchmark_is_called_by_its_own_title_everywhere_and_imported_for_it_nowhere() -> None:
    for name in SEGMENTED:
        assert benchmark_title(name) == BENCHMARKS.get(name).title
    older = record(benchmark="cvc612", benchmark_title="CVC-ClinicDB")
    foreign = record(benchmark="cells", benchmark_title="Cells of a plug-in")
    assert benchmark_title("cvc612", [older.run]) == "CVC-612"
    assert "Cells of a plug-in Sα ↑" in render([foreign])
    assert benchmark_title("cells", [foreign.run]) == "Cells of a plug-in"


OWN: dict[str, Any] = {
    "benchmark": "tiles", "metric": "iou", "rules": {**DEMO, "own_classes": ["background", "tile"]},
    "counts": {"train": 40, "val": 5, "test": 30},
}  # fmt: skip


def own(method: str, *values: float, **changes: Any) -> list[Any]:
    return [record(value, method=method, seed=seed, **{**OWN, **changes}) for seed, value in enumerate(values)]


FEW: dict[str, Any] = {"counts": {"train": 40, "val": 5, "test": 6}}


@pytest.mark.parametrize(
    ("records", "words"),
    [
        (
            [*own("zeroshot", 0.1, 0.1, 0.1), *own("decoder", 0.50, 0.51, 0.5), *own("lora", 0.70, 0.71, 0.7)],
            ["LoRA is best, and significantly better than Decoder alone: +20.0 [", "3 seeds", "over seeds"],
        ),
        (
            [*own("decoder", 0.5, 0.6, 0.55), *own("lora", 0.7, 0.55, 0.625)],
            ["LoRA is best, but not significantly different from Decoder alone: +7.5 [", "3 seeds"],
        ),
        (
            [*own("decoder", 0.50, 0.51), *own("lora", 0.70, 0.71)],
            ["LoRA scores better than Decoder alone on these 30 images: +20.0 [", "2 seeds", "needs 3 seeds and 30"],
        ),
        (
            [*own("decoder", 0.50, 0.51, 0.5, **FEW), *own("lora", 0.70, 0.71, 0.7, **FEW)],
            ["LoRA scores better than Decoder alone on these 6 images: +20.0 [", "needs 3 seeds and 30 test images"],
        ),
        (
            [*own("zeroshot", 0.9, 0.9, 0.9), *own("lora", 0.5, 0.52, 0.51)],
            ["Zero-shot is best, and significantly better than LoRA"],
        ),
        ([*own("full", 0.9, 0.9), *own("lora", 0.5, 0.52)], []),
        (
            [*own("zeroshot", 0.0, 0.0, 0.0, foreground={"test": 0.0}), *own("lora", 0.5, 0.52, 0.51)],
            ["LoRA is best, and significantly better than Zero-shot"],
        ),
        (
            [*own("zeroshot", 0.3), *own("lora", 0.5)],
            ["LoRA scores better than Zero-shot on these 30", "+20.0 points, 1 seed, no interval"],
        ),
        (
            [*own("decoder", 0.5, foreground={"test": 0.01}), *own("lora", 0.4, foreground={"test": 0.02})],
            ["almost empty"],
        ),
    ],
)
def test_a_table_of_own_images_ends_with_a_verdict_on_tuning(records: list[Any], words: list[str]) -> None:
    page = " ".join(render(records).split())
    assert [word for word in words if word not in page] == []
    assert ("is best" in page) == any("is best" in word for word in words)
    assert not ("scores better than" in page and "**" in page)
