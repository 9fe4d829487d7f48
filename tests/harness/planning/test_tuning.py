"""Tuning: trials first, the choice on validation, then the seeds; nothing is trained twice and nothing is chosen on test."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import harness.run as verb
from harness.archive.merge import merge
from harness.archive.schema import Code, Record
from harness.archive.store import RecordStore
from harness.datasets.samples import write_samples
from harness.planning import plan as planning
from harness.planning import tuning
from harness.planning.data import write_sample
from harness.planning.plan import Plan
from harness.planning.understand import understand
from harness.protocols.load import load_protocol, protocol_hash
from harness.settings import Settings
from harness.studies import load_study
from tests.harness.report.sample import render
from tests.values import REPOSITORY

Score = Callable[[Any], float]
GRID = ("--tune", "lr=1e-4,1e-3,1e-2")

ANALYSIS = str(REPOSITORY / "results" / "analysis" / "studies" / "{}.yaml")


class Work:
    """Stands for running: a record for every pending job, whose validation score is a function of its run."""

    def __init__(self, score: Score) -> None:
        self.score = score
        self.done: list[list[str]] = []
        self.later: list[int] = []

    def __call__(self, planned: Plan, where: Any, *, results: Path, later: int, **_: Any) -> dict[str, str]:
        self.later.append(later)
        self.done.append([f"{job.run.label} on {job.run.benchmark}, seed {job.run.seed}" for job in planned.pending])
        for job in planned.pending:
            value = self.score(job.run)
            code: Code = "DIVERGED" if math.isnan(value) else "OK"
            best = {
                split: dict.fromkeys(("s_measure", "iou", "ber"), s)
                for split, s in (("val", value), ("test", 1 - value))
            }
            ended: Any = {"code": code, "scores": {"best": best} if code == "OK" else {}, "cost": {"wall_time_s": 36.0}}
            RecordStore(results).write(Record(run=job.run, key=job.run.key, **ended))
        return {}


def rate(run: Any) -> float:
    return float(run.method_config["lr"])


def best_at(wanted: float) -> Score:
    return lambda run: 0.9 - 0.1 * abs(math.log10(rate(run) / wanted)) - 0.001 * run.seed


@pytest.fixture
def tuned(tmp_path: Path, samples: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, Work]]:
    monkeypatch.setattr(
        "harness.planning.data.write_sample", lambda name, results, instead: write_sample(name, samples)
    )

    def run(
        score: Score, *words: str, methods: str = "lora", datasets: str = "kvasir", seeds: str = "2", study: str = ""
    ) -> tuple[int, Work]:
        work = Work(score)
        monkeypatch.setattr("harness.dispatch.run_jobs.run_jobs", work)
        grid = ["--methods", methods, "--datasets", datasets, "--protocol", "demo", "--seeds", seeds]
        if study:
            return verb.main(["--study", study, "--results", str(tmp_path)]), work
        return verb.main([*grid, "--results", str(tmp_path), *(words or GRID)]), work

    return run


def records(results: Path) -> dict[str, Record]:
    read = RecordStore(results).summaries()[0]
    return {f"{r.run.method_config['lr']:g}/{r.run.benchmark}/{r.run.seed}": r for r in read}


def test_trials_come_first_and_the_seeds_run_with_what_validation_chose(tuned: Any, tmp_path: Path) -> None:
    code, work = tuned(best_at(1e-3))
    assert code == 0
    assert work.done[0] == [f"lora[lr={value}] on kvasir, seed 0" for value in ("1e-4", "1e-3", "1e-2")]
    assert work.done[1] == ["lora on kvasir, seed 1"]  # the chosen trial is seed 0 already
    tuning = records(tmp_path)["0.001/kvasir/1"].run.tuning
    assert tuning["chosen"] == {"lr": "1e-3"}
    assert tuning["edge"] == []
    assert [(trial["options"]["lr"], round(trial["score"], 3)) for trial in tuning["trials"]] == [
        ("1e-4", 0.8), ("1e-3", 0.9), ("1e-2", 0.8),
    ]  # fmt: skip
    assert tuning["hours"] == pytest.approx(0.03)
    assert records(tmp_path)["0.001/kvasir/0"].run.tuning == tuning
    assert records(tmp_path)["0.01/kvasir/0"].run.tuning == {"grid": {"lr": ["1e-4", "1e-3", "1e-2"]}}
    assert tuned(best_at(1e-3))[1].done == [[]]


def test_of_a_metric_that_is_better_when_lower_the_lowest_is_chosen(tuned: Any, tmp_path: Path) -> None:
    """SBU's is the balanced error rate."""
    tuned(lambda run: 0.1 + 0.1 * abs(math.log10(rate(run) / 1e-3)), datasets="sbu", seeds="1")
    (chosen,) = [run for run in (r.run for r in RecordStore(tmp_path).summaries()[0]) if "chosen" in run.tuning]
    assert (chosen.tuning["chosen"], chosen.tuning["metric"]) == ({"lr": "1e-3"}, "ber")


