"""The page of the answer, its details and its figures are what the records give, and say what was not run."""

from __future__ import annotations

import itertools
import re
import shutil
import statistics
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats as oracle

from harness import statistics as stats
from harness.archive.archive import Archive
from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.cli import tables
from harness.comparison.question import ALL_DRAWS, Pair, padding, verdict
from harness.protocols.load import card_rules
from harness.registry import method_config_class
from harness.report import findings
from harness.report.findings import END, FIGURES, START, TEMPLATES, Answer, environment, files
from harness.studies import load_study
from tests.harness.report.sample import record
from tests.values import REPOSITORY, RESULTS, there


@pytest.fixture(scope="module")
def answer() -> Answer:
    return Answer(RESULTS)


@pytest.fixture(scope="module")
def rendered() -> dict[Path, str]:
    return files(RESULTS)


def test_every_page_is_what_the_records_give(rendered: dict[Path, str]) -> None:
    assert len(rendered) == len(list(TEMPLATES.glob("*.j2"))) > 8
    assert {path for path, text in rendered.items() if path.read_text(encoding="utf-8") != text} == set()


def test_the_page_is_short_names_what_was_not_run_and_every_link_leads_somewhere(rendered, answer: Answer) -> None:
    page = rendered[REPOSITORY / "docs" / "findings.md"]
    assert len(page.splitlines()) <= 120
    assert "not run" in page.lower()
    assert all(what in page for what in answer.not_run)
    assert "undecided" not in page
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").split()) <= 900
    for path, text in rendered.items():
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (path.parent / target).exists(), f"{path}: {target}"


@pytest.mark.parametrize(("name", "cases"), [(name, cases) for name, (cases, _) in FIGURES.items()])
def test_a_figure_has_the_rows_of_the_page(answer: Answer, name: str, cases: str) -> None:
    drawn = (REPOSITORY / "docs" / "figures" / f"{name}.svg").read_text(encoding="utf-8")
    named = {" · ".join(filter(None, (case.column.short, case.pair.what))) for case in getattr(answer, cases)}
    assert named == set(re.findall("<!-- (.*) \\(n = ", drawn))


def test_its_interval_is_the_analysis_of_variance_of_the_image_scores(answer: Answer) -> None:
    """Recomputed from the files of image scores alone, with reruns as draws."""
    case = answer.named_case("small-methods", "kvasir")
    sides = (case.difference.first, case.difference.second)
    keys = {(record.run.method, record.run.seed): record for side in sides for record in side.records}

    def scores(method: str, seed: int) -> np.ndarray:
        archive = Archive(RESULTS if seed < 10_000 else RESULTS / ALL_DRAWS)
        images = there(archive.images(keys[method, seed], "best", "test", "s_measure")).scores
        return np.array([100 * images[stem] for stem in sorted(images)])

    seeds = sorted({seed for _, seed in keys})
    table = np.array([scores("naslora", seed) - scores("lora", seed) for seed in seeds])
    runs, images = table.shape
    a, b = table.mean(1) - table.mean(), table.mean(0) - table.mean()
    e = table - table.mean() - a[:, None] - b[None]
    dfs = (runs - 1, images - 1, (runs - 1) * (images - 1))
    sums = (images * (a**2).sum(), runs * (b**2).sum(), (e**2).sum())
    of_runs, of_images, of_both = (total / df for total, df in zip(sums, dfs, strict=True))
    held = min(of_runs, of_images, of_both)
    variance = (of_runs + of_images - held) / table.size
    parts = zip((of_runs, of_images, held), dfs, strict=True)
    df = variance**2 / sum((share / table.size) ** 2 / df for share, df in parts)
    assert runs == 6
    assert case.estimate.mean == pytest.approx(table.mean(), abs=1e-9)
    assert there(case.difference.interval).half == pytest.approx(oracle.t.ppf(0.975, df) * np.sqrt(variance), rel=1e-6)


