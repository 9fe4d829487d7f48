"""The detector of an α that says nothing, and the test of whether benchmarks choose different mixtures."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.archive.archive import Archive
from harness.archive.store import RecordStore
from harness.comparison.alpha import (
    Domains,
    Noise,
    alpha_code,
    alpha_codes,
    alpha_rates,
    beside_noise,
    distance,
    domains,
    entropy,
    noise,
    search_start,
    spread,
)
from harness.report.pages import pages_below
from harness.training.loop import learning_rate_factor
from tests.harness.report.sample import MadeUp, record, store_of
from tests.values import there

UNIFORM = {"blocks.0.qkv": [0.25] * 4, "blocks.1.qkv": [0.26, 0.24, 0.25, 0.25]}
CHOSEN = {"blocks.0.qkv": [0.25] * 4, "blocks.1.qkv": [0.4, 0.2, 0.2, 0.2]}


def test_alpha_that_could_not_move_is_told_from_one_that_did_not():
    free, capped = {"alpha_updates": 400.0, "share_cap": 0.9}, {"alpha_updates": 4.0, "share_cap": 0.26}
    assert alpha_code(record(budget=free), UNIFORM) == "ALPHA_UNIFORM"
    assert alpha_code(record(budget=capped), UNIFORM) == "ALPHA_STUCK"
    assert alpha_code(record(budget={"alpha_updates": 0.0}), UNIFORM) == "ALPHA_STUCK"
    assert alpha_code(record(budget={"share_cap": 0.9}), CHOSEN) == ""  # one site that chose is enough
    for start, code in (
        (3, "ALPHA_STUCK"),
        (4, ""),
        (5, ""),
    ):  # a control whose search would begin after its last epoch
        config = {"stagewise": True, "search_start_epoch": start}
        made = record(method="naslora", config=config, rules={"epochs": 4}, budget={"alpha_updates": 0.0})
        assert alpha_code(made, UNIFORM) == code
    assert alpha_code(record(), {}) == alpha_code(record(), {"blocks.0.qkv": [1.0]}) == ""


def test_codes_are_read_from_beside_the_records_unless_another_left_them_or_they_were_edited(tmp_path: Path):
    flat = record(method="naslora", architecture=[UNIFORM], seed=1)
    store = store_of(tmp_path, [flat, record(method="naslora", architecture=[UNIFORM, CHOSEN], seed=2)])
    archive = Archive(tmp_path)
    assert {read.run.seed: alpha_codes([read], archive) for read in archive.records} == {1: ["ALPHA_UNIFORM"], 2: []}
    assert alpha_codes([record()], archive) == []
    stored, history = there(store.find(flat.key)), store.architecture_path(flat.key)
    assert alpha_codes([replace(stored, beside={"images.csv": "of-another"})], Archive(tmp_path)) == []
    history.write_text(history.read_text() + "2,\n")
    assert alpha_codes([stored], Archive(tmp_path)) == []


def test_entropy_and_distance_in_closed_form():
    assert entropy({"a": [0.25] * 4}) == pytest.approx(1.0)
    assert entropy({"a": [1.0, 0, 0, 0]}) == 0.0
    assert entropy({"a": [0.5, 0.5, 0, 0]}) == pytest.approx(math.log(2) / math.log(4))
    assert spread({"a": [1.0, 0.0]}) == pytest.approx(12 * math.log(10) / 2**0.5)  # a share of 0 counts as 1e-12
    assert distance({"a": [1.0, 0.0]}, {"a": [0.0, 1.0]}) == 1.0
    with pytest.raises(ValueError, match="sites"):
        distance({"a": [1.0]}, {"b": [1.0]})


def _ends(gap: float, *, benchmarks: int, seeds: int) -> dict[str, dict[int, dict[str, list[float]]]]:
    generator = np.random.default_rng(3)
    ends: dict[str, dict[int, dict[str, list[float]]]] = {}
    for place, seed in itertools.product(range(benchmarks), range(seeds)):
        weights = np.ones(4) + 0.01 * generator.standard_normal(4)
        weights[place % 4] += gap
        ends.setdefault(f"b{place}", {})[seed] = {"a": list(weights / weights.sum())}
    return ends


def compared(gap: float, *, benchmarks: int, seeds: int) -> Domains:
    return there(domains(_ends(gap, benchmarks=benchmarks, seeds=seeds)))


def test_domains_that_differ_are_told_from_seeds_that_differ():
    apart = compared(1.0, benchmarks=3, seeds=3)
    assert apart.between > 10 * apart.within
    assert apart.test.p == pytest.approx(1 / 36)  # of 6 orders in each of the two other seeds only the true one
    alike = compared(0.0, benchmarks=3, seeds=3)
    assert (alike.test.p or 0.0) > 0.05
    assert "not shown" in alike.verdict


@pytest.mark.parametrize(
    ("benchmarks", "seeds", "smallest"),
    [(2, 3, 1 / 4), (2, 5, 1 / 16), (2, 6, 1 / 32), (3, 2, 1 / 6), (4, 2, 1 / 24)],
)
def test_a_p_value_is_given_from_where_the_smallest_possible_one_is_small_enough(benchmarks, seeds, smallest):
    """One seed may stay as it is: only which runs stand together counts, n! ways in each of the others."""
    comparison = compared(1.0, benchmarks=benchmarks, seeds=seeds)
    assert comparison.test.smallest == pytest.approx(smallest)
    assert (comparison.test.p is not None) == (smallest <= 0.05) == (not comparison.verdict.startswith("no test"))
    assert domains(_ends(1.0, benchmarks=2, seeds=1)) is domains(_ends(1.0, benchmarks=1, seeds=5)) is None


def test_many_benchmarks_are_drawn_and_null_p_values_are_even():
    assert compared(1.0, benchmarks=9, seeds=3).test.p is not None
    values = []
    for seed in range(30):
        generator = np.random.default_rng(seed)
        ends = {f"b{b}": {s: {"a": list(generator.dirichlet([50] * 4))} for s in range(3)} for b in range(3)}
        values.append(there(there(domains(ends)).test.p))
    assert 0.3 < np.mean(values) < 0.72
    assert np.mean(np.array(values) <= 0.1) < 0.25


def test_tables_flag_a_row_whose_alpha_says_nothing(tmp_path: Path):
    store = RecordStore(tmp_path)
    store.write(record(method="naslora", variant="naslora", architecture=[UNIFORM], budget={"share_cap": 0.9}))
    store.write(record(method="naslora", variant="free", config={"rank": 4}, architecture=[CHOSEN]))
    store.write(record())
    (page,) = pages_below(Archive(tmp_path)).texts("markdown").values()
    (flagged,) = [line for line in page.splitlines() if line.startswith("| ") and "ALPHA_UNIFORM" in line]
    assert flagged.startswith("| naslora")
    assert "ALPHA_UNIFORM: α stayed uniform" in page


def _searched(**changes: Any) -> Any:
    config = {"alpha_lr": 0.027, "alpha_std": 0.0, "stagewise": True, "search_start_epoch": 1, "alternate": "both"}
    rules = {"schedule": "linear", "warmup": 0, "epochs": 4, "betas": [0.9, 0.999]}
    budget = {"alpha_updates": 300.0, "weight_updates": 400.0, "alpha_lr_sum": 3.047625}
    return record(
        method="naslora", config={**config, **changes.pop("config", {})}, rules=rules, budget=budget, **changes
    )


@pytest.mark.parametrize(
    ("stagewise", "first", "told"), [(True, 1, 1), (False, 1, None), (True, 0, None), (True, 4, None)]
)
def test_a_run_whose_stages_differ_tells_when_its_search_began(
    *, stagewise: bool, first: int, told: int | None
) -> None:
    run = _searched(config={"stagewise": stagewise, "search_start_epoch": first}, history=[{"loss": 1.0}] * 4)
    assert search_start(run) == told


def test_the_rates_of_alpha_are_those_of_the_training_loop() -> None:
    rates = alpha_rates(_searched())
    expected = [0.027 * learning_rate_factor(at, total=400, kind="linear") for at in range(100, 400)]
    assert rates == pytest.approx(expected, rel=1e-12)
    assert alpha_rates(_searched(config={"alpha_lr": 0.03})) == ()  # not what the run counted


@pytest.mark.parametrize(
    ("alternate", "budget", "weights", "turns"),
    [
        ("iteration", "epochs", 125, [*range(50, 100, 2), *range(101, 150, 2), *range(150, 200, 2)]),
        ("epoch", "epochs", 100, [*range(50, 100), *range(150, 200)]),
        ("iteration", "updates", 200, range(50, 350, 2)),
    ],
)
def test_roles_that_take_turns_share_the_schedule(alternate: str, budget: str, weights: int, turns: Sequence[int]):
    """Epochs of 50 steps, T_B = 1 of 4, warm-up 20; the place of a turn within its pair, or of an epoch, is spread evenly."""
    expected = [0.027 * learning_rate_factor(at, total=weights + len(turns), kind="linear", warmup=20) for at in turns]
    run = _searched(config={"alternate": alternate})
    counted = {"alpha_updates": len(turns), "weight_updates": weights, "alpha_lr_sum": sum(expected)}
    run = replace(run, budget=counted, run=replace(run.run, rules={**run.run.rules, "warmup": 20, "budget": budget}))
    steps = 1 if alternate == "iteration" else 25
    assert alpha_rates(run) == pytest.approx(expected, abs=0.027 * (steps + 0.01) / (weights + len(turns) - 20))


def test_noise_moves_alpha_as_torchs_adam_on_random_gradients_does() -> None:
    generator = torch.Generator().manual_seed(0)
    drift = there(noise(_searched(), {f"blocks.{block}.qkv": [1 / 8] * 8 for block in range(12)}))
    alpha = torch.zeros(300, 12, 8, requires_grad=True)  # 300 runs
    optimiser = torch.optim.Adam([alpha])
    for rate in alpha_rates(_searched()):
        optimiser.param_groups[0]["lr"] = rate
        alpha.grad = None
        outputs = torch.randn(alpha.shape, generator=generator)  # noise in those of the operations
        (alpha.softmax(2) * outputs).sum().backward()
        optimiser.step()
    ends = alpha.detach().softmax(2)
    centred = ends.log() - ends.log().mean(2, keepdim=True)
    assert drift.spread == pytest.approx(float((centred**2).sum(2).mean() / 7) ** 0.5, rel=0.02)
    by_run = (centred**2).sum((1, 2)).div(12 * 7).sqrt()
    assert drift.largest_spread == pytest.approx(float(by_run.quantile(0.975)), rel=0.03)
    assert drift.largest == pytest.approx(float(ends.amax((1, 2)).quantile(0.975)), rel=0.05)
    assert drift.mean_share == pytest.approx([float(ends.mean(1).quantile(q)) for q in (0.025, 0.975)], rel=0.02)
    assert spread({"a": ends[0, 0].tolist()}) == pytest.approx(float((centred[0, 0] ** 2).sum() / 7) ** 0.5, rel=1e-5)


def test_with_dartss_optimiser_rates_stay_and_noise_is_that_of_its_betas() -> None:
    own = _searched(config={"alpha_optimizer": "darts"})
    own = replace(own, budget={**own.budget, "alpha_lr_sum": 8.1})
    card = _searched()
    rules = {**card.run.rules, "schedule": "constant", "betas": [0.5, 0.999]}
    card = replace(card, run=replace(card.run, rules=rules), budget=own.budget)
    assert alpha_rates(own) == pytest.approx([0.027] * 300) == alpha_rates(card)
    last = {"a": [1 / 8] * 8}
    assert noise(own, last) == noise(card, last)


def test_one_run_is_held_against_the_runs_on_noise_not_against_their_centre() -> None:
    null = Noise(spread=0.2, largest_spread=0.3, largest=0.9, mean_share=(0.1, 0.9))
    spreads = {sd: {"a": [1 / (1 + math.exp(x)) for x in (-sd * 2**0.5, sd * 2**0.5)]} for sd in (0.25, 0.35)}
    assert [spread(shares) for shares in spreads.values()] == pytest.approx([0.25, 0.35])
    assert [null.exceeded(shares) for shares in spreads.values()] == [False, True]


def test_where_alpha_decays_noise_is_not_known() -> None:
    """Adam's L2 term adds to the gradient before its size is divided out."""
    run = _searched(config={"alpha_weight_decay": 1e-3})
    ends = {"a": [1 / 8] * 8}
    assert noise(run, ends) is None
    assert "weight decay" in beside_noise([run], MadeUp([run], mixtures={run.key: ends}))


def test_of_a_control_without_a_search_it_is_said_that_alpha_was_not_trained() -> None:
    ends = {"a": [0.25] * 4}
    for budget, words in (({"alpha_updates": 0.0}, "α was not trained"), ({}, "the records do not tell α's rates")):
        run = record(method="naslora", budget=budget)
        assert words in beside_noise([run], MadeUp([run], mixtures={run.key: ends}))


def test_what_alpha_chose_is_said_beside_what_noise_gives() -> None:
    for run, mixture, words in (
        (_searched(), [0.3] + [0.1] * 7, "noise alone"),
        (record(method="naslora"), [0.5, 0.5], "not known"),
    ):
        assert words in beside_noise([run], MadeUp([run], mixtures={run.key: {"a": mixture}}))
