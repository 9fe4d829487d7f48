"""Differences are paired by seed and image; those of many rows to one baseline hold all at once."""

from __future__ import annotations

import itertools
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.archive.archive import Archive
from harness.archive.store import RecordStore
from harness.comparison import Difference, grids
from harness.comparison.differences import RowScores, simultaneous
from harness.comparison.leaderboard import leaderboards
from harness.report.leaderboard import still_to_run
from harness.statistics import crossed, family, max_t
from harness.studies import study_from_dict
from tests.harness.report.sample import DEMO, MadeUp, grid_of, measured_on, record
from tests.harness.report.test_costs import method, session
from tests.values import there


def three(base: float, *, shift: float = 0.0, **changes: Any) -> list[Any]:
    return [record(base + 0.05 * seed + shift, seed=seed, **changes) for seed in range(3)]


def against(records: list[Any], row: str = "Decoder alone", baseline: str = "LoRA", **given: Any) -> Difference:
    grid = grid_of(records, **given)
    return there(grid.difference(row, baseline, grid.columns[0]))


def test_differences_are_paired_by_seed_in_points_and_an_error_that_is_lower_counts_as_positive() -> None:
    pairs = three(0.8) + three(0.8, shift=-0.01, method="decoder")
    found = against(pairs)
    assert (found.mean, found.low, found.high, found.n, found.over) == (*[pytest.approx(-1.0)] * 3, 3, "seeds")
    errors = three(0.2, benchmark="sbu") + three(0.2, shift=-0.01, method="decoder", benchmark="sbu")
    assert against(errors).mean == pytest.approx(1.0)
    assert against(pairs[:5]).n == 2, "a seed that one side lacks is left out"
    assert against([pairs[0], pairs[3]]).low is None, "a single seed has no interval"
    grid = grid_of([pairs[0], pairs[4]])
    assert grid.difference("Decoder alone", "LoRA", grid.columns[0]) is None


@pytest.mark.parametrize("name", ["decoder", "lora"])
def test_seeds_in_conflict_are_in_no_difference(name: str) -> None:
    records = three(0.8) + three(0.8, shift=-0.01, method="decoder")
    records.append(record(0.5, seed=1, method=name, rules={**DEMO, "image_size": 65}))  # another result of seed 1
    assert against(records).n == 2


def written(root: Path, scores: dict[str, float], **of_run: Any) -> Any:
    """A record whose per-image scores are these; a stem may have its group after a comma."""
    made = record(sum(scores.values()) / len(scores), **of_run)
    head = "model,split,stem,group,s_measure\n" if "," in next(iter(scores)) else "model,split,stem,s_measure\n"
    RecordStore(root).write(made, head + "".join(f"best,test,{stem},{score!r}\n" for stem, score in scores.items()))
    return made


def with_images(root: Path, shifts: dict[str, float]) -> list[Any]:
    def scores(shift: float, seed: int) -> dict[str, float]:
        return {f"i{n}": 0.5 + 0.01 * n + 0.02 * seed + shift * (1 + 0.1 * (n % 3)) for n in range(20)}

    pairs = itertools.product(shifts.items(), range(3))
    return [written(root, scores(shift, seed), method=name, seed=seed) for (name, shift), seed in pairs]


def test_scores_by_image_give_the_interval_over_seeds_and_images(tmp_path: Path) -> None:
    with_images(tmp_path, {"lora": 0.0, "decoder": -0.02})
    (grid,) = grids(Archive(tmp_path))
    found = there(grid.difference("Decoder alone", "LoRA", grid.columns[0]))
    assert found.over == "seeds and images"
    table = np.array([[-2 * (1 + 0.1 * (n % 3)) for n in range(20)]] * 3)
    expected = there(crossed(table))
    assert (found.mean, found.low, found.high) == pytest.approx((expected.mean, *there(expected.interval())))


def test_the_order_of_image_scores_in_a_file_does_not_matter(tmp_path: Path) -> None:
    records = with_images(tmp_path, {"lora": 0.0, "decoder": -0.02})
    expected = against(records, root=tmp_path)
    for number, made in enumerate(records):
        path = RecordStore(tmp_path).images_path(made.key)
        head, *lines = path.read_text().splitlines()
        np.random.default_rng(number).shuffle(lines)
        path.write_text("\n".join([head, *lines, ""]))
        made.sidecars.clear()
    assert expected.over == "seeds and images"
    assert against(records, root=tmp_path) == expected


def test_a_run_that_failed_hides_no_images(tmp_path: Path) -> None:
    records = with_images(tmp_path, {"lora": 0.0, "decoder": -0.02})
    failed = replace(record(seed=1, method="decoder", code="ERROR"), key="of-another-choice")
    of_seed, left = (RecordStore(tmp_path).images_path(key) for key in (records[4].key, failed.key))
    left.write_text(of_seed.read_text().replace(",i", ",another"))  # of a start that did not come to its record
    assert against([*records, failed], root=tmp_path) == against(records, root=tmp_path)


