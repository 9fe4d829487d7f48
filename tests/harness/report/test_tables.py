"""Tables say what the records say, and nothing else."""

from __future__ import annotations

import csv
import io
import json
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.archive.archive import Archive
from harness.archive.files import sealed
from harness.archive.schema import Run
from harness.archive.store import RecordStore
from harness.cli.tables import main
from harness.comparison.names import benchmark_title
from harness.registry import BENCHMARKS, LABELLED, SEGMENTED
from harness.report.findings import MARK
from harness.report.pages import pages_below
from harness.report.score_tables import NOT_PLANNED
from harness.studies import study_from_dict
from harness.system.errors import UsageError
from tests.harness.report.sample import CARD, record, render, table_rows

RULES = "harness.comparison.rules.card_rules"
"""Where pages find the harness's own cards."""
REPOSITORY = Path(__file__).parents[3]


def rows(page: str) -> dict[str, list[str]]:
    """Row label -> cells of the only table of a markdown page; the heading row under ``method``."""
    return {row[0]: row[1:] for row in table_rows(page)}


def three(value: float, **changes: Any) -> list[Any]:
    return [record(value + 0.01 * seed, seed=seed, benchmark="sbu", **changes) for seed in range(3)]


@pytest.mark.parametrize(("values", "cell"), [((0.9, 0.91, 0.95), "92.0 ± 2.6 (3)"), ((0.5,), "50.0 (1)")])
def test_a_cell_is_mean_and_sd_with_ddof_1_over_seeds_in_percent(values: tuple[float, ...], cell: str) -> None:
    """SD with ddof 1: 2.646; with ddof 0 it were 2.160; none of a single run."""
    page = render([record(value, seed=seed, benchmark="leaf") for seed, value in enumerate(values)])
    assert rows(page)["lora"][0] == cell


def test_best_is_bold_and_second_underlined_and_lower_is_better_for_error_rates() -> None:
    page = rows(render(three(0.10) + three(0.05, method="decoder") + three(0.20, method="full")))
    assert page["lora"][0] == "<u>11.0 ± 1.0 (3)</u>"
    assert page["decoder"][0] == "**6.0 ± 1.0 (3)**"
    assert page["full"][0] == "21.0 ± 1.0 (3)"


def noisy(method: str, *, last: float = 0.09) -> list[Any]:
    values = [0.03, 0.10, last]
    return [record(value, seed=seed, benchmark="sbu", method=method) for seed, value in enumerate(values)]


def test_a_row_that_cannot_be_told_from_the_best_is_marked_as_such() -> None:
    three_rows = three(0.10) + three(0.05, method="decoder") + noisy("full", last=0.08)
    page = rows(render(three_rows))
    assert page["decoder"][0] == "**6.0 ± 1.0 (3)**"
    assert page["full"][0] == "7.0 ± 3.6 (3) ≈"
    assert page["lora"][0] == "<u>11.0 ± 1.0 (3)</u>"
    five = render(three_rows + three(0.055, method="ssf") + noisy("vpt"))
    assert "- SBU BER: decoder is best (6.0); not distinguishable from it: full and vpt; 2 are worse, from" in five
    assert "≈: cannot be told from it" in render(three(0.10) + three(0.05, method="decoder"))


def test_what_is_worse_is_worse_than_the_best_before_rounding() -> None:
    """Of two that print alike the first varies, and nothing can be told from it."""
    values = {"lora": [0.900, 0.912, 0.9234], "naslora": [0.9118, 0.9120, 0.9122], "convlora": [0.91, 0.9102, 0.9104]}
    runs = [record(one, seed=seed, method=name) for name, mine in values.items() for seed, one in enumerate(mine)]
    assert "are best (91.2); convlora (by 0.2 [0.2, 0.2] points) is worse." in render(runs)


def test_a_label_with_commas_of_its_own_stands_in_quotation_marks() -> None:
    records = three(0.10, variant="all eight, searched") + three(0.05, method="decoder") + noisy("full")
    assert "full; “all eight, searched” (by 5.0 [" in render(records)


