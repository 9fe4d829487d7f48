"""The numbers of docs/nas-lora.md are those of the committed records, or counted here."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.archive.schema import Record
from harness.archive.store import RecordStore

ROOT = Path(__file__).parents[3]
PAGE = " ".join((ROOT / "docs" / "nas-lora.md").read_text(encoding="utf-8").split("\n"))


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return [record for record in RecordStore(ROOT / "results") if record.run.protocol_hash == "47defd50"]


def merged(records: list[Record]) -> Iterator[tuple[str, str, str]]:
    """Benchmark, method and the other cells of the page's table."""
    rows: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record.run.variant in ("convlora", "naslora", "naspclora"):
            rows.setdefault((record.run.benchmark, record.run.method), []).append(record)
    for (benchmark, method), runs in sorted(rows.items()):
        assert len(runs) == 3
        models = ("best", "merged-exact", "merged-calibrated")
        scores = [statistics.fmean(100 * one.scores[name]["test"]["iou"] for one in runs) for name in models]
        moved = [100 * record.merge["calibrated"]["relative_deviation"] for record in runs]
        yield benchmark, method, " | ".join([*(f"{one:.1f}" for one in scores), f"{min(moved):.1f}–{max(moved):.1f}"])


def test_what_a_merge_costs_is_what_the_records_hold(records: list[Record]) -> None:
    rows = re.findall(r"\| (kvasir|leaf) \| (\w+) \| ((?:[\d.]+ \| )+[\d.–]+) \|", PAGE)
    assert rows == list(merged(records))


def test_the_range_of_the_mixtures_is_that_of_the_records(records: list[Record]) -> None:
    (low, high) = re.search(r"every softmax\(α\) between (0\.\d+) and (0\.\d+)", PAGE).groups()  # type: ignore[union-attr]
    store, shares = RecordStore(ROOT / "results"), []
    runs = [record for record in records if record.run.variant == "naslora"]
    assert len(runs) == 6, "the page says six"
    for record in runs:
        table = pd.read_csv(store.architecture_path(record.key))
        last = table[table["epoch"] == table["epoch"].max()].drop(columns=["epoch", "site"])
        shares += [last.min().min(), last.max().max()]
    assert (f"{min(shares):.4f}", f"{max(shares):.4f}") == (low, high)


def test_the_costs_of_the_alternations_are_those_of_the_sessions() -> None:
    page, told = " ".join(PAGE.split()), []
    for path in sorted((ROOT / "results" / "cost").glob("*.json")):
        session: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = {one["variant"]: one["ratios"].get("lora", {}).get("time") for one in session["methods"]}
        if "naslora[alternate=joint]" not in found:
            continue
        found.setdefault("naslora[alternate=both]", found.get("naslora"))  # a card's own, where it is not spelt out
        said = []
        for name, reading in (("`both`", "both"), ("`joint`", "joint"), ("turns", "iteration")):
            value, low, high = (
                f"{100 * (found[f'naslora[alternate={reading}]'][part] - 1):+.0f}".replace("-", "−")
                for part in ("value", "low", "high")
            )
            said.append(f"{name} {value} % [{low}, {high}]")
        assert ", ".join(said) in page, path.name
        told.append(session["comparability"]["backbone"])
    assert sorted(told) == ["timm/vit_small_patch14_dinov2", "timm/vit_small_patch14_dinov2", "vit_b"]


def operators(run: Callable[[], object]) -> int:
    """How many operators ``run`` dispatches."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counter(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += 1
            return function(*args, **(kwargs or {}))

    with Counter() as counter:
        run()
    return counter.count


def test_a_fused_cell_dispatches_about_half_of_the_operators() -> None:
    import torch

    from harness.methods.parts.cell import Cell
    from harness.methods.parts.operations import parse_operations

    said = re.search(r"dispatch (\d+) operators instead of (\d+) \((\d+) instead of (\d+)", PAGE)
    assert said
    found = []
    for style in ("darts", "linear"):
        for fused in (True, False):
            made: Any = {
                "style": style,
                "alpha_std": 1e-3,
                "generator": torch.Generator().manual_seed(0),
                "fused": fused,
            }
            cell = Cell(parse_operations("all", style=style), channels=3, **made)
            maps = torch.randn(4, 3, 14, 14, requires_grad=True)
            found.append(operators(lambda cell=cell, maps=maps: cell(maps).sum().backward()))  # type: ignore[misc]
    # torch's versions differ by a few operators.
    assert found == pytest.approx([int(count) for count in said.groups()], rel=0.05)
