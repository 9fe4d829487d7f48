"""Claims are judged by their whole interval, reading by reading."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from harness.archive.measured import CostRecord, CostStore, MethodCost, Ratio
from harness.archive.store import RecordStore
from harness.cli.claims import main
from harness.comparison.claims import FILE, Claim, Subject, read_claims
from harness.comparison.judging import Finding, findings_text, measured
from harness.comparison.papers import Papers, Setup
from harness.protocols.load import load_protocol
from harness.registry import method_config_class
from harness.system.errors import UsageError
from tests.harness.report.sample import CARD, PAPERS, MadeUp, evidence, measured_on, record, store_of
from tests.harness.report.sample import judged as judged_on

BASE: dict[str, Any] = {
    "name": "better", "text": "A is better than B", "source": "a paper", "mark": "P", "quantity": "score difference",
    "numerator": {"method": "lora"}, "denominator": {"method": "decoder"}, "benchmarks": ["kvasir"], "unit": "points",
    "expected": {"greater": 0},
}  # fmt: skip


def claim(tmp_path: Path, **changes: Any) -> Claim:
    path = tmp_path / "claims.yaml"
    content = {key: value for key, value in {**BASE, **changes}.items() if value is not None}
    path.write_text(yaml.safe_dump([content]), encoding="utf-8")
    return read_claims(path)[0]


def runs(values: list[float], **changes: Any) -> list[Any]:
    return [record(value, seed=seed, **changes) for seed, value in enumerate(values)]


def pair(first: list[float], second: list[float] | None = None, **changes: Any) -> list[Any]:
    """Runs of LoRA, and of the decoder alone."""
    return runs(first, **changes) + runs(second or [0.80, 0.90, 0.70], method="decoder", **changes)


AHEAD, BEHIND = [0.81, 0.91, 0.71], [0.79, 0.89, 0.69]
"""Scores of LoRA that are a point above and below those of the decoder, whatever the seed."""


def judged(tmp_path: Path, records: list[Any], **changes: Any) -> Finding:
    return judged_on([claim(tmp_path, **changes)], MadeUp(records))[0]


def test_a_trial_that_was_chosen_for_its_luck_is_no_draw(tmp_path: Path) -> None:
    """Seed 100 tuned both rows; its test scores would make the difference negative and the interval half as wide."""
    tuning: dict[str, Any] = {
        "grid": {"lr": [1e-3, 1e-2]},
        "chosen": {"lr": 1e-3},
        "seeds": [100],
        "trials": [],
        "on": ["kvasir"],
    }
    records = pair(AHEAD, tuning=tuning, planned_seeds=[0, 1, 2], changed={"lr": 1e-3})
    of_trials: dict[str, Any] = {"seed": 100, "tuning": tuning, "planned_seeds": [100], "changed": {"lr": 1e-3}}
    with_trials = [*records, record(0.1, **of_trials), record(0.9, method="decoder", **of_trials)]
    (alone,), (beside,) = judged(tmp_path, records).readings, judged(tmp_path, with_trials).readings
    assert (alone.n, alone.estimate) == (beside.n, beside.estimate) == (3, pytest.approx(1.0))


def test_every_claim_asked_for_is_there_and_names_real_things() -> None:
    claims = {claim.name: claim for claim in read_claims()}
    asked = {
        *("naslora-over-lora", "training-cost", "stagewise-over-joint", "channel-ratio-two-thirds-best"),
        *("domains-choose-different-priors", "naslora-attention-distance", "naslora-frequencies"),
        *("last-half-over-first-half", "convolutions-contribute-most", "no-inference-overhead", "lora-parameters"),
    }
    assert asked <= claims.keys()
    assert claims["training-cost"].ambiguous
    assert set(claims["training-cost"].costs) == {"time", "device_hours", "flops", "memory"}
    methods = load_protocol("nas-lora").methods
    for claim in claims.values():
        for subject in (claim.numerator, *claim.denominator) if claim.quantity != "rank agreement" else ():
            method_config_class(subject.method)(**{**methods.get(subject.method, {}), **subject.options})


def test_a_difference_is_paired_by_seed_and_the_whole_interval_must_lie_inside(tmp_path: Path) -> None:
    finding = judged(tmp_path, pair(AHEAD))
    assert finding.verdict == "reproduced"
    (reading,) = finding.readings
    assert (reading.estimate, reading.n) == (pytest.approx(1.0), 3)
    assert judged(tmp_path, pair(BEHIND)).verdict == "not reproduced"
    open_one = judged(tmp_path, pair([0.85, 0.89, 0.72]))
    assert open_one.verdict == "inconclusive"
    assert open_one.readings[0].settle == "10 to 170 seeds would settle it with 80 % power"


def test_lower_is_better_metrics_count_the_other_way_round(tmp_path: Path) -> None:
    finding = judged(tmp_path, pair([0.10, 0.11, 0.12], [0.20, 0.21, 0.22], benchmark="sbu"), benchmarks=["sbu"])
    assert finding.readings[0].estimate == pytest.approx(10.0)
    assert finding.verdict == "reproduced"


@pytest.mark.parametrize(
    ("more", "verdict"),
    [([], "no data"), (pair([0.51, 0.61, 0.41], benchmark="leaf", split_rule="carved (seed 0)"), "not judged")],
    ids=["without runs", "not judged"],
)
def test_a_claim_with_one_open_reading_is_not_reproduced_as_a_whole(tmp_path, more: list[Any], verdict: str) -> None:
    finding = judged(tmp_path, pair(AHEAD) + more, benchmarks=["kvasir", "leaf"])
    assert [reading.verdict for reading in finding.readings] == ["reproduced", verdict]
    assert finding.verdict == "inconclusive"


def test_where_nothing_was_run_there_is_no_data_and_no_verdict(tmp_path: Path) -> None:
    finding = judged(tmp_path, [], benchmarks=["kvasir", "leaf"])
    assert {reading.verdict for reading in finding.readings} == {finding.verdict} == {"no data"}
    assert "1 no data" in findings_text([finding])
    shown = pair([0.8, 0.9], [0.8, 0.9], split_rule="carved (seed 0)")
    assert judged(tmp_path, shown, benchmarks=["kvasir", "leaf"]).verdict == "not judged"


def test_no_difference_at_all_is_not_greater_and_not_less(tmp_path: Path) -> None:
    records = pair([0.80, 0.90, 0.70])
    for expected in ({"greater": 0}, {"less": 0}):
        assert judged(tmp_path, records, expected=expected).verdict == "not reproduced"
    assert judged(tmp_path, records, expected={"equal": 0}, tolerance=0.1).verdict == "reproduced"


def test_of_two_splits_with_as_many_seeds_the_mean_takes_the_first_by_name(tmp_path: Path) -> None:
    records = []
    for benchmark in ("kvasir", "leaf"):
        for manifest, lead in (("b", 0.03), ("a", 0.01), ("c", 0.02)):
            records += pair([0.8 + lead] * 3, [0.8] * 3, benchmark=benchmark, manifest=manifest)
    (mean,) = judged(tmp_path, records, benchmarks=["kvasir", "leaf"]).averages
    assert mean.estimate == pytest.approx(1.0)


def test_one_seed_or_an_unpaired_seed_proves_nothing(tmp_path: Path) -> None:
    finding = judged(tmp_path, [record(0.9, seed=0), record(0.9, seed=1), record(0.8, seed=0, method="decoder")])
    assert (finding.readings[0].n, finding.readings[0].interval, finding.verdict) == (1, None, "no interval")
    assert "at least 2 seeds are needed" in findings_text([finding])


def test_other_protocols_hashes_splits_and_configurations_are_not_mixed(tmp_path: Path) -> None:
    for other in ({"protocol_hash": "bbbb"}, {"manifest": "other"}):
        records = runs(AHEAD) + runs([0.80, 0.90, 0.70], method="decoder", **other)
        assert judged(tmp_path, records).readings[0].estimate is None
    records = runs([0.81, 0.91], changed={"rank": 6}, config={"rank": 6}) + runs([0.80, 0.90], method="decoder")
    assert judged(tmp_path, records).readings[0].estimate is None
    assert judged(tmp_path, records, numerator={"method": "lora", "options": {"rank": 6}}).readings[0].n == 2
    finding = judged_on([claim(tmp_path)], MadeUp(pair([0.9], [0.8])), protocol="mini")[0]
    assert finding.readings[0].estimate is None


def test_an_equal_claim_needs_the_interval_inside_the_tolerance(tmp_path: Path) -> None:
    records = pair([0.807, 0.9071, 0.7069])
    assert judged(tmp_path, records, expected={"equal": 0.7}, tolerance=0.5).verdict == "reproduced"
    assert judged(tmp_path, records, expected={"equal": 2.0}, tolerance=0.5).verdict == "not reproduced"
    assert judged(tmp_path, records, expected={"equal": 0.71}, tolerance=0.02).verdict == "inconclusive"


def session(*, ratio: Ratio, shared: str = "", **inference: Any) -> CostRecord:
    nothing = ("seconds", "shares", "step_seconds", "memory_bytes", "flops", "not_counted", "parameters")
    costs: Any = {name: {} for name in nothing}
    ratios = {"full": {"time": ratio, "memory": Ratio(value=0.5)}}
    full = MethodCost(method="full", variant="full", config={}, **costs)
    nas = MethodCost(method="naspclora", variant="naspclora", config={}, ratios=ratios, **inference, **costs)
    place = measured_on(backbone="vit_b", image_size=64)
    session: dict[str, Any] = {"key": place.key, "session": "s", "comparability": place, "rounds": 9, "warmup": 1}
    return CostRecord(**session, methods=[full, nas], shared=shared)


MEASURED = Papers(setups={"nas-lora": Setup(card="demo", backbone="vit_b", checkpoint="")})
"""As if the paper had measured on such a session."""

COST = {
    "quantity": "cost change", "costs": ["time", "memory"], "numerator": {"method": "naspclora"}, "unit": "percent",
    "denominator": {"method": "full"}, "expected": {"equal": -24.14}, "tolerance": 2, "benchmarks": None,
}  # fmt: skip


def test_a_cost_claim_is_judged_by_each_cost_and_stays_ambiguous_if_it_says_so(tmp_path: Path) -> None:
    asked = claim(tmp_path, **COST, ambiguous="no unit")
    measured_once = MadeUp(costs=[session(ratio=Ratio(value=0.76, low=0.75, high=0.77, rounds=9))])
    finding = judged_on([asked], measured_once, papers=MEASURED)[0]
    assert finding.verdict == "ambiguous"
    assert [reading.verdict for reading in finding.readings] == ["reproduced", "not reproduced"]
    text = findings_text([finding])
    assert "-24.00 [-25.00, -23.00] percent, n = 9: reproduced (NVIDIA H100 · vit_b" in text
    assert "-50.00 percent, exact: not reproduced" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"backbone": "vit_b"}, "backbone vit_b instead of tiny"),
        ({"checkpoint": "sha256-00"}, "other weights"),
        ({"data_note": "generated samples"}, "generated samples"),
        ({"rules": {"image_size": 32}}, "image_size 32 instead of 64"),
        ({"split_rule": "carved (seed 0)"}, "test images by another rule (carved (seed 0))"),
        ({"counts": {"train": 20, "test": 9}}, "9 test images instead of 8"),
    ],
)
def test_runs_of_another_set_up_are_shown_and_not_judged(tmp_path, changes: dict[str, Any], words: str) -> None:
    finding = judged(tmp_path, pair(AHEAD, **changes))
    (reading,) = finding.readings
    assert (reading.verdict, finding.verdict) == ("not judged", "not judged")
    assert finding.here == {changes.get("backbone", "tiny"): "reproduced"}
    assert reading.estimate == pytest.approx(1.0)
    assert words in findings_text([finding])


def test_every_backbone_has_a_verdict_of_its_own_beside_the_papers(tmp_path: Path) -> None:
    """Not as the paper made it, so no evidence on its number: but the sentence holds on one model and not on the other."""
    finding = judged(tmp_path, pair(AHEAD, backbone="tiny_timm") + pair(BEHIND, backbone="vit_b"))
    assert finding.verdict == "not judged"
    assert finding.here == {"tiny_timm": "reproduced", "vit_b": "not reproduced"}
    assert "not judged; on tiny_timm: reproduced; on vit_b: not reproduced" in findings_text([finding])
    text = findings_text([judged(tmp_path, pair([0.82, 0.89, 0.71], backbone="vit_b"))])
    assert "on vit_b: inconclusive" in text
    assert "seeds would settle it" in text


def test_only_the_hash_of_the_card_itself_is_judged(tmp_path: Path) -> None:
    """Two sets of rules go by the card's name; one of them is the card's."""
    other = pair([0.70, 0.80, 0.60], rules={"image_size": 32}, protocol_hash="bbbb")
    finding = judged(tmp_path, pair(AHEAD) + other)
    assert sorted(reading.verdict for reading in finding.readings) == ["not judged", "reproduced"]
    assert finding.verdict == "reproduced"


def test_the_mean_over_benchmarks_stands_beside_the_claim_on_each(tmp_path: Path) -> None:
    """Each alone is open; all three together are not."""
    records = []
    for benchmark in ("kvasir", "leaf", "sbu"):
        sign = -1 if benchmark == "sbu" else 1
        records += pair([0.5 + sign * shift for shift in (0.005, 0.02, 0.012)], [0.5] * 3, benchmark=benchmark)
    finding = judged(tmp_path, records, benchmarks=["kvasir", "leaf", "sbu"])
    assert [reading.verdict for reading in finding.readings] == ["inconclusive"] * 3
    (mean,) = finding.averages
    assert mean.estimate == pytest.approx(1.2333, abs=1e-3)
    assert mean.verdict == "reproduced"
    assert "mean over 3 of 3 benchmarks, lora − decoder: +1.23" in findings_text([finding])
    some = judged(tmp_path, records, benchmarks=["kvasir", "leaf", "camo"])
    assert some.averages[0].verdict == "not judged"
    assert "not all benchmarks" in findings_text([some])


@pytest.mark.parametrize(("rules", "sizes"), [({"train_limit": 8}, [3]), ({"image_size": 32}, [2])])
def test_a_mean_holds_benchmarks_that_are_split_by_rules_of_their_own_and_no_others(
    tmp_path: Path, rules: dict[str, Any], sizes: list[int]
) -> None:
    records = [made for name in ("kvasir", "leaf") for made in pair(AHEAD, benchmark=name)]
    records += pair(AHEAD, benchmark="sbu", rules={**CARD, **rules}, protocol_hash="bbbb")
    finding = judged(tmp_path, records, benchmarks=["kvasir", "leaf", "sbu"])
    assert [f"mean over {size} of 3 benchmarks, lora − decoder" for size in sizes] == [
        reading.what for reading in finding.averages
    ]
    assert ("and the hashes bbbb" in finding.averages[0].where) == (sizes == [3])


def test_sheets_with_a_benchmark_in_common_keep_their_own_means(tmp_path: Path) -> None:
    """Else a difference of one would stand beside one of the other, though each has both."""
    records = [made for name in ("kvasir", "leaf") for made in pair(AHEAD, benchmark=name)]
    for name in ("leaf", "sbu"):
        records += pair(AHEAD, benchmark=name, rules={**CARD, "train_limit": 8}, protocol_hash="bbbb")
    finding = judged(tmp_path, records, benchmarks=["kvasir", "leaf", "sbu"])
    assert [reading.what.partition(",")[0] for reading in finding.averages] == ["mean over 2 of 3 benchmarks"] * 2


def test_every_session_is_a_reading_of_its_own(tmp_path: Path) -> None:
    sessions = [session(ratio=Ratio(value=0.76), shared=shared) for shared in ("", "someone")]
    finding = judged_on([claim(tmp_path, **COST)], MadeUp(costs=sessions))[0]
    assert len(finding.readings) == 4
    assert "device shared" in findings_text([finding])


def test_inference_overhead_is_paired_by_round(tmp_path: Path) -> None:
    asked = {
        **COST, "quantity": "inference change", "costs": ["time", "parameters"], "expected": {"equal": 0},
        "numerator": {"method": "naspclora", "score": "merged-calibrated"}, "denominator": {"method": "naspclora"},
    }  # fmt: skip
    inference: Any = {
        "inference_seconds": {"unmerged": [1.0, 2.0, 4.0], "merged-calibrated": [1.01, 2.02, 4.04]},
        "inference_parameters": {"unmerged": 100, "merged-calibrated": 90},
    }
    archive = MadeUp(costs=[session(ratio=Ratio(value=1.0), **inference)])
    time, parameters = judged_on([claim(tmp_path, **asked)], archive, papers=MEASURED)[0].readings
    assert (time.estimate, time.verdict) == (pytest.approx(1.0), "reproduced")
    assert parameters.estimate == pytest.approx(-10)


@pytest.mark.parametrize(
    ("tolerance", "verdict"), [(0.005, "reproduced"), (0.00295, "reproduced"), (0.0029, "not reproduced")]
)
def test_a_claim_on_parameters_holds_within_its_tolerance_and_no_further(tmp_path, tolerance: float, verdict: str):
    """3,997,056, counted in closed form, are 2,944 away from 4.00 million."""
    kinds = {"quantity": "trained parameters", "unit": "millions", "benchmarks": None, "denominator": None}
    asked = claim(tmp_path, **kinds, backbone="vit_h", expected={"equal": 4.0}, tolerance=tolerance)
    assert asked.expected == f"4 ± {tolerance:.3g} millions"
    (finding,) = judged_on([asked], MadeUp())
    assert finding.verdict == verdict


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantitiy": "x"}, "unknown key 'quantitiy'"),
        ({"text": None}, "text: is missing"),
        ({"benchmarks": ["kvasirr"]}, "did you mean 'kvasir'"),
        ({"benchmarks": None}, "needs 'benchmarks'"),
        ({"metric": "iouu"}, "did you mean 'iou'"),
        ({"denominator": None}, "needs a 'denominator'"),
        ({"expected": {"equal": 1}}, "needs a tolerance"),
        ({"expected": {"greater": float("inf")}}, "greater inf is not a number"),
        ({"expected": {"equal": 1}, "tolerance": 0}, "needs a tolerance"),
        ({"expected": {"greater": 1}, "tolerance": 1}, "belongs to 'equal'"),
        ({"expected": {"about": 1}}, "must be one of"),
        ({"numerator": {"method": "lroa"}}, "did you mean 'lora'"),
        ({"numerator": {"method": "lora", "options": {"rnak": 3}}}, "did you mean 'rank'"),
        ({"denominator": 3}, "denominator.0=3 must be a mapping"),
        ({"quantity": "cost change", "costs": ["money"]}, "has no 'money'"),
        ({"quantity": "evidence difference", "measure": "reach"}, "'reach' is none of attention distance"),
        ({"quantity": "evidence difference", "measure": "update", "blocks": ["middle"]}, "'middle' is none of all"),
        ({"quantity": "evidence difference", "blocks": ["all"]}, "needs 'measure'"),
        ({"quantity": "rank agreement", "studies": []}, "needs 'studies'"),
        ({"quantity": "rank agreement", "studies": ["cros-model"]}, "unknown study"),
    ],
)
def test_a_wrong_claim_is_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        claim(tmp_path, **changes)
    assert "\n" not in str(caught.value)


def test_names_are_resolved_as_everywhere(tmp_path: Path) -> None:
    asked = claim(tmp_path, numerator={"method": "NAS-LoRA"}, benchmarks=["Trans10K-v1"])
    assert (asked.numerator.method, asked.benchmarks) == ("naslora", ("trans10k_v1",))


def test_a_folder_without_results_is_one_line(tmp_path: Path, says) -> None:
    assert "run something first" in says(main, "--results", tmp_path / "nothing", code=2)
    CostStore(tmp_path).write(session(ratio=Ratio(value=0.76, low=0.75, high=0.77, rounds=9)))
    says(main, "--results", tmp_path, "training-cost")  # costs alone are something to judge


def test_the_verb_judges_a_results_folder(tmp_path: Path, says) -> None:
    store_of(tmp_path, runs(AHEAD, method="naslora") + runs([0.80, 0.90, 0.70]))
    CostStore(tmp_path).write(session(ratio=Ratio(value=0.76, low=0.75, high=0.77, rounds=9)))
    shown = says(main, "--results", tmp_path, "--protocol", "demo")
    assert "Kvasir-SEG, naslora − lora: +1.00 [+1.00, +1.00] points, n = 3: not judged: backbone tiny" in shown
    assert f"claims: {len(read_claims(FILE))}; " in shown
    assert "did you mean 'training-cost'" in says(main, "--results", tmp_path, "training-cots", code=2)
    assert "did you mean 'demo'" in says(main, "--results", tmp_path, "--protocol", "dmo", code=2)


def tuned_runs(values: list[float], *, chosen: bool = True, **changes: Any) -> list[Any]:
    tuning = {"grid": {"lr": [1e-4, 1e-3]}} | ({"chosen": {"lr": 1e-3}, "trials": []} if chosen else {})
    return runs(values, config={"lr": 1e-3}, changed={"lr": 1e-3}, tuning=tuning, **changes)


def test_tuned_rows_are_compared_with_tuned_ones_and_not_with_the_rest(tmp_path: Path) -> None:
    untuned = pair([0.90, 0.91, 0.92], [0.70, 0.71, 0.72])
    tuned = tuned_runs([0.93, 0.94, 0.95]) + tuned_runs([0.92, 0.93, 0.94], method="decoder")
    losing = tuned_runs([0.10, 0.10, 0.10], chosen=False)
    assert judged(tmp_path, untuned).readings[0].estimate == pytest.approx(20)
    assert judged(tmp_path, untuned + tuned + losing).readings[0].estimate == pytest.approx(1)
    assert judged(tmp_path, untuned + tuned[:3]).readings[0].estimate == pytest.approx(20)
    # a trial at the card's own rate that was not chosen is no tuned run
    (reading,) = judged(tmp_path, [*tuned, *runs([0.10], tuning={"grid": {"lr": [1e-4, 1e-3]}})]).readings
    assert (reading.estimate, reading.n) == (pytest.approx(1), 3)


def test_two_rows_of_one_method_may_both_have_another_rate(tmp_path: Path) -> None:
    def at(values: list[float], lr: float, method: str = "lora", **options: Any) -> list[Any]:
        changed = {"lr": lr, **options}
        return runs(values, method=method, config={"rank": 3, **changed}, changed=changed)

    six, three = ({"method": "lora", "options": {"rank": rank}} for rank in (6, 3))
    ranks = {"numerator": six, "denominator": three}
    alike = at([0.80, 0.81, 0.82], 3e-3, rank=6) + at([0.78, 0.79, 0.80], 3e-3)
    (reading, *_) = judged(tmp_path, alike, **ranks).readings
    assert reading.estimate == pytest.approx(2)
    assert reading.where.endswith(" · lr 0.003")
    apart = at([0.80, 0.81, 0.82], 3e-3, rank=6) + at([0.78, 0.79, 0.80], 1e-3)
    assert judged(tmp_path, apart, **ranks).readings[0].where == "no run"
    methods = at([0.80, 0.81, 0.82], 3e-3) + at([0.7, 0.7, 0.7], 3e-3, "decoder")
    assert judged(tmp_path, methods).readings[0].estimate is None


def _inside(method: str, shifts: list[float], **changes: Any) -> list[tuple[Any, Any]]:
    """Runs of a method with evidence that it attends so many pixels farther than its frozen backbone."""
    records = [record(0.9, method=method, seed=seed, **changes) for seed in range(len(shifts))]
    return [(made, evidence(made.key, shift=shift)) for made, shift in zip(records, shifts, strict=True)]


EVIDENCE: dict[str, Any] = {
    "quantity": "evidence difference", "measure": "attention distance", "blocks": ["windowed"], "unit": "px",
    "expected": {"less": 0},
}  # fmt: skip


def _judged_inside(tmp_path: Path, pairs: list[tuple[Any, Any]], **changes: Any) -> Finding:
    known = {record.key: inside for record, inside in pairs}
    asked = claim(tmp_path, **{**EVIDENCE, **changes})
    return judged_on([asked], MadeUp([record for record, _ in pairs], inside=known))[0]


def test_evidence_is_compared_against_frozen_backbones_by_seed(tmp_path: Path) -> None:
    pairs = _inside("lora", [-3.0, -4.0, -3.5]) + _inside("decoder", [0.5, -0.5, 0.0])
    finding = _judged_inside(tmp_path, pairs)
    (reading,) = finding.readings
    assert reading.estimate == pytest.approx(-3.5)
    assert reading.n == 3
    assert finding.verdict == "reproduced"
    assert _judged_inside(tmp_path, pairs, expected={"greater": 0}).verdict == "not reproduced"
    assert _judged_inside(tmp_path, pairs[:1] + pairs[3:4]).verdict == "no interval"


def test_a_seed_with_two_runs_of_one_configuration_is_none(tmp_path: Path) -> None:
    pairs = _inside("lora", [-3.0, -4.0]) + _inside("decoder", [0.5, -0.5])
    again = _inside("lora", [5.0], rules={**CARD, "image_size": 65})
    (reading,) = _judged_inside(tmp_path, [*pairs, *again]).readings
    assert (reading.n, reading.estimate) == (1, pytest.approx(-3.5))


def test_what_nobody_read_in_the_paper_stays_unknown_beside_our_numbers(tmp_path: Path) -> None:
    pairs = _inside("lora", [-3.0, -4.0, -3.5]) + _inside("decoder", [0.5, -0.5, 0.0])
    finding = _judged_inside(tmp_path, pairs, expected="unknown", mark="?")
    assert finding.verdict == finding.readings[0].verdict == "unknown"
    text = findings_text([finding])
    assert "holds for unknown: nothing published" in text
    assert "-3.50 [-" in text
    assert "1 unknown" in text
    with pytest.raises(UsageError, match="has the mark"):
        _judged_inside(tmp_path, pairs, expected="unknown")


def test_without_evidence_and_without_such_blocks_there_is_no_reading(tmp_path: Path) -> None:
    pairs = _inside("lora", [1.0]) + _inside("decoder", [0.0])
    assert _judged_inside(tmp_path, pairs[:1]).readings[0].estimate is None
    plain = [(record, replace(e, blocks=[replace(block, window=0) for block in e.blocks])) for record, e in pairs]
    assert _judged_inside(tmp_path, plain).readings[0].estimate is None
    other = [(pairs[0][0], replace(pairs[0][1], images=[("test", f"x{number}") for number in range(8)])), pairs[1]]
    assert _judged_inside(tmp_path, other).readings[0].estimate is None


PRIOR: dict[str, Any] = {
    "quantity": "prior distance", "numerator": {"method": "naslora"}, "denominator": None, "unit": "total variation",
    "benchmarks": ["kvasir", "leaf", "sbu"],
}  # fmt: skip


def _prior(
    tmp_path: Path, gap: float, *, seeds: int = 3, without: str = "", budget: Any = None, papers: Papers = PAPERS
) -> Finding:
    generator = np.random.default_rng(0)
    runs, ends = [], {}
    for place, benchmark in enumerate(name for name in PRIOR["benchmarks"] if name != without):
        for seed in range(seeds):
            made = record(0.9, method="naslora", benchmark=benchmark, seed=seed, metric="iou", budget=budget or {})
            weights = np.ones(4) + 0.01 * generator.standard_normal(4)
            weights[place] += gap
            runs.append(made)
            ends[made.key] = {"blocks.0.qkv": list(weights / weights.sum())}
    return judged_on([claim(tmp_path, **PRIOR)], MadeUp(runs, mixtures=ends), papers=papers)[0]


def test_domains_choose_different_priors_where_the_permutation_test_says_so(tmp_path: Path) -> None:
    apart = _prior(tmp_path, 0.5)
    assert apart.verdict == "reproduced"
    assert "p = 0.028 (n = 3)" in findings_text([apart])
    alike = _prior(tmp_path, 0.0)
    assert alike.verdict == "inconclusive"  # a test that finds nothing shows nothing
    assert alike.readings[0].estimate is not None
    assert _prior(tmp_path, 0.5, seeds=1).readings[0].estimate is None


def test_mixtures_of_some_of_the_benchmarks_do_not_reproduce_a_claim_on_all(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(PRIOR, "benchmarks", [*PRIOR["benchmarks"], "camo"])
    finding = _prior(tmp_path, 0.5, without="camo")
    assert finding.verdict == "inconclusive"
    assert finding.readings[0].settle.startswith("not all benchmarks; ")
    assert "3 of 4 benchmarks" in finding.readings[0].what


def test_mixtures_that_alpha_could_not_leave_show_no_choice(tmp_path: Path) -> None:
    finding = _prior(tmp_path, 0.5, budget={"share_cap": 0.13, "alpha_updates": 100})
    assert finding.verdict == "inconclusive"
    assert finding.readings[0].settle.startswith("ALPHA_STUCK under some runs; ")


def test_mixtures_of_another_set_up_are_shown_and_not_judged(tmp_path: Path) -> None:
    other = Setup(card="demo", backbone="vit_h", checkpoint="", test_images={})
    finding = _prior(tmp_path, 0.5, papers=Papers(setups={"nas-lora": other}))
    assert finding.verdict == "not judged"
    assert "backbone tiny instead of vit_h" in findings_text([finding])


def _entries(method: str, configs: dict[str, dict[str, Any]], changed: Any = None) -> Any:
    entry = lambda name: {"variant": name, "config": configs[name], "changed": changed and changed[name]}  # noqa: E731
    return SimpleNamespace(methods=[SimpleNamespace(method=method, **entry(name)) for name in configs])


def test_of_several_entries_the_one_that_changes_nothing_else_is_compared() -> None:
    session = _entries("lora", {"a": {"rank": 3}, "lora": {"rank": 3}, "b": {"rank": 6}})
    assert measured(session, Subject(method="lora")) is session.methods[1]
    assert measured(session, Subject(method="lora", options={"rank": 6})) is session.methods[2]
    assert measured(session, Subject(method="decoder")) is None


def test_an_entry_that_changes_something_else_too_is_not_compared() -> None:
    """What it changes is what it says; older sessions do not, and without the method's plain entry nobody knows."""
    configs: dict[str, dict[str, Any]] = {
        "a": {"rank": 12, "alternate": "both", "stagewise": True},
        "b": {"rank": 3, "alternate": "epoch", "stagewise": False},
        "c": {"rank": 3, "alternate": "both", "stagewise": False},
    }
    joint = Subject(method="naslora", options={"stagewise": False})
    told = {"a": ["rank"], "b": ["alternate", "stagewise"], "c": ["stagewise"]}
    session = _entries("naslora", configs, told)
    assert measured(session, Subject(method="naslora")) is None
    assert measured(session, joint) is session.methods[2]
    older = _entries("naslora", {"naslora": {"rank": 3, "alternate": "both", "stagewise": True}, **configs})
    assert measured(older, joint) is older.methods[3]
    assert measured(_entries("naslora", configs), joint) is None


def test_a_claim_on_labels_names_its_metric(tmp_path: Path, says) -> None:
    for method, value in (("lora", 0.6), ("naslora", 0.7)):
        for seed in range(3):
            scores = {"best": {"test": {"accuracy": value + 0.01 * seed, "nll": 1.0, "ece": 0.1}}}
            RecordStore(tmp_path).write(record(method=method, seed=seed, benchmark="origin", scores=scores))
    labels = {**BASE, "numerator": {"method": "naslora"}, "denominator": {"method": "lora"}, "benchmarks": ["origin"]}
    file = tmp_path / "claims.yaml"
    words = ["--results", tmp_path, "--protocol", "demo", "--file", file]
    file.write_text(yaml.safe_dump([labels]))
    assert "no paper reports 'origin'; name the 'metric'" in says(main, *words, code=2)
    file.write_text(yaml.safe_dump([{**labels, "metric": "accuracy"}]))
    said = says(main, *words)
    assert "Origin of an image, naslora − lora: +10.00" in said
    assert "not judged" in said
