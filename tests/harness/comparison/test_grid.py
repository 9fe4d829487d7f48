"""Rows, cells and marks say what the records say, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harness.archive.archive import row_identity, trials_among
from harness.archive.older import with_plans
from harness.comparison import Grid, grids
from harness.comparison.names import heading
from harness.comparison.rows import is_row
from harness.report.formats import Score, text_of
from harness.studies import study_from_dict
from tests.harness.report.sample import DEMO, MadeUp, grid_of, record, three

RULES = "harness.comparison.tables.protocol_rules"
"""Where tables find the harness's own protocols."""
MARKS = {"": "", "best": " *", "tied": " ≈"}


def texts(grid: Grid, index: int = 0) -> dict[str, str]:
    """Row -> its cell on one column as printed, with its mark."""
    column = grid.columns[index]
    return {
        row: text_of(Score(cell=grid.cells[row, column])) + MARKS[grid.marks.get((row, column), "")]
        for row in grid.rows
    }


def failed(code: str, seed: int, **changes: Any) -> Any:
    return record(seed=seed, benchmark="sbu", code=code, **changes)


LATER: list[tuple[float, dict[str, Any]]] = [(0.1, {}), (0.11, {"prompt": "none"}), (0.12, {"keep_masks": 7})]
CELLS: dict[str, tuple[list[Any], dict[str, str]]] = {
    "mean and SD with ddof 1 over seeds, in percent": (  # 2.646; with ddof 0 it would be 2.160
        [record(value, seed=seed, benchmark="leaf") for seed, value in enumerate((0.9, 0.91, 0.95))],
        {"LoRA": "92.0 ± 2.6 (3)"},
    ),
    "single runs have no SD and are not ranked": (
        [record(0.5), record(0.1, method="decoder")], {"LoRA": "50.0 (1)", "Decoder alone": "10.0 (1)"},
    ),
    "of an error rate the lowest is best": (
        three(0.10) + three(0.05, method="decoder"),
        {"LoRA": "11.0 ± 1.0 (3)", "Decoder alone": "6.0 ± 1.0 (3) *"},
    ),
    "rows that tie at the printed digit share the mark": (
        three(0.05) + three(0.05001, method="decoder") + three(0.1, method="full"),
        {"LoRA": "6.0 ± 1.0 (3) *", "Decoder alone": "6.0 ± 1.0 (3) *", "Full fine-tuning": "11.0 ± 1.0 (3)"},
    ),
    "a row with a collapsed run has no interval, so it is not said to be like the best": (
        [record(value, seed=seed, method="decoder") for seed, value in enumerate((0.9, 0.91, 0.92))]
        + [record(value, seed=seed) for seed, value in enumerate((0.9, 0.91, 0.2))],
        {"LoRA": "67.0 ± 40.7 (3) COLLAPSED", "Decoder alone": "91.0 ± 1.0 (3) *"},
    ),
    "a row that is not significantly different from the best is marked as such": (
        three(0.05, method="decoder")
        + [record(value, seed=seed, benchmark="sbu", method="full") for seed, value in enumerate((0.03, 0.10, 0.08))],
        {"Decoder alone": "6.0 ± 1.0 (3) *", "Full fine-tuning": "7.0 ± 3.6 (3) ≈"},
    ),
    "a row of other seeds that prints like the best, and is worse on common seeds, is not best": (
        three(0.05, method="decoder")
        + [record(value, seed=seed, benchmark="sbu") for seed, value in enumerate((0.07, 0.08, 0.09, 0.03, 0.04, 0.05))],
        {"Decoder alone": "6.0 ± 1.0 (3) *", "LoRA": "6.0 ± 2.4 (6)"},
    ),
    "a row without the seed that was bad for the other is compared on those that both have": (
        [record(value, seed=seed, benchmark="sbu") for seed, value in enumerate((0.10, 0.11, 0.30))]
        + three(0.12, method="decoder")[:2],
        {"LoRA": "17.0 ± 11.3 (3) *", "Decoder alone": "12.5 ± 0.7 (2)"},
    ),
    "rows without a common seed are ordered by their means": (
        [record(base + 0.01 * seed, seed=seed, method=name, benchmark="leaf")
         for name, base, seeds in (("decoder", 0.8, (0, 1)), ("lora", 0.9, (2, 3))) for seed in seeds],
        {"LoRA": "92.5 ± 0.7 (2) *", "Decoder alone": "80.5 ± 0.7 (2) ≈"},
    ),
    "no mean is taken over a gap, whose row is never best, nor is another where it leads": (
        three(0.10) + three(0.20, method="bitfit") + three(0.05, method="decoder")[:2]
        + [failed("OOM", 2, method="decoder"), failed("TIMEOUT", 1, method="full", planned_seeds=[0, 1, 2])],
        {"LoRA": "11.0 ± 1.0 (3)", "Decoder alone": "OOM (2/3)", "Full fine-tuning": "MISSING/TIMEOUT (0/3)"},
    ),
    "one seed more of one method blanks no other": (
        [*three(0.10), record(0.1, seed=3, benchmark="sbu"), *three(0.2, method="decoder")],
        {"LoRA": "10.8 ± 1.0 (4) *", "Decoder alone": "21.0 ± 1.0 (3)"},
    ),
    "the seeds that are missing are those that a sweep planned": (
        three(0.10, planned_seeds=[0, 1, 2, 3], planned_benchmarks=["sbu"])
        + three(0.2, method="decoder", planned_seeds=[0, 1, 2]),
        {"LoRA": "MISSING (3/4)", "Decoder alone": "21.0 ± 1.0 (3)"},
    ),
    "results of one cell and seed are a conflict and no number": (
        [record(0.1 + index, benchmark="sbu", rules={"image_size": 64 + index}) for index in (0, 0.1, 0.2)],
        {"LoRA": "CONFLICT (0/1)"},
    ),
    "runs under a tuned rule and without it, which have one protocol, have no mean": (
        [record(0.1, seed=seed, benchmark="sbu", rules={"decoder_lr": 1e-4 if seed < 2 else None}) for seed in range(4)],
        {"LoRA": "CONFLICT (0/4)"},
    ),
    "of one run under other rules than the rest there is no score": (
        [record(0.1, seed=seed, benchmark="sbu", rules={"decoder_lr": 1e-4 if seed < 3 else None}) for seed in range(4)],
        {"LoRA": "CONFLICT (3/4)"},
    ),
    "equal scores of seeds that other rules have too are one score": (
        [
            record(0.1 + seed / 100, seed=seed, benchmark="sbu", rules={"decoder_lr": rate}, method="zeroshot")
            for rate, seeds in ((1e-4, 3), (None, 2))
            for seed in range(seeds)
        ],
        {"Zero-shot": "11.0 ± 1.0 (3)"},
    ),
    "folds are no other rules, nor is what came later or changes no number": (
        [
            record(value, seed=seed, benchmark="sbu", rules={"split_follows_seed": True, "split_seed": seed, **more})
            for seed, (value, more) in enumerate(LATER)
        ],
        {"LoRA": "11.0 ± 1.0 (3)"},
    ),
    "a result replaces a failure of its seed": (
        [failed("OOM", 0, rules={"image_size": 64}), record(0.1, benchmark="sbu", rules={"image_size": 65})],
        {"LoRA": "10.0 (1)"},
    ),
    "generated images are not ranked": (
        three(0.10, origin="generated") + three(0.05, method="decoder", origin="generated"),
        {"LoRA": "11.0 ± 1.0 (3)", "Decoder alone": "6.0 ± 1.0 (3)"},
    ),
    "almost empty masks of one run have a code with the number, and are not ranked": (
        three(0.05, foreground={"test": 0.09})[:1] + three(0.05)[1:] + three(0.2, method="decoder") + three(0.3, method="full"),
        {"LoRA": "6.0 ± 1.0 (3) EMPTY", "Decoder alone": "21.0 ± 1.0 (3) *", "Full fine-tuning": "31.0 ± 1.0 (3)"},
    ),
}  # fmt: skip