def test_the_cost_against_full_is_paired_by_round_in_one_session(answer: Answer) -> None:
    model = "ViT-S at 196 px"
    ours, full = (np.log(answer.cost_of(model, name).step_seconds["total"]) for name in ("naslora", "full"))
    cost = answer.time(model, "naslora", "full")
    assert cost.estimate == pytest.approx(np.exp((ours - full).mean()))
    low, high = oracle.t.interval(0.95, len(ours) - 1, loc=(ours - full).mean(), scale=oracle.sem(ours - full))
    assert (cost.low, cost.high) == pytest.approx((np.exp(low), np.exp(high)))
    padded = answer.cost_of("MobileSAM at 256 px, padding computed", "lora")
    assert padded.step_seconds["total"] != answer.cost_of("MobileSAM at 256 px", "lora").step_seconds["total"]
    recorded = answer.cost_of(model, "naslora").ratios["lora"]["time"]
    assert answer.time(model, "naslora").estimate == pytest.approx(recorded.value)


def test_reruns_gave_the_same_losses_whatever_the_code_and_other_scores_on_another_processor(answer: Answer) -> None:
    first = {record.key: record for record in RecordStore(RESULTS)}
    again = {record.key: record for record in RecordStore(RESULTS / ALL_DRAWS)}
    (old,) = RecordStore(RESULTS / "again" / "avx512-056e6a2")
    assert [each["loss"] for each in old.history] == [each["loss"] for each in again[old.key].history]
    scores = ([100 * runs[key].scores["best"]["test"]["s_measure"] for key in again] for runs in (again, first))
    moves = [abs(score - other) for score, other in zip(*scores, strict=True)]
    assert answer.moved() == pytest.approx((min(moves), max(moves)))


