"""Cards and what overrides do to them."""

from __future__ import annotations

import pytest

from harness.protocols.load import load_protocol, protocol_hash, resolve


def test_an_override_holds_for_every_benchmark_whatever_the_card_says_for_one() -> None:
    card = load_protocol("conv-lora")
    assert resolve(card, "camo").epochs == 20
    short = load_protocol("conv-lora", {"epochs": "1"})
    assert [resolve(short, name).epochs for name in ("camo", "sbu", "kvasir")] == [1, 1, 1]
    assert resolve(short, "road").lr == resolve(card, "road").lr != card.lr  # other fields stay


@pytest.mark.parametrize("names", [("epochs", "benchmarks.camo.epochs"), ("benchmarks.camo.epochs", "epochs")])
def test_an_override_for_one_benchmark_beats_one_for_all_in_any_order(names: tuple[str, str]) -> None:
    values = {"epochs": "1", "benchmarks.camo.epochs": "2"}
    card = load_protocol("conv-lora", {name: values[name] for name in names})
    assert (resolve(card, "camo").epochs, resolve(card, "sbu").epochs) == (2, 1)


def test_hashes_of_committed_results_stand() -> None:
    assert protocol_hash(load_protocol("mini")) == "47defd50"
    assert protocol_hash(load_protocol("demo")) == "e088d645"