def test_rows_that_tie_at_the_printed_digit_share_the_mark() -> None:
    tied = three(0.05001, method="decoder") + three(0.1, method="full") + three(0.10004, method="ssf")
    page = rows(render(three(0.05) + tied))
    assert page["lora"][0] == page["decoder"][0] == "**6.0 ± 1.0 (3)**"
    assert page["full"][0] == page["ssf"][0] == "<u>11.0 ± 1.0 (3)</u>"


def test_single_runs_rank_nothing() -> None:
    page = render([record(0.9), record(0.1, method="decoder")])
    assert rows(page)["lora"][0] == "90.0 (1)"
    assert "is best" not in page
    assert "Bold" not in page


def test_generated_images_rank_nothing_and_the_heading_says_so() -> None:
    made = {"data_note": "generated samples"}
    page = render(three(0.10, **made) + three(0.05, method="decoder", **made))
    assert page.splitlines()[0] == "# demo: generated images, whose numbers rank nothing"
    assert rows(page)["decoder"][0] == "6.0 ± 1.0 (3)"
    assert "is best" not in page
    assert "rank nothing" not in render(three(0.10))


def test_the_page_answers_first() -> None:
    worse = three(0.20, method="full") + three(0.30, method="ssf")
    lines = render(three(0.10) + three(0.05, method="decoder") + worse).splitlines()
    (answer,) = [line for line in lines[: lines.index("## demo · tiny")] if line.startswith("- ")]
    assert answer == (
        "- SBU BER: decoder is best (6.0); 3 are worse, from lora (by 5.0 [5.0, 5.0] points) to ssf (by 25.0 [25.0, 25.0])."
    )


def test_what_was_not_planned_is_explained_where_it_is_shown() -> None:
    whole = three(0.10) + three(0.05, method="decoder")
    assert NOT_PLANNED not in render(whole)
    assert NOT_PLANNED in render([*whole, record(0.5, benchmark="leaf")])


def test_a_row_with_a_seed_missing_is_never_best() -> None:
    page = rows(render(three(0.10) + three(0.05, method="decoder")[:2] + three(0.20, method="full")))
    assert page["decoder"][0] == "MISSING (2/3)"
    assert page["lora"][0].startswith("**")


def test_no_mean_is_taken_over_a_gap_and_the_reason_is_shown() -> None:
    failed = [
        record(seed=2, benchmark="sbu", code="OOM", method="decoder"),
        record(seed=1, benchmark="sbu", code="TIMEOUT", method="full"),
    ]
    page = rows(render(three(0.10) + three(0.05, method="decoder")[:2] + failed))
    assert page["decoder"][0] == "OOM (2/3)"
    assert (
        page["full"][0] == "MISSING/TIMEOUT (0/3)"
    )  # the seeds of most rows: older records do not say what was planned


def test_one_seed_more_of_one_method_blanks_no_other() -> None:
    page = render([*three(0.10), record(0.1, seed=3, benchmark="sbu"), *three(0.2, method="decoder")])
    assert rows(page)["lora"][0] == "**10.8 ± 1.0 (4)**"
    assert rows(page)["decoder"][0] == "<u>21.0 ± 1.0 (3)</u>"
    assert "n stands in each cell" in page


def test_a_row_without_the_seed_that_was_bad_for_the_other_is_compared_on_those_that_both_have() -> None:
    bad = {"lora": (0.10, 0.11, 0.30), "decoder": (0.12, 0.13)}
    page = render([
        record(value, seed=seed, benchmark="sbu", method=method)
        for method, values in bad.items()
        for seed, value in enumerate(values)
    ])  # fmt: skip
    cells = rows(page)
    assert cells["lora"][0] == "**17.0 ± 11.3 (3)**"
    assert cells["decoder"][0] == "<u>12.5 ± 0.7 (2)</u>"
    assert "SBU BER: lora is best (17.0); decoder (by 2.0 [2.0, 2.0] points) is worse." in page


def test_the_seeds_that_are_missing_are_those_that_a_sweep_planned() -> None:
    planned = {"planned_seeds": [0, 1, 2, 3], "planned_benchmarks": ["sbu"]}
    page = rows(render(three(0.10, **planned) + three(0.2, method="decoder", planned_seeds=[0, 1, 2])))
    assert page["lora"][0] == "MISSING (3/4)"
    assert page["decoder"][0] == "21.0 ± 1.0 (3)"