def test_a_run_is_drawn_again_where_it_ended_without_and_with_a_warm_up(answer: Answer, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("harness.comparison.question.REDRAWN", str(tmp_path))
    collapsed = answer.named_case("small-methods", "isic2017").difference.second.records[1]
    assert answer.redrawn() is None

    def end(folder: str, warmup: int, score: float) -> None:
        run = replace(collapsed.run, rules={**collapsed.run.rules, "warmup": warmup})
        scores = {"best": {"test": {"jaccard": score}}}
        RecordStore(tmp_path / folder).write(Record(run=run, key=run.key, code="OK", scores=scores))

    end("plain-attention", 0, 0.31)
    assert answer.redrawn() is None, "its twin has not ended"
    end("plain-attention", 40, 0.75)
    end("this-processor", 0, 0.72)
    end("this-processor", 40, 0.74)
    redrawn = there(answer.redrawn())
    assert redrawn.draws == {
        "Plain attention": pytest.approx((31.0, 75.0)),
        "This processor": pytest.approx((72.0, 74.0)),
    }
    assert (redrawn.below(warmed=0), redrawn.below(warmed=1)) == (1, 0)
    kept = answer.named_case("small-methods", "isic2017").difference.second
    assert redrawn.floor == pytest.approx(100 * statistics.median(kept.values.values()) - 20)


def test_a_row_that_no_record_answers_is_no_case(answer: Answer) -> None:
    assert answer.case(Pair(study="small-search", benchmark="camo", first="NAS-LoRA", second="LoRA")) is None
    with pytest.raises(LookupError, match="no difference"):
        answer.d("small-search", "camo", "NAS-LoRA", "LoRA")


def plan_run(method: str, label: str, seed: int, value: float, *, image_size: int = 256, **options: Any) -> Record:
    """A run of the study question-sam, made up; NAS-LoRA's rate is the highest that was tried. At 512 px nothing was tuned."""
    rules = {**(card_rules("mobile", "kvasir") or {}), "decoder_lr": 1e-4, "image_size": image_size}
    config = {**asdict(method_config_class(method)()), **rules["methods"].get(method, {}), "lr": 3e-3, **options}
    tuning = {"grid": {"lr": [1e-3, 3e-3]}, "chosen": {"lr": 3e-3}, "trials": [], "on": ["kvasir"]}
    tuning |= {"edge": ["lr"]} if method == "naslora" else {}
    tuning = tuning if image_size == 256 else {}
    return record(
        value, method=method, variant=label, seed=seed, config=config, protocol="mobile", backbone="mobile_sam", rules=rules,
        tuning=tuning, changed={"lr": 3e-3, **options}, counts={"train": 400, "val": 60, "test": 300},
    )  # fmt: skip


def earlier(answer: Answer) -> list[Record]:
    """The records without those of the plan's cards."""
    return [record for record in answer.archive.records if record.run.protocol not in ("mobile", "small-fair")]


def test_runs_of_the_plan_are_taken_up_when_they_are_there() -> None:
    answer = Answer(RESULTS)
    answer.archive.records[:] = earlier(answer)
    assert "Not run: MobileSAM;" in environment().get_template("findings.md.j2").render(a=answer)
    assert answer.trials_of_plan() == []
    answer.archive.records.append(plan_run("lora", "LoRA[lr=0.003]", 100, 0.75))
    for seed in range(3):
        answer.archive.records.append(plan_run("lora", "LoRA", seed, 0.70 + 0.001 * seed))
        answer.archive.records.append(plan_run("naslora", "NAS-LoRA", seed, 0.68, alpha_lr=0.027))
        whole = plan_run("naslora", "NAS-LoRA, whole map", seed, 0.72 + 0.001 * seed, scope="image", alpha_lr=0.027)
        answer.archive.records.append(whole)
    archive = answer.archive
    answer = Answer(RESULTS)  # another look at the same archive
    answer.archive = archive
    (trial,) = answer.trials_of_plan()
    assert (trial.row, dict(trial.options), trial.score) == ("LoRA", {"lr": 3e-3}, 75.0)
    (case,) = (case for case in answer.clean if not case.is_earlier)
    assert (case.model, case.n, case.images) == ("MobileSAM at 256 px", 3, 300)
    assert case.estimate.mean == pytest.approx(-2.1)
    assert "shared decoder rate" in case.trust
    assert "3 draws" in case.trust
    assert "NAS-LoRA at the edge of its rates" in case.trust
    page = " ".join(environment().get_template("findings.md.j2").render(a=answer).split())
    assert (
        "**After equally many weight updates NAS-LoRA is worse than LoRA: NAS-LoRA − LoRA is -2.10 [-2.35, -1.85] points"
        " (scores in %, 95 % confidence interval) on MobileSAM at 256 px (Kvasir-SEG Sα alone, 3 runs each).**"
    ) in page
    assert "rules out" not in page.partition("![")[0]
    assert "Further series: -0.54 [-2.08, +0.99] on ViT-S at 196 px (mean of 5 benchmarks, rows" in page
    assert "at its own rate: +2.00 [" in page
    assert "Not run: MobileSAM at 512 px; 12 draws of MobileSAM on Kvasir-SEG; MobileSAM on ISIC 2017" in page
    assert "NAS-LoRA on whole maps" not in page.partition("Not run:")[2]  # run wherever the question was
    assert "the one-pass search on MobileSAM; the cell without search on MobileSAM;" in page


def test_rows_beside_the_question_are_taken_up_and_named_where_they_are_missing() -> None:
    """One pass, merged scores and another method, each on the one benchmark of two that has it."""
    answer = Answer(RESULTS)
    answer.archive.records[:] = earlier(answer)
    words = environment()
    assert "one-pass variant and the one in turns were scored" in words.get_template("findings.md.j2").render(a=answer)
    assert "these methods are **not run**" in words.get_template("methods.md.j2").render(a=answer)
    for seed in range(3):
        answer.archive.records.append(plan_run("lora", "LoRA", seed, 0.70 + 0.001 * seed))
        searched = plan_run("naslora", "NAS-LoRA", seed, 0.72, lr=1e-2, alpha_lr=0.027)
        answer.archive.records.append(searched)
        joint = plan_run("naslora", "joint", seed, 0.71 + 0.002 * seed, alternate="joint", alpha_lr=0.027)
        answer.archive.records.append(joint)
        run = replace(searched.run, rules={**searched.run.rules, "merge": ["exact", "calibrated"]})
        values = {"best": 0.72, "merged-exact": 0.72, "merged-calibrated": 0.69}
        scores = {score: {"test": {"s_measure": value}} for score, value in values.items()}
        answer.archive.records.append(replace(searched, key=run.key, run=run, scores=scores))
        full = plan_run("full", "full", seed, 0.74, encoder_lr=1e-4)
        tuning = {"grid": {"encoder_lr": [3e-5, 1e-4]}, "chosen": {"encoder_lr": 1e-4}, "on": ["kvasir"]}
        answer.archive.records.append(replace(full, run=replace(full.run, tuning=tuning, changed={"encoder_lr": 1e-4})))
    archive = answer.archive
    answer = Answer(RESULTS)  # another look at the same archive
    answer.archive = archive
    page = " ".join(words.get_template("findings.md.j2").render(a=answer).split())
    assert "one-pass variant, at its own rate, scores +1.10 [+0.85, +1.35] points to LoRA on Kvasir-SEG Sα" in page
    assert "affine map (nothing stays)" in page
    assert "-3.00 [-3.00, -3.00] points where every cell" in page
    missing = page.partition("Not run:")[2]
    assert "one-pass" not in missing.partition(".")[0]
    assert "; other methods on MobileSAM (Conv-LoRA, NAS-PC-LoRA, AdaptFormer, BitFit, DoRA);" in missing
    methods = " ".join(words.get_template("methods.md.j2").render(a=answer).split())
    assert "| full | 74.0 ± 0.0 (3) | +3.90 [" in methods


def test_a_search_is_named_beyond_the_benchmarks_on_which_each_of_its_rows_has_run() -> None:
    answer = Answer(RESULTS)
    question = [plan_run("lora", "LoRA", 0, 0.7), plan_run("naslora", "NAS-LoRA", 0, 0.7)]
    for count, beyond in ((2, ""), (7, " beyond Kvasir-SEG")):
        answer.archive.records[:] = [*earlier(answer), *question]
        for entry, seed in itertools.product(load_study("sam-search").entries[:count], range(3)):
            answer.archive.records.append(plan_run(entry.method, entry.label, seed, 0.72, **entry.options))
        archive = answer.archive
        answer = Answer(RESULTS)  # another look at the same archive
        answer.archive = archive
        assert f"candidate operations on MobileSAM{beyond}" in answer.not_run
        assert "when the search starts (T_B) on MobileSAM" in answer.not_run
    (case,) = answer.fewer_operations("no pooling")
    assert case.column.benchmark_title == "Kvasir-SEG"


def test_what_alpha_chose_stands_by_seed(answer: Answer) -> None:
    of_question = next(one for case, one in answer.alpha_of_plan if case.pair.study == "question-sam")
    same_runs = answer.choices("sam-search")["all eight, searched"].spreads
    assert of_question["spreads"][: len(same_runs)] == list(same_runs.values())


def test_a_draw_that_was_made_again_is_told_and_images_of_a_group_where_splits_differ(answer: Answer) -> None:
    assert answer.named_case("small-methods", "kvasir").draws == "6 (3 seeds, 3 made again)"
    (roads,) = (case for case in answer.clean if case.is_sam and case.pair.benchmark == "road")
    assert (roads.draws, roads.difference.folds, roads.difference.clusters) == (str(roads.n), True, 0)
    assert f"{roads.groups} groups of test images" in roads.trust
    assert 1 < roads.groups < roads.images


def test_the_decoder_alone_stands_on_the_draws_of_its_row_and_zero_shot_cannot_collapse(answer: Answer) -> None:
    for case in answer.clean:
        shown = answer.decoder_alone(case)
        rows = [row for row in map(case.grid.row, ("decoder alone", "decoder only")) if row]
        values = [case.grid.cells[row, case.column].values for row in rows][:1]
        common = [100 * values[0][seed] for seed in case.seeds if seed in values[0]] if values else []
        assert shown.startswith(f"{np.mean(common):.1f} ± " if common else "–")
        assert shown.endswith(")") == (0 < len(common) < case.n)
    trained = [
        record
        for record in answer.own
        if record.run.protocol == "mobile" and record.code == "OK" and record.run.method != "zeroshot"
    ]
    assert 0 < answer.collapses("mobile").runs <= len(trained)


def test_a_row_says_what_its_first_draws_gave_and_whether_lora_is_above_the_decoder_alone(answer: Answer) -> None:
    (large,) = (case for case in answer.clean if case.model == "MobileSAM at 512 px")
    first = there(large.first_draws(3))
    assert list(first.by_seed) == list(large.difference.by_seed)[:3]
    assert first.estimate.mean == pytest.approx(
        np.mean(large.difference.by_seed[:3]), abs=1e-4
    )  # images have six digits
    for case in answer.clean:
        alone = next(filter(None, map(case.grid.row, ("decoder alone", "decoder only"))), None)
        cells = [case.grid.cells[row, case.column] for row in (case.difference.second.row, alone) if row]
        assert ("no draws of the decoder alone beside them" in case.trust) == (len(cells) < 2)
        if len(cells) == 2:
            above = there(case.grid.difference(cells[0].row, cells[1].row, case.column)).interval
            assert ("LoRA not significantly above" in case.trust) == (there(above).low <= 0)
    weak = {case.column.benchmark_title for case in answer.clean if "LoRA not significantly above" in case.trust}
    assert {"CAMO", "Leaf"} <= weak < {case.column.benchmark_title for case in answer.clean}
    assert answer.counted([large]).startswith("1 comparisons: 0 above zero, 0 below, 1 across it; their means")
    (road,) = (case for case in answer.clean if case.is_sam and case.pair.benchmark == "road")
    both = answer.counted([large, road])
    assert both.startswith("2 comparisons: 1 above zero, 0 below, 1 across it (apart from zero: Road IoU: ")
    assert answer.narrowest([road, large]) is large
    assert answer.narrowest([]) is None
    assert (answer.seen([large]), answer.seen([large, road])) == ("not seen", "seen in 1 of 2 comparisons")


@pytest.mark.parametrize(
    ("size", "share"), [(256, 1 - 16**2 / 28**2), (512, 1 - 32**2 / 42**2), (224, 0.0), (448, 0.0)]
)
def test_how_much_of_a_cells_window_is_padding(size: int, share: float) -> None:
    assert padding(size) == pytest.approx(share)


def test_the_variance_of_a_mean_is_that_of_its_rows_and_its_degrees_of_freedom_are_satterthwaites(
    answer: Answer,
) -> None:
    (model,) = (model for model in answer.models if model.name == "MobileSAM at 256 px")
    rows = [case.estimate for case in model.cases]
    assert model.estimate.variance == pytest.approx(sum(row.variance for row in rows) / len(rows) ** 2)
    half = oracle.t.ppf(0.975, model.estimate.df) * np.sqrt(model.estimate.variance)
    assert there(model.interval).half == pytest.approx(half)
    (own,) = (model for model in answer.models if model.name == "ViT-S at 196 px")
    assert own.over_splits is None, "none of its benchmarks has folds"
    splits = [there(case.over_splits) if case.difference.folds else case.estimate for case in model.cases]
    assert there(model.over_splits).variance == pytest.approx(sum(one.variance for one in splits) / len(splits) ** 2)
    assert [case.column.benchmark_title for case in model.cases if case.over_splits] == model.split_anew
    folds = [case.estimate.variance for case in model.cases if case.difference.folds]
    assert model.share_of_folds == pytest.approx(sum(folds) / sum(row.variance for row in rows))


def test_naslora_is_held_against_lora_at_loras_rate_and_at_its_own() -> None:
    answer = Answer(RESULTS)
    answer.archive.records[:] = earlier(answer)
    for lr, lora, naslora in ((1e-3, 0.72, 0.70), (3e-3, 0.75, 0.71), (1e-2, 0.4, 0.74)):
        answer.archive.records.append(plan_run("lora", "LoRA", 100, lora, lr=lr))
        answer.archive.records.append(plan_run("naslora", "NAS-LoRA", 100, naslora, lr=lr, alpha_lr=0.027))
    ((benchmark, *points),) = answer.at_loras_rate()
    assert (benchmark, points) == ("Kvasir-SEG", pytest.approx([-4.0, -1.0]))


def test_another_size_is_another_model_and_says_that_its_rates_come_from_elsewhere() -> None:
    answer = Answer(RESULTS)
    answer.archive.records[:] = earlier(answer)
    for seed in range(3):
        answer.archive.records.append(plan_run("lora", "LoRA", seed, 0.70 + 0.001 * seed, image_size=512))
        answer.archive.records.append(
            plan_run("naslora", "NAS-LoRA", seed, 0.72, image_size=512, lr=1e-2, alpha_lr=0.027)
        )
    (case,) = (case for case in answer.clean if not case.is_earlier)
    assert (case.model, case.pair.study) == ("MobileSAM at 512 px", "question-sam-512")
    assert case.trust.endswith(
        "*not: 3 draws, rates not tuned here, no draws of the decoder alone beside them, 42 % padding*"
    )
    page = " ".join(environment().get_template("findings.md.j2").render(a=answer).split())
    assert "NAS-LoRA is better than LoRA: NAS-LoRA − LoRA is +1.90 [+1.65, +2.15] points (scores" in page
    assert "interval) on MobileSAM at 512 px (Kvasir-SEG Sα alone, 3 runs each).**" in page
    assert "Not run: MobileSAM at 512 px beyond Kvasir-SEG, and NAS-LoRA's other rates there;" in page
    assert (
        "*MobileSAM at 512 px, Kvasir-SEG Sα* has an interval without zero, one of 6 here: p = 0.001, which passes a correction"
        in page
    )
    assert "By draw its difference is +2.00, +1.90, +1.80 points" in page
    assert case.on_validation == pytest.approx(100 * (0.72 - 0.701))


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.1, 2.0, "better than"), (-2.0, -0.1, "worse than"), (-1.0, 1.0, "not significantly different from")],
)
def test_the_verdict_follows_the_interval(low: float, high: float, words: str) -> None:
    assert verdict(stats.Interval(estimate=(low + high) / 2, low=low, high=high, n=3)) == words
    assert verdict(None) == "not to be judged against"


def test_a_page_that_was_changed_by_hand_is_told(tmp_path, capsys, rendered: dict[Path, str]) -> None:
    page = REPOSITORY / "docs" / "findings.md"
    changed = {tmp_path / "findings.md": rendered[page]}
    (tmp_path / "findings.md").write_text(rendered[page].replace("+", "-", 1), encoding="utf-8")
    assert tables._check_answer(changed) == 1
    assert "differs" in capsys.readouterr().out
    shutil.copy(page, tmp_path)
    assert tables._check_answer(changed) == 0


def test_a_results_folder_of_ones_own_has_no_such_pages(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    assert files(tmp_path / "results") == {}
    (tmp_path / "docs" / "findings.md").write_text("# My findings\n", encoding="utf-8")
    assert files(tmp_path / "results") == {}


def test_of_a_page_that_people_write_only_the_marked_part_changes() -> None:
    page = f"before\n{START}\nold\n{END}\nafter\n"
    assert findings._between(page, "new \\1") == f"before\n{START}\nnew \\1\n{END}\nafter\n"