def test_the_protocol_hash_of_a_seed_is_that_of_the_run_with_its_score(monkeypatch) -> None:
    monkeypatch.setattr(RULES, lambda *_: DEMO)
    kept, lost = (
        replace(made, run=replace(made.run, rules=DEMO))
        for made in (record(0.1, benchmark="sbu", protocol_hash="a"), failed("OOM", 0, protocol_hash="b"))
    )
    for records, hashes in (([kept, lost], ["a", ""]), ([lost, kept], ["a", ""]), ([lost], ["b", ""])):
        lines = grid_of(records, study=study(ranks=(3,), seeds=2)).tidy()
        assert list(lines["protocol_hash"]) == hashes


@pytest.mark.parametrize("case", CELLS)
def test_cells_of_the_first_column(case: str) -> None:
    records, cells = CELLS[case]
    found = texts(grid_of(records))
    assert {row: found[row] for row in cells} == cells


def test_a_row_that_was_planned_for_a_benchmark_and_did_not_come_is_missing_there() -> None:
    planned: dict[str, Any] = {"planned_benchmarks": ["sbu", "leaf"], "planned_seeds": [0]}
    runs = [record(method="decoder", benchmark="sbu", **planned), record(benchmark="leaf", **planned)]
    grid = grid_of([*runs, record(benchmark="sbu", **planned), record(method="full", benchmark="sbu")])
    assert set(texts(grid).values()) == {"90.0 (1)"}
    assert texts(grid, 1) == {"Full fine-tuning": "–", "Decoder alone": "MISSING (0/1)", "LoRA": "90.0 (1)"}


