"""What determines a result is in the key of its run, and keys of older records stay theirs."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest

from harness.archive.older import filled, with_label
from harness.archive.schema import NOT_IN_KEY, Record, Run, chosen_from, is_from_more, share_cap
from harness.archive.store import RecordStore
from harness.datasets.base import Pair, Splits
from harness.methods import BUILTIN
from harness.planning.data import manifest_hash
from harness.protocols import keys
from harness.protocols.keys import (
    CUT_RULES,
    EXECUTION_ONLY,
    FIRST_OPTIONS,
    FIRST_RULES,
    current_options,
    hashed_options,
    hashed_rules,
)
from harness.protocols.load import as_rules, from_rules
from harness.protocols.protocol import Protocol
from harness.registry import method_config_class
from harness.system.errors import UsageError
from tests.harness.report.sample import record
from tests.values import RESULTS


@pytest.fixture(scope="module")
def committed() -> list[Record]:
    return list(RecordStore(RESULTS))


def test_every_committed_record_has_its_key_and_would_be_found() -> None:
    """Twice: from what the record holds, and as today's planning would fill the same protocol and method, with every field that is new."""
    runs = {path: json.loads(path.read_text()) for path in sorted((RESULTS / "records").rglob("*.json"))}
    runs = {path: held for path, held in runs.items() if {"run", "key"} <= held.keys()}
    assert len(runs) >= 911
    for held in runs.values():
        run = Run(**with_label(held["run"]))
        config, rules = run.method_config, as_rules(from_rules(run.rules))
        if run.method in BUILTIN:
            known = {field.name for field in fields(method_config_class(run.method))}
            config = asdict(method_config_class(run.method)(**{k: v for k, v in config.items() if k in known}))
        assert run.key == replace(run, method_config=config, rules=rules).key == held["key"]


def test_a_run_on_the_toy_backbone_is_the_same_under_its_old_name() -> None:
    records, _ = RecordStore(RESULTS).summaries()
    run = next(r.run for r in records if '"vit_t"' in (RESULTS / "records" / f"{r.key}.json").read_text())
    old = replace(run, backbone="vit_t")
    assert (run.backbone, old.backbone) == ("tiny", "tiny")
    assert old.key == run.key != replace(run, backbone="tiny_timm").key


YOUNG_RULES = {
    "batched_decoder": True, "budget": "epochs", "epoch_images": 0, "statistics_batches": 0, "patience": 0,
    "match_class_weight": None, "match_mask_weight": None, "match_dice_weight": None, "group": "", "images": "", "masks": "",
    "category": "", "own_classes": [], "task": "segmentation", "decoder": "sam", "decoder_lr": None, "test_untrained": False,
    "test_given_first": False,
    "split_follows_seed": False, "prompt": "none", "prompt_jitter": 0.1, "prompt_noise": 0.0, "prompt_points": 1, "quantise": "",
}  # fmt: skip
YOUNG_QUIRKS = {"mask2former": "intended", "spare_tokens": "intended", "samadapter_embedding": "intended"}
YOUNG_OPTIONS = {
    ("naslora", "order"): "alpha-first", ("naslora", "residual"): False, ("naslora", "norm"): "batch",
    ("convlora", "expert_bias"): "uniform",
    ("samadapter", "patch_embedding"): "intended", ("lora", "scaling"): "lora",
}  # fmt: skip


def test_another_value_of_what_came_later_is_another_run_and_another_protocol(committed: list[Record]) -> None:
    run = next(record.run for record in committed if record.run.method == "naslora")
    changed = [{**run.rules, name: "another"} for name in YOUNG_RULES]
    changed += [{**run.rules, "quirks": {**run.rules["quirks"], name: "released"}} for name in YOUNG_QUIRKS]
    for rules in changed:
        assert replace(run, rules=rules).key != run.key
        assert hashed_rules(rules) != hashed_rules(run.rules)
    for method, name in YOUNG_OPTIONS:
        plain = method_config_class(method)()
        assert hashed_options(method, asdict(plain)) != hashed_options(method, {**asdict(plain), name: "another"})


def test_what_came_later_keeps_its_default_or_is_a_constant() -> None:
    """A default that moves would give old and new runs one key."""
    rules = {**CUT_RULES, **as_rules(Protocol(name="x"))}
    assert {name: rules[name] for name in YOUNG_RULES} == YOUNG_RULES
    assert {name: rules["quirks"][name] for name in YOUNG_QUIRKS} == YOUNG_QUIRKS
    for (method, name), value in YOUNG_OPTIONS.items():
        assert getattr(method_config_class(method)(), name) == value


def test_a_field_that_is_always_hashed_is_there_or_is_a_constant() -> None:
    assert {field.name for field in fields(Protocol)} | CUT_RULES.keys() >= FIRST_RULES
    for method in FIRST_OPTIONS.keys() & BUILTIN.keys():
        there = {field.name for field in fields(method_config_class(method))}
        assert FIRST_OPTIONS[method] <= there | {name.rpartition(".")[2] for name in keys.CUT_OPTIONS}