@pytest.mark.parametrize("best", ["1e-4", "1e-2"])
def test_a_value_at_either_end_of_its_grid_is_said_to_be_there(tuned: Any, tmp_path: Path, best: str) -> None:
    tuned(best_at(float(best)), seeds="1")
    tuning = records(tmp_path)[f"{float(best):g}/kvasir/0"].run.tuning
    assert (tuning["chosen"], tuning["edge"]) == ({"lr": best}, ["lr"])


def test_labels_change_no_key_and_a_merge_keeps_the_record_that_knows_its_choice(tuned: Any, tmp_path: Path) -> None:
    early = tmp_path / "early"
    tuned(best_at(1e-3))
    for record in RecordStore(tmp_path):
        assert record.run.key == record.key
        RecordStore(early).write(replace(record, run=replace(record.run, tuning={}, label="lora[lr]")))
    assert [merge(source, tmp_path / "all")[2] for source in (early, tmp_path)] == [[], []]
    plain = {name: records(early)[name] for name, record in records(tmp_path).items() if record.run.is_trial}
    assert records(tmp_path / "all") == records(tmp_path) | plain  # a result does not become a trial


def test_a_run_that_was_there_before_its_choice_is_labelled_as_the_choice_is(tuned: Any, tmp_path: Path) -> None:
    tuned(best_at(1e-3))
    chosen = records(tmp_path)["0.001/kvasir/1"]
    RecordStore(tmp_path).write(replace(chosen, run=replace(chosen.run, tuning={}, label="by hand")))
    tuned(best_at(1e-3))
    assert records(tmp_path)["0.001/kvasir/1"] == chosen


def test_a_choice_from_as_many_runs_is_the_newer_label(tuned: Any, tmp_path: Path) -> None:
    tuned(best_at(1e-3))
    tuned(best_at(1e-3), "--tune", "lr=1e-3,1e-2,1e-1")
    for seed in (0, 1):
        assert records(tmp_path)[f"0.001/kvasir/{seed}"].run.tuning["grid"] == {"lr": ["1e-3", "1e-2", "1e-1"]}


def test_a_choice_from_fewer_runs_takes_no_label_away(tuned: Any, tmp_path: Path) -> None:
    tuned(best_at(1e-3))
    trial, wide = (records(tmp_path)[f"0.001/kvasir/{seed}"] for seed in (0, 1))
    _, work = tuned(best_at(1e-3), "--tune", "lr=1e-3,1e-2")
    assert work.done == [[]]
    assert [records(tmp_path)[f"0.001/kvasir/{seed}"] for seed in (0, 1)] == [trial, wide]  # chosen from three
    _, work = tuned(best_at(1e-3), "--tune", "lr=1e-5,1e-4,1e-3,1e-2")
    wider, narrow = records(tmp_path)["0.001/kvasir/1"], tmp_path / "narrow"
    assert (wide.run.trial_runs, wider.run.trial_runs) == (3, 4)
    RecordStore(narrow).write(wide)
    for name, folders in (("one", [narrow, tmp_path]), ("two", [tmp_path, narrow])):
        for folder in folders:
            assert merge(folder, tmp_path / name)[2] == []
        assert records(tmp_path / name)["0.001/kvasir/1"] == wider
    merge(tmp_path, narrow)
    assert records(narrow)["0.001/kvasir/1"] == wider