@pytest.mark.parametrize(
    ("first", "other", "apart"),
    [
        ({}, {"protocol_hash": "bbbb"}, True),
        ({}, {"manifest": "other"}, True),
        ({"data_fingerprint": "content-a-s"}, {"data_fingerprint": "content-b-s"}, True),
        ({"data_fingerprint": "a"}, {"data_fingerprint": "b"}, True),
        ({"data_fingerprint": "content-a-s"}, {"data_fingerprint": "s"}, False),  # older records know sizes alone
        ({"data_fingerprint": ""}, {"data_fingerprint": "b"}, False),  # or nothing
        ({"checkpoint": "sha256-a"}, {"checkpoint": "sha256-b"}, True),
        ({"checkpoint": "sha256-a"}, {"checkpoint": "sha256-same"}, False),  # another file of the same weights
    ],
)
def test_a_table_is_of_one_copy_of_the_data_and_of_one_checkpoint(monkeypatch, first, other, apart) -> None:
    monkeypatch.setattr("harness.archive.archive.SAME_WEIGHTS", {"sha256-same": "sha256-a"})
    runs = [*three(0.1, **first), record(0.2, benchmark="sbu", method="decoder", **other)]
    found = grids(MadeUp(runs))
    assert [list(grid.rows) for grid in found] == (
        [["LoRA"], ["Decoder alone"]] if apart else [["Decoder alone", "LoRA"]]
    )
    assert len({grid.title for grid in found}) == len(found)


def test_older_records_planned_what_records_of_the_same_rules_and_benchmark_have() -> None:
    older = [record(seed=seed, benchmark="sbu", planned_seeds=[], planned_benchmarks=[]) for seed in (0, 1)]
    more = record(benchmark="sbu", method="decoder", planned_seeds=[], planned_benchmarks=[])
    assert [made.run.planned_seeds for made in with_plans([*older, more, record(seed=7)])] == [[0, 1]] * 3 + [[7]]
    assert texts(grid_of([*older, more])) == {"Decoder alone": "MISSING (1/2)", "LoRA": "90.0 ± 0.0 (2)"}


SIX: dict[str, Any] = {"config": {"rank": 6}, "changed": {"rank": 6}}
CONVLORA = {"lr": None, "blocks": "all", "sites": "qkv", "rank": 3, "alpha": 32.0, "experts": 8, "balance": 0.01}


@pytest.mark.parametrize(
    ("records", "names"),
    [
        # one configuration under two labels, of a study and of a sweep, is one row
        ([record(benchmark="sbu"), record(benchmark="leaf", label="LoRA r=3")], ["LoRA"]),
        ([record(label=name, seed=seed, **SIX) for seed, name in enumerate(("r=6", "LoRA r=6"))], ["LoRA (rank=6)"]),
        ([record(), record(method="lora", **SIX)], ["LoRA", "LoRA (rank=6)"]),
        # two of one name are distinguished
        ([record(), record(tuning={"grid": {"lr": [1e-3]}, "chosen": {"lr": 1e-3}, "trials": [{"keys": ["k"]}]})], ["LoRA", "LoRA, tuned"]),
        ([record(method="convlora", config={**CONVLORA, "gate": "released"})], ["Conv-LoRA"]),
        ([record(method="convlora", config={**CONVLORA, "gate": "switch"})], ["Conv-LoRA (Switch gate)"]),
        ([record(method="elsewhere", config={"width": 3})], ["elsewhere"]),
    ],
)  # fmt: skip
def test_a_configuration_has_one_name(records: list[Any], names: list[str]) -> None:
    assert list(grid_of(records).rows) == names


