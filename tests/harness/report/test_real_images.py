"""The numbers of docs/real-images.md are those of the committed records."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.archive.store import RecordStore
from harness.cli.tables import main

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "real-images.md").read_text(encoding="utf-8")


def rows(text: str) -> dict[str, list[str]]:
    lines = [[cell.strip(" †") for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {cells[0]: cells[1:] for cells in lines if "---" not in cells[0]}


def test_the_table_of_methods_is_what_the_records_give(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--results", str(ROOT / "results"), "--metrics", "iou"]) == 0
    block = next(part for part in re.split(r"\n##+ ", capsys.readouterr().out) if "hash 47defd50" in part)
    assert rows(PAGE.partition("## More images")[0]) == rows(block)


def test_the_numbers_with_more_images_are_in_the_records() -> None:
    found = {
        (rules["image_size"], rules["batch_size"], record.run.seed): record.scores["best"]["test"]["iou"]
        for record in RecordStore(ROOT / "results").summaries()[0]
        if (rules := record.run.rules)["train_limit"] == 400 and record.run.protocol == "mini"
    }
    table = rows(PAGE.partition("## More images")[2])
    said = {(int(name[:3]), 4, seed): float(text) for name, cells in table.items() if name[:3].isdigit()
            for seed, text in enumerate(cells) if text}  # fmt: skip
    (also,) = re.findall(r"`batch_size=2`, `warmup=50` at 266 px, seed 0: (0\.\d+)", PAGE)
    said[266, 2, 0] = float(also.rstrip("."))
    assert said == {place: round(value, 3) for place, value in found.items()}
