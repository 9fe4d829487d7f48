"""What docs/classification.md says of real images is in the committed records."""

from __future__ import annotations

import re
from pathlib import Path

from harness.archive.archive import Archive
from harness.archive.store import RecordStore
from harness.comparison.grids import grids
from harness.studies import load_study
from tests.harness.report.sample import table_rows as rows

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "classification.md").read_text(encoding="utf-8")
TABLE = (ROOT / "results" / "tables" / "small-classification.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("## On real images")[2].partition("\n## ")[0]


def test_the_rows_are_those_of_the_table() -> None:
    scores = {row[0]: row[1:4] for row in rows(TABLE.partition("\n### ")[0])[1:]}
    differences = {row[0]: row[2:4] for row in rows(TABLE.partition(": differences")[2].partition("\n#")[0])[1:]}
    said = {row[0]: row[1:] for row in rows(SECTION)[1:]}
    assert said.keys() == scores.keys()
    for name, cells in said.items():
        assert cells[:3] == [re.sub(r"\*\*|</?u>| ≈| †", "", cell) for cell in scores[name]]
        assert " ".join(cells[3:]) == " ".join(differences.get(name, ["–"]))


def test_every_row_has_its_seeds_and_every_run_its_labels() -> None:
    archive = Archive(ROOT / "results")
    records = [record for record in archive.records if record.run.protocol == "small-labels"]
    (grid,) = grids(records, archive, study=load_study("small-classification"))
    assert {len(row.records) for row in grid.rows} == {3}
    for record in records:
        assert record.run.rules["task"] == "classification"
        assert record.scores["best"]["test"].keys() == {"accuracy", "nll", "ece"}


def test_the_sentences_are_those_of_the_seeds() -> None:
    found: dict[str, dict[int, float]] = {}
    for record in RecordStore(ROOT / "results"):
        if record.run.protocol == "small-labels":
            accuracy = 100 * record.scores["best"]["test"]["accuracy"]
            found.setdefault(record.run.variant, {})[record.run.seed] = accuracy
    lora, linear = found["LoRA, lr 1e-3"], found["decoder, lr 1e-2"]
    assert sorted(round(lora[seed] - linear[seed]) for seed in lora) == [-13, 16, 22]
    best, *_ = (row for row in rows(TABLE) if row[1].startswith("**"))
    assert best[0] == "NAS-LoRA, lr 3e-3"
    apart = {row[0] for row in rows(TABLE.partition("\n### ")[0])[1:] if "≈" not in row[1]} - {best[0]}
    assert apart == {"decoder, lr 1e-3", "decoder, lr 1e-2"}
    assert "only the linear layer alone, at either rate, is significantly below" in PAGE
