"""Published numbers carry their origin, and stand beside ours with a verdict."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.paper import main
from harness.reporting.published import PARAMETERS, Published, problems, read, read_file
from harness.reporting.statistics import Interval, t_interval
from harness.reporting.tables import render
from harness.reporting.verdicts import judge, seeds_to_settle
from harness.studies import study_from_dict
from tests.harness.reporting.sample import record

GOOD = Published(
    paper="p",
    table="1",
    method="lora",
    benchmark="kvasir",
    split="test",
    metric="s_measure",
    value="91.2",
    source="PDF",
    mark="P",
)


def test_the_committed_numbers_are_valid_and_none_is_without_a_source() -> None:
    cells = read()
    assert problems(cells) == []
    assert {cell.paper for cell in cells} == {"conv-lora", "nas-lora"}
    assert all(cell.source and cell.mark != "?" for cell in cells if cell.value)
    assert [cell for cell in cells if cell.paper == "nas-lora" and cell.value] == [], "no cell of this paper is known"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value": "191"}, "outside 0 to 100"),
        ({"value": "-1"}, "outside 0 to 100"),
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
        ({"metric": "s_measur"}, "did you mean 's_measure'"),
        ({"metric": "ber"}, "papers report kvasir by"),
        ({"metric": PARAMETERS}, "belongs to no benchmark"),
    ],
)
def test_a_wrong_cell_is_found(changes: dict[str, Any], message: str) -> None:
    assert any(message in line for line in problems([replace(GOOD, **changes)]))
    assert problems([GOOD]) == []


def test_two_of_one_cell_are_found() -> None:
    assert problems([GOOD, GOOD])[0].endswith("this cell is there twice")


def arguments(folder: Path, **changes: str) -> list[str]:
    values = {
        "paper": "p",
        "table": "1",
        "method": "LoRA",
        "benchmark": "kvasir",
        "metric": "s_measure",
        "value": "91.2",
        "source": "PDF",
    }
    values |= changes
    return ["add", "--folder", str(folder), *(word for name, value in values.items() for word in (f"--{name}", value))]


def test_add_appends_fills_and_never_replaces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tmp_path)) == 0
    assert read_file(tmp_path / "p.csv") == [GOOD]
    assert main(arguments(tmp_path, value="92.0")) == 2
    assert "has 91.2 (PDF)" in capsys.readouterr().err
    assert main(arguments(tmp_path, metric="e_mean", value="1.2")) == 0
    assert main(arguments(tmp_path, metric="e_mean", value="120")) == 2
    assert [cell.value for cell in read_file(tmp_path / "p.csv")] == ["91.2", "1.2"]
    assert main(["check", "--folder", str(tmp_path)]) == 0


def test_empty_cells_are_asked_for_and_a_typo_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nas-lora.csv").write_bytes((Path(__file__).parents[3] / "results/paper/nas-lora.csv").read_bytes())
    monkeypatch.setattr("sys.stdin", io.StringIO("912\n91.2 0.3 se\n\n93.1\nq\n"))
    assert main(["add", "--folder", str(tmp_path), "--paper", "nas-lora", "--source", "PDF v1"]) == 0
    shown = capsys.readouterr().out
    assert "outside 0 to 100" in shown
    assert "2 cells filled" in shown
    cells = read(tmp_path)
    assert [(cell.value, cell.spread, cell.source) for cell in cells if cell.value] == [
        ("91.2", "0.3", "PDF v1"),
        ("93.1", "", "PDF v1"),
    ]
    assert problems(cells) == []


def test_check_exits_1_and_a_broken_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tmp_path)) == 0
    path = tmp_path / "p.csv"
    path.write_text(path.read_text().replace("91.2", "191.2"))
    assert main(["check", "--folder", str(tmp_path)]) == 1
    path.write_text("a,b\n1,2\n")
    capsys.readouterr()
    assert main(["check", "--folder", str(tmp_path)]) == 2
    assert "the first line must be" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((0.4, 0.6), "reproduced"),
        ((0.0, 1.0), "reproduced"),
        ((0.9, 1.1), "inconclusive"),
        ((-5.0, 5.0), "inconclusive"),
        ((1.1, 1.2), "not reproduced"),
        ((-0.2, -0.1), "not reproduced"),
    ],
)
def test_a_verdict_needs_the_whole_interval(interval: tuple[float, float], verdict: str) -> None:
    low, high = interval
    assert judge(Interval(estimate=(low + high) / 2, low=low, high=high, n=3), low=0.0, high=1.0) == verdict
    assert judge(None, low=0.0, high=1.0) == "inconclusive"


def test_the_seeds_that_would_settle_it_settle_it() -> None:
    n = seeds_to_settle(0.5, 0.4, low=0.0, high=10.0)
    assert n is not None
    alternating = [0.5 + 0.4 * (-1) ** i for i in range(n + n % 2)]
    interval = t_interval(alternating)
    assert judge(interval, low=0.0, high=10.0) == "reproduced"
    assert seeds_to_settle(0.5, None, low=0, high=1) is None
    assert seeds_to_settle(0.0, 1.0, low=0.0, high=1.0) is None


def beside(values: list[float], **changes: Any) -> list[str]:
    study = study_from_dict(
        {
            "title": "t",
            "protocol": "demo",
            "benchmarks": ["kvasir"],
            "entries": ["lora"],
            "seeds": len(values),
            "table": {"paper": True},
        },
        name="main",
    )
    records = [record(value, seed=seed, **changes) for seed, value in enumerate(values)]
    cells = [GOOD, replace(GOOD, metric=PARAMETERS, benchmark="", split="", value="3.62")]
    page = render(records, study=study, published=cells)
    return [line for line in page.splitlines() if "[P]" in line]


def test_the_paper_stands_beside_ours_with_difference_interval_and_verdict() -> None:
    score, parameters = beside([0.911, 0.912, 0.913])
    assert score == "| lora | Kvasir-SEG Sα | 91.2 | p, 1 [P] | 91.2 (3) | +0.0 | [91.0, 91.4] | reproduced |"
    assert parameters == "| lora | params (M) | 3.62 | p, 1 [P] | 3.616 | -0.004 | exact | reproduced |"
    assert "| -11.2 | [79.8, 80.2] | not reproduced |" in beside([0.799, 0.800, 0.801])[0]
    assert "| inconclusive |" in beside([0.85, 0.9, 0.95])[0]
    assert "| inconclusive (n too small) |" in beside([0.912])[0]


def test_other_data_gets_no_verdict() -> None:
    assert "| other data (352 px copy) |" in beside([0.911, 0.912, 0.913], data_note="352 px copy")[0]


def test_a_failed_seed_gets_no_number_beside_the_paper() -> None:
    study = study_from_dict(
        {
            "title": "t",
            "protocol": "demo",
            "benchmarks": ["kvasir"],
            "entries": ["lora"],
            "seeds": 2,
            "table": {"paper": True},
        },
        name="main",
    )
    page = render([record(0.9), record(seed=1, code="OOM")], study=study, published=[GOOD])
    assert "inconclusive (no score)" in page


def test_another_protocol_is_not_set_beside_the_paper() -> None:
    study = study_from_dict(
        {
            "title": "t",
            "protocol": "nas-lora",
            "benchmarks": ["kvasir"],
            "entries": ["lora"],
            "seeds": 1,
            "table": {"paper": True},
        },
        name="main",
    )
    assert "beside the papers" not in render([record()], study=study, published=[GOOD])
