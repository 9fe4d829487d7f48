"""Differences to a baseline are paired by seed and image, and tests that n cannot support are not given."""

from __future__ import annotations

import itertools
import re
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.archive.files import image_scores
from harness.archive.store import RecordStore
from harness.cli.tables import main
from harness.studies import load_study, study_from_dict
from tests.harness.report.sample import CARD, record, render, table_rows

ROWS = ["lora", "decoder", "bitfit"]
OWN = "title: Mine\nprotocol: demo\nbenchmarks: [{benchmark}]\nseeds: 3\nentries: [lora, decoder]\ntable: {{baseline: lora}}\n"
"""A study's file."""


def study(**changes: Any) -> Any:
    data: dict[str, Any] = {"title": "t", "protocol": "demo", "benchmarks": ["kvasir"], "entries": ROWS, "seeds": 3}
    return study_from_dict({**data, "table": {"baseline": "lora"}, **changes}, name="mine")


def table(page: str, heading: str) -> dict[str, list[str]]:
    """Label -> cells of the block whose heading contains ``heading``."""
    block = next(part for part in re.split(r"\n##+ ", page)[1:] if heading in part.splitlines()[0])
    return {row[0]: row[1:] for row in table_rows(block)}


def three(base: float, *, shift: float = 0.0, **changes: Any) -> list[Any]:
    return [record(base + 0.05 * seed + shift, seed=seed, **changes) for seed in range(3)]


def test_differences_are_paired_by_seed_in_points_and_an_error_that_is_lower_counts_as_positive() -> None:
    records = three(0.8) + three(0.8, shift=-0.01, method="decoder") + three(0.8, shift=0.02, method="bitfit")
    rows = table(render(records, study=study()), "differences to lora")
    assert rows["decoder"] == ["Kvasir-SEG Sα", "-1.00 (3)", "[-1.00, -1.00] t", "n too small (3)", "–"]
    assert rows["bitfit"][1] == "+2.00 (3)"
    assert "lora" not in rows
    errors = three(0.2, benchmark="sbu") + three(0.2, shift=-0.01, method="decoder", benchmark="sbu")
    assert table(render(errors, study=study(benchmarks=["sbu"])), "differences")["decoder"][1] == "+1.00 (3)"
    # a seed that one side lacks is left out, and n says so
    assert table(render(records[:5], study=study()), "differences")["decoder"][1] == "-1.00 (2)"


def test_enough_seeds_give_a_p_value_adjusted_after_holm() -> None:
    records = []
    for seed in range(7):
        records += [record(0.8 + 0.01 * seed, seed=seed), record(0.7 + 0.01 * seed, seed=seed, method="decoder")]
        records.append(record(0.85 + 0.012 * seed, seed=seed, method="bitfit"))
    rows = table(render(records, study=study(seeds=7)), "differences")
    assert [rows[name][3] for name in ("decoder", "bitfit")] == ["0.031", "0.031"]  # 2 · 2 / 2⁷
    six = [r for r in records if r.run.seed < 6]
    rows = table(render(six, study=study(seeds=6)), "differences")
    assert rows["decoder"][3] == "n too small (6)"  # 2 · 2 / 2⁶ whatever the data
    rows = table(render([r for r in six if r.run.method != "bitfit"], study=study(seeds=6)), "differences")
    assert rows["decoder"][3] == "0.031"


def written(root: Path, scores: dict[str, float], **of_run: Any) -> Any:
    """A record whose per-image scores are these; a stem may have its group behind a comma."""
    made = record(sum(scores.values()) / len(scores), **of_run)
    head = "variant,split,stem,group,s_measure\n" if "," in next(iter(scores)) else "variant,split,stem,s_measure\n"
    RecordStore(root).write(made, head + "".join(f"best,test,{stem},{score!r}\n" for stem, score in scores.items()))
    return made


def with_images(root: Path, shifts: dict[str, float]) -> list[Any]:
    def scores(shift: float, seed: int) -> dict[str, float]:
        return {f"i{n}": 0.5 + 0.01 * n + 0.02 * seed + shift * (1 + 0.1 * (n % 3)) for n in range(20)}

    grid = itertools.product(shifts.items(), range(3))
    return [written(root, scores(shift, seed), method=method, seed=seed) for (method, shift), seed in grid]