def test_a_benchmark_that_few_rows_were_run_on_has_a_table_of_its_own() -> None:
    many = [one for name in ("lora", "decoder", "full", "ssf") for one in three(0.1, method=name)]
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
    found = [record(method="decoder", **kinds), record(**kinds), record(benchmark="leaf", **planned)]
    page = rows(render([*found, record(method="full", benchmark="sbu")]))
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
    one = record(benchmark="sbu", rules=rules)
    other = record(benchmark="leaf", rules={**rules, "loss": "bce"})
    page = " ".join(render([one, other], style=style, width=1000).replace("\\_", "_").split())
    assert "with epochs 1 instead of nothing, image_size 32 instead of 64; on leaf loss bce instead of nothing" in page
    assert "no card of the harness" in render([record(protocol="mine")])
    assert " with " not in render([record(rules=CARD)]).split("- Backbone")[0]


def test_csv_is_long_and_tidy() -> None:
    failed = record(seed=1, benchmark="leaf", code="OOM")
    six: dict[str, Any] = {"config": {"rank": 6}, "changed": {"rank": 6}}
    one = record(0.5, benchmark="leaf", rules={"image_size": 32}, checkpoint="sha256-00", **six)
    found = list(csv.DictReader(io.StringIO(render([*three(0.1), failed, one], style="csv"))))
    (cell,) = [row for row in found if row["quantity"] == "score" and row["metric"] == "ber"]
    assert (cell["n"], cell["mean"], cell["sd"], cell["median"]) == ("3", "0.11", "0.01", "0.11")
    assert float(cell["low"]) == pytest.approx(0.11 - 4.30265 * 0.01 / 3**0.5, abs=1e-6)
    place = {"protocol_hash": "aaaa0000aaaa0000", "backbone": "tiny", "benchmark": "sbu", "split": "test"}
    assert place.items() <= cell.items()
    (gap,) = [row for row in found if row["code"] and row["metric"] == "iou"]
    assert (gap["code"], gap["mean"], gap["n"], gap["seeds"], gap["planned"]) == ("OOM", "", "0", "", "1")
    (changed,) = [row for row in found if row["options"] and row["quantity"] == "score" and row["n"] == "1"]
    assert (changed["method"], changed["options"], changed["checkpoint"]) == ("lora", '{"rank": 6}', "sha256-00")
    assert changed["overrides"].startswith("image_size 32 instead of 64")
    assert {row["mean"] for row in found if row["quantity"] == "trained parameters"} == {"3616128"}


def test_csv_holds_paired_differences_too() -> None:
    entries = ["lora", "decoder"]
    one = study(entries=entries, seeds=3, table={"baseline": "lora"})
    text = render(three(0.1) + three(0.08, method="decoder"), study=one, style="csv")
    found = list(csv.DictReader(io.StringIO(text)))
    (difference,) = [row for row in found if row["quantity"] == "difference to lora"]
    assert (difference["row"], difference["n"], difference["mean"]) == ("decoder", "3", "0.02")


def test_a_search_that_never_starts_is_said() -> None:
    def page(epochs: int, **config: Any) -> str:
        stagewise = {"rank": 3, "stagewise": True, "search_start_epoch": 20, **config}
        return render([record(method="naslora", config=stagewise, rules={"epochs": epochs})])

    assert "naslora: T_B = 20 lies not before the end of 20 epochs, so its architecture never trains." in page(20)
    assert "never trains" not in page(21)
    assert "never trains" not in page(5, stagewise=False)
    assert "never trains" not in page(5, operations="skip_connect"), "a single operation has no α"


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


def test_two_protocol_hashes_never_share_a_column() -> None:
    page = render([record(0.9, benchmark="leaf"), record(0.1, benchmark="leaf", protocol_hash="bbbb")])
    assert page.count("| method |") == 2
    assert all(said in page for said in ("hash aaaa0000aaaa0000", "hash bbbb", "90.0 (1)", "10.0 (1)"))
    assert "50.0" not in page


def test_two_splits_of_one_benchmark_never_share_a_column() -> None:
    page = rows(render([record(0.9, benchmark="sbu"), record(0.1, benchmark="sbu", seed=1, manifest="other")]))
    assert page["method"][:2] == ["SBU #manife BER ↓", "SBU #other BER ↓"]
    assert page["lora"][:2] == ["90.0 (1)", "10.0 (1)"]


