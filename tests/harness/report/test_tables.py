"""Tables say what the records say, and nothing else."""

from __future__ import annotations

import csv
import io
import itertools
import json
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.archive.files import sealed
from harness.archive.schema import Run
from harness.archive.store import RecordStore
from harness.cli.tables import main
from harness.comparison.names import benchmark_title
from harness.registry import BENCHMARKS, LABELLED, SEGMENTED
from harness.studies import study_from_dict, study_names
from tests.harness.report.sample import CARD, record, render, store_of, table_rows
from tests.values import REPOSITORY, on_linux

RULES = "harness.comparison.rules.card_rules"
"""Where pages find the harness's own cards."""


def rows(page: str) -> dict[str, list[str]]:
    """Row label -> cells of the only table of a markdown page; the heading row under ``method``."""
    return {row[0]: row[1:] for row in table_rows(page)}


def three(value: float, **changes: Any) -> list[Any]:
    return [record(value + 0.01 * seed, seed=seed, benchmark="sbu", **changes) for seed in range(3)]


def failed(code: str, seed: int, **changes: Any) -> Any:
    return record(seed=seed, benchmark="sbu", code=code, **changes)


CELLS: dict[str, tuple[list[Any], dict[str, str]]] = {
    "mean and SD with ddof 1 over seeds, in percent": (  # 2.646; with ddof 0 it were 2.160
        [record(value, seed=seed, benchmark="leaf") for seed, value in enumerate((0.9, 0.91, 0.95))],
        {"lora": "92.0 ± 2.6 (3)"},
    ),
    "single runs have no SD and rank nothing": (
        [record(0.5), record(0.1, method="decoder")], {"lora": "50.0 (1)", "decoder": "10.0 (1)"},
    ),
    "of an error rate the lowest is bold and the second underlined": (
        three(0.10) + three(0.05, method="decoder") + three(0.20, method="full"),
        {"lora": "<u>11.0 ± 1.0 (3)</u>", "decoder": "**6.0 ± 1.0 (3)**", "full": "21.0 ± 1.0 (3)"},
    ),
    "rows that tie at the printed digit share the mark": (
        three(0.05) + three(0.05001, method="decoder") + three(0.1, method="full") + three(0.10004, method="ssf"),
        {
            **dict.fromkeys(("lora", "decoder"), "**6.0 ± 1.0 (3)**"),
            **dict.fromkeys(("full", "ssf"), "<u>11.0 ± 1.0 (3)</u>"),
        },
    ),
    "a row of other seeds that prints like the best, and is behind it on those that both have, is not best": (
        three(0.05, method="decoder")
        + [record(value, seed=seed, benchmark="sbu") for seed, value in enumerate((0.07, 0.08, 0.09, 0.03, 0.04, 0.05))],
        {"decoder": "**6.0 ± 1.0 (3)**", "lora": "<u>6.0 ± 2.4 (6)</u>"},
    ),
    # the seeds of most rows: older records name none
    "no mean is taken over a gap, whose row is never best, nor is another where it leads": (
        three(0.10) + three(0.20, method="bitfit") + three(0.05, method="decoder")[:2] + three(0.05, method="ssf")[:2]
        + [failed("OOM", 2, method="decoder"), failed("TIMEOUT", 1, method="full")],
        {"lora": "11.0 ± 1.0 (3)", "decoder": "OOM (2/3)", "ssf": "MISSING (2/3)", "full": "MISSING/TIMEOUT (0/3)"},
    ),
    "one seed more of one method blanks no other": (
        [*three(0.10), record(0.1, seed=3, benchmark="sbu"), *three(0.2, method="decoder")],
        {"lora": "**10.8 ± 1.0 (4)**", "decoder": "<u>21.0 ± 1.0 (3)</u>"},
    ),
    "the seeds that are missing are those that a sweep planned": (
        three(0.10, planned_seeds=[0, 1, 2, 3], planned_benchmarks=["sbu"])
        + three(0.2, method="decoder", planned_seeds=[0, 1, 2]),
        {"lora": "MISSING (3/4)", "decoder": "21.0 ± 1.0 (3)"},
    ),
    "results of one cell and seed are a conflict and no number": (
        [record(0.1 + place, benchmark="sbu", rules={"image_size": 64 + place}) for place in (0, 0.1, 0.2)],
        {"lora": "CONFLICT (0/1)"},
    ),
    "a result takes the place of a failure of its seed": (
        [failed("OOM", 0, rules={"image_size": 64}), record(0.1, benchmark="sbu", rules={"image_size": 65})],
        {"lora": "10.0 (1)"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CELLS)
def test_cells_of_the_first_column(case: str) -> None:
    records, cells = CELLS[case]
    page = render(records)
    assert {name: row[0] for name, row in rows(page).items() if name in cells} == cells
    assert ("Bold" in page) == any("**" in cell for cell in cells.values())


def noisy(method: str, *, last: float = 0.09) -> list[Any]:
    values = [0.03, 0.10, last]
    return [record(value, seed=seed, benchmark="sbu", method=method) for seed, value in enumerate(values)]


def test_a_row_that_cannot_be_told_from_the_best_is_marked_as_such() -> None:
    three_rows = three(0.10) + three(0.05, method="decoder") + noisy("full", last=0.08)
    page = rows(render(three_rows))
    assert page["decoder"][0] == "**6.0 ± 1.0 (3)**"
    assert page["full"][0] == "7.0 ± 3.6 (3) ≈"
    assert page["lora"][0] == "<u>11.0 ± 1.0 (3)</u>"
    assert "≈: not significantly different from it" in render(three(0.10) + three(0.05, method="decoder"))


def test_generated_images_rank_nothing_and_the_heading_says_so() -> None:
    made = {"data_note": "generated samples"}
    page = render(three(0.10, **made) + three(0.05, method="decoder", **made))
    assert page.splitlines()[0] == "# demo: generated images, whose numbers rank nothing"
    assert rows(page)["decoder"][0] == "6.0 ± 1.0 (3)"
    assert "is best" not in page
    assert "rank nothing" not in render(three(0.10))


def test_a_row_without_the_seed_that_was_bad_for_the_other_is_compared_on_those_that_both_have() -> None:
    lora = [record(value, seed=seed, benchmark="sbu") for seed, value in enumerate((0.10, 0.11, 0.30))]
    page = render(lora + three(0.12, method="decoder")[:2])
    assert rows(page)["lora"][0] == "**17.0 ± 11.3 (3)**"
    assert rows(page)["decoder"][0] == "<u>12.5 ± 0.7 (2)</u>"


def test_a_benchmark_that_few_rows_were_run_on_has_a_table_of_its_own() -> None:
    many = [run for name in ("lora", "decoder", "full", "ssf") for run in three(0.1, method=name)]
    page = render([*many, *(record(0.5, seed=seed, benchmark="leaf") for seed in range(3))])
    assert "MISSING" not in page
    main, leaf = (rows(part) for part in page.split("### demo · tiny: Leaf"))
    assert list(main) == ["method", "full", "decoder", "ssf", "lora"]
    assert main["method"] == ["SBU BER ↓", "params (M)", "encoder (M)"]
    assert list(leaf) == ["method", "lora"]
    assert leaf["method"][0] == "Leaf IoU ↑"


def test_a_row_that_was_planned_for_a_benchmark_and_did_not_come_is_missing_there() -> None:
    planned: dict[str, Any] = {"planned_benchmarks": ["sbu", "leaf"], "planned_seeds": [0]}
    kinds: dict[str, Any] = {"benchmark": "sbu", **planned}
    runs = [record(method="decoder", **kinds), record(**kinds), record(benchmark="leaf", **planned)]
    page = rows(render([*runs, record(method="full", benchmark="sbu")]))
    assert page["decoder"][:2] == ["90.0 (1)", "MISSING (0/1)"]
    assert page["full"][:2] == ["90.0 (1)", "–"]


def test_tables_stand_in_the_order_of_what_they_say_and_no_two_headings_are_alike() -> None:
    small = record(benchmark="sbu", protocol_hash="0000", rules={"image_size": 32, "warmup": 3})
    other = record(benchmark="sbu", protocol_hash="0001", rules={"image_size": 32, "warmup": 5})
    page = render([small, other, *three(0.1), *three(0.2, method="full")])
    headings = [line for line in page.splitlines() if line.startswith("## ")]
    assert headings == ["## demo · tiny", "## demo · tiny · 32 px, warmup 3", "## demo · tiny · 32 px, warmup 5"]


@pytest.mark.parametrize("style", ["markdown", "latex", "text"])
def test_a_page_says_what_was_run_instead_of_the_card(style: Any) -> None:
    rules = {**CARD, "image_size": 32, "epochs": 1}
    changed = record(benchmark="sbu", rules=rules)
    other = record(benchmark="leaf", rules={**rules, "loss": "bce"})
    page = " ".join(render([changed, other], style=style, width=1000).replace("\\_", "_").split())
    assert "with epochs 1 instead of nothing, image_size 32 instead of 64; on leaf loss bce instead of nothing" in page
    assert "no card of the harness" in render([record(protocol="mine")])
    assert " with " not in render([record(rules=CARD)]).split("- Backbone")[0]


def test_csv_is_long_and_tidy() -> None:
    oom = record(seed=1, benchmark="leaf", code="OOM", parameters={})
    six: dict[str, Any] = {"config": {"rank": 6}, "changed": {"rank": 6}}
    leaf = record(0.5, benchmark="leaf", rules={"image_size": 32}, checkpoint="sha256-00", **six)
    table = list(csv.DictReader(io.StringIO(render([*three(0.1), oom, leaf], style="csv"))))
    (cell,) = [row for row in table if row["quantity"] == "score" and row["metric"] == "ber"]
    said = {"n": "3", "mean": "0.11", "sd": "0.01", "median": "0.11", "protocol_hash": "aaaa0000aaaa0000"}
    said |= {"backbone": "tiny", "benchmark": "sbu", "split": "test"}
    assert said.items() <= cell.items()
    assert float(cell["low"]) == pytest.approx(0.11 - 4.30265 * 0.01 / 3**0.5, abs=1e-6)
    (gap,) = [row for row in table if row["code"] and row["metric"] == "iou"]
    assert (gap["code"], gap["mean"], gap["n"], gap["seeds"], gap["planned"]) == ("OOM", "", "0", "", "1")
    assert {row["chosen"] for row in table} == {""}
    trials = [{"options": {"lr": 0.003}, "score": 0.1}]
    tuning = {"chosen": {"lr": 0.003}, "edge": [], "trials": trials, "metric": "ber", "on": ["sbu"], "hours": 1.0}
    tuned = csv.DictReader(io.StringIO(render(three(0.1, tuning=tuning), style="csv")))
    assert {row["chosen"] for row in tuned if row["quantity"] == "score"} == {'{"lr": 0.003}'}
    (changed,) = [row for row in table if row["options"] and row["quantity"] == "score" and row["n"] == "1"]
    assert (changed["method"], changed["options"], changed["checkpoint"]) == ("lora", '{"rank": 6}', "sha256-00")
    assert changed["overrides"].startswith("image_size 32 instead of 64")
    assert {row["mean"] for row in table if row["quantity"] == "trained parameters"} == {"3616128"}
    differing = study(entries=["lora", "decoder"], seeds=3, table={"baseline": "lora"})
    text = render(three(0.1) + three(0.08, method="decoder"), study=differing, style="csv")
    (difference,) = [row for row in csv.DictReader(io.StringIO(text)) if row["quantity"] == "difference to lora"]
    assert (difference["row"], difference["n"], difference["mean"]) == ("decoder", "3", "0.02")


def test_a_search_that_never_starts_is_said() -> None:
    def page(epochs: int, **config: Any) -> str:
        stagewise = {"rank": 3, "stagewise": True, "search_start_epoch": 20, **config}
        return render([record(method="naslora", config=stagewise, rules={"epochs": epochs})])

    said = "naslora: a control without a search: it would begin after T_B = 20 of {} epochs."
    for epochs in (5, 20):
        assert said.format(epochs) in page(epochs)
    for without in (page(21), page(5, stagewise=False), page(5, operations="skip_connect")):  # one operation has no α
        assert "without a search" not in without


def test_a_terminal_gets_aligned_tables_that_fit() -> None:
    benchmarks = [("kvasir", "s_measure"), ("leaf", "iou"), ("sbu", "ber"), ("road", "iou"), ("camo", "weighted_f")]
    records = [
        record(0.5 + 0.01 * seed, seed=seed, benchmark=name, metric=metric, method=method)
        for name, metric in benchmarks for seed in range(3) for method in ("lora", "decoder")
    ]  # fmt: skip
    for width in (80, 140):
        lines = render(records, style="text", width=width).splitlines()
        assert max(map(len, lines)) <= width
        body = [line for line in lines if line.startswith(("lora ", "decoder "))]
        parts = {80: 4, 140: 2}[width]  # the metrics of a benchmark stay together
        assert len(body) == 2 * parts
        for first, second in zip(body[::2], body[1::2], strict=True):
            assert [m.end() for m in re.finditer(r"\(3\)", first)] == [m.end() for m in re.finditer(r"\(3\)", second)]


def test_two_protocol_hashes_and_two_splits_of_one_benchmark_never_share_a_column() -> None:
    page = render([record(0.9, benchmark="leaf"), record(0.1, benchmark="leaf", protocol_hash="bbbb")])
    assert page.count("| method |") == 2
    assert all(said in page for said in ("hash aaaa0000aaaa0000", "hash bbbb", "90.0 (1)", "10.0 (1)"))
    assert "50.0" not in page
    splits = rows(render([record(0.9, benchmark="sbu"), record(0.1, benchmark="sbu", manifest="other")]))
    assert splits["method"][:2] == ["SBU #manife BER ↓", "SBU #other BER ↓"]
    assert splits["lora"][:2] == ["90.0 (1)", "10.0 (1)"]


def test_one_configuration_under_two_names_is_one_row_and_two_under_one_name_are_two() -> None:
    """A study's label and the method's own name: the sweep that came first has named the run."""
    same = [record(0.9, benchmark="sbu"), record(0.8, benchmark="leaf", variant="LoRA r=3")]
    assert list(rows(render(same))) == ["method", "lora"]
    six: dict[str, Any] = {"config": {"rank": 6}, "changed": {"rank": 6}}
    same = [record(benchmark="sbu", variant=name, seed=seed, **six) for seed, name in enumerate(("r=6", "LoRA r=6"))]
    assert list(rows(render(same))) == ["method", "lora[rank=6]"]
    page = rows(render([record(0.9, benchmark="sbu"), record(0.1, benchmark="sbu", config={"rank": 6})]))
    assert len([label for label in page if label.startswith("lora #")]) == 2


def test_only_a_gpus_memory_is_a_cost_that_a_sweep_can_tell_beside_parameters() -> None:
    cost = {"step_time_s": 0.25, "peak_memory_bytes": 3 * 2**29}
    on_gpu = render([record(cost=cost, environment={"driver": "12.4"})])
    assert rows(on_gpu)["lora"][-3:] == ["3.616", "0.111", "1.50"]
    assert "step" not in on_gpu, "the step time of a sweep says nothing"
    assert "peak" not in render([record(cost=cost)]), "nor does a CPU's memory"


def test_data_notes_and_image_counts_are_in_the_header() -> None:
    page = render([record(data_note="352 px copy"), record(benchmark="leaf")])
    assert "- Kvasir-SEG (352 px copy): 20/4/8 training/validation/test images; split: official" in page
    assert "| Kvasir-SEG (352 px copy) Sα ↑ |" in page


def test_rows_from_other_copies_of_the_images_are_told_apart_below_the_table() -> None:
    def page_of(*fingerprints: str) -> str:
        return render([
            replace(made, run=replace(made.run, data_fingerprint=mark))
            for made, mark in zip((record(method="lora"), record(method="decoder")), fingerprints, strict=True)
        ])  # fmt: skip

    said = "runs of one split read files of different sizes, so these rows are not of the same data (aaaa: lora; bbbb: decoder)"
    assert f"Kvasir-SEG: {said}." in page_of("aaaa", "bbbb")
    assert "files of different sizes" not in page_of("aaaa", "aaaa") + page_of("", "bbbb")


def test_a_dagger_needs_a_difference_in_code_that_makes_numbers() -> None:
    def page_of(method: str = "m", **environment: str) -> str:
        """Of LoRA by other code or by none that is told, then the decoder alone."""
        told = {"numbers": "a", "numbers_method": method, "numbers_benchmark": "s"}
        first = record(environment={"commit": "a" * 40, **told, **environment}, finished="2026-01-01")
        last: dict[str, Any] = {
            "environment": {"commit": "b" * 40, **told, "numbers_method": "m"},
            "finished": "2026-01-02",
        }
        return render([first, record(method="decoder", **last)])

    assert "†" not in page_of(), "only comments moved, or rooms that make no number"
    assert "†" not in page_of(method="other"), "another method's file"
    for changed, why in (
        ({"numbers": "other"}, "† some runs were made by other code"),
        ({"numbers_benchmark": "other"}, "† some runs were made by other code"),
        ({"begun_by": "a b d"}, "begun by other code"),
    ):
        page = page_of(**changed)
        assert "| lora † |" in page
        assert "| decoder |" in page
        assert why in page


def test_records_that_do_not_tell_their_code_are_named_once() -> None:
    old = record(environment={"commit": "a" * 40}, finished="2026-01-01")
    page = render([old, record(method="decoder", environment={"commit": "b" * 40}, finished="2026-01-02")])
    assert "†" not in page
    assert "Other versions of the code (aaaaaaaaaa) made some of these runs" in page


def test_selection_on_the_test_split_is_labelled() -> None:
    page = render([record(rules={"quirks": {"selection": "released"}})])
    assert "| lora ‡ |" in page
    assert "selected on the test split" in page


def test_every_format_is_the_same_bytes_whatever_the_order_of_the_records() -> None:
    records = three(0.1) + three(0.05, method="decoder") + [record(), record(protocol_hash="bbbb")]
    for style in ("markdown", "latex", "csv", "text"):
        pages = set()
        for seed in range(5):
            shuffled = list(records)
            random.Random(seed).shuffle(shuffled)
            pages.add(render(shuffled, style=style))
        assert len(pages) == 1


def test_latex_escapes_and_marks() -> None:
    page = render(three(0.10, variant="lora[rank=6]_a&b") + three(0.05, method="decoder"), style="latex")
    assert r"lora{[}rank=6{]}\_a\&b" in page
    assert r"\textbf{6.0 $\pm$ 1.0 (3)}" in page
    assert page.count(r"\begin{tabular}") == page.count(r"\end{tabular}") == 1


def entries_of(*ranks: int) -> list[dict[str, Any]]:
    return [{"label": f"r={rank}", "method": "lora", "options": {"rank": rank}} for rank in ranks]


def study(**changes: Any) -> Any:
    data = {
        "title": "Rank",
        "protocol": "demo",
        "benchmarks": ["sbu"],
        "seeds": 1,
        "entries": entries_of(3, 6),
        **changes,
    }
    return study_from_dict(data, name="rank")


SIX: dict[str, Any] = {"config": {"rank": 6}, "changed": {"rank": 6}}


def test_a_study_finds_its_rows_by_configuration_and_shows_the_rows_and_seeds_that_are_not_there() -> None:
    base, six = record(0.1, benchmark="sbu", variant="anything"), record(0.2, benchmark="sbu", **SIX)
    both = {"rank": 6, "alpha": 1.0}
    page = rows(render([base, six, record(0.3, benchmark="sbu", config=both, changed=both)], study=study()))
    assert [page[name][0] for name in ("r=3", "r=6")] == ["10.0 (1)", "20.0 (1)"]
    page = rows(render([base], study=study(seeds=2)))
    assert [page[name][0] for name in ("r=3", "r=6")] == ["MISSING (1/2)", "MISSING (0/2)"]
    assert "- made up\n" in render([base], study=study(note="made up"))


def test_one_command_sets_what_another_tuned_and_a_study_shows_both_in_one_table() -> None:
    """A hash is of the card before a rate is tuned: equal rules stood in two tables, each with the other's rows missing."""
    two = study(entries=["lora", "decoder"], benchmarks=["kvasir"], seeds=3)
    rules = {**record().run.rules, "decoder_lr": 1e-4}
    tuned = [record(method="lora", seed=seed, rules=rules) for seed in range(3)]
    by_set = [record(method="decoder", seed=seed, rules=rules, protocol_hash="b" * 16) for seed in range(3)]
    page = render([*tuned, *by_set], study=two)
    assert "MISSING" not in page
    assert page.count("| lora") == 1
    other = [record(method="decoder", seed=seed, protocol_hash="b" * 16) for seed in range(3)]
    assert "MISSING" in render([*tuned, *other], study=two)
    # Equal on one benchmark of two: a table is not torn, neither command's.
    both = study(entries=["lora", "decoder"], benchmarks=["kvasir", "camo"], seeds=3)
    elsewhere = {**rules, "decoder_lr": 3e-4}
    tuned += [record(method="lora", benchmark="camo", seed=seed, rules=elsewhere) for seed in range(3)]
    by_set += [
        record(method="decoder", benchmark="camo", seed=seed, rules=rules, protocol_hash="b" * 16) for seed in range(3)
    ]
    page = render([*tuned, *by_set], study=both)
    whole = [line.split("|")[1].strip() for line in page.splitlines() if "| " in line and "(3)" in line]
    assert sorted(whole) == ["decoder", "lora"]
    assert not any("MISSING" in line and "(3)" in line for line in page.splitlines())


def test_three_commands_of_equal_rules_share_a_table_where_each_has_a_benchmark_with_the_next() -> None:
    """One trained lora on Kvasir, one on Leaf, and one bitfit on both, with a trial of its own beside them."""
    two = study(
        entries=["lora", "bitfit"],
        benchmarks=["kvasir", "leaf"],
        seeds=3,
        tune={"decoder_lr": [1e-4, 1e-3]},
        tune_seeds=[9],
    )
    rules = {**record().run.rules, "decoder_lr": 1e-4}
    members = [
        record(method=method, benchmark=name, seed=seed, rules=rules, protocol_hash=digest * 16)
        for digest, method, names, seeds in (
            ("a", "lora", ["kvasir"], 8),
            ("b", "lora", ["leaf"], 8),
            ("c", "bitfit", ["kvasir", "leaf"], 3),
        )
        for name in names
        for seed in range(seeds)
    ]
    trial = record(
        method="bitfit", benchmark="leaf", seed=9, rules={**rules, "decoder_lr": 1e-3}, protocol_hash="c" * 16
    )
    page = render([*members, trial], study=two)
    assert "MISSING" not in page
    assert page.count("| lora") == 1
    single = study(
        entries=["lora", "bitfit"], benchmarks=["kvasir"], seeds=1
    )  # whose seed is a trial's by default, too
    pair = [record(method=method, rules=rules, protocol_hash=method[0] * 16) for method in ("lora", "bitfit")]
    assert "MISSING" not in render(pair, study=single)


def test_another_protocol_shows_a_study_only_where_half_of_its_rows_were_run_and_only_what_it_ran() -> None:
    single = study(protocol="nas-lora", benchmarks=["sbu", "leaf"])
    base = record(0.1, benchmark="sbu")
    page = render([base, record(0.2, benchmark="sbu", **SIX)], study=single)
    assert rows(page)["method"][:2] == ["SBU BER ↓", "params (M)"]
    many = study(protocol="nas-lora", entries=entries_of(3, 6, 7))
    assert "No record of this table yet" in render([base], study=many)


@pytest.mark.parametrize(
    ("card", "changed", "shown"),
    [
        ({"decoder": "linear"}, {}, {"linear"}),
        ({}, {}, {"sam"}),
        ({"decoder": "linear"}, {"set": {"decoder": "sam"}}, {"sam"}),
        ({"decoder_lr": 1e-4}, {"decoders": ["sam", "linear"]}, set()),
        ({"decoder_lr": 1e-4}, {"decoders": {"linear": {"decoder_lr": None}}}, {"linear"}),
        (None, {}, {"sam", "linear"}),
    ],
)
def test_a_study_shows_runs_with_the_decoder_of_its_card_where_it_names_none(monkeypatch, card, changed, shown) -> None:
    records = [
        record(0.1, benchmark="sbu", protocol_hash=digest * 16, rules={**CARD, "decoder": decoder, "protocol": digest})
        for decoder, digest in (("sam", "a"), ("linear", "b"))
    ]
    monkeypatch.setattr(RULES, lambda *_: card if card is None else {**CARD, **card})
    page = render(records, study=study(**changed))
    assert {decoder for decoder, digest in (("sam", "a"), ("linear", "b")) if digest * 8 in page} == shown


@pytest.mark.parametrize(
    ("own", "other", "changes", "shown"),
    [
        ([3], [3], {"entries": entries_of(3, 6, 7)}, {"own"}),  # the other is one row of three, run for another study
        ([3], [3, 6], {"entries": entries_of(3, 6, 7)}, {"own", "other"}),
        ([], [3], {"entries": entries_of(3, 6, 7)}, {"other"}),
        ([3], [3], {"entries": entries_of(3), "set": {"epochs": 1}}, {"own"}),  # the other not under what it sets
        ([], [3], {"entries": entries_of(3), "set": {"epochs": 1}}, {"other"}),
    ],
)
@pytest.mark.parametrize("under", ["demo", "mini"])
def test_a_study_shows_runs_under_changed_rules_where_half_of_its_rows_were_run_or_nothing_else(
    monkeypatch, own, other, changes, shown, under
) -> None:
    card = {**CARD, "protocol": "", "epochs": 1}
    runs = [
        record(
            0.1, benchmark="sbu", protocol_hash=digest * 16, config={"rank": rank},
            changed={} if rank == 3 else {"rank": rank}, rules={**card, "epochs": epochs}, protocol=protocol,
        )
        for ranks, digest, epochs, protocol in ((own, "a", 1, "demo"), (other, "b", 2, under))
        for rank in ranks
    ]  # fmt: skip
    monkeypatch.setattr(RULES, lambda *_: card)
    page = render(runs, study=study(**changes))
    expected = shown if own or under == "demo" else set()  # another card's are shown beside the own alone
    assert {name for name, digest in (("own", "a"), ("other", "b")) if digest * 8 in page} == expected


def test_merged_models_are_rows_of_their_own() -> None:
    scores = {"best": {"test": {"ber": 0.1}}, "merged-exact": {"test": {"ber": 0.12}}}
    table = {"scores": ["best", "merged-exact", "merged-conv"]}
    page = rows(render([record(benchmark="sbu", scores=scores)], study=study(table=table)))
    assert page["r=3"][0] == "10.0 (1)"
    assert page["r=3 (merged exact)"][0] == "12.0 (1)"
    assert page["r=3 (merged conv)"][0] == "NO_SCORE (0/1)"


def test_planned_runs_without_a_record_show_as_missing_and_labels_are_the_plans() -> None:
    done = record(0.1, benchmark="sbu", protocol_hash="old")
    other = record(benchmark="sbu", method="decoder", protocol_hash="new").run
    page = render([done, record(method="full")], runs=[replace(done.run, protocol_hash="new"), other])
    assert "hash new" in page
    assert rows(page)["lora"][0] == "10.0 (1)"
    assert rows(page)["decoder"][0] == "MISSING (0/1)"
    assert "full" not in rows(page)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return store_of(tmp_path, three(0.1) + three(0.2, method="decoder")).root


def test_a_terminal_gets_text_in_place_of_markdown_alone(results: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("harness.cli.tables.terminal_width", lambda stream: 80)
    shown = {}
    for form in ("csv", "markdown"):
        assert main(["--results", str(results), "--format", form]) == 0
        shown[form] = capsys.readouterr().out
    assert shown["csv"].encode() == (results / "tables" / "demo.csv").read_bytes()
    assert "|" not in shown["markdown"]


def test_check_tells_a_stale_a_missing_and_an_orphaned_table(results: Path, says) -> None:
    words = ["--results", results]
    assert "run something first" in says(main, "--results", results / "nothing", code=2)
    assert "demo.md: is missing" in says(main, *words, "--check", code=1)
    says(main, *words)
    says(main, *words, "--check")
    page = results / "tables" / "demo.md"
    page.write_text(page.read_text(encoding="utf-8").replace("11.0", "11.1"), encoding="utf-8")
    assert "differs" in says(main, *words, "--check", code=1)
    says(main, *words)
    (results / "tables" / "nobody.md").write_text("# ?\n", encoding="utf-8")
    assert "no record gives this table" in says(main, *words, "--check", code=1)


def test_tables_are_shown_where_they_cannot_be_written(results: Path, capsys) -> None:
    (results / "tables").write_text("a file in the way")
    assert main(["--results", str(results)]) == 2
    shown = capsys.readouterr()
    assert rows(shown.out)["lora"]
    assert shown.err.startswith("error: ")


def test_other_metrics_that_the_records_hold_are_printed_and_not_written(tmp_path: Path, says) -> None:
    """A page shows a benchmark by what its paper reports; a reader may want another of the metrics in the records."""
    store, words = RecordStore(tmp_path), ["--results", tmp_path]
    store.write(record(scores={"best": {"test": {"s_measure": 0.9, "iou": 0.7, "dice": 0.8}}}))
    store.write(record(benchmark="trans10k_v2", scores={"best": {"test": {"miou": 0.6}}}))
    page = rows(says(main, *words, "--metrics", "iou, dice"))
    assert page["method"][:3] == ["Kvasir-SEG IoU ↑", "Kvasir-SEG Dice ↑", "params (M)"]
    assert page["lora"][:2] == ["70.0 (1)", "80.0 (1)"]
    assert not (tmp_path / "tables").exists()
    study, text = tmp_path / "mine.yaml", "title: t\nprotocol: demo\nbenchmarks: [kvasir]\nentries: [lora]\nseeds: 1\n"
    study.write_text(text)
    by_option = says(main, *words, "--study", study, "--metrics", "dice").splitlines()
    study.write_text(text + "table: {metrics: [dice]}\n")
    assert says(main, *words, "--study", study).splitlines()[:-1] == by_option[:-1]  # the last is what was written
    assert any("80.0 (1)" in line for line in by_option)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--metrics", "iouu"], "no record holds a metric 'iouu' (did you mean"),
        (["--metrics", ""], "no record holds a metric ''"),
        (["--metrics", "ber", "--check"], "nothing to --check"),
        (["--metrics", "ber", "--study", "cost"], "shows costs, no metrics"),
    ],
)
def test_metrics_that_cannot_be_shown_are_one_line(results: Path, words: list[str], message: str, says) -> None:
    RecordStore(results).write(record(benchmark="leaf"))
    assert message in says(main, "--results", results, *words, code=2)


def test_tables_import_no_library_of_numbers_or_pictures_and_help_is_quick() -> None:
    """Nor do the names of studies, and the help of the report."""
    script = """
import sys, time, harness.cli.tables as tables
heavy = {"torch", "pandas", "scipy", "numpy", "matplotlib", "mmengine"}
quick, early = time.process_time() < 1, sorted(heavy & set(sys.modules))
tables.main(["--study", "list"])
from harness.cli import report, status
report.parser().format_help()
print(quick, early, sorted({"torch", "pandas", "matplotlib"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    *studies, told = done.stdout.splitlines()
    assert (len(studies), told) == (len(study_names()), "True [] []")


@on_linux
@pytest.mark.slow
def test_four_thousand_records_make_their_tables_in_seconds_and_300_mb(tmp_path: Path) -> None:
    """100 configurations x 8 benchmarks x 5 seeds, each record with an epoch history as long as a real one's."""
    (tmp_path / "records").mkdir()
    store = RecordStore(tmp_path)
    epoch = {"loss": 0.123456789, "lr": 1e-4, "val": {"iou": 0.5, "dice": 0.6}, "seconds": 12.3}
    rules = {f"rule_{n}": "a value" for n in range(60)}
    sample = record(benchmark="leaf", rules=rules, history=[{"epoch": number, **epoch} for number in range(1, 41)])
    content = json.loads(store.write(sample).read_text(encoding="utf-8"))
    store.path(sample.key).unlink()
    for config, benchmark, seed in itertools.product(range(100), range(8), range(5)):
        run = content["run"]
        run.update(seed=seed, variant=f"lora{config}", benchmark=f"b{benchmark}")
        run["method_config"]["rank"] = config
        content["key"] = Run(**run).key
        store.path(content["key"]).write_bytes(sealed(content))
    script = (
        "import re, sys, time\n"
        "from harness.cli.tables import main\n"
        "main(['--results', sys.argv[1]])\n"
        # Not getrusage: its peak counts what the parent held when it forked.
        "peak = re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]\n"
        "print(time.process_time(), int(peak) / 1024, file=sys.stderr)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    # Time of the processor, so that other jobs on the machine do not count.
    seconds, megabytes = map(float, done.stderr.splitlines()[-1].split())
    assert done.stdout.count("90.0 ± 0.0 (5)") == 800
    assert megabytes < 300, megabytes
    assert seconds < 5, seconds


def test_updates_are_shown_where_rows_of_a_benchmark_differ_and_nowhere_else() -> None:
    searched = {"weight_updates": 40.0, "alpha_updates": 20.0}
    same = [record(budget={"weight_updates": 60.0}), record(method="decoder", budget={"weight_updates": 60.0})]
    fewer = [same[0], record(method="naslora", config={"rank": 3}, budget=searched)]
    elsewhere = [same[0], record(benchmark="leaf", budget={"weight_updates": 30.0})]
    assert "updates" not in render(same)
    assert "updates" not in render(elsewhere)
    assert rows(render(fewer))["naslora"][-1] == "40 + 20 α"
    assert "updates: of the weights" in render(fewer)


def test_a_row_that_names_a_rate_shows_its_runs_whatever_a_tuning_made_of_them() -> None:
    grid = {"grid": {"lr": [1e-3, 1e-2]}}
    told = {"chosen": {"lr": 1e-3}, "trials": [], "edge": [], "metric": "s_measure", "on": ["kvasir"], "hours": 0.1}
    chosen = {**grid, **told}
    rates: dict[str, Any] = {"config": {"lr": 1e-3}, "changed": {"lr": 1e-3}}
    lost = record(0.5, config={"lr": 1e-2}, changed={"lr": 1e-2}, tuning=grid)
    records = [record(0.8, tuning=chosen, **rates), record(0.9, seed=1, **rates), lost]
    entries = [
        {"label": "named", "method": "lora", "options": {"lr": 1e-3}},
        {"label": "lost", "method": "lora", "options": {"lr": 1e-2}},
        {"label": "tuned", "method": "lora"},
    ]
    page = rows(render(records, study=study(entries=entries, seeds=2, benchmarks=["kvasir"])).partition(": tuned")[0])
    assert page["named"][0] == "85.0 ± 7.1 (2)"
    assert page["lost"][0] == "MISSING (1/2)"
    assert next(cells for name, cells in page.items() if name.startswith("tuned"))[0] == "MISSING (1/2)"


def test_a_benchmark_is_called_by_its_own_title_everywhere_and_imported_for_it_nowhere() -> None:
    for name in (*SEGMENTED, *LABELLED):
        assert benchmark_title(name) == BENCHMARKS.get(name).title
    older = record(benchmark="cvc612", benchmark_title="CVC-ClinicDB")
    foreign = record(benchmark="cells", benchmark_title="Cells of a plug-in")
    assert benchmark_title("cvc612", [older.run]) == "CVC-612"
    page = render([foreign, record(method="full", benchmark="cells", benchmark_title="Cells of a plug-in")])
    assert "Cells of a plug-in Sα ↑" in page
    assert "Sα on cells" not in page
    assert benchmark_title("cells", [foreign.run]) == "Cells of a plug-in"


def test_a_benchmark_whose_runs_all_drew_nothing_is_headed_by_what_it_would_be_scored_by() -> None:
    blank = record(benchmark="organs", code="BLANK", scores={}, benchmark_metrics=["miou", "accuracy"])
    assert rows(render([blank]))["method"][0] == "organs mIoU ↑"