@pytest.mark.parametrize("order", [("two", "one"), ("one", "two", "one")])
def test_two_studies_that_tune_a_row_each_show_their_own_choice(tuned: Any, tmp_path: Path, order: tuple[str, ...]):
    def score(run: Any) -> float:
        return best_at(1e-3)(run) if run.benchmark == "kvasir" else 3 * best_at(1e-4)(run) - 2

    for name, on in (("one", "[kvasir]"), ("two", "[kvasir, leaf]")):
        (tmp_path / f"{name}.yaml").write_text(
            f"title: t\nprotocol: demo\nbackbones: tiny_timm\nbenchmarks: kvasir\nseeds: 3\n"
            "entries: [{label: mine, method: lora}]\n"
            f"tune: {{lr: [1.0e-4, 1.0e-3]}}\ntune_on: {on}\n"
        )
    for name in order:
        _, work = tuned(score, study=str(tmp_path / f"{name}.yaml"))
        assert all(line.startswith("mine[lr=") for line in work.done[0] if line.endswith("seed 0")), "a trial"
    kept = RecordStore(tmp_path).summaries()[0]
    for name, shown in (("one", "| 10.1 "), ("two", "| 20.1 ")):
        page = render(kept, study=load_study(str(tmp_path / f"{name}.yaml")))
        assert shown in page
        assert not {"CONFLICT", "MISSING"} & {*page.split()}
    page = render(kept)  # of no study: the choice from more trials is the row
    assert "CONFLICT" not in page
    named = {line.split(" | ")[0]: line for line in page.splitlines() if line.startswith("| LoRA")}
    assert "| 20.1 " in named["| LoRA"]
    assert "| 10.1 " in named["| LoRA (lr=0.001)"]


def test_each_benchmark_chooses_its_own_without_tune_on(tuned: Any, tmp_path: Path) -> None:
    _, work = tuned(lambda run: best_at(1e-4 if run.benchmark == "kvasir" else 1e-3)(run), datasets="kvasir,leaf")
    assert sorted(work.done[1]) == ["lora on kvasir, seed 1", "lora on leaf, seed 1"]
    assert {"0.0001/kvasir/1", "0.001/leaf/1"} <= records(tmp_path).keys()


def test_rows_of_one_method_are_tuned_each_for_itself(tuned: Any, tmp_path: Path) -> None:
    two = {"methods": "lora[rank=4],lora[rank=8]", "seeds": "1"}
    tuned(lambda run: best_at(1e-3 if run.method_config["rank"] == 4 else 1e-4)(run), *GRID, **two)
    chosen = {r.run.label: rate(r.run) for r in RecordStore(tmp_path) if "chosen" in r.run.tuning}
    assert chosen == {"lora[rank=4]": 1e-3, "lora[rank=8]": 1e-4}


def test_a_diverged_value_is_not_chosen_and_not_retried(tuned: Any, tmp_path: Path) -> None:
    def score(run: Any) -> float:
        return math.nan if rate(run) > 5e-3 else best_at(1e-2)(run)

    assert tuned(score)[0] == 0
    assert records(tmp_path)["0.001/kvasir/1"].run.tuning["trials"][2]["score"] is None
    assert tuned(score)[1].done == [[]]
    RecordStore(tmp_path).write(replace(records(tmp_path)["0.0001/kvasir/0"], code="OOM"))
    assert tuned(score)[1].done[0] == ["lora[lr=1e-4] on kvasir, seed 0"]  # that is left, and no other


def test_a_value_that_diverged_under_one_seed_is_not_chosen(tuned: Any, tmp_path: Path) -> None:
    def score(run: Any) -> float:
        return math.nan if rate(run) > 5e-3 and run.seed == 1 else best_at(1e-2)(run)

    assert tuned(score, *GRID, "--tune-seeds", "2")[0] == 0
    tuning = records(tmp_path)["0.001/kvasir/0"].run.tuning
    assert tuning["chosen"] == {"lr": "1e-3"}
    assert [trial["score"] is None for trial in tuning["trials"]] == [False, False, True]


def test_where_no_value_has_a_score_the_command_ends_with_one_line(tuned: Any, capsys: Any) -> None:
    code, work = tuned(lambda run: math.nan)
    assert (code, len(work.done)) == (2, 1)
    assert "lora on kvasir: no value of lr=1e-4,1e-3,1e-2 has a score (DIVERGED)" in capsys.readouterr().err