def test_per_image_scores_give_the_two_level_interval_and_a_p_over_images(tmp_path: Path) -> None:
    records = with_images(tmp_path, {"lora": 0.0, "decoder": -0.02})
    row = table(render(records, study=study(), root=tmp_path), "differences")["decoder"]
    assert row[1] == "-2.19 (3)"
    low, high = (float(number) for number in row[2].strip("[]").split(", "))
    assert -2.3 < low < -2.19 < high < -2.1
    assert row[3] == "n too small (3)"
    assert float(row[4]) < 0.01


def test_a_run_that_failed_beside_one_that_did_not_hides_no_images(tmp_path: Path) -> None:
    records = with_images(tmp_path, {"lora": 0.0, "decoder": -0.02})
    failed = replace(record(seed=1, method="decoder", code="ERROR"), key="of another choice")
    alone, beside = (
        table(render(r, study=study(), root=tmp_path), "differences") for r in (records, [*records, failed])
    )
    assert beside["decoder"] == alone["decoder"]


def frames(root: Path, *, column: bool) -> list[Any]:
    """Two methods on CVC: 12 sequences of 5 frames (by their numbers), whose differences all frames of a sequence share."""
    first = [1, 26, 51, 79, 104, 127, 152, 178, 206, 228, 253, 278]
    for (method, sign), seed in itertools.product((("lora", 0.0), ("decoder", 1.0)), range(3)):
        scores = {
            f"{start + n},{place}" if column else str(start + n): 0.6 + 0.001 * seed + sign * 0.01 * lead(place)
            for place, start in enumerate(first)
            for n in range(5)
        }
        written(root, scores, method=method, seed=seed, benchmark="cvc612")
    return list(RecordStore(root))


def lead(place: int) -> int:
    """Of a sequence, in points."""
    return (7 * place) % 12 - 4


@pytest.mark.parametrize("column", [True, False])
def test_frames_of_one_sequence_count_as_one(tmp_path: Path, column: bool) -> None:
    """By the group beside each score; older records, which have none, by the benchmark's own rule."""
    page = render(frames(tmp_path, column=column), study=study(benchmarks=["cvc612"]), root=tmp_path)
    row = table(page, "differences")["decoder"]
    # Student over the sequences; over 60 frames it would be under half
    half = 2.201 * statistics.stdev(map(lead, range(12))) / 12**0.5
    assert row[1] == "+1.50 (3)"
    low, high = (float(number) for number in row[2].strip("[]").split(", "))
    assert (high - low) / 2 == pytest.approx(half, abs=0.01)
    assert "Images that are not independent count by cluster (CVC-612 Sα: 12)." in page
    assert float(row[4]) > 0.05  # sign flips of 12 sequences; of 60 frames it would be below 0.001


@pytest.mark.parametrize("method", ["decoder", "lora"])
def test_seeds_in_conflict_are_in_no_difference(method: str) -> None:
    """Of the row and of its baseline."""
    records = three(0.8) + three(0.8, shift=-0.01, method="decoder")
    records.append(record(0.5, seed=1, method=method, rules={**CARD, "image_size": 65}))  # another result of seed 1
    page = render(records, study=study())
    assert table(page, "demo")[method][0] == "CONFLICT (2/3)"
    assert table(page, "differences")["decoder"][1] == "-1.00 (2)"


def test_p_over_images_is_adjusted_after_holm(tmp_path: Path) -> None:
    records = with_images(tmp_path, {"lora": 0.0, "decoder": -0.02, "bitfit": 0.03})
    rows = table(render(records, study=study(), root=tmp_path), "differences")
    alone = table(render(records[:6], study=study(), root=tmp_path), "differences")
    assert float(rows["decoder"][4]) == pytest.approx(2 * float(alone["decoder"][4]), rel=0.05)


def test_image_scores_whose_mean_is_not_the_score_are_not_used(tmp_path: Path) -> None:
    """mIoU is accumulated over the data set: the mean over images is another quantity."""
    records = with_images(tmp_path, {"lora": 0.0, "decoder": -0.02})
    for made in records:
        made.scores["best"]["test"]["s_measure"] += 0.1
    row = table(render(records, study=study(), root=tmp_path), "differences")["decoder"]
    assert row[2].endswith(" t")
    assert row[4] == "–"


