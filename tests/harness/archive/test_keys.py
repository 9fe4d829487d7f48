"""What determines a result is in the key of its run, and keys of older records stay theirs."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest

from harness.archive.schema import (
    ADDED_LATER,
    EXECUTION_ONLY,
    LABELS,
    OPTIONS_ADDED_LATER,
    QUIRKS_ADDED_LATER,
    Record,
    Run,
    chosen_from,
    hashed_rules,
    is_from_more,
    seconds_of,
    share_cap,
)
from harness.archive.store import RecordStore
from harness.datasets.base import Pair, Splits
from harness.planning.data import manifest_hash
from harness.protocols.card import Protocol
from harness.protocols.load import as_rules
from harness.registry import METHODS, method_config_class
from tests.harness.report.sample import record
from tests.values import RESULTS


@pytest.fixture(scope="module")
def committed() -> list[Record]:
    return list(RecordStore(RESULTS))


def test_every_committed_record_still_has_its_key_and_would_be_found_again(committed: list[Record]) -> None:
    assert committed
    for key, run in ((kept.key, kept.run) for kept in committed):
        config = asdict(method_config_class(run.method)(**run.method_config))
        rules = {**ADDED_LATER, **run.rules}
        rules["quirks"] = {**QUIRKS_ADDED_LATER, **rules["quirks"]}
        assert run.key == key
        assert replace(run, method_config=config, rules=rules).key == key


def test_a_run_on_the_toy_backbone_is_the_same_under_its_old_name() -> None:
    records, _ = RecordStore(RESULTS).summaries()
    run = next(r.run for r in records if '"vit_t"' in (RESULTS / "records" / f"{r.key}.json").read_text())
    old = replace(run, backbone="vit_t")
    assert (run.backbone, old.backbone) == ("tiny", "tiny")
    assert old.key == run.key != replace(run, backbone="tiny_timm").key


def test_another_value_of_what_came_later_is_another_run_and_another_protocol(committed: list[Record]) -> None:
    run = next(record.run for record in committed if record.run.method == "naslora")
    changed = [{**run.rules, name: "another"} for name in ADDED_LATER]
    changed += [{**run.rules, "quirks": {**run.rules["quirks"], name: "released"}} for name in QUIRKS_ADDED_LATER]
    for rules in changed:
        assert replace(run, rules=rules).key != run.key
        assert hashed_rules(rules) != hashed_rules(run.rules)
    for name in OPTIONS_ADDED_LATER:
        assert replace(run, method_config={**run.method_config, name: "another"}).key != run.key


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


def test_the_cap_on_a_share_is_that_of_alphas_largest_shift() -> None:
    assert share_cap(0.0335, operations=8) == pytest.approx(0.1325, abs=5e-5)
    assert share_cap(0.0, operations=8) == 0.125
    assert share_cap(3.0, operations=8) == pytest.approx(0.983, abs=5e-4)


def test_older_records_tell_their_updates_by_their_histories(committed: list[Record]) -> None:
    updates = {(r.run.method, r.code): r.budget for r in committed if r.run.protocol == "mini"}
    assert updates["lora", "OK"] == {"weight_updates": 300.0} or updates["lora", "OK"] == {"weight_updates": 210.0}
    naslora = updates["naslora", "OK"]
    assert naslora["weight_updates"] + naslora["alpha_updates"] in (300.0, 210.0)
    assert naslora["alpha_updates"] > 0


CHANGES: dict[str, Any] = {
    "method": "convlora", "method_config": {"rank": 4}, "benchmark": "leaf", "backbone": "vit_b",
    "checkpoint": "sha256-1", "rules": {"image_size": 1024}, "seed": 1, "manifest": "another",
}  # fmt: skip


def test_every_field_of_a_run_is_in_its_key_or_a_label() -> None:
    assert {field.name for field in fields(Run)} == CHANGES.keys() | set(LABELS)


@pytest.mark.parametrize("name", [*CHANGES, *LABELS])
def test_what_determines_a_result_changes_the_key_and_a_label_does_not(name: str) -> None:
    run = record().run
    label: Any = {"x": 1} if isinstance(getattr(run, name), dict) else "another"
    other = replace(run, **{name: CHANGES.get(name, label)})
    assert (other.key == run.key) == (name in LABELS)
    assert (other == run) == (name in {"planned_seeds", "planned_benchmarks", "benchmark_title", "benchmark_metrics"})


def test_a_choice_is_taken_again_only_where_the_same_values_were_tried_on_the_same_benchmarks() -> None:
    tuning = {"grid": {"lr": [1e-3, 1e-4]}, "chosen": {"lr": 1e-3}, "on": ["leaf", "camo"]}
    assert chosen_from(tuning, grid={"lr": ["0.0001", 0.001]}, on=["camo", "leaf"])
    assert not chosen_from(tuning, grid={"lr": [1e-3, 1e-4]}, on=["camo"])
    assert not chosen_from(tuning, grid={"lr": [1e-3]}, on=["camo", "leaf"])
    wider = {**tuning, "grid": {"lr": [1e-3, 1e-4, 1e-2]}}
    assert is_from_more(wider, tuning)
    assert is_from_more(tuning, tuning)
    assert not is_from_more(tuning, wider)
    assert not is_from_more({**wider, "on": ["camo"]}, tuning)


def test_the_seconds_of_a_run_are_those_of_its_stages_and_of_older_ones_of_training_alone() -> None:
    assert seconds_of({"wall_time_s": 5.0, "stage_testing_s": 2.0, "stage_merging_s": 1.0}) == (8.0, True)
    assert seconds_of({"wall_time_s": 5.0}) == (5.0, False)


def test_every_rule_is_in_the_key_unless_it_only_says_how_to_execute() -> None:
    run = replace(record().run, rules=as_rules(Protocol(name="x")))
    names = {field.name for field in fields(Protocol)} - {"name", "backbone"}
    same = {name for name in names if replace(run, rules={**run.rules, name: "another"}).key == run.key}
    assert same == names & set(EXECUTION_ONLY)


@pytest.mark.parametrize("split", ["train", "val", "test easy", "test hard"])
def test_the_stems_of_every_split_are_in_the_manifest(split: str) -> None:
    def splits(changed: str) -> Splits:
        def pairs(name: str) -> tuple[Pair, ...]:
            return tuple(Pair(stem=stem, image=Path(stem), mask=Path(stem)) for stem in (name, f"2{changed == name}"))

        tests = {name: pairs(f"test {name}") for name in ("easy", "hard")}
        return Splits(train=pairs("train"), val=pairs("val"), test=tests, layout="original", rule="official")

    assert manifest_hash(splits(split)) != manifest_hash(splits(""))
    assert manifest_hash(splits(split)) == manifest_hash(splits(split))


def test_a_key_is_the_one_it_always_was() -> None:
    """Literally: whatever moves it makes every finished run start again."""
    assert record().key == "1e747ec627c6db07"
