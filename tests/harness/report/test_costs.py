"""The cost table keeps comparability keys apart, and every number is that of its record."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.archive.archive import Archive
from harness.archive.measured import CostRecord, CostStore, MethodCost
from harness.cli.tables import main
from harness.comparison import grids, leaderboards
from harness.comparison.leaderboard import costs_of, session_for
from harness.report.costs import cost_page
from harness.report.formats import Table, text_of, write
from harness.report.site import site
from tests.harness.report.sample import DEMO, grid_of, measured_on, record, store_of


def method(name: str, step: list[float], **changes: Any) -> MethodCost:
    values: Any = {
        "method": name, "label": name, "config": {}, "seconds": {"weights": {"total": step}}, "shares": {"weights": 1.0},
        "step_seconds": {
            "total": step, "data": [0.001], "forward": [0.04], "backward": [0.05], "optimiser": [0.0], "untracked": [0.0],
        },
        "memory_bytes": {
            "allocated": 2**30, "reserved": 2**31, "weights": 2**28, "gradients": 0, "optimiser": 0, "activations": 2**29,
        },
        "flops": {"forward": 1e12, "backward": 2e12},
        "parameters": {"encoder": 491_520, "decoder": 3_505_536, "trainable": 3_997_056, "total": 641_000_000},
        "inference_seconds": {"unmerged": [0.02, 0.03, 0.04]},
        "inference_memory_bytes": {"unmerged": 3 * 2**29},
    }  # fmt: skip
    return MethodCost(**{**values, **changes})


def session(**changes: Any) -> CostRecord:
    setup = measured_on(device=changes.pop("device", "NVIDIA H100"), options={"fused_attention": True})
    methods = [
        method("full", [0.20, 0.21, 0.22]),
        method("naspclora", [0.10, 0.11, 0.12], shares={"weights": 0.6, "architecture": 0.4}),
    ]
    values: Any = {"session": "abcdef012345", "methods": methods, "rounds": 9, "warmup": 2, "comparability": setup}
    values["key"] = setup.key
    return CostRecord(**{**values, **changes})


def page_of(sessions: Any, *, details: bool = True) -> Any:
    return cost_page(sessions, title="cost", details=details)


def cells(table: Table, row: str) -> dict[str, str]:
    """Heading -> cell as printed."""
    (line,) = [line for line in table.rows if line[0] == row]
    return {head.title: text_of(value) for head, value in zip(table.columns, line, strict=True)}


def test_two_keys_never_share_a_table() -> None:
    blocks = write(page_of([session(), session(device="cpu")], details=False)).split("\n## ")[1:]
    assert len({line for block in blocks for line in block.splitlines() if "Comparability key" in line}) == 2
    assert all(("NVIDIA H100" in block) != ("cpu ·" in block) for block in blocks)
    assert page_of([]).tables[0].above, "how to measure"
    assert "Options: fused_attention=True" in blocks[0]
    assert "Options" not in write(page_of([session(comparability=measured_on())]))


DETAILED = {
    "step total (ms)": "210.0", "step forward (ms)": "40.0", "memory weights (GiB)": "0.250", "memory reserved (GiB)": "2.000",
    "inference unmerged (GiB)": "1.500", "step backward (GFLOP)": "2000.0", "parameters total (M)": "641.000",
}  # fmt: skip


def test_numbers_are_medians_with_quartiles_parts_and_changes() -> None:
    steps, _, details = page_of([session()]).tables
    shown = cells(steps, "naspclora")
    assert shown["step (ms)"] == "110.0 [105.0, 115.0]"
    assert shown["time against full (%)"] == "-47.7 [-53.1, -41.8]"
    assert shown["memory against full (%)"] == "+0.0"
    assert (shown["peak (GiB)"], shown["trained (M)"], shown["inference (ms)"]) == ("1.000", "3.997", "30.0")
    assert cells(steps, "full")["time against full (%)"] == "–"
    of_full = cells(details, "full")
    assert {name: of_full[name] for name in DETAILED} == DETAILED


def test_changes_are_against_full_fine_tuning_and_lora_or_the_first_method_and_what_an_older_session_names() -> None:
    def against(*labels: str, older: str = "") -> set[str]:
        ratios = {older: {"time": {"value": 1.5}}} if older else {}
        methods = [method(v, [0.1], method=v.partition("[")[0], ratios=ratios) for v in labels]
        titles = [head.title for head in page_of([session(methods=methods)]).tables[0].columns]
        return {title.split()[2] for title in titles if title.startswith("time against")}

    assert against("ssf", "lora", "full") == {"lora", "full"}
    assert against("ssf", "lora[rank=2]") == {"lora[rank=2]"}
    assert against("lora[rank=2]", "lora") == {"lora"}
    assert against("ssf", "bitfit") == {"ssf"}
    assert against("ssf", "lora", older="ssf") == {"lora", "ssf"}


def test_a_row_with_another_option_is_not_the_one_that_a_session_measured() -> None:
    options = [{"residual": False, "lr": 1e-3}, {"residual": True, "lr": 1e-3}, {"residual": False, "lr": 1e-2}]
    grid = grid_of([record(method="naslora", config=config, changed=config) for config in options])
    measured = session(methods=[method("naslora", [0.1], config=options[0])])
    assert {grid.rows[row].options["lr"] for row in costs_of(grid, measured)} == {1e-3, 1e-2}, "a rate costs nothing"
    assert not any(grid.rows[row].options["residual"] for row in costs_of(grid, measured))


def test_rows_are_compared_with_a_baseline_of_their_own_session() -> None:
    runs = [record(method=name) for name in ("lora", "bitfit", "vera", "decoder")]
    here = measured_on(backbone="tiny", image_size=64)
    costs = [method(run.run.method, [0.1], config=run.run.method_config) for run in runs]
    without, within = (session(comparability=here, methods=part) for part in (costs[1:], costs[:2]))
    grid = grid_of(runs, costs=[without, within])
    assert session_for(grid, baseline="BitFit") is without, "which has more rows"
    assert session_for(grid, baseline="LoRA") is within


def test_a_leaderboard_marks_costs_from_a_device_that_others_used_and_takes_others_first(tmp_path: Path, says) -> None:
    runs = [record(seed=seed, method=name) for name in ("lora", "bitfit") for seed in (0, 1)]
    here = measured_on(backbone="tiny", image_size=64)
    costs = [method(run.run.method, [0.1], config=run.run.method_config) for run in runs[::2]]
    alone, shared = (
        session(comparability=here, key=here.key, methods=costs, finished=f"2026-01-0{day}") for day in (1, 2)
    )
    shared = replace(shared, shared="other processes use 2 cores", session="123456abcdef")
    assert session_for(grid_of(runs, costs=[alone, shared]), baseline="LoRA") is alone
    (tmp_path / "mine.yaml").write_text(
        "title: t\nprotocol: demo\nbenchmarks: kvasir\nentries: [lora, bitfit]\nseeds: 2\n"
        "table: {kind: leaderboard, baseline: lora}\n"
    )
    store_of(tmp_path, runs)
    CostStore(tmp_path).write(shared)
    page = says(main, "--results", tmp_path, "--study", tmp_path / "mine.yaml")
    assert "the device was not exclusive: other processes use 2 cores" in page
    board = leaderboards(grids(Archive(tmp_path)))[0]
    first = site([board], title="Results", photographs=None, withheld="none")["index.html"]
    assert "not exclusive" in first.partition("<details>")[0], "where the ratios are"


@pytest.mark.parametrize(
    ("options", "rules", "fits"),
    [
        ({}, {}, True),
        ({"decoder": "linear"}, {}, False),
        ({}, {"decoder": "linear"}, False),
        ({"decoder": "linear"}, {"decoder": "linear"}, True),
        ({"fused_attention": False}, {"fused_attention": True}, False),
        ({"fused_attention": False}, {}, True),  # an older record does not tell
        ({"clock": "wall", "flip": 0.0}, {"flip": 0.5}, True),
    ],
)
def test_costs_are_those_of_a_session_with_the_same_decoder_and_attention(options, rules, fits: bool) -> None:
    runs = [record(rules={**DEMO, **rules})]
    here = measured_on(backbone="tiny", image_size=64, options=options)
    measured = session(comparability=here, methods=[method("lora", [0.1], config=runs[0].run.method_config)])
    grid = grid_of(runs, costs=[measured])
    assert (session_for(grid, baseline="LoRA") is measured) == fits


def test_claims_about_cost_are_paired_with_a_session_that_measured_both() -> None:
    steps, claims = page_of([session()], details=False).tables
    assert steps.level == 2
    assert {text_of(line[3]) for line in claims.rows} == {"-47.7 [-53.1, -41.8]"}
    assert len(page_of([session(methods=session().methods[:1])], details=False).tables) == 1


def test_csv_is_a_number_a_line_in_si_units(tmp_path: Path, says) -> None:
    CostStore(tmp_path).write(session())
    table = list(csv.DictReader(io.StringIO(says(main, "--results", tmp_path, "--study", "cost", "--format", "csv"))))
    steps = [
        row for row in table if (row["label"], row["quantity"], row["part"]) == ("naspclora", "step_seconds", "total")
    ]
    assert [float(row["value"]) for row in steps] == [0.10, 0.11, 0.12]
    assert {row["value"] for row in table if row["part"] == "trainable"} == {"3997056.0"}


def test_the_tables_verb_writes_and_checks_the_cost_page(tmp_path: Path, says) -> None:
    words, store = ["--results", tmp_path], CostStore(tmp_path)
    store.write(session())
    said = says(main, *words, "--study", "cost", "--details")
    assert "activations" in said
    says(main, *words, "--study", "cost")
    assert "NVIDIA H100" in (tmp_path / "tables" / "cost.md").read_text(encoding="utf-8")
    (tmp_path / "records").mkdir()
    (tmp_path / "tables" / "cost.md").unlink()
    says(main, *words)
    says(main, *words, "--check")
    store.write(replace(session(), session="fedcba98"))
    says(main, *words, "--check", code=1)
    (tmp_path / "cost" / "bad.json").write_text("{")
    assert "bad.json" in says(main, *words)
