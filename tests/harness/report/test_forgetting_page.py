"""Of several runs of the decoder alone, one is what the page of images of another kind holds the others against."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harness.archive.measured import ForgettingRecord, ForgettingStore
from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.report.forgetting import forgetting_page
from harness.report.formats import write
from tests.harness.report.sample import table_rows as rows
from tests.values import RESULTS, there


def _run(like: Record, key: str, **labels: Any) -> tuple[Record, ForgettingRecord]:
    """Another run on the same benchmark with the same seed, and its scores elsewhere."""
    kept = there(ForgettingStore(RESULTS).find(like.key))
    return replace(like, key=key, run=replace(like.run, **labels)), replace(kept, key=key)


def _decoder() -> Record:
    names = ForgettingStore(RESULTS)
    return next(record for record in RecordStore(RESULTS) if record.run.method == "decoder" and names.find(record.key))


LAST = "zz"
"""A key behind all others: what comes last must not win for that."""


def _named(*runs: tuple[Record, ForgettingRecord]) -> list[str]:
    """First cells of the page's rows, however the runs are ordered."""
    pages = [
        write(forgetting_page([record for record, _ in order], [record for _, record in order]), style="markdown")
        for order in (runs, runs[::-1])
    ]
    assert pages[0] == pages[1]
    return [row[0] for row in rows(pages[0])[1:]]


def test_only_the_decoder_alone_is_the_baseline() -> None:
    decoder = _run(_decoder(), "1", variant="decoder", method_config={"lr": None})
    lora = _run(_decoder(), LAST, method="lora", variant="lora[sites=decoder]", method_config={"sites": "decoder"})
    assert _named(decoder, lora) == ["decoder (frozen)", "lora[sites=decoder]"]
    assert _named(lora) == []


@pytest.mark.parametrize(
    ("preferred", "others"),
    [
        ({"tuning": {}, "changed": {}}, {"tuning": {}, "changed": {"lr": 0.1}}),
        ({"tuning": {"chosen": {"lr": 0.1}}, "changed": {"lr": 0.1}}, {"tuning": {"grid": {}}, "changed": {"lr": 0.1}}),
        ({"tuning": {"chosen": {"lr": 0.1}}, "changed": {"lr": 0.1}}, {"tuning": {}, "changed": {}}),
    ],
)
def test_of_several_rates_of_the_decoder_one_is_the_baseline_and_the_others_are_rows(preferred, others) -> None:
    base = _run(_decoder(), "1", variant="x", method_config={"lr": 0.1}, **preferred)
    other = [
        _run(_decoder(), LAST + name, variant=f"decoder {name}", method_config={"lr": lr}, **others)
        for name, lr in (("a", 0.2), ("b", 0.3))
    ]
    assert _named(base, *other) == ["x (frozen)", "decoder a", "decoder b"]
