"""The table that ends the main job shows what was planned, no more and no less."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.archive.schema import Record, Run
from harness.archive.store import RecordStore
from harness.planning.plan import Plan
from harness.planning.request import Variant
from harness.report.pages import finished_table, narrowed
from harness.studies import study_from_dict
from tests.harness.planned import plan_of
from tests.values import there

STUDY = "title: mine\nprotocol: demo\nbenchmarks: [kvasir, leaf]\nentries: [decoder, lora]\nseeds: 3\n"


def runs_of(made: Plan) -> list[Run]:
    return [job.run for job in made.jobs]


def finish(results: Path, made: Plan) -> None:
    for job in made.jobs:
        test = {"s_measure": 0.9, "e_max": 0.8, "weighted_f": 0.7, "iou": 0.6, "dice": 0.5, "mae": 0.1}
        RecordStore(results).write(Record(run=job.run, key=job.run.key, code="OK", scores={"best": {"test": test}}))


@pytest.fixture
def study(tmp_path: Path) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(STUDY)
    return str(path)


def test_a_study_under_fewer_seeds_has_numbers(samples: Path, tmp_path: Path, study: str) -> None:
    made = plan_of(tmp_path, "decoder", "lora", samples=samples, benchmarks=("kvasir", "leaf"))
    finish(tmp_path, made)
    text, page = finished_table(runs_of(made), tmp_path, study=study)
    assert there(page).read_text().startswith("# ")
    assert "MISSING" not in text
    assert "Seeds: 0" in text
    rows = [line.split(" | ")[0] for line in text.splitlines() if line.startswith(("| Decoder", "| LoRA"))]
    assert rows == ["| Decoder alone", "| LoRA"]


def test_a_study_with_part_of_its_grid_under_another_protocol_shows_that_part(samples: Path, tmp_path: Path) -> None:
    made = plan_of(tmp_path, "lora", samples=samples)
    finish(tmp_path, made)
    text, _ = finished_table(runs_of(made), tmp_path, study="main")
    assert "| LoRA |" in text
    assert "90.0 (1)" in text
    assert "MISSING" not in text
    assert "Leaf" not in text
    assert "papers" not in text.lower()


def test_a_study_keeps_its_own_rows_and_gets_further_requested_ones(samples, tmp_path) -> None:
    wide = Variant(method="lora", options={"rank": 6})
    made = plan_of(tmp_path, wide, "lora", "ssf", samples=samples, seeds=(4, 2))
    own = ["decoder", {"label": "three", "method": "lora"}]
    given = study_from_dict({"title": "t", "protocol": "demo", "benchmarks": ["leaf"], "entries": own}, name="mine")
    chosen = narrowed(given, runs_of(made))
    rows = [(entry.label, entry.options) for entry in chosen.entries]
    assert rows == [("three", {}), ("LoRA (rank=6)", {"rank": 6}), ("SSF", {})]
    assert (chosen.seeds, chosen.benchmarks, chosen.protocol) == ((2, 4), ("kvasir",), "demo")


def test_runs_that_were_all_interrupted_are_missing_and_no_error(samples: Path, tmp_path: Path, study: str) -> None:
    made = plan_of(tmp_path, "lora", samples=samples)
    assert "MISSING (0/1)" in finished_table(runs_of(made), tmp_path, study=None)[0]
    assert "MISSING (0/1)" in finished_table(runs_of(made), tmp_path, study=study)[0]
    assert not (tmp_path / "tables").exists()
