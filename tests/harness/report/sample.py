"""Records made up for the tests of reporting; the numbers mean nothing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness.archive.archive import Archive
from harness.archive.measured import Comparability, CostRecord
from harness.archive.older import filled, with_plans
from harness.archive.schema import Record, Run
from harness.archive.store import RecordStore
from harness.comparison import Grid, grids
from harness.comparison.names import PAPER_METRICS
from harness.protocols.load import protocol_rules
from harness.report.formats import Format, write
from harness.report.pages import page_of_study
from harness.report.scores import score_page
from harness.studies import Study

DEMO: dict[str, Any] = {"image_size": 64, "methods": {}, "protocol": "aaaa0000aaaa0000"}
"""The rules of the protocol demo, as the records made here have them; ``protocol`` makes each hash's rules its own."""


def known_rules(protocol: str, benchmark: str) -> Any:
    """In place of `protocol_rules`, for tests of pages on records made here."""
    return DEMO if protocol == "demo" else protocol_rules(protocol, benchmark)


class MadeUp(Archive):
    """An archive of records in memory; sidecar files are below ``root``."""

    def __init__(
        self, records: Iterable[Record] = (), *, root: Path = Path("nowhere"), costs: Iterable[CostRecord] = ()
    ) -> None:
        super().__init__(root)
        self._given, self._costs = with_plans(list(map(filled, records))), list(costs)

    @property
    def records(self) -> list[Record]:
        return self._given

    @property
    def costs(self) -> list[CostRecord]:
        return self._costs


def render(
    records: Iterable[Record],
    *,
    study: Study | None = None,
    style: Format = "markdown",
    width: int = 100,
    details: bool = False,
) -> str:
    """The page of scores of these records, written."""
    archive = MadeUp(records)
    page = page_of_study(archive, study, details=details) if study else score_page(archive, details=details)
    return write(page, style=style, width=width)


def grid_of(records: Iterable[Record], *, study: Study | None = None, **given: Any) -> Grid:
    """The only table of these records; ``given`` as of `MadeUp`."""
    (grid,) = grids(MadeUp(records, **given), study=study)
    return grid


CONFIGS: dict[str, dict[str, Any]] = {
    "lora": {"lr": None, "blocks": "all", "sites": "qkv", "rank": 3, "alpha": 32.0},
    "decoder": {"lr": None},
}


def record(
    value: float = 0.9,
    *,
    method: str = "lora",
    benchmark: str = "kvasir",
    seed: int = 0,
    code: Any = "OK",
    metric: str = "",
    scores: Any = None,
    config: dict[str, Any] | None = None,
    protocol_hash: str = "aaaa0000aaaa0000",
    **changes: Any,
) -> Record:
    """A record with value on the test split, of ``metric`` or the first that papers report the benchmark by; ``changes`` go to Run
    or Record by field name."""
    metric = metric or PAPER_METRICS.get(benchmark, ("s_measure",))[0]
    run_fields = {name: changes.pop(name) for name in list(changes) if name in Run.__dataclass_fields__}
    fields: dict[str, Any] = {
        "label": method, "backbone": "tiny", "checkpoint": "", "protocol": "demo", "manifest": f"manifest-{benchmark}",
        "rules": {**DEMO, "protocol": protocol_hash}, "split": "published", "split_rule": "official",
        "planned_seeds": [seed], "planned_benchmarks": [benchmark], **run_fields,
        "method_config": {**CONFIGS.get(method, {}), **(config or {})},
    }  # fmt: skip
    run = Run(method=method, benchmark=benchmark, protocol_hash=protocol_hash, seed=seed, **fields)
    given = {"best": {"test": {metric: value}, "val": {metric: value}}} if scores is None else scores
    rest: dict[str, Any] = {
        "parameters": {"encoder": 110_592, "decoder": 3_505_536, "trainable": 3_616_128, "total": 93_000_000},
        "counts": {"train": 20, "val": 4, "test": 8}, "environment": {"commit": "0" * 40},
        "finished": "2026-01-01T00:00:00+00:00", **changes,
    }  # fmt: skip
    return Record(run=run, key=run.key, code=code, scores=given if code == "OK" else {}, **rest)


def three(value: float, **changes: Any) -> list[Record]:
    """Three seeds on SBU, a point apart."""
    return [record(value + 0.01 * seed, seed=seed, benchmark="sbu", **changes) for seed in range(3)]


def store_of(root: Path, records: Iterable[Record]) -> RecordStore:
    """A folder of results with these records."""
    store = RecordStore(root)
    for made in records:
        store.write(made)
    return store


def measured_on(**changes: Any) -> Comparability:
    """Where a session of costs was measured."""
    setup: dict[str, Any] = {
        "device": "NVIDIA H100", "driver": "550 / CUDA 12.4", "threads": 8, "torch": "2.13", "precision": "bf16",
        "backbone": "vit_h", "image_size": 1024, "batch": 4, "task": "binary", **changes,
    }  # fmt: skip
    return Comparability(**setup)


def table_rows(text: str) -> list[list[str]]:
    """The cells of every markdown table in a text, headings included."""
    lines = (line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| "))
    return [[cell.strip() for cell in line] for line in lines]