def test_image_scores_whose_mean_is_not_the_score_are_not_used(tmp_path: Path) -> None:
    """mIoU is accumulated over the data set: the mean over images is another quantity."""
    records = with_images(tmp_path, {"lora": 0.0, "decoder": -0.02})
    for made in records:
        made.scores["best"]["test"]["s_measure"] += 0.1
    assert against(records, root=tmp_path).over == "seeds"


@pytest.mark.parametrize("column", [True, False])
def test_frames_of_one_sequence_count_as_one(tmp_path: Path, column: bool) -> None:
    """By the group of each score; for older records without groups by the benchmark's own rule."""
    first = [1, 26, 51, 79, 104, 127, 152, 178, 206, 228, 253, 278]
    leads = [(7 * index) % 12 - 4 for index in range(12)]
    for (name, sign), seed in itertools.product((("lora", 0.0), ("decoder", 1.0)), range(3)):
        scores = {
            f"{start + n},{index}" if column else str(start + n): 0.6 + 0.001 * seed + sign * 0.01 * leads[index]
            for index, start in enumerate(first)
            for n in range(5)
        }
        written(tmp_path, scores, method=name, seed=seed, benchmark="cvc612")
    found = against(list(RecordStore(tmp_path)), root=tmp_path)
    # Student over the sequences; over 60 frames it would be under half
    half = 2.201 * statistics.stdev(leads) / 12**0.5
    assert (found.mean, (there(found.high) - there(found.low)) / 2) == pytest.approx((1.5, half), abs=1e-3)


def test_one_image_or_one_sequence_leaves_the_interval_over_seeds() -> None:
    for stems, clusters in ((("a",), {}), (("a", "b"), {"a": "video", "b": "video"})):
        scores = {"x": (1.0, 2.0), "y": (3.0, 2.5)}
        column = {
            row: RowScores(
                by_seed=dict(enumerate(values)), clusters=clusters,
                images={seed: (stems, np.full(len(stems), value)) for seed, value in enumerate(values)},
            )
            for row, values in scores.items()
        }  # fmt: skip
        assert simultaneous([column], "x")["y"][0].over == "seeds"
        column["y"] = replace(column["y"], test_share=0.25)  # one row of runs that split the images anew is enough
        assert simultaneous([column], "x")["y"][0].over == "splits"


def test_where_every_seed_splits_the_images_anew_the_interval_is_that_of_folds() -> None:
    rules = {**DEMO, "split_follows_seed": True}
    found = against(
        three(0.8, rules=rules)
        + [record(v, seed=s, method="decoder", rules=rules) for s, v in enumerate((0.8, 0.86, 0.88))]
    )
    spread = statistics.stdev([0, 1, -2]) * (1 / 3 + 8 / 20) ** 0.5
    assert found.over == "splits"
    assert (there(found.high) - there(found.low)) / 2 == pytest.approx(4.302653 * spread, rel=1e-5)


def test_of_two_rows_the_simultaneous_interval_is_students_over_pooled_runs() -> None:
    runs = np.array([[1.0, 2.0, 6.0], [3.0, 3.5, 4.0]])
    (half,) = max_t([family(runs)])
    pooled = (14 + 0.5) / 4
    assert half == pytest.approx(2.776445 * (2 * pooled / 3) ** 0.5, rel=0.03)  # t of 4 degrees of freedom, simulated
    assert family(runs).means[0] == pytest.approx(0.5)


def test_rows_that_lack_a_seed_and_single_seeds_have_no_simultaneous_interval() -> None:
    two = {
        "a": RowScores(by_seed={0: 1.0, 1: 2.0}),
        "b": RowScores(by_seed={0: 1.0}),
        "c": RowScores(by_seed={0: 3.0, 1: 2.5}),
    }
    assert list(simultaneous([two], "a")) == ["c"]
    assert simultaneous([{name: RowScores(by_seed={0: 1.0}) for name in "ab"}], "a") == {}
    both = simultaneous([two, two], "a")["c"]
    assert [each.mean for each in both] == [1.25] * 3
    assert there(both[2].high) < there(both[0].high), "a mean of two benchmarks is known better than each"


def board(
    records: list[Any], benchmarks: list[str], *, spread: str = "pooled", scores: Any = None, **given: Any
) -> Any:
    entries = [{"label": "LoRA", "method": "lora"}, *("decoder", "bitfit", "full")]
    study = study_from_dict(
        {"title": "t", "protocol": "demo", "benchmarks": benchmarks, "entries": entries, "seeds": 3,
         "table": {"kind": "leaderboard", "baseline": "LoRA", "spread": spread, **({"scores": scores} if scores else {})}}, name="mine",
    )  # fmt: skip
    (made,) = leaderboards(grids(MadeUp(records, **given), study=study), study)
    return made