def test_records_under_an_options_older_value_share_a_row_with_those_under_its_new_one() -> None:
    older, newer = (
        record(method="convlora", seed=seed, config={**CONVLORA, "gate": gate, **more})
        for seed, gate, more in ((0, "intended", {}), (1, "switch", {"expert_bias": "uniform"}))
    )
    assert row_identity(older.run) == row_identity(newer.run)
    assert all(is_row(r.run, {"gate": gate}) for r in (older, newer) for gate in ("switch", "intended"))
    assert not is_row(older.run, {"gate": "released"})


def tuned(lr: float, *, trials: int = 4, chosen: bool = True, **changes: Any) -> Any:
    tuning: dict[str, Any] = {"grid": {"lr": [1e-3, 1e-2]}}
    if chosen:
        tuning |= {"chosen": {"lr": lr}, "trials": [{"options": {}, "score": 0.5, "keys": ["k"]}] * trials, "edge": [], "metric": "iou",
                 "on": ["kvasir"], "hours": 0.1, "seeds": [100]}  # fmt: skip
    return record(config={"lr": lr}, changed={"lr": lr}, tuning=tuning, **changes)


@pytest.mark.parametrize("trials", [3, 4, 5])
def test_the_choice_from_more_trials_is_the_row_and_of_as_many_one(trials: int) -> None:
    two = [tuned(1e-3, seed=seed, benchmark="sbu") for seed in (0, 1)]
    one = [tuned(1e-2, seed=2, benchmark="sbu", trials=trials)]
    seeds = {row: cell.seeds for (row, _), cell in grid_of([*two, *one]).cells.items()}
    few, many = (
        (seeds["LoRA"], seeds.get("LoRA (lr=0.001)")) if trials > 4 else (seeds.get("LoRA (lr=0.01)"), seeds["LoRA"])
    )
    assert sorted(seeds.values()) == [[0, 1], [2]]
    if trials != 4:
        assert (few, many) == ([2], [0, 1])


def test_a_study_that_tunes_each_benchmark_shows_its_own_choice_and_not_one_from_more_trials() -> None:
    own, other = tuned(1e-3), tuned(1e-2, trials=9, value=0.5)
    other.run.tuning["grid"] = {"lr": [1e-3, 1e-2, 1e-1]}
    mine = study(benchmarks=["kvasir", "leaf"], entries=["lora"], tune={"lr": [1e-3, 1e-2]})
    leaf = tuned(1e-2, benchmark="leaf", trials=9)
    leaf.run.tuning["on"] = ["leaf"]
    grid = grid_of([own, other, leaf], study=mine)
    assert texts(grid) == {"LoRA": "90.0 (1)"}
    assert {column.benchmark for (_, column), cell in grid.cells.items() if cell.values} == {"kvasir", "leaf"}
    files = [tuned(lr, trials=n, data_fingerprint=f"content-{n}") for lr, n in ((1e-3, 4), (1e-2, 9))]
    assert len(grids(MadeUp(files), study=mine)) == 2  # a choice on each copy of the files


def test_trials_of_tuning_are_in_a_frame_only_on_request() -> None:
    lost, luck = tuned(1e-2, chosen=False, seed=100), tuned(1e-3, seed=100)
    tested = [tuned(1e-3, seed=seed, planned_seeds=[0, 1]) for seed in range(2)]
    archive = MadeUp([lost, luck, *tested])
    assert trials_among(archive.records) == {lost.key, luck.key}
    assert set(archive.frame("runs")["key"]) == {made.key for made in tested}
    assert set(archive.frame("scores")["key"]) == {made.key for made in tested}
    assert len(archive.frame("runs", trials=True)) == 4
    assert trials_among([lost, luck]) == {lost.key}, "the chosen trial is all there is"


@pytest.mark.parametrize(
    ("own", "scores", "metrics"),
    [
        (True, {"s_measure": 0.9, "iou": 0.1, "dice": 0.2}, ["iou", "dice", "s_measure"]),
        (False, {"s_measure": 0.9, "iou": 0.1, "e_mean": 0.2}, ["s_measure", "e_mean"]),
    ],
)
def test_what_chooses_the_checkpoint_leads_on_own_data(own: bool, scores: dict[str, float], metrics: list[str]) -> None:
    name = "cells" if own else "kvasir"
    declared: dict[str, Any] = {"benchmark_metrics": ["s_measure", "iou", "dice"]} if own else {}
    grid = grid_of([record(benchmark=name, scores={"best": {"test": scores}}, **declared)])
    assert [column.metric for column in grid.columns] == metrics