def test_two_configurations_under_one_label_get_rows_of_their_own() -> None:
    page = rows(render([record(0.9, benchmark="sbu"), record(0.1, benchmark="sbu", config={"rank": 6})]))
    assert len([label for label in page if label.startswith("lora #")]) == 2


def test_one_configuration_under_two_names_is_one_row() -> None:
    """A study's label and the method's own name: the sweep that came first has named the run."""
    same = [record(0.9, benchmark="sbu"), record(0.8, benchmark="leaf", variant="LoRA r=3")]
    assert list(rows(render(same))) == ["method", "lora"]
    six: dict[str, Any] = {"config": {"rank": 6}, "changed": {"rank": 6}}
    same = [record(benchmark="sbu", variant=name, seed=seed, **six) for seed, name in enumerate(("r=6", "LoRA r=6"))]
    assert list(rows(render(same))) == ["method", "lora[rank=6]"]


def test_two_results_of_one_cell_and_seed_are_a_conflict_and_no_number() -> None:
    one, other = (record(value, benchmark="sbu", rules={"image_size": size}) for value, size in ((0.1, 64), (0.2, 65)))
    assert rows(render([one, other]))["lora"][0] == "CONFLICT (0/1)"
    third = record(0.1, benchmark="sbu", rules={"image_size": 66})
    assert rows(render([one, other, third]))["lora"][0] == "CONFLICT (0/1)"


def test_a_result_takes_the_place_of_a_failure_of_its_seed() -> None:
    failed = record(code="OOM", benchmark="sbu", rules={"image_size": 64})
    result = record(0.1, benchmark="sbu", rules={"image_size": 65})
    assert rows(render([failed, result]))["lora"][0] == rows(render([result]))["lora"][0]


def test_parameters_are_shown_with_and_without_the_mask_decoder() -> None:
    page = rows(render([record()]))
    at = page["method"].index("params (M)")
    assert page["lora"][at : at + 2] == ["3.616", "0.111"]


def test_only_a_gpus_memory_is_a_cost_that_a_sweep_can_tell() -> None:
    cost = {"step_time_s": 0.25, "peak_memory_bytes": 3 * 2**29}
    on_gpu = render([record(cost=cost, environment={"driver": "12.4"})])
    assert rows(on_gpu)["lora"][-1] == "1.50"
    assert "step" not in on_gpu, "the step time of a sweep says nothing"
    assert "peak" not in render([record(cost=cost)]), "nor does a CPU's memory"


def test_data_notes_and_image_counts_are_in_the_header() -> None:
    page = render([record(data_note="352 px copy"), record(benchmark="leaf")])
    assert "- Kvasir-SEG (352 px copy): 20/4/8 training/validation/test images; split: official" in page
    assert "| Kvasir-SEG (352 px copy) Sα ↑ |" in page


def test_a_dagger_needs_a_difference_in_code_that_makes_numbers() -> None:
    def made(method: str, day: int, **environment: str) -> Any:
        told = {"commit": str(day) * 40, "numbers": "a", "numbers_method": method, "numbers_benchmark": "s"}
        return record(method=method, environment=told | environment, finished=f"2026-01-0{day}", benchmark="sbu")

    page = render([made("lora", 1), made("decoder", 2)])
    assert "†" not in page, "only comments moved, or rooms that make no number"
    for part in ("numbers", "numbers_benchmark"):
        page = render([made("lora", 1, **{part: "other"}), made("decoder", 2)])
        assert "| lora † |" in page
        assert "| decoder |" in page
        assert "† some runs were made by other code" in page
    assert "†" not in render([made("lora", 1, numbers_method="other"), made("decoder", 2)]), "another method's file"


def test_a_run_that_other_code_began_is_marked() -> None:
    told = {"numbers": "a", "numbers_method": "b", "numbers_benchmark": "c"}
    rows = [record(environment={**told, "begun_by": "a b d"}), record(method="decoder", environment=told)]
    page = render(rows)
    assert "| lora † |" in page
    assert "| decoder |" in page
    assert "begun by other code" in page