def test_of_words_none_is_at_the_end_of_a_grid(tuned: Any, tmp_path: Path) -> None:
    tuned(lambda run: len(run.method_config["scaling"]) / 10, "--tune", "lora.scaling=lora,rslora", seeds="1")
    (chosen,) = (record.run.tuning for record in RecordStore(tmp_path) if "chosen" in record.run.tuning)
    assert (chosen["chosen"], chosen["edge"]) == ({"scaling": "rslora"}, [])


def test_a_field_of_one_method_is_tuned_for_it_alone(tuned: Any) -> None:
    grids = ("--tune", "lr=1e-4,1e-3", "--tune", "naslora.lr=1e-3,1e-2", "--tune", "naslora.alpha_lr=1e-3,1e-2")
    _, work = tuned(best_at(1e-3), *grids, methods="lora,naslora")
    assert [line.split(" on")[0] for line in work.done[0]] == [
        "lora[lr=1e-4]", "lora[lr=1e-3]",
        "naslora[lr=1e-3,alpha_lr=1e-3]", "naslora[lr=1e-3,alpha_lr=1e-2]",
        "naslora[lr=1e-2,alpha_lr=1e-3]", "naslora[lr=1e-2,alpha_lr=1e-2]",
    ]  # fmt: skip


def test_trials_on_their_way_end_the_command_and_the_next_one_goes_on(tuned: Any, tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as submitting:
        submitting.setattr(Work, "__call__", lambda *_, **__: None)
        assert tuned(best_at(1e-3))[0] == 0
    assert "3 trials are on their way; repeat the command to continue" in capsys.readouterr().err
    assert not (tmp_path / "tables").exists()
    _, work = tuned(best_at(1e-3))
    assert [len(done) for done in work.done] == [3, 1]


def test_a_plan_shows_runs_that_are_trials_once_and_looks_for_files_once(tuned: Any, capsys: Any, monkeypatch) -> None:
    looked, find = [], planning.find
    monkeypatch.setattr(planning, "find", lambda *asked, **how: (looked.append(asked), find(*asked, **how))[1])  # type: ignore[func-returns-value]
    assert tuned(best_at(1e-3), *GRID, "--plan", methods="lora", seeds="1")[0] == 0
    shown = capsys.readouterr().out
    assert "they are among the trials" in shown
    assert "0 runs" not in shown
    assert "trials and runs: 3 runs, " in shown
    assert len(looked) == 1


def test_a_plan_takes_the_choice_of_a_row_whose_trials_have_ended(tuned: Any, capsys: Any) -> None:
    tuned(best_at(1e-3))
    capsys.readouterr()
    assert tuned(best_at(1e-3), *GRID, "--plan", "--json", methods="lora,bitfit")[0] == 0
    trials, runs = map(json.loads, capsys.readouterr().out.splitlines())
    assert [run["state"] for run in trials["runs"]] == ["finished"] * 3 + ["planned"] * 3
    # lora's choice is known and finished; of bitfit it is the grid's first value. Both seeds 0 are among the trials above.
    assert [(run["label"], run["state"]) for run in runs["runs"]] == [("lora", "finished"), ("bitfit", "planned")]


def test_a_plan_counts_runs_that_ended_in_the_first_step_that_has_them(tuned: Any, capsys: Any) -> None:
    tuned(lambda run: math.nan if rate(run) == 1e-2 or run.seed else 0.9)
    capsys.readouterr()
    words = [*GRID, "--tune", "bitfit.lr=1e-3,1e-2", "--plan"]
    assert tuned(best_at(1e-3), *words, methods="lora,bitfit")[0] == 0
    shown = capsys.readouterr().out
    assert "trials of lr, bitfit.lr: 5 runs, 3 finished, 0 failed before" in shown
    assert "2 runs, 0 finished, 1 failed before" in shown


def test_a_card_may_bring_its_grids_and_they_change_no_hash(tuned: Any, capsys: Any) -> None:
    assert tuned(best_at(1e-3), "--tune", "protocol")[0] == 2
    assert "the protocol demo has no grids for these methods; give some" in capsys.readouterr().err
    protocol = load_protocol("mobile")
    assert protocol.tune["naslora.lr"] == (1e-3, 3e-3, 1e-2, 3e-2)
    assert protocol_hash(replace(protocol, tune={})) == protocol_hash(protocol)
    _, work = tuned(best_at(1e-3), "--tune", "protocol", "--set", "tune.lr=[1e-4,1e-3]")
    assert work.done[0] == [f"lora[lr={value}] on kvasir, seed 0" for value in ("1e-4", "1e-3")]


def test_a_rule_is_tuned_by_the_decoder_alone_and_holds_for_every_row(tuned: Any, tmp_path, monkeypatch) -> None:
    planned, plan = [], tuning.plan
    monkeypatch.setattr(tuning, "plan", lambda request, found: (planned.append(request), plan(request, found))[1])  # type: ignore[func-returns-value]
    best = {"kvasir": 1e-3, "camo": 1e-4}

    def score(run: Any) -> float:
        return 0.9 - 0.1 * abs(math.log10((run.rules["decoder_lr"] or 1.0) / best[run.benchmark]))

    grid = ("--tune", "decoder_lr=1e-4,1e-3,1e-2", "--tune", "lora.lr=1e-4,1e-3")
    code, work = tuned(score, *grid, methods="lora,bitfit", datasets="kvasir,camo", seeds="3,")
    assert code == 0
    values = ("1e-4", "1e-3", "1e-2")
    assert work.done[0] == [f"decoder[decoder_lr={v}] on {b}, seed 0" for b in best for v in values]
    assert len(work.done[1]) == 4  # two rates on two benchmarks, under what the decoder chose
    assert work.later == [4 + len(work.done[2]), len(work.done[2]), 0]
    kept = RecordStore(tmp_path).summaries()[0]
    rows = {(r.run.method, r.run.benchmark, r.run.rules["decoder_lr"]) for r in kept if r.run.method != "decoder"}
    assert rows == {(method, benchmark, best[benchmark]) for method in ("lora", "bitfit") for benchmark in best}
    assert len({r.run.protocol_hash for r in kept}) == 1  # one table
    assert len(planned) == 3 + 2  # every step, then those whose values were open
    assert tuned(score, *grid, methods="lora,bitfit", datasets="kvasir,camo", seeds="3,")[1].done == [[]]
    assert len(planned) == 5 + 3


def test_options_are_tried_under_the_chosen_rule_where_the_trials_lie_outside(tuned: Any, tmp_path: Path) -> None:
    def score(run: Any) -> float:
        return 0.9 - 0.1 * abs(math.log10((run.rules["decoder_lr"] or 1.0) / 1e-3))

    grid = ["--tune", "decoder_lr=1e-4,1e-3", "--tune", "lora.lr=1e-4,1e-3", "--tune-on", "camo"]
    grid += ["--set", "benchmarks.camo.epochs=2"]  # a rule of trials alone
    code, work = tuned(score, *grid, datasets="kvasir", seeds="3,")
    assert (code, len(work.done[1])) == (0, 2)
    kept = RecordStore(tmp_path).summaries()[0]
    rules = {(r.run.benchmark, r.run.rules["decoder_lr"]) for r in kept if r.run.method == "lora"}
    assert rules == {("camo", 1e-3), ("kvasir", 1e-3)}
    assert {r.run.rules["epochs"] for r in kept if r.run.benchmark == "camo"} == {2}


def test_what_is_set_is_left_out_of_the_grids_of_a_card_or_a_study() -> None:
    def tried(*words: str) -> set[str]:
        request, tuning, _ = understand(
            verb.parser().parse_args([*words, "--datasets", "kvasir", "--checkpoint", "none"]), Settings()
        )
        assert tuning is not None
        steps = tuning.steps
        return {f"{e.method}.{name}" for step in steps for e in request.rows for name in step.of_row(e)}

    protocol = ("--protocol", "mobile", "--methods", "lora,naslora", "--tune", "protocol")
    assert tried(*protocol, "--set", "naslora.lr=1e-3") == {"lora.lr"}
    assert tried("--protocol", "mobile", "--methods", "full,naslora[lr=1e-3],lora,decoder", "--tune", "protocol") == {
        "full.encoder_lr", "lora.lr", "decoder.decoder_lr",  # with the two of full its own rate trains nothing
    }  # fmt: skip
    assert "decoder.decoder_lr" not in tried("--study", ANALYSIS.format("question-sam"), "--set", "decoder_lr=1e-4")
    board = tried("--study", "leaderboard-short")
    assert tried("--study", "leaderboard-short", "--set", "lora.lr=1e-3") == board - {"lora.lr"}
    assert tried("--protocol", "mobile", "--methods", "full,lora", "--set", "decoder_lr=1e-4", "--tune", "lr=1e-4,1e-3") == {
        "full.lr", "lora.lr",
    }  # fmt: skip


def test_a_rate_that_trains_nothing_is_not_tried(tuned: Any, tmp_path: Path) -> None:
    """The decoder's own rate with one that all rows share: trials of it would be the same training under several keys."""
    _, work = tuned(
        lambda run: 0.9 - abs(run.rules["decoder_lr"] - 1e-3), "--tune", "decoder_lr=1e-4,1e-3", "--tune", "lr=1e-4,1e-3",
        methods="decoder,lora", seeds="1",
    )  # fmt: skip
    assert [len(step) for step in work.done] == [2, 2, 0]
    assert all("lora[lr=" in line for line in work.done[1])
    _, work = tuned(
        best_at(1e-3), "--set", "decoder_lr=1e-3", "--tune", "lr=1e-4,1e-3", methods="decoder,lora", seeds="1"
    )
    assert not any("decoder[lr=" in line for step in work.done for line in step)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "decoder_lr=5e-4", "--tune", "decoder_lr=1e-4,1e-3"], "--tune decoder_lr contradict each other"),
        (["--set", "lr=5e-4", *GRID], "--set lr and --tune lr contradict each other"),
        (["--set", "lora.lr=5e-4", "--tune", "lora.lr=1e-4,1e-3"], "or every row sets it in brackets or by --set"),
        ([*GRID, "--tune-on", "kvasir", "--tune-on", "camo"], "--tune-on is given twice"),
        ([*GRID, *GRID], "--tune lr is given twice"),
        (["--tune", "lr=1e-3,0.001"], "is not FIELD=A,B,… with different values"),
        ([*GRID, "--set", "bitfit.bogus=1"], "unknown key 'bogus'"),
        (("--tune", "rank=2,3", "--tune", "rnk=1,2"), "(did you mean 'rank'?)"),
        (("--tune", "lora.ranks=2,3"), "did you mean"),
        (
            (*GRID, "--tune", "ssf.lr=1e-3,1e-2"),
            "--tune ssf.lr: this is not a rule that can be tuned, and no compared row",
        ),
        (("--tune", "lr=fast,slow"), "lr='fast'"),
        (("--tune-on", "kvasir"), "need a grid to tune"),
        (("--tune", "split_seed=0,1"), "not a rule that can be tuned"),  # it changes the images
        ((*GRID, "--tune-on", "kvasir,sbu"), "s_measure of kvasir, ber of sbu some are better when higher"),
    ],
)
def test_what_would_be_dropped_in_silence_or_fail_after_the_trials_is_refused(tuned, capsys, words, message) -> None:
    datasets = "kvasir,sbu" if "kvasir,sbu" in words else "kvasir"
    code, work = tuned(best_at(1e-3), *words, methods="lora,bitfit", datasets=datasets)
    assert (code, work.done) == (2, [])
    assert message in capsys.readouterr().err


def test_what_is_missing_for_later_runs_stops_a_command_before_its_trials(tmp_path, capsys, monkeypatch) -> None:
    write_samples("kvasir", tmp_path / "data", images=40, size=64)
    work = Work(best_at(1e-3))
    monkeypatch.setattr("harness.dispatch.run_jobs.run_jobs", work)
    base = ["--protocol", "mini", "--backbone", "tiny", "--checkpoint", "none", "--methods", "lora", "--set", "image_size=64",
            "--data", str(tmp_path / "data"), "--results", str(tmp_path / "runs"), *GRID]  # fmt: skip
    both = [*base, "--datasets", "kvasir,camo"]
    assert verb.main([*both, "--tune-on", "kvasir"]) == 2
    assert work.done == []
    assert "no CAMO in" in capsys.readouterr().err
    assert verb.main([*base, "--datasets", "kvasir", "--tune-on", "camo", "--plan"]) == 1
    assert verb.main([*base, "--datasets", "camo", "--skip-missing"]) == 2  # nothing is left
    assert verb.main([*both, "--skip-missing"]) == 0
    assert [len(step) for step in work.done] == [3, 0]
