"""The numbers of docs/evidence.md are those of the committed evidence and of the records beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.archive.measured import EvidenceRecord, EvidenceStore
from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.cli.claims import main
from harness.comparison.evidence import cka_to_frozen, mean_change
from harness.comparison.names import benchmark_title
from tests.values import there

ROOT = Path(__file__).parents[3]
NUMBERS: dict[str, Callable[[EvidenceRecord, Record], str]] = {
    "attention distance": lambda evidence, _: f"{mean_change(evidence, 'attention distance', 'all'):+.1f}",
    "highest frequency": lambda evidence, _: f"{mean_change(evidence, 'high frequencies', 'all'):+.2f}",
    "CKA": lambda evidence, _: f"{cka_to_frozen(evidence.blocks[-1]):.2f}",
    "update": lambda evidence, _: f"{mean_change(evidence, 'update', 'all'):.2f}",
    "IoU": lambda _, record: f"{record.scores['best']['test']['iou']:.2f}",
}


def test_the_table_is_what_the_records_give():
    store, evidence = RecordStore(ROOT / "results"), EvidenceStore(ROOT / "results")
    assert evidence.problems() == {}
    found: dict[tuple[str, str, int], tuple[EvidenceRecord, Record]] = {}
    for path in evidence.folder.glob("*.json"):
        one, record = there(evidence.find(path.stem)), there(store.find(path.stem))
        found[benchmark_title(record.run.benchmark), record.run.method, record.run.seed] = (one, record)
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8").partition("| benchmark |")[2]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if ", seeds " in line]
    assert len(rows) == 3 * len(NUMBERS)
    for where, what, *sides in rows:
        benchmark, _, seeds = where.partition(", seeds ")
        (number,) = [function for name, function in NUMBERS.items() if what.startswith(name)]
        for method, cell in zip(("lora", "naslora"), sides, strict=True):
            expected = [number(*found[benchmark, method, int(seed)]) for seed in seeds.split(",")]
            assert cell.replace("−", "-").split(" / ") == expected, (where, what, method)


def test_what_it_says_of_mixtures_is_what_the_claim_gives(capsys: pytest.CaptureFixture[str]):
    words = ["domains-choose-different-priors", "--protocol", "small", "--results", str(ROOT / "results"), "--json"]
    assert main(words) == 0
    finding = json.loads(capsys.readouterr().out)
    (reading,) = [one for one in finding["readings"] if "5 of 9 benchmarks" in one["what"]]  # SAM's decoder
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    between, within = re.findall(r"(0\.\d{4}) (?:between|within)", reading["settle"])
    assert f"lie {between} apart" in page
    assert f"one benchmark {within}:" in page
    (p,) = re.findall(r"\(p = (0\.\d+), n = 3 seeds\)", page)
    assert f"p = {p} (n = 3)" in reading["settle"]
    assert finding["verdict"] == "not judged"