def test_ranks_across_benchmarks(tmp_path: Path) -> None:
    benchmarks = ["kvasir", "leaf", "sbu"]
    records = [
        record(0.5 + (0.1 if name == "sbu" else -0.1) * place + 0.001 * seed, seed=seed, method=method, benchmark=name)
        for name, (place, method), seed in itertools.product(benchmarks, enumerate(ROWS), range(3))
    ]
    page = render(records, study=study(benchmarks=benchmarks))
    rows = table(page, "ranks across benchmarks")
    assert rows["lora"] == ["1.00", "100 %", "–"]
    assert rows["bitfit"] == ["3.00", "0 %", "0.00 [0.00, 0.00]"]
    assert "Friedman over 3 benchmarks (χ² approximation): p = 0.05" in page
    first = [record for record in records if record.run.seed == 0]
    rows = table(render(first, study=study(seeds=1, benchmarks=benchmarks)), "ranks across benchmarks")
    assert rows["bitfit"] == ["3.00", "–", "–"]  # a single run says nothing of the next


def test_a_benchmark_with_three_test_splits_counts_once_across_benchmarks() -> None:
    records = []
    for (number, method), seed in itertools.product(enumerate(ROWS), range(3)):
        value = 0.5 - 0.1 * number + 0.001 * seed
        # hard turns the order around; all together decide
        for benchmark, splits in (
            ("trans10k_v1", {"easy": value, "hard": 1 - value, "all": value}), ("trans10k_v2", {"test": value}),
        ):  # fmt: skip
            scores = {"best": {split: {"miou": score, "accuracy": score} for split, score in splits.items()}}
            records.append(record(seed=seed, method=method, benchmark=benchmark, scores=scores))
    layout = {"baseline": "lora", "splits": {"trans10k_v1": ["easy", "hard", "all"]}}
    page = render(records, study=study(benchmarks=["trans10k_v1", "trans10k_v2"], table=layout))
    assert table(page, "ranks across benchmarks")["lora"][0] == "1.00"
    assert "Friedman over 2 benchmarks (χ² approximation): n too small" in page
    assert "Nemenyi" not in page
    assert len(re.findall(r"Trans10K-v1 (easy|hard|all) mIoU \|", page)) == 6


def test_rows_with_gaps_are_not_ranked() -> None:
    records = three(0.8) + three(0.7, benchmark="leaf") + three(0.8, method="decoder")
    records += three(0.6, benchmark="leaf", method="decoder")[:2]
    page = render(records, study=study(benchmarks=["kvasir", "leaf"]))
    assert "ranks across benchmarks" not in page
    assert "1 of 3 rows" not in page
    assert "mean difference to lora over" not in page
    records += three(0.6, benchmark="leaf", method="decoder")[2:]
    assert "ranks across benchmarks" in render(records, study=study(benchmarks=["kvasir", "leaf"]))
    assert "left out across benchmarks: decoder (MISSING on Leaf), bitfit (MISSING on Kvasir-SEG, Leaf)" in page


@pytest.mark.parametrize(
    "content",
    ["", "variant,split,stem\n", "variant,split,stem,iou\nbest,test,a,\n", "variant,split,stem,iou\nbest,test,a,x\n"],
)
def test_image_scores_that_are_not_there_are_none(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.images.csv"
    path.write_text(content)
    assert image_scores(path, variant="best", split="test", metric="iou") is None
    assert image_scores(tmp_path / "no.csv", variant="best", split="test", metric="iou") is None


def test_the_verb_is_the_same_bytes_every_time(tmp_path: Path, says) -> None:
    with_images(tmp_path, {"lora": 0.0, "decoder": -0.02})
    path = tmp_path / "mine.yaml"
    path.write_text(OWN.format(benchmark="kvasir"))
    assert "differences to lora" in says(main, "--results", tmp_path, "--study", path)
    says(main, "--results", tmp_path, "--study", path, "--check")


def test_every_baseline_is_an_entry() -> None:
    assert load_study("main").table.baseline == "lora"
    with pytest.raises(ValueError, match="did you mean 'lora'"):
        study(table={"baseline": "lorra"})
