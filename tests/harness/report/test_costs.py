"""The cost table keeps comparability keys apart and judges the claim on training cost in every reading."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.archive.measured import CostRecord, CostStore, MethodCost, Ratio
from harness.cli.tables import main
from harness.comparison.claims import read_claims
from harness.comparison.grids import grids
from harness.comparison.judging import cost_readings
from harness.comparison.papers import Papers, Setup
from harness.comparison.step_costs import costs_of, session_for
from harness.report.costs import cost_numbers, cost_page
from harness.report.formats import write
from tests.harness.report.sample import CARD, MadeUp, measured_on, record


def method(name: str, step: list[float], **changes: Any) -> MethodCost:
    values: Any = {
        "method": name, "variant": name, "config": {}, "seconds": {"weights": {"total": step}}, "shares": {"weights": 1.0},
        "step_seconds": {
            "total": step, "data": [0.001], "forward": [0.04], "backward": [0.05], "optimiser": [0.0], "untracked": [0.0],
        },
        "memory_bytes": {
            "allocated": 2**30, "reserved": 2**31, "weights": 2**28, "gradients": 0, "optimiser": 0, "activations": 2**29,
        },
        "flops": {"forward": 1e12, "backward": 2e12},
        "not_counted": {"aten::gelu": 3},
        "parameters": {"encoder": 491_520, "decoder": 3_505_536, "trainable": 3_997_056, "total": 641_000_000},
        "inference_seconds": {"unmerged": [0.02, 0.03, 0.04]},
        "inference_memory_bytes": {"unmerged": 3 * 2**29},
    }  # fmt: skip
    return MethodCost(**{**values, **changes})


def session(**changes: Any) -> CostRecord:
    place = measured_on(device=changes.pop("device", "NVIDIA H100"), options={"fused_attention": True})
    down = {name: Ratio(value=0.7586, low=0.75, high=0.77, rounds=9) for name in ("time", "device_hours")}
    ratios = {"full": {**down, "flops": Ratio(value=0.6), "memory": Ratio(value=0.5)}}
    methods = [
        method("full", [0.20, 0.21, 0.22]),
        method("naspclora", [0.10, 0.11, 0.12], ratios=ratios, shares={"weights": 0.6, "architecture": 0.4}),
    ]
    values: Any = {"session": "abcdef012345", "methods": methods, "rounds": 9, "warmup": 2, "comparability": place}
    values["key"] = place.key
    return CostRecord(**{**values, **changes})


def render_costs(sessions: Any, **changes: Any) -> str:
    return write(cost_page(sessions, **{"title": "cost", "papers": Papers(), **changes}))


PUBLISHED: Any = {"papers": Papers(setups={"nas-lora": Setup(card="any", backbone="vit_h", checkpoint="")})}
"""As if the paper had measured on such a session."""


@pytest.fixture(autouse=True)
def _card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.comparison.rules.card_rules", lambda card, benchmark: {"image_size": 1024})


def test_two_keys_never_share_a_block() -> None:
    blocks = render_costs([session(), session(device="cpu")]).split("\n## ")[1:]
    assert len({line for block in blocks for line in block.splitlines() if "Comparability key" in line}) == 2
    assert all(("NVIDIA H100" in block) != ("cpu ·" in block) for block in blocks)


def test_keys_of_one_place_are_told_apart_by_the_options_in_which_they_differ() -> None:
    options = ({"fused_attention": True, "epochs": 4}, {"fused_attention": False, "epochs": 4, "budget": "updates"})
    sessions = []
    for number, of_session in enumerate(options):
        place = measured_on(options=of_session)
        sessions.append(session(session=f"abcdef{number}", comparability=place, key=place.key))
    page = cost_page([*sessions, session(device="cpu")], title="cost", claims=read_claims(), **PUBLISHED)
    on_gpu = "NVIDIA H100 · vit_h · 1024 px · batch 4 · bf16"
    apart = {"budget not named, fused_attention=True", "budget=updates, fused_attention=False"}
    assert {table.heading for table in page.tables if table.level == 2} == {
        *(f"cost · {on_gpu} · {words}" for words in apart), "cost · cpu · vit_h · 1024 px · batch 4 · bf16",
    }  # fmt: skip
    time = next(claim for claim in read_claims() if claim.costs)
    where = {reading.where for reading in cost_readings(time, sessions, Papers())} - {"not measured"}
    assert where == {f"{on_gpu} · {words}" for words in apart}


def test_a_row_with_another_option_is_not_the_one_that_a_session_measured() -> None:
    options = [{"residual": False, "lr": 1e-3}, {"residual": True, "lr": 1e-3}, {"residual": False, "lr": 1e-2}]
    runs = [record(method="naslora", variant=str(place), config=config) for place, config in enumerate(options)]
    (grid,) = grids(runs, MadeUp(runs))
    measured = session(methods=[method("naslora", [0.1], config=options[0])])
    assert {row.label for row in costs_of(grid, measured)} == {"0", "2"}  # a rate costs nothing


def test_rows_are_held_against_a_baseline_in_a_session_that_measured_it() -> None:
    runs = [record(method=name, variant=name) for name in ("lora", "bitfit", "vera", "decoder")]
    here = measured_on(backbone="tiny", image_size=64)
    costs = [method(run.run.method, [0.1], config=run.run.method_config) for run in runs]
    without, within = (session(comparability=here, methods=part) for part in (costs[1:], costs[:2]))
    (grid,) = grids(runs, MadeUp(runs, costs=[without, within]))
    assert session_for(grid) is without  # which has more rows
    assert session_for(grid, beside=grid.row("lora")) is within


@pytest.mark.parametrize(
    ("options", "rules", "fits"),
    [
        ({}, {}, True),
        ({"decoder": "linear"}, {}, False),
        ({}, {"decoder": "linear"}, False),
        ({"decoder": "linear"}, {"decoder": "linear"}, True),
        ({"fused_attention": False}, {"fused_attention": True}, False),
        ({"fused_attention": False}, {}, True),  # an older record does not tell
        ({"quantise": "nf4"}, {}, False),
        ({"clock": "wall", "flip": 0.0}, {"flip": 0.5}, True),
    ],
)
def test_costs_are_those_of_a_session_with_the_same_decoder_and_attention(options, rules, fits: bool) -> None:
    runs = [record(method="lora", rules={**CARD, **rules})]
    here = measured_on(backbone="tiny", image_size=64, options=options)
    measured = session(comparability=here, methods=[method("lora", [0.1], config=runs[0].run.method_config)])
    (grid,) = grids(runs, MadeUp(runs, costs=[measured]))
    assert (session_for(grid) is measured) == fits


def test_two_sessions_of_one_key_are_rows_with_their_names() -> None:
    page = render_costs([session(), session(session="fedcba98")])
    assert "| naspclora #abcdef |" in page
    assert "| naspclora #fedcba |" in page
    assert page.count("## cost · ") == 1


def test_numbers_are_medians_with_quartiles_and_parts() -> None:
    page = render_costs([session()])
    assert "| naspclora | 110.0 [105.0, 115.0] | 1.0 | 40.0 | 50.0 | 0.0 | 0.0 | 40 % | 30.0 |" in page
    assert "| naspclora | 1.000 | 0.250 |" in page
    assert "| 0.492 | 3.997 | 641.000 |" in page
    assert "Operations not counted in FLOPs: aten::gelu" in page
    assert "| naspclora | full | -24.1 [-25.0, -23.0] | -24.1 [-25.0, -23.0] | -40.0 | -50.0 |" in page


def test_a_ratio_that_a_session_did_not_store_is_that_of_its_rounds() -> None:
    hours = {
        "time": Ratio(value=1.5, rounds=3),
        "device_hours": Ratio(value=3.0, rounds=3),
    }  # a training of twice the steps
    methods = [
        method("lora", [0.1, 0.1, 0.1]),
        method("naspclora", [0.3, 0.2, 0.4], ratios={"lora": hours}, flops={"forward": 3e12, "backward": 3e12}),
        method("full", [0.2, 0.2, 0.2], ratios={"lora": {name: Ratio(value=2.0, rounds=3) for name in hours}}),
    ]
    measured = session(methods=methods)
    page = render_costs([measured], claims=read_claims(), **PUBLISHED)
    assert (
        "| naspclora | full | +44.2 [-39.3, +242.6] | +188.4 [+21.4, +585.1] | +100.0 | +0.0 |" in page
    )  # 3 ** (1 / 3)
    assert "time, naspclora / full | +44.2" in page
    (hours_on_file,) = (
        number["value"]
        for number in cost_numbers(measured)
        if (number["row"], number["against"], number["part"]) == ("naspclora", "full", "device_hours")
    )
    assert float(hours_on_file) == pytest.approx(2 * 3 ** (1 / 3), rel=1e-5)


def test_inference_memory_stands_beside_its_time_for_every_merge() -> None:
    inference = {
        "inference_seconds": {"unmerged": [0.03], "merged-exact": [0.02]},
        "inference_memory_bytes": {"unmerged": 2**30, "merged-exact": 2**29},
    }
    page = render_costs([session(methods=[method("full", [0.2]), method("lora", [0.1], **inference)])])
    for line in (
        "| inference (ms) | merged-exact (ms) |", "| 30.0 | 20.0 |", "| 30.0 | – |",
        "| inference (GiB) | merged-exact (GiB) |", "| 1.000 | 0.500 |", "| 1.500 | – |",
    ):  # fmt: skip
        assert line in page


def test_steps_by_role_are_shown_of_methods_that_have_several() -> None:
    step = {"total": [1.0, 2.0], "data": [0.5], "forward": [0.25]}
    searched = method(
        "naslora", [0.1], seconds={"weights": step, "architecture": {"total": [0.5]}},
        shares={"weights": 0.625, "architecture": 0.375},
    )  # fmt: skip
    page = render_costs([session(methods=[method("full", [0.2]), searched])])
    (block,) = (block for block in page.split("\n### ") if block.startswith("steps by role · "))
    assert [line for line in block.splitlines() if line.startswith("| ")][1:] == [
        "| naslora | weights | 62.5 % | 1500.0 [1250.0, 1750.0] | 500.0 | 250.0 | – | – | – |",
        "| naslora | architecture | 37.5 % | 500.0 | – | – | – | – | – |",
    ]
    assert "steps by role" not in render_costs([session()])


def test_the_counter_is_held_against_the_closed_form_where_it_is_known() -> None:
    known = method("lora", [0.1], flops={"forward": 1e12, "encoder_forward": 1.0125e12, "closed_form": 1e12})
    page = render_costs([session(methods=[method("full", [0.2]), known])])
    assert "- Encoder forward FLOPs, counted / closed form of the plain encoder: lora 1.012\n" in page
    assert "closed form" not in render_costs([session()])


def test_parameters_of_a_merged_model_stand_beside_those_of_the_whole() -> None:
    merged = {"inference_seconds": {"merged-exact": [0.02]}, "inference_parameters": {"merged-exact": 640_000_000}}
    page = render_costs([session(methods=[method("full", [0.2]), method("lora", [0.1], **merged)])])
    assert "| total (M) | merged-exact (M) | state (MiB) |" in page
    assert "| 641.000 | 640.000 | 0.00 |" in page
    assert "| 641.000 | – | 0.00 |" in page


def test_a_small_number_keeps_two_digits() -> None:
    small = {"flops": {"forward": 184e6, "backward": 33e6}, "checkpoint_bytes": 2**19}
    page = render_costs([session(methods=[method("full", [0.2], **small)])])
    assert "| 0.18 | 0.033 |" in page
    assert "| 641.000 | 0.50 |" in page
    assert "| 0.000 |" in page, "nothing is nothing"


def test_a_cpu_reserves_nothing() -> None:
    assert "| 0.500 | 2.000 |" in render_costs([session()])
    cpu = replace(session().comparability, device="cpu", driver="")
    page = render_costs([session(comparability=cpu, key=cpu.key)])
    assert "| 0.500 | – |" in page
    assert "| 2.000 |" not in page


def test_the_claim_is_printed_for_every_cost_and_stays_ambiguous() -> None:
    page = render_costs([session()], claims=read_claims(), **PUBLISHED)
    verdicts = [line.split(" | ")[-1] for line in page.splitlines() if line.startswith("| training-cost |")]
    both = [f"{verdict} (ambiguous as it stands) |" for verdict in ("not reproduced", "reproduced")]
    assert sorted(verdicts) == [both[0]] * 2 + [both[1]] * 2


@pytest.mark.parametrize(
    ("place", "shared", "words"),
    [
        ({"device": "AMD EPYC", "driver": ""}, "", "on a CPU (AMD EPYC)"),
        ({"backbone": "tiny"}, "", "backbone tiny instead of vit_h"),
        ({"image_size": 128}, "", "image_size 128 instead of 1024"),
        ({}, "process 7", "device shared"),
    ],
)
def test_a_session_of_another_set_up_gets_no_verdict(place: dict[str, Any], shared: str, words: str) -> None:
    changed = replace(session().comparability, **place)
    page = render_costs(
        [session(comparability=changed, key=changed.key, shared=shared)], claims=read_claims(), **PUBLISHED
    )
    readings = [line for line in page.splitlines() if line.startswith("| training-cost |")]
    assert len(readings) == 4
    assert all("| not judged (ambiguous as it stands) |" in line for line in readings)
    assert f"- Not judged, since this is not the published set-up: {words}" in page
    assert "reproduced" not in page


def test_csv_is_a_number_a_row_in_si_units() -> None:
    text = write(cost_page([session()], title="cost", papers=Papers()), style="csv")
    table = list(csv.DictReader(io.StringIO(text)))
    step = {"row": "naspclora", "quantity": "training step", "part": "total", "value": "0.11", "unit": "s", "n": "3"}
    ratio = {"quantity": "ratio", "part": "time", "against": "full", "value": "0.7586", "low": "0.75", "high": "0.77"}
    for expected in ({**step, "backbone": "vit_h"}, ratio):
        assert len([row for row in table if expected.items() <= row.items()]) == 1
    assert all(row["comparability_key"] == session().key and row["session"] for row in table)


def test_one_round_gives_no_interval_and_no_verdict() -> None:
    alone = {"full": {"time": Ratio(value=0.7586), "flops": Ratio(value=0.7586)}}
    single = session(methods=[method("full", [0.2]), method("naspclora", [0.1], ratios=alone)])
    page = render_costs([single], claims=read_claims(), **PUBLISHED)
    assert "| time, naspclora / full | -24.14 | – | no interval (ambiguous as it stands) |" in page
    assert "| flops, naspclora / full | -24.14 | exact | reproduced (ambiguous as it stands) |" in page


def test_a_shared_device_is_marked_and_what_could_not_be_measured_is_named() -> None:
    page = render_costs([session(shared="process 7 held 3 GiB", dropped={"convlora": "OOM: no room"})])
    assert "| naspclora § |" in page
    assert "§ the device was not exclusive: process 7 held 3 GiB" in page
    assert "- Not measured: convlora: OOM: no room" in page


def test_the_page_is_the_same_bytes_in_any_order() -> None:
    sessions = [session(), session(device="cpu"), session(session="fedcba98")]
    assert render_costs(sessions, claims=read_claims()) == render_costs(sessions[::-1], claims=read_claims())


def test_the_tables_verb_writes_and_checks_the_cost_page(tmp_path: Path, says) -> None:
    words, store = ["--results", tmp_path], CostStore(tmp_path)
    store.write(session())
    says(main, *words, "--study", "cost")
    assert "NVIDIA H100" in (tmp_path / "tables" / "cost.md").read_text(encoding="utf-8")
    (tmp_path / "records").mkdir()
    says(main, *words, "--check")
    store.write(replace(session(), session="fedcba98"))
    says(main, *words, "--check", code=1)
    (tmp_path / "cost" / "bad.json").write_text("{")
    (tmp_path / "cost" / "foreign.json").write_text("[1]")
    said = says(main, *words)
    assert "bad.json" in said
    assert "foreign.json: JSON, but no cost record" in said
