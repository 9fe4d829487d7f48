"""Keys of records that were made before a field existed stay theirs."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from harness.records.budget import share_cap
from harness.records.schema import ADDED_LATER, OPTIONS_ADDED_LATER
from harness.records.store import RecordStore
from harness.registry import method_config_class

COMMITTED = Path(__file__).parents[3] / "results"


def test_every_committed_record_still_has_its_key_and_would_be_found_again() -> None:
    records = list(RecordStore(COMMITTED))
    assert records
    for record in records:
        config = asdict(method_config_class(record.run.method)(**record.run.method_config))
        rules = {**ADDED_LATER, **record.run.rules}
        assert record.run.key == record.key
        assert replace(record.run, method_config=config, rules=rules).key == record.key


@pytest.mark.parametrize("name", OPTIONS_ADDED_LATER)
def test_another_value_of_a_later_option_is_another_run(name: str) -> None:
    records = list(RecordStore(COMMITTED))
    run = next(record.run for record in records if record.run.method == "naslora")
    assert replace(run, method_config={**run.method_config, name: "another"}).key != run.key


def test_the_cap_on_a_share_is_that_of_alphas_largest_shift() -> None:
    assert share_cap(0.0335, operations=8) == pytest.approx(0.1325, abs=5e-5)
    assert share_cap(0.0, operations=8) == 0.125
    assert share_cap(3.0, operations=8) == pytest.approx(0.983, abs=5e-4)


def test_older_records_tell_their_updates_by_their_histories() -> None:
    updates = {(r.run.method, r.code): r.budget for r in RecordStore(COMMITTED) if r.run.protocol == "mini"}
    assert updates["lora", "OK"] == {"weight_updates": 300.0} or updates["lora", "OK"] == {"weight_updates": 210.0}
    naslora = updates["naslora", "OK"]
    assert naslora["weight_updates"] + naslora["alpha_updates"] in (300.0, 210.0)
    assert naslora["alpha_updates"] > 0