def study(**changes: Any) -> Any:
    entries = [
        {"label": f"r={rank}", "method": "lora", "options": {"rank": rank}} for rank in changes.pop("ranks", (3, 6))
    ]
    data = {"title": "Rank", "protocol": "demo", "benchmarks": ["sbu"], "seeds": 1, "entries": entries}
    return study_from_dict({**data, **changes}, name="rank")


def test_a_study_finds_its_rows_by_configuration_and_shows_the_rows_and_seeds_that_are_not_there() -> None:
    base, six = record(0.1, benchmark="sbu", label="anything"), record(0.2, benchmark="sbu", **SIX)
    both = {"rank": 6, "alpha": 1.0}
    found = grid_of([base, six, record(0.3, benchmark="sbu", config=both, changed=both)], study=study())
    assert texts(found) == {"r=3": "10.0 (1)", "r=6": "20.0 (1)"}
    prompted = record(0.2, benchmark="sbu", rules={**DEMO, "prompt": "box"}, **SIX)
    assert texts(grid_of([base, prompted], study=study()))["r=6"] == "MISSING (0/1)"
    assert texts(grid_of([base], study=study(seeds=2))) == {"r=3": "MISSING (1/2)", "r=6": "MISSING (0/2)"}


def test_a_row_without_a_tuned_option_does_not_show_what_another_study_tuned() -> None:
    both = {"rank": 6, "lr": 1e-3}
    elsewhere = tuned(1e-3, value=0.5, benchmark="sbu")
    elsewhere = replace(elsewhere, run=replace(elsewhere.run, method_config=both, changed=both))
    mine = study(ranks=[6])
    assert texts(grid_of([record(0.2, benchmark="sbu", **SIX), elsewhere], study=mine)) == {"r=6": "20.0 (1)"}
    assert texts(grid_of([elsewhere], study=mine)) == {"r=6": "50.0 (1)"}


def test_a_mean_difference_needs_both_rows_on_every_benchmark() -> None:
    records = [record(method=name, benchmark=on) for name in ("lora", "decoder") for on in ("kvasir", "sbu")]
    assert grid_of(records).mean_difference("Decoder alone", "LoRA") is not None
    assert grid_of(records[:3]).mean_difference("Decoder alone", "LoRA") is None


def test_a_row_that_names_a_rate_also_shows_runs_that_were_trials() -> None:
    plain = record(0.9, seed=1, config={"lr": 1e-3}, changed={"lr": 1e-3})
    records = [tuned(1e-3, value=0.8), plain, tuned(1e-2, value=0.5, chosen=False)]
    entries = [{"label": f"{lr:g}", "method": "lora", "options": {"lr": lr}} for lr in (1e-3, 1e-2)]
    grid = grid_of(records, study=study(entries=entries, benchmarks=["kvasir"], seeds=2))
    assert texts(grid) == {"0.001": "85.0 ± 7.1 (2)", "0.01": "MISSING (1/2)"}


@pytest.mark.parametrize("digest", ["a", "b"])
def test_a_study_shows_in_one_table_what_has_its_rules_whatever_hash_it_was_planned_with(
    monkeypatch, digest: str
) -> None:
    """A hash is of a whole protocol before a rate is tuned: equal rules under two hashes are no two tables."""
    monkeypatch.setattr(RULES, lambda *_: DEMO)
    two = study(entries=["lora", "decoder"], benchmarks=["kvasir"], seeds=3)
    first = [record(seed=seed, rules=DEMO) for seed in range(3)]
    second = [record(method="decoder", seed=seed, rules=DEMO, protocol_hash=digest * 16) for seed in range(3)]
    assert set(texts(grid_of([*first, *second], study=two)).values()) == {"90.0 ± 0.0 (3) *"}


@pytest.mark.parametrize(
    ("changes", "under", "shown"),
    [
        ({}, {"epochs": 1}, ["a"]),
        ({"set": {"epochs": 1}}, {"epochs": 1}, ["a", "b"]),  # what the study sets on its protocol
        ({"set": {"benchmarks.sbu.epochs": 1}}, {"epochs": 1}, ["a", "b"]),
        ({"set": {"benchmarks.leaf.epochs": 1}}, {"epochs": 1}, ["a"]),
        ({"tune": {"decoder_lr": [1e-4, 1e-3]}}, {"decoder_lr": 1e-3}, ["a", "b"]),  # a rule that it tunes is free
        ({}, {"protocol": "mini"}, ["a"]),
    ],
)
def test_a_study_shows_runs_of_its_own_rules_alone(monkeypatch, changes, under, shown) -> None:
    protocol = {**DEMO, "protocol": "", "epochs": 2}
    own = {**protocol, "epochs": 1} if "b" in shown and "epochs" in under else protocol
    other = {"protocol": under["protocol"]} if "protocol" in under else {"rules": {**protocol, **under}}
    runs = [
        record(0.1, benchmark="sbu", protocol_hash="a" * 16, rules=own),
        record(0.2, benchmark="sbu", protocol_hash="b" * 16, seed=1, **{"rules": protocol, **other}),
    ]
    monkeypatch.setattr(RULES, lambda *_: protocol)
    found = grids(MadeUp(runs), study=study(seeds=2, ranks=(3,), **changes))
    assert [sorted(set(grid.runs["protocol_hash"].str[0])) for grid in found] == [shown]