@pytest.mark.parametrize("first", [True, False])
def test_a_field_that_is_cut_leaves_the_hash_as_it_was(monkeypatch: pytest.MonkeyPatch, first: bool) -> None:
    name, value = ("train_limit", 5) if first else ("patience", 0)
    rules = {**as_rules(Protocol(name="x")), name: value}
    before = hashed_rules(rules)
    monkeypatch.setitem(keys.CUT_RULES, name, value)
    without = {rule: held for rule, held in rules.items() if rule != name}
    assert hashed_rules(without) == hashed_rules(rules) == before
    assert (name in before) == first


def test_an_option_that_is_gone_is_read_at_its_constant_and_refused_at_another_value() -> None:
    """A run of an earlier version is predicted with and continued, unless it was trained in a way that is no longer there."""
    record = {"rank": 3, "initialisation": "kaiming"}
    assert current_options("lora", record) == {"rank": 3}
    assert hashed_options("naslora", {"fused": True, "compiled": False}) == hashed_options("naslora", {})
    assert current_options("of_a_plugin", record) == record
    with pytest.raises(UsageError, match=r"lora\.initialisation='pissa'"):
        current_options("lora", {**record, "initialisation": "pissa"})


def test_a_new_option_at_its_default_stays_out_and_a_plugins_stays_in() -> None:
    assert hashed_options("lora", {"lr": None, "scaling": "lora"}) == {"lr": None}
    assert hashed_options("lora", {"lr": None, "scaling": "rslora"}) == {"lr": None, "scaling": "rslora"}
    assert hashed_options("of_a_plugin", {"anything": 1}) == {"anything": 1}


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


def test_what_older_records_leave_out_of_their_method_is_what_its_class_says(committed: list[Record]) -> None:
    notes = set()
    for run in (each.run for each in committed if each.run.method in BUILTIN):
        config = method_config_class(run.method)(**current_options(run.method, run.method_config))
        said = run.label_note, run.never_reached, run.operations
        assert said == (config.label_note, config.never_reached(run.rules["epochs"]), list(config.mixed_operations))
        notes |= {*said[:2]}
    assert len(notes) == 3, "among them rows with a note, and runs that end before their search"


@pytest.mark.parametrize("option", ["operations", "style", "search_start_epoch"])
@pytest.mark.parametrize("value", [None, "x", [1], {"a": 1}])
def test_options_of_another_type_than_the_methods_say_nothing_of_a_search(option: str, value: Any) -> None:
    made = record(method="naslora", config={option: value}, rules={"epochs": 3})
    assert filled(made).run.never_reached == ""


CHANGES: dict[str, Any] = {
    "method": "convlora", "method_config": {"rank": 4}, "benchmark": "leaf", "backbone": "vit_b",
    "checkpoint": "sha256-1", "rules": {"image_size": 1024}, "seed": 1, "manifest": "another",
}  # fmt: skip


def test_every_field_of_a_run_is_in_its_key_or_a_label() -> None:
    assert {field.name for field in fields(Run)} == CHANGES.keys() | set(NOT_IN_KEY)


@pytest.mark.parametrize("name", [*CHANGES, *NOT_IN_KEY])
def test_what_determines_a_result_changes_the_key_and_a_label_does_not(name: str) -> None:
    run = record().run
    label: Any = {"x": 1} if isinstance(getattr(run, name), dict) else "another"
    other = replace(run, **{name: CHANGES.get(name, label)})
    assert (other.key == run.key) == (name in NOT_IN_KEY)
    shown = {"benchmark_title", "benchmark_metrics", "label_note", "never_reached", "operations"}
    assert (other == run) == (name in {"planned_seeds", "planned_benchmarks", *shown})


def test_a_choice_is_reused_only_where_the_same_values_were_tried_on_the_same_benchmarks() -> None:
    tuning = {"grid": {"lr": [1e-3, 1e-4]}, "chosen": {"lr": 1e-3}, "on": ["leaf", "camo"]}
    assert chosen_from(tuning, grid={"lr": ["0.0001", 0.001]}, on=["camo", "leaf"])
    assert not chosen_from(tuning, grid={"lr": [1e-3, 1e-4]}, on=["camo"])
    assert not chosen_from(tuning, grid={"lr": [1e-3]}, on=["camo", "leaf"])
    placed = {**tuning, "grid": {"sites": [["q", "v"]]}}
    assert chosen_from(placed, grid={"sites": [("q", "v")]}, on=["camo", "leaf"])
    wider = {**tuning, "grid": {"lr": [1e-3, 1e-4, 1e-2]}}
    assert is_from_more(wider, tuning)
    assert is_from_more(tuning, tuning)
    assert not is_from_more(tuning, wider)
    assert not is_from_more({**wider, "on": ["camo"]}, tuning)


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
    """Literally: a change of it would restart every finished run."""
    run = replace(record().run, rules=as_rules(Protocol(name="x")))
    assert run.key == "25ac3c17dc9d6864"