def test_records_that_do_not_tell_their_code_are_named_once() -> None:
    old = record(environment={"commit": "a" * 40}, finished="2026-01-01")
    new = record(method="decoder", environment={"commit": "b" * 40}, finished="2026-01-02")
    page = render([old, new])
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


def study(**changes: Any) -> Any:
    entries = [
        {"label": "r=3", "method": "lora", "options": {"rank": 3}},
        {"label": "r=6", "method": "lora", "options": {"rank": 6}},
    ]
    data = {"title": "Rank", "protocol": "demo", "benchmarks": ["sbu"], "seeds": 1, "entries": entries, **changes}
    return study_from_dict(data, name="rank")


def test_a_study_finds_its_rows_by_configuration_and_not_by_label() -> None:
    base = record(0.1, benchmark="sbu", variant="anything")
    six = record(0.2, benchmark="sbu", config={"rank": 6}, changed={"rank": 6})
    both = {"rank": 6, "alpha": 1.0}
    other = record(0.3, benchmark="sbu", config=both, changed=both)
    page = rows(render([base, six, other], study=study()))
    assert page["r=3"][0] == "10.0 (1)"
    assert page["r=6"][0] == "20.0 (1)"


def test_a_study_shows_the_rows_and_seeds_that_are_not_there() -> None:
    page = rows(render([record(0.1, benchmark="sbu")], study=study(seeds=2)))
    assert page["r=3"][0] == "MISSING (1/2)"
    assert page["r=6"][0] == "MISSING (0/2)"


def test_another_protocol_shows_a_study_only_where_half_of_its_rows_were_run_and_only_what_it_ran() -> None:
    one = study(protocol="nas-lora", benchmarks=["sbu", "leaf"])
    base = record(0.1, benchmark="sbu")
    six = record(0.2, benchmark="sbu", config={"rank": 6}, changed={"rank": 6})
    assert rows(render([base, six], study=one))["method"][:2] == ["SBU BER ↓", "params (M)"]
    many = study(
        protocol="nas-lora", entries=[{"label": str(r), "method": "lora", "options": {"rank": r}} for r in (3, 6, 7)]
    )
    assert "No record of this table yet" in render([base], study=many)


@pytest.mark.parametrize(
    ("card", "changed", "shown"),
    [
        ({"decoder": "linear"}, {}, {"linear": "10.0 (1)"}),
        ({}, {}, {"sam": "10.0 (1)"}),
        ({"decoder": "linear"}, {"set": {"decoder": "sam"}}, {"sam": "10.0 (1)"}),
        ({"decoder_lr": 1e-4}, {"decoders": ["sam", "linear"]}, {}),
        ({"decoder_lr": 1e-4}, {"decoders": {"linear": {"decoder_lr": None}}}, {"linear": "10.0 (1)"}),
        (None, {}, {"sam": "10.0 (1)", "linear": "10.0 (1)"}),
    ],
)
def test_a_study_shows_runs_with_the_decoder_of_its_card_where_it_names_none(
    monkeypatch: pytest.MonkeyPatch, card: Any, changed: dict[str, Any], shown: dict[str, str]
) -> None:
    records = [
        record(0.1, benchmark="sbu", protocol_hash=digest * 16, rules={**CARD, "decoder": decoder, "protocol": digest})
        for decoder, digest in (("sam", "a"), ("linear", "b"))
    ]
    monkeypatch.setattr(RULES, lambda *_: card if card is None else {**CARD, **card})
    page = render(records, study=study(**changed))
    assert {decoder: "10.0 (1)" for decoder, digest in (("sam", "a"), ("linear", "b")) if digest * 8 in page} == shown


@pytest.mark.parametrize(
    ("own", "other", "shown"),
    [
        ([3], [3], {"own"}),  # the other is one row of three, run for another study
        ([3], [3, 6], {"own", "other"}),
        ([], [3], {"other"}),
    ],
)
def test_a_study_shows_runs_under_changed_rules_where_half_of_its_rows_were_run_or_nothing_else(
    monkeypatch: pytest.MonkeyPatch, own: list[int], other: list[int], shown: set[str]
) -> None:
    def of(ranks: list[int], digest: str, **rules: Any) -> list[Any]:
        return [
            record(
                0.1, benchmark="sbu", protocol_hash=digest * 16, config={"rank": rank},
                changed={} if rank == 3 else {"rank": rank}, rules={**CARD, "protocol": "", **rules},
            )
            for rank in ranks
        ]  # fmt: skip

    monkeypatch.setattr(RULES, lambda *_: {**CARD, "protocol": ""})
    page = render(
        of(own, "a") + of(other, "b", epochs=2),
        study=study(entries=[{"label": str(rank), "method": "lora", "options": {"rank": rank}} for rank in (3, 6, 7)]),
    )
    assert {name for name, digest in (("own", "a"), ("other", "b")) if digest * 8 in page} == shown


