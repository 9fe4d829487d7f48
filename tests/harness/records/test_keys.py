"""Keys of records that were made before a field existed stay theirs."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from harness.protocols.card import Protocol
from harness.protocols.load import as_rules
from harness.records.budget import share_cap
from harness.records.schema import ADDED_LATER, OPTIONS_ADDED_LATER, QUIRKS_ADDED_LATER, hashed_rules
from harness.records.store import RecordStore
from harness.registry import METHODS, method_config_class

COMMITTED = Path(__file__).parents[3] / "results"


def test_every_committed_record_still_has_its_key_and_would_be_found_again() -> None:
    records = list(RecordStore(COMMITTED))
    assert records
    for record in records:
        config = asdict(method_config_class(record.run.method)(**record.run.method_config))
        rules = {**ADDED_LATER, **record.run.rules}
        rules["quirks"] = {**QUIRKS_ADDED_LATER, **rules["quirks"]}
        assert record.run.key == record.key
        assert replace(record.run, method_config=config, rules=rules).key == record.key


@pytest.mark.parametrize("name", ADDED_LATER)
def test_another_value_of_a_later_rule_is_another_run_and_another_protocol(name: str) -> None:
    records, _ = RecordStore(COMMITTED).summaries()
    run = records[0].run
    assert replace(run, rules={**run.rules, name: "another"}).key != run.key
    assert hashed_rules({**run.rules, name: "another"}) != hashed_rules(run.rules)


@pytest.mark.parametrize("name", QUIRKS_ADDED_LATER)
def test_a_later_quirk_as_released_is_another_run(name: str) -> None:
    records, _ = RecordStore(COMMITTED).summaries()
    run = records[0].run
    rules = {**run.rules, "quirks": {**run.rules["quirks"], name: "released"}}
    assert replace(run, rules=rules).key != run.key


def test_the_defaults_are_the_values_that_the_first_records_were_made_with() -> None:
    rules = as_rules(Protocol(name="x"))
    assert {name: rules[name] for name in ADDED_LATER} == ADDED_LATER
    assert {name: rules["quirks"][name] for name in QUIRKS_ADDED_LATER} == QUIRKS_ADDED_LATER
    known = [asdict(method_config_class(name)()) for name in METHODS.names()]
    for name, value in OPTIONS_ADDED_LATER.items():
        assert {config[name] for config in known if name in config} == {value}


def test_a_card_that_names_an_options_first_value_keeps_its_hash() -> None:
    plain, named, other = (
        hashed_rules({"methods": methods})
        for methods in ({}, {"convlora": {"expert_bias": "uniform"}}, {"convlora": {"expert_bias": "zero"}})
    )
    assert plain == named != other


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