@pytest.mark.parametrize(
    ("rules", "baseline"), [({}, "LoRA"), ({"own_classes": ["background", "tile"]}, "Decoder alone")]
)
def test_one_s_own_images_are_compared_with_a_model_that_is_not_adapted(rules: dict[str, Any], baseline: str) -> None:
    records = [record(method=name, rules={**DEMO, **rules}) for name in ("bitfit", "lora", "decoder")]
    (made,) = leaderboards(grids(MadeUp(records)))
    assert made.baseline == baseline


def noisy(name: str, value: float, benchmark: str = "kvasir") -> list[Any]:
    shifts = {"lora": (0.0, 0.01, -0.01), "decoder": (0.01, 0.0, -0.01), "bitfit": (-0.01, 0.01, 0.0)}[name]
    return [record(value + shift, method=name, seed=seed, benchmark=benchmark) for seed, shift in enumerate(shifts)]


def test_a_leaderboard_with_shrunk_spreads_has_wider_intervals_for_rows_that_vary_more() -> None:
    varied = [record(0.6 + 0.05 * seed, method="full", seed=seed) for seed in range(3)]
    records = noisy("lora", 0.6) + noisy("decoder", 0.5) + varied
    for spread, benchmark in (("pooled", "kvasir"), ("shrunk", "kvasir"), ("shrunk", "")):
        found = board(records, ["kvasir"], spread=spread)
        steady, varying = (found.difference(row, benchmark) for row in ("Decoder alone", "Full fine-tuning"))
        widths = [there(each.high) - there(each.low) for each in (there(steady), there(varying))]
        assert (widths[1] > 1.1 * widths[0]) == (spread == "shrunk"), (spread, widths)


def test_a_leaderboard_is_sorted_by_the_mean_of_rows_that_ran_on_all_benchmarks_that_are_complete() -> None:
    records = noisy("lora", 0.6) + noisy("decoder", 0.5) + noisy("bitfit", 0.7)
    records += noisy("lora", 0.6, "leaf") + noisy("decoder", 0.9, "leaf")
    found = board(records, ["kvasir", "leaf"])
    assert found.complete == ("kvasir", "leaf")
    assert (found.rows, still_to_run(found)) == (["Decoder alone", "LoRA", "BitFit"], ["Full fine-tuning"])
    assert found.difference("BitFit") is None
    best = there(found.difference("BitFit", "kvasir"))
    assert best.mean == pytest.approx(10.0)
    assert [found.verdict(row, "kvasir") for row in found.rows] == ["worse", "", "better"]
    assert found.difference("BitFit", "leaf") is None
    further = [record(0.5, method="full", seed=0), *noisy("bitfit", 0.2, "leaf")[:1]]
    begun = board([*records, *further], ["kvasir", "leaf"])
    assert (begun.complete, begun.leading) == (("kvasir", "leaf"), ""), "a row that has begun takes no mean from others"
    assert begun.rows[:2] == ["Decoder alone", "LoRA"]
    half = board([*records[:12], *noisy("decoder", 0.9, "leaf")[:1]], ["kvasir", "leaf"])
    assert (half.complete, half.leading) == (("kvasir",), "kvasir"), "of two rows on Leaf only one is whole"
    alone = board([*records[3:], *noisy("lora", 0.6)[:2]], ["kvasir", "leaf"])
    assert (alone.complete, alone.leading) == (("leaf",), "leaf"), "the baseline is not whole on Kvasir-SEG"
    assert still_to_run(begun) == [
        f"Full fine-tuning (1 of {len(found.grid.cells['LoRA', found.columns['kvasir']].planned)} seeds)"
    ]
    assert still_to_run(board(noisy("lora", 0.6) + noisy("decoder", 0.5), ["kvasir", "leaf"]))[-1] == "Leaf"
    whole = board([*records, *noisy("bitfit", 0.2, "leaf")], ["kvasir", "leaf"])
    assert whole.complete == ("kvasir", "leaf")
    means = [(row, whole.difference(row)) for row in whole.rows]
    assert [(row, round(mean.mean, 6) if mean else None) for row, mean in means] == [
        ("Decoder alone", 10.0), ("LoRA", None), ("BitFit", -15.0),
    ]  # fmt: skip