@pytest.mark.parametrize(("own", "shown"), [([3], {"own"}), ([], {"other"})])
def test_runs_under_another_value_of_what_a_study_sets_are_not_its_own_unless_there_is_nothing_else(
    monkeypatch: pytest.MonkeyPatch, own: list[int], shown: set[str]
) -> None:
    kept = [
        record(0.1, benchmark="sbu", protocol_hash=digest * 16, rules={**CARD, "protocol": "", "epochs": epochs})
        for digest, epochs, there in (("a", 1, own), ("b", 2, [3]))
        for _ in there
    ]
    monkeypatch.setattr(RULES, lambda *_: {**CARD, "protocol": "", "epochs": 1})
    page = render(kept, study=study(entries=[{"label": "3", "method": "lora"}], set={"epochs": 1}))
    assert {name for name, digest in (("own", "a"), ("other", "b")) if digest * 8 in page} == shown


def test_the_note_of_a_study_is_printed() -> None:
    assert "- made up\n" in render([record(0.1, benchmark="sbu")], study=study(note="made up"))


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
    planned = [replace(done.run, protocol_hash="new"), other]
    page = render([done, record(method="full")], runs=planned)
    assert "hash new" in page
    assert rows(page)["lora"][0] == "10.0 (1)"
    assert rows(page)["decoder"][0] == "MISSING (0/1)"
    assert "full" not in rows(page)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    store = RecordStore(tmp_path)
    for one in three(0.1) + three(0.2, method="decoder"):
        store.write(one)
    return tmp_path


