"""What docs/findings.md says of images of another kind is in the committed forgetting records."""

from __future__ import annotations

from pathlib import Path

from harness.records.forgetting import ForgettingStore
from harness.records.store import RecordStore
from harness.reporting.forgetting import forgetting_page
from harness.reporting.writing import write
from tests.harness.reporting.test_findings import ROOT, rows, section

RESULTS = ROOT / "results"
TABLE = (RESULTS / "tables" / "forgetting.md").read_text(encoding="utf-8")


def test_the_rows_are_those_of_the_records() -> None:
    records, _ = RecordStore(RESULTS).summaries()
    made = write(forgetting_page(records, ForgettingStore(RESULTS)), style="markdown")
    assert made == TABLE
    assert rows(section("On images of another kind")) == rows(TABLE)


def test_the_sentences_are_those_of_the_rows() -> None:
    names, frozen, *adapted = rows(TABLE)

    def gains(column: str) -> dict[str, float]:
        return {row[0]: float(row[names.index(column)].split()[0]) for row in adapted}

    assert min(gains("at home").values()) > 5
    assert min(gains("CVC-612 Sα").values()) > 5
    lesions = gains("ISIC 2017 Jaccard")
    assert max(lesions.values()) < 0
    assert min(lesions, key=lambda name: lesions[name]) == "full"
    assert float(frozen[names.index("Road IoU")].split()[0]) < 2
    kept = {record.run.method for record in RecordStore(RESULTS) if ForgettingStore(RESULTS).find(record.key)}
    assert not kept & {"lora", "naslora"}


def test_every_score_names_a_run_whose_images_it_is_of() -> None:
    known = {record.key: record.run.benchmark for record in RecordStore(RESULTS)}
    for path in Path(RESULTS / "forgetting").glob("*.json"):
        found = ForgettingStore(RESULTS).find(path.stem)
        assert found is not None
        assert path.stem in known
        assert {name: known[one.like] for name, one in found.elsewhere.items()} == {n: n for n in found.elsewhere}