def test_rows_are_judged_only_where_images_are_real_masks_not_empty_and_the_baseline_whole() -> None:
    plain = noisy("lora", 0.6) + noisy("decoder", 0.5)
    made = [
        record(0.7, method=name, seed=s, benchmark="leaf", origin="generated")
        for name in ("lora", "decoder")
        for s in range(3)
    ]
    mixed = board([*plain, *made], ["kvasir", "leaf"])
    assert [mixed.verdict("Decoder alone", name) for name in ("kvasir", "leaf", "")] == ["worse", "", ""]
    empty = [replace(each, foreground={"test": 0.0}) for each in noisy("bitfit", 0.9)]
    assert (hollow := board([*plain, *empty], ["kvasir"])).rows == ["LoRA", "Decoder alone", "BitFit"]
    assert hollow.verdict("BitFit", "kvasir") == ""
    last = [replace(each, scores={"last": each.scores["best"], **each.scores}) for each in empty]
    assert [board([*plain, *r], ["kvasir"], scores=["last"]).cell("BitFit", "kvasir").empty for r in (last, plain)] == [
        True,
        False,
    ]
    gap = board([*plain[1:], *noisy("bitfit", 0.7)], ["kvasir"])
    assert (gap.difference("BitFit", "kvasir"), still_to_run(gap)) == (
        None,
        ["LoRA (2 of 3 seeds)", "Full fine-tuning"],
    )
    assert still_to_run(board([*plain[1:], record(method="lora", code="OOM")], ["kvasir"])) == [
        "BitFit",
        "Full fine-tuning",
    ]


def test_an_effect_of_the_split_on_all_rows_is_no_spread_of_a_row() -> None:
    runs, shared = np.random.default_rng(0).normal(size=(4, 3)), np.array([0.0, 9.0, -9.0])
    for prior in (4.0, np.inf):
        alone, both = (family(made, test_share=0.5, prior=prior).seeds for made in (runs, runs + shared))
        np.testing.assert_allclose(both, alone)


def test_a_collapsed_run_is_marked_counts_in_the_mean_and_widens_no_others_interval() -> None:
    steady = noisy("lora", 0.6) + noisy("decoder", 0.5)
    collapsed = [record(value, method="bitfit", seed=seed) for seed, value in enumerate((0.7, 0.71, 0.2))]
    alone, both = board(steady, ["kvasir"]), board([*steady, *collapsed], ["kvasir"])
    assert [both.cell(row, "kvasir").collapsed for row in ("BitFit", "Decoder alone")] == [True, False]
    found = there(both.difference("BitFit", "kvasir"))
    assert (found.mean, found.low) == (pytest.approx(100 * ((0.7 + 0.71 + 0.2) / 3 - 0.6)), None)
    assert both.verdict("BitFit", "kvasir") == ""
    assert both.difference("Decoder alone", "kvasir") == alone.difference("Decoder alone", "kvasir")


@pytest.mark.parametrize(("errors", "collapsed"), [((0.07, 0.08, 0.4), True), ((0.4, 0.41, 0.05), False)])
def test_of_an_error_a_high_value_is_a_collapse(errors: tuple[float, ...], collapsed: bool) -> None:
    records = [record(value, seed=seed, benchmark="sbu") for seed, value in enumerate(errors)]
    assert board(records, ["sbu"]).cell("LoRA", "sbu").collapsed is collapsed


def test_costs_and_merges_are_those_of_one_session() -> None:
    records = noisy("lora", 0.6) + noisy("decoder", 0.5) + noisy("bitfit", 0.7)
    configs = {made.run.method: made.run.method_config for made in records}
    here = measured_on(backbone="tiny", image_size=64)
    inference: dict[str, dict[str, int]] = {
        "lora": {"unmerged": 110, "merged-exact": 105, "merged-calibrated": 100},
        "decoder": {"unmerged": 100},
        "bitfit": {"unmerged": 120, "merged-exact": 110},
    }
    measured = session(
        comparability=here,
        methods=[
            method(name, step, config=configs[name], inference_parameters=inference[name])
            for name, step in (("lora", [0.1, 0.1]), ("decoder", [0.05, 0.05]), ("bitfit", [0.2, 0.2]))
        ],
    )
    found = board(records, ["kvasir"], costs=[measured])
    assert there(found.ratio("Decoder alone", "time")).value == pytest.approx(0.5)
    rows = ("LoRA", "Decoder alone", "BitFit", "Full fine-tuning")
    assert [found.merges(row) for row in rows] == ["calibrated", "not needed", "no", ""]
    assert found.parameters("LoRA") == 110_592
    adapters = [measured.methods[0], replace(measured.methods[2], inference_parameters={})]
    found = board(records, ["kvasir"], costs=[session(comparability=here, methods=adapters)])
    assert [found.merges(row) for row in ("LoRA", "BitFit")] == ["calibrated", ""], "nothing plain was measured"