def test_a_terminal_gets_text_in_place_of_markdown_alone(results: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("harness.cli.tables.terminal_width", lambda stream: 80)
    shown = {}
    for form in ("csv", "markdown"):
        assert main(["--results", str(results), "--format", form]) == 0
        shown[form] = capsys.readouterr().out
    assert shown["csv"].encode() == (results / "tables" / "demo.csv").read_bytes()
    assert "|" not in shown["markdown"]


def test_check_tells_a_stale_a_missing_and_an_orphaned_table(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--results", str(results)]
    assert main([*arguments, "--check"]) == 1
    assert "demo.md: is missing" in capsys.readouterr().out
    assert main(arguments) == 0
    assert main([*arguments, "--check"]) == 0
    page = results / "tables" / "demo.md"
    page.write_text(page.read_text(encoding="utf-8").replace("11.0", "11.1"), encoding="utf-8")
    assert main([*arguments, "--check"]) == 1
    assert "differs" in capsys.readouterr().out
    assert main(arguments) == 0
    (results / "tables" / "nobody.md").write_text("# ?\n", encoding="utf-8")
    assert main([*arguments, "--check"]) == 1
    assert "no record gives this table" in capsys.readouterr().out


def test_a_damaged_record_is_reported_and_the_table_is_made(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (results / "records" / "zz.json").write_text('{"run": ', encoding="utf-8")
    assert main(["--results", str(results)]) == 0
    shown = capsys.readouterr()
    assert "zz.json" in shown.err
    assert "11.0 ± 1.0 (3)" in shown.out


def test_other_metrics_that_the_records_hold_are_printed_and_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A page shows a benchmark by what its paper reports; a reader may want another of the metrics in the records."""
    store = RecordStore(tmp_path)
    store.write(record(scores={"best": {"test": {"s_measure": 0.9, "iou": 0.7, "dice": 0.8}}}))
    store.write(record(benchmark="trans10k_v2", scores={"best": {"test": {"miou": 0.6}}}))
    arguments = ["--results", str(tmp_path)]
    assert main([*arguments, "--metrics", "iou, dice"]) == 0
    page = rows(capsys.readouterr().out)
    assert page["method"][:3] == ["Kvasir-SEG IoU ↑", "Kvasir-SEG Dice ↑", "params (M)"]
    assert page["lora"][:2] == ["70.0 (1)", "80.0 (1)"]
    assert not (tmp_path / "tables").exists()
    study = tmp_path / "mine.yaml"
    text = "title: t\nprotocol: demo\nbenchmarks: [kvasir]\nentries: [lora]\nseeds: 1\n"
    study.write_text(text)
    assert main([*arguments, "--study", str(study), "--metrics", "dice"]) == 0
    by_option = capsys.readouterr().out
    study.write_text(text + "table: {metrics: [dice]}\n")
    assert main([*arguments, "--study", str(study)]) == 0
    assert capsys.readouterr().out == by_option
    assert "80.0 (1)" in by_option


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--metrics", "iouu"], "no record holds a metric 'iouu' (did you mean"),
        (["--metrics", ""], "no record holds a metric ''"),
        (["--metrics", "ber", "--check"], "nothing to --check"),
        (["--metrics", "ber", "--study", "cost"], "shows costs, no metrics"),
    ],
)
def test_metrics_that_cannot_be_shown_are_one_line(
    results: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    RecordStore(results).write(record(benchmark="leaf"))
    assert main(["--results", str(results), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_no_results_folder_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--results", str(tmp_path / "nothing")]) == 2
    assert "run something first" in capsys.readouterr().err


def test_tables_import_no_library_of_numbers_or_pictures_and_help_is_quick() -> None:
    script = (
        "import sys, time; import harness.cli.tables\n"
        "heavy = sorted({'torch', 'pandas', 'scipy', 'numpy', 'matplotlib', 'mmengine'} & set(sys.modules))\n"
        "print(heavy, time.process_time() < 1)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "True"]


@pytest.mark.slow
def test_ten_thousand_records_make_their_tables_in_seconds_and_500_mb(tmp_path: Path) -> None:
    """100 configurations x 20 benchmarks x 5 seeds, each record with an epoch history as long as a real one's."""
    folder = tmp_path / "records"
    folder.mkdir()
    store = RecordStore(tmp_path)
    history = [
        {"epoch": e + 1, "loss": 0.123456789, "lr": 1e-4, "val": {"iou": 0.5, "dice": 0.6}, "seconds": 12.3}
        for e in range(40)
    ]
    rules = {f"rule_{n}": "a value" for n in range(60)}
    sample = replace(record(benchmark="leaf", rules=rules), history=history)
    content = json.loads(store.write(sample).read_text(encoding="utf-8"))
    store.path(sample.key).unlink()
    for number in range(10_000):
        config, benchmark, seed = number // 100, number // 5 % 20, number % 5
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
    assert done.stdout.count("90.0 ± 0.0 (5)") == 2000
    assert megabytes < 500, megabytes
    assert seconds < 10, seconds  # 3.4 on an idle core, 6.3 on one that shares its units with another


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
    text = render(records, study=study(entries=entries, seeds=2, benchmarks=["kvasir"]))
    page = rows(text.partition(": tuned")[0])

    assert page["named"][0] == "85.0 ± 7.1 (2)"
    assert page["lost"][0] == "MISSING (1/2)"
    assert next(cells for name, cells in page.items() if name.startswith("tuned"))[0] == "MISSING (1/2)"


def test_a_metric_that_no_record_holds_is_refused(tmp_path: Path) -> None:
    RecordStore(tmp_path).write(record(0.9))
    assert pages_below(Archive(tmp_path), metrics=["s_measure"]).content
    with pytest.raises(UsageError, match="ber"):
        pages_below(Archive(tmp_path), metrics=["ber"])


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


def test_runs_beside_the_pages_of_the_answer_neither_fail_nor_rewrite_them(tmp_path: Path) -> None:
    page = tmp_path / "docs" / "findings.md"
    page.parent.mkdir()
    page.write_text(f"{MARK}\nthe published answer\n")
    RecordStore(tmp_path / "runs").write(record())
    assert main(["--results", str(tmp_path / "runs")]) == 0
    assert main(["--check", "--results", str(tmp_path / "runs")]) == 0
    assert page.read_text() == f"{MARK}\nthe published answer\n"
