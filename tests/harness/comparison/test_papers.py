"""Published numbers carry their origin, and stand beside ours with a verdict."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from harness.cli.records import main
from harness.comparison.judging import judge, seeds_in_words, seeds_to_settle
from harness.comparison.names import BENCHMARK_ORDER
from harness.comparison.papers import (
    PARAMETERS,
    Papers,
    Published,
    against,
    problems,
    read_file,
    read_published,
    read_setups,
)
from harness.models.catalog import known_backbones
from harness.protocols.load import card_rules
from harness.report.pages import narrowed
from harness.statistics import Interval, of_seeds
from harness.studies import study_from_dict
from tests.harness.report.sample import PAPERS, record, render
from tests.values import there

CELL = {"paper": "p", "table": "1", "method": "lora", "benchmark": "kvasir", "metric": "s_measure", "value": "91.2"}
GOOD = Published(**CELL, split="test", source="PDF", mark="P")


def test_the_committed_numbers_are_valid_and_none_is_without_a_source() -> None:
    cells = read_published()
    assert problems(cells) == []
    assert {cell.paper for cell in cells} == {"conv-lora", "nas-lora"}
    assert all(cell.source and cell.mark != "?" for cell in cells if cell.value)
    assert [cell for cell in cells if cell.paper == "nas-lora" and cell.value] == [], "no cell of this paper is known"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value": "191"}, "outside 0 to 100"),
        ({"value": "0.912"}, "91.2 is meant"),
        ({"value": "91,2"}, "not a number"),
        ({"value": "nan"}, "outside"),
        ({"spread": "0.3"}, "needs its kind"),
        ({"spread_kind": "se"}, "needs its kind"),
        ({"runs": "three"}, "not a count"),
        ({"source": ""}, "needs a source"),
        ({"mark": "?"}, "needs a mark"),
        ({"mark": "X"}, "unknown mark"),
        ({"value": ""}, "no number, but the mark P"),
        ({"method": "lorra"}, "did you mean 'lora'"),
        ({"benchmark": "kvasirr"}, "did you mean 'kvasir'"),
        ({"options": "rnak=3"}, "did you mean 'rank'"),
        ({"options": "rank=many"}, "rank='many' must be"),
        ({"options": "rank"}, "is not NAME=VALUE"),
        ({"metric": "s_measur"}, "did you mean 's_measure'"),
        ({"metric": "ber"}, "papers report kvasir by"),
        ({"metric": PARAMETERS}, "belongs to no benchmark"),
    ],
)
def test_a_wrong_cell_is_found(changes: dict[str, Any], message: str) -> None:
    assert any(message in line for line in problems([replace(GOOD, **changes)]))
    assert problems([GOOD]) == []
    assert problems([GOOD, GOOD])[0].endswith("this cell is there twice")


def arguments(folder: Path, **changes: str) -> list[str]:
    values = {**CELL, "method": "LoRA", "source": "PDF", **changes}
    options = [word for name, value in values.items() for word in (f"--{name}", value)]
    return ["paper", "add", "--folder", str(folder), *options]


def test_add_appends_fills_and_never_replaces(tmp_path: Path, says) -> None:
    says(main, *arguments(tmp_path))
    assert read_file(tmp_path / "p.csv") == [GOOD]
    assert "has 91.2 (PDF)" in says(main, *arguments(tmp_path, value="92.0"), code=2)
    says(main, *arguments(tmp_path, metric="e_mean", value="1.2"))
    says(main, *arguments(tmp_path, metric="e_mean", value="120"), code=2)
    assert [cell.value for cell in read_file(tmp_path / "p.csv")] == ["91.2", "1.2"]
    says(main, "paper", "check", "--folder", tmp_path)


def test_empty_cells_are_asked_for_and_a_typo_is_asked_again(tmp_path, monkeypatch, says) -> None:
    (tmp_path / "nas-lora.csv").write_bytes((Path(__file__).parents[3] / "results/paper/nas-lora.csv").read_bytes())
    monkeypatch.setattr("sys.stdin", io.StringIO("912\n91.2 0.3 se\n\n93.1\nq\n"))
    shown = says(main, "paper", "add", "--folder", tmp_path, "--paper", "nas-lora", "--source", "PDF v1")
    assert "outside 0 to 100" in shown
    assert "2 cells filled" in shown
    cells = read_published(tmp_path)
    filled = [(cell.value, cell.spread, cell.source) for cell in cells if cell.value]
    assert filled == [("91.2", "0.3", "PDF v1"), ("93.1", "", "PDF v1")]
    assert problems(cells) == []


def test_check_exits_1_and_a_broken_file_is_one_line(tmp_path: Path, says) -> None:
    says(main, *arguments(tmp_path))
    path = tmp_path / "p.csv"
    path.write_text(path.read_text().replace("91.2", "191.2"))
    says(main, "paper", "check", "--folder", tmp_path, code=1)
    path.write_text("a,b\n1,2\n")
    assert "the first line must be" in says(main, "paper", "check", "--folder", tmp_path, code=2)


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((0.4, 0.6), "reproduced"),
        ((0.0, 1.0), "reproduced"),
        ((0.9, 1.1), "inconclusive"),
        ((1.0, 1.2), "inconclusive"),  # they share the edge
        ((-0.2, 0.0), "inconclusive"),
        ((-5.0, 5.0), "inconclusive"),
        ((1.1, 1.2), "not reproduced"),
        ((-0.2, -0.1), "not reproduced"),
    ],
)
def test_a_verdict_needs_the_whole_interval(interval: tuple[float, float], verdict: str) -> None:
    low, high = interval
    assert judge(Interval(estimate=(low + high) / 2, low=low, high=high, n=3), low=0.0, high=1.0) == verdict
    assert judge(None, low=0.0, high=1.0) == "no interval"


def test_the_seeds_that_would_settle_it_are_a_range_with_a_stated_power() -> None:
    seeds = there(seeds_to_settle(of_seeds([0.1, 0.5, 0.9]), low=0.0, high=10.0))
    assert seeds[0] < (seeds[1] or 10**6)
    assert "seeds would settle it with 80 % power" in seeds_in_words(seeds)
    assert seeds_in_words((4, 4)) == "4 seeds would settle it with 80 % power"
    assert seeds_to_settle(of_seeds([0.5]), low=0, high=1) is None
    assert seeds_to_settle(of_seeds([-1.0, 1.0]), low=0.0, high=1.0) is None
    assert "more seeds alone would not" in seeds_in_words(None)


def holding(*numbers: Published) -> Papers:
    """What papers p and nas-lora say."""
    return replace(PAPERS, published=numbers)


def main_study(seeds: int, **changes: Any) -> Any:
    data: dict[str, Any] = {"title": "t", "protocol": "demo", "benchmarks": ["kvasir"], "entries": ["lora"]}
    return study_from_dict({**data, "seeds": seeds, "table": {"paper": True}, **changes}, name="main")


def beside(values: list[float], **changes: Any) -> list[str]:
    records = [record(value, seed=seed, **changes) for seed, value in enumerate(values)]
    cells = [GOOD, replace(GOOD, metric=PARAMETERS, benchmark="", split="", value="3.62")]
    page = render(records, study=main_study(len(values)), papers=holding(*cells))
    return [line for line in page.splitlines() if "[P]" in line]


def test_the_paper_stands_beside_ours_with_difference_interval_and_verdict() -> None:
    score, parameters = beside([0.911, 0.912, 0.913])
    assert score == "| lora | Kvasir-SEG Sα | 91.2 | p, 1 [P] | 91.2 (3) | +0.0 | [-0.5, +0.5] | reproduced |"
    assert parameters == "| lora | params (M) | 3.62 | p, 1 [P] | 3.616 | -0.004 | exact | reproduced |"
    assert "| -11.2 | [-11.7, -10.7] | not reproduced |" in beside([0.799, 0.800, 0.801])[0]
    assert "| inconclusive |" in beside([0.85, 0.9, 0.95])[0]
    assert "| no interval (n too small) |" in beside([0.912])[0]


@pytest.mark.parametrize(
    ("spread", "kind", "runs", "error", "df"),
    [("0.3", "se", "3", 0.3, 2), ("0.3", "sd", "9", 0.1, 8), ("0.3", "se", "", 0.3, 2), ("0.3", "sd", "", 0.3, 2)],
)
def test_the_papers_own_error_widens_the_interval(spread: str, kind: str, runs: str, error: float, df: int) -> None:
    """Welch: squares of both standard errors add up, degrees of freedom after Satterthwaite."""
    cell = replace(GOOD, spread=spread, spread_kind=kind, runs=runs)
    ours, own = [91.0, 91.2, 91.4], 0.2 / 3**0.5
    interval = there(against(ours, cell).interval())
    freedom = (own**2 + error**2) ** 2 / (own**4 / 2 + error**4 / df)
    assert interval.half == pytest.approx(stats.t.ppf(0.975, freedom) * (own**2 + error**2) ** 0.5)


@pytest.mark.parametrize(("runs", "narrows"), [("3", 1 / 2), ("", 1 / 4)])
def test_a_paper_without_an_error_varies_as_ours_do_and_our_seeds_narrow_our_part(runs: str, narrows: float) -> None:
    seeds = against([91.0, 91.2, 91.4], replace(GOOD, runs=runs)).seeds
    assert seeds is not None
    assert (seeds.variance, seeds.narrows) == pytest.approx((0.04 / 3 / narrows, narrows))


@pytest.mark.parametrize(
    ("counts", "said"),
    [({"test": 7}, "7 test images instead of 8"), ({"test": 5, "hard": 3}, ""), ({"train": 9, "val": 9}, "")],
)
def test_some_of_the_published_test_images_get_no_verdict(counts: dict[str, int], said: str) -> None:
    line = beside([0.911, 0.912, 0.913], counts=counts)[0]
    assert (f"| not judged: {said} |" in line) == bool(said)
    assert line.endswith("| reproduced |") != bool(said)


def test_other_rules_weights_backbones_and_generated_images_get_no_verdict() -> None:
    values = [0.911, 0.912, 0.913]
    score, parameters = beside(values, rules={"image_size": 32}, protocol_hash="bbbb")
    assert "| 91.2 (3) | +0.0 | [-0.5, +0.5] | not judged: image_size 32 instead of 64" in score
    assert parameters.endswith("| reproduced |")  # a count depends on the backbone alone
    assert "not judged: other weights |" in beside(values, checkpoint="sha256-00")[0]
    assert "| not judged: 352 px copy |" in beside(values, data_note="352 px copy")[0]
    score, parameters = beside(values, backbone="vit_b")
    assert "not judged: backbone vit_b instead of tiny |" in score
    assert "not judged: backbone vit_b instead of tiny |" in parameters
    page = render([record(0.912)], study=main_study(1), papers=Papers(published=[GOOD]))
    assert "not judged: what p used is not known here" in page


@pytest.mark.parametrize(
    ("printed", "agrees"), [("3.62", True), ("3.616", True), ("3.615", False), ("3.6", True), ("3.61", False)]
)
def test_parameters_agree_in_every_printed_digit(printed: str, agrees: bool) -> None:
    """3,616,128: half a unit of the last printed digit is the tolerance."""
    cell = replace(GOOD, metric=PARAMETERS, benchmark="", split="", value=printed)
    page = render([record(0.9)], study=main_study(1), papers=holding(cell))
    (line,) = [line for line in page.splitlines() if "[P]" in line]
    assert line.endswith("| reproduced |" if agrees else "| not reproduced |")


def test_many_differences_are_counted_in_the_cell() -> None:
    rules = {"image_size": 32, "epochs": 1, "lr": 1.0, "flip": 0.0, "batch_size": 1, "clip": 3.0}
    said = beside([0.9], rules=rules, backbone="vit_b")[0]
    first = "epochs 1 instead of nothing; image_size 32 instead of 64; lr 1 instead of nothing"
    assert f"not judged: backbone vit_b instead of tiny; {first} and 4 more |" in said


def test_numbers_of_an_ablation_stand_beside_the_row_with_its_options() -> None:
    cells = [replace(GOOD, options=f"rank={rank}", value=value) for rank, value in ((6, "92"), (12, "93"), (3, "90"))]
    six: dict[str, Any] = {"config": {"rank": 6}, "changed": {"rank": 6}, "variant": "lora[rank=6]"}
    entries = ["lora", {"label": "r=6", "method": "lora", "options": {"rank": 6}}]
    page = render([record(0.9), record(0.91, **six)], study=main_study(1, entries=entries), papers=holding(*cells))
    printed = [line.split(" | ")[:3] for line in page.splitlines() if "[P]" in line]
    assert printed == [["| lora", "Kvasir-SEG Sα", "90"], ["| r=6", "Kvasir-SEG Sα", "92"]]


def test_the_committed_setups_name_real_cards_backbones_and_benchmarks() -> None:
    setups = read_setups()
    assert set(setups) == {cell.paper for cell in read_published()}
    for setup in setups.values():
        assert card_rules(setup.card, "kvasir") is not None
        assert setup.backbone in known_backbones()
        assert setup.checkpoint.startswith("sha256-")
        assert setup.test_images.keys() <= set(BENCHMARK_ORDER)


def test_a_failed_seed_and_a_row_without_a_run_get_no_number_beside_the_paper() -> None:
    page = render([record(0.9), record(seed=1, code="OOM")], study=main_study(2), papers=holding(GOOD))
    assert "no data (no score)" in page
    study = main_study(1, entries=["bitfit", {"label": "r6", "method": "lora", "options": {"rank": 6}}])
    page = render([record(method="bitfit")], study=study, papers=holding(replace(GOOD, options="rank=6")))
    assert "no data (no score)" in page


def test_numbers_stand_beside_the_studys_own_protocol_and_the_papers_cards_alone() -> None:
    study = main_study(1, protocol="nas-lora")
    known = holding(GOOD)  # demo is the card of paper p
    assert "beside the papers" not in render([record()], study=study, papers=Papers(published=[GOOD]))
    assert "beside the papers" in render([record()], study=study, papers=known)
    run = record().run
    assert not narrowed(study, [run], Papers()).table.paper
    assert narrowed(study, [run], PAPERS).table.paper
    assert narrowed(main_study(1), [run], Papers()).table.paper
