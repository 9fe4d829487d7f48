"""Published numbers carry their origin, and are paired with ours and the differences to their set-up."""

from __future__ import annotations

from typing import Any

import pytest
from scipy import stats

from harness.comparison.names import BENCHMARK_ORDER, PAPER_METRICS, SCORE_TITLES, heading
from harness.comparison.papers import MARKS, PAPERS_FOLDER, Claim, Papers, Published, Setup
from harness.models.catalog import KNOWN
from harness.protocols.load import protocol_rules
from harness.registry import METHODS, method_config
from harness.report.scores import paper_tables
from harness.studies import Row
from tests.harness.report.sample import grid_of, record
from tests.values import there

SETUP = Setup(backbone="tiny", checkpoint="", test_images={"kvasir": 8, "leaf": 8})


def cell(**changes: Any) -> Published:
    where = {"paper": "demo", "table": "1", "method": "lora", "benchmark": "kvasir", "split": "test"}
    what = {"metric": "s_measure", "value": "91.2", "source": "PDF, Table 1", "mark": "P"}
    return Published(**{**where, **what, **changes})


def paired(cells: list[Published], records: list[Any], **changes: Any) -> list[tuple[str, str, float, list[str]]]:
    papers = Papers(published=cells, setups={"demo": SETUP})
    found = papers.paired_values(grid_of(records, **changes))
    return [(value.value, ours.row, difference.mean, words) for value, ours, difference, words in found]


def test_a_published_number_is_paired_with_the_row_of_its_options_alone() -> None:
    others = cell(options="rank=12", value="93"), cell(metric="iou", value="1")
    cells = [cell(), cell(options="rank=6", value="92"), *others]
    six: dict[str, Any] = {"config": {"rank": 6}, "changed": {"rank": 6}}
    assert paired(cells, [record(0.9), record(0.93, **six), record(0.5, method="decoder")]) == [
        ("91.2", "LoRA", pytest.approx(-1.2), []), ("92", "LoRA (rank=6)", pytest.approx(1.0), []),
    ]  # fmt: skip
    assert paired([cell()], [record(0.9), record(code="OOM", seed=1)]) == [], "no number is taken over a gap"


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"backbone": "vit_b"}, "backbone"),
        ({"checkpoint": "sha256-00"}, "weights"),
        ({"counts": {"train": 1, "val": 1, "test": 7}}, "test images"),
        ({"data_note": "352 px copy"}, "test images"),
        ({"split": "carved"}, "test images"),
        ({"rules": {"image_size": 32, "methods": {}, "protocol": "a" * 16}}, "rules"),
    ],
)
def test_differences_to_the_published_set_up_are_listed(changes: dict[str, Any], word: str) -> None:
    ((*_, words),) = paired([cell()], [record(0.9, **changes)])
    assert words == [word]


@pytest.mark.parametrize(
    ("spread", "kind", "runs", "error"), [("0.3", "se", "3", 0.3), ("0.3", "sd", "9", 0.1), ("0.3", "se", "", 0.3)]
)
def test_the_interval_is_welchs_of_our_seeds_and_the_papers_error(
    spread: str, kind: Any, runs: str, error: float
) -> None:
    ours = [91.0, 91.5, 92.4, 91.1]
    found = cell(spread=spread, spread_kind=kind, runs=runs).against(ours)
    a, b, df = stats.sem(ours) ** 2, error**2, (int(runs) - 1 if runs else 2)
    freedom = (a + b) ** 2 / (a**2 / 3 + b**2 / df)
    half = stats.t.ppf(0.975, freedom) * (a + b) ** 0.5
    assert (found.mean, there(found.high) - found.mean) == pytest.approx((91.5 - 91.2, half))


def test_without_a_printed_spread_the_papers_runs_vary_as_ours() -> None:
    ours = [91.0, 92.0, 93.0]
    found = cell(runs="3").against(ours)
    assert there(found.high) - found.mean == pytest.approx(stats.t.ppf(0.975, 2) * (1 / 3 + 1 / 3) ** 0.5)
    assert cell().against([91.0]).low is None


def test_a_claim_is_paired_with_the_difference_of_its_rows() -> None:
    claim = Claim(
        text="LoRA helps", source="p", mark="P", first=Row(method="lora"), second=Row(method="decoder"),
        expected="0.7", benchmarks=("kvasir", "leaf"),
    )  # fmt: skip
    records = [record(0.9 + 0.01 * s, seed=s) for s in range(3)] + [
        record(0.8, method="decoder", seed=s) for s in range(3)
    ]
    assert str(cell(options="rank=4").settings["rank"]) == "4"
    papers = Papers(claims=[claim], published=[cell()], setups={"demo": SETUP})
    ((said, column, found),) = papers.paired_claims(grid_of(records))
    assert (said.text, column.benchmark, found.mean) == ("LoRA helps", "kvasir", pytest.approx(11.0))
    (table,) = paper_tables(grid_of(records), papers)
    assert [row[3] for row in table.rows] == ["91.2", "0.7"]
    assert paper_tables(grid_of(records[:3]), Papers(claims=[claim])) == []


def test_the_committed_files_are_of_known_names_with_a_source_for_every_number() -> None:
    papers = Papers.read()
    assert papers.published
    for each in papers.published:
        assert each.method in METHODS.names()
        method_config(each.method, each.settings)
        assert each.source
        assert each.mark in MARKS
        assert (each.metric == "parameters_m") == (not each.benchmark)
        if each.benchmark:
            assert each.metric in PAPER_METRICS[each.benchmark]
            assert 1 < float(each.value) <= 100, "in percent"
        assert bool(each.spread) == bool(each.spread_kind)
    assert (heading("e_mean"), heading("mae"), heading("own")) == ("Eφ ↑", "MAE ↓", "own ↑")
    assert len(
        {(c.paper, c.table, c.method, c.benchmark, c.split, c.metric, c.options) for c in papers.published}
    ) == len(papers.published)
    for claim in papers.claims:
        for row in (claim.first, claim.second):
            method_config(METHODS.resolve(row.method), row.options)
            assert set(row.scores) <= SCORE_TITLES.keys()
        assert set(claim.benchmarks) <= set(BENCHMARK_ORDER)
        assert claim.expected[0] in "<>" or float(claim.expected) or claim.expected == "0"
        assert bool(claim.benchmarks) != bool(claim.cost)


def test_the_committed_setups_name_real_cards_backbones_and_benchmarks() -> None:
    setups = Papers.read().setups
    assert set(setups) == {path.stem for path in PAPERS_FOLDER.glob("*.csv")}
    for name, setup in setups.items():
        assert protocol_rules(name, "kvasir") is not None
        assert setup.backbone in KNOWN
        assert setup.test_images.keys() <= set(BENCHMARK_ORDER)