@pytest.mark.parametrize(
    ("protocol", "changed", "tables"),
    [
        ({"decoder": "linear"}, {}, {"linear"}),
        ({}, {}, {"sam"}),
        ({"decoder": "linear"}, {"set": {"decoder": "sam"}}, {"sam"}),
        ({"decoder_lr": 1e-4}, {"decoders": {"linear": {"decoder_lr": None}}}, {"linear"}),
        (None, {}, {"sam", "linear"}),
    ],
)
def test_a_study_shows_runs_with_its_decoder(monkeypatch, protocol, changed, tables) -> None:
    records = [
        record(0.1, benchmark="sbu", protocol_hash=decoder * 4, rules={**DEMO, "decoder": decoder})
        for decoder in ("sam", "linear")
    ]
    monkeypatch.setattr(RULES, lambda *_: protocol if protocol is None else {**DEMO, **protocol})
    assert {grid.rules["decoder"] for grid in grids(MadeUp(records), study=study(**changed))} == tables


def test_a_study_has_a_table_of_a_backbone_that_the_command_line_named_under_its_rules_there(monkeypatch) -> None:
    sizes = {"tiny": 64, "vit_b": 1024}
    records = [
        record(0.1, benchmark="sbu", backbone=name, protocol_hash=name, rules={**DEMO, "image_size": size})
        for name, size in {**sizes, "vit_l": 1024}.items()
    ]
    monkeypatch.setattr(RULES, lambda *_: {**DEMO, "image_size": 64})
    for by_backbone, found in ({"vit_b": {"image_size": 1024}}, sizes), ({}, {"tiny": 64}):
        tables = grids(MadeUp(records), study=study(ranks=(3, 6, 7), backbones="tiny", by_backbone=by_backbone))
        assert {grid.backbone: grid.rules["image_size"] for grid in tables} == found


def test_merged_models_are_rows_of_their_own() -> None:
    scores = {"best": {"test": {"ber": 0.1}}, "merged-exact": {"test": {"ber": 0.12}}}
    table = {"scores": ["best", "merged-exact", "merged-conv"]}
    found = texts(grid_of([record(benchmark="sbu", scores=scores)], study=study(table=table, ranks=(3,))))
    assert found == {"r=3": "10.0 (1)", "r=3 (merged exact)": "12.0 (1)", "r=3 (merged conv)": "NO_SCORE (0/1)"}


def test_a_benchmark_with_three_test_splits_leads_with_all_of_them() -> None:
    scores = {"best": {split: {"miou": 0.5, "accuracy": 0.6} for split in ("easy", "hard", "all")}}
    layout = {"splits": {"trans10k_v1": ["easy", "hard", "all"]}}
    made = record(benchmark="trans10k_v1", scores=scores)
    grid = grid_of([made], study=study(benchmarks=["trans10k_v1"], table=layout, ranks=(3,)))
    assert len(grid.columns) == 6
    leading = grid.first_columns["trans10k_v1"]
    assert (leading.split, leading.metric) == ("all", "miou")
    counted = replace(made, counts={"train": 9, "val": 2, "easy": 3, "hard": 4})
    assert leading.splits_of(counted) == ["easy", "hard"]
    assert replace(leading, split="hard").splits_of(counted) == ["hard"]


def test_a_joint_protocol_has_columns_of_each_test_set_and_none_of_all_together() -> None:
    scores = {"best": {split: {"dice_mean": 0.5, "mae": 0.1} for split in ("kvasir", "cvc612", "all")}}
    columns = grid_of([record(benchmark="polyp", scores=scores)]).columns
    assert {column.split for column in columns} == {"kvasir", "cvc612"}
    assert [heading(column.metric) for column in columns if column.split == "kvasir"][:1] == ["mean Dice ↑"]
