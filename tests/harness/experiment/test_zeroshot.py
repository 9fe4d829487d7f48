"""A row where nothing trains: tested like every other, no update, no cost, and ready to predict with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from harness import run
from harness.archive.schema import Record
from harness.experiment.building import attached_segmenter, open_data
from harness.experiment.environment import Stopwatch
from harness.experiment.experiment import run_experiment
from harness.experiment.scoring import Scoring
from harness.models.catalog import backbone_shape
from harness.planning.data import ImageCounts
from harness.planning.plan import find
from harness.planning.request import Job, PlannedRow, Request
from harness.planning.tuning import Tuning, plan_step
from harness.planning.understand import all_methods
from harness.planning.work import forward_flops, run_flops
from harness.protocols.load import from_rules, load_protocol
from harness.registry import BENCHMARKS
from harness.system.errors import UsageError
from harness.training.cache import InMemory
from tests.harness.planned import job_of, plan_of


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, Record]:
    job = job_of(tmp_path_factory.mktemp("zeroshot"), "zeroshot")
    record = run_experiment(job)
    assert record.code == "OK", record.message
    return job, record


def test_its_scores_are_those_of_the_segmenter_as_it_is(done: tuple[Job, Record]) -> None:
    job, record = done
    rules = from_rules(job.run.rules)
    data = open_data(job.run, Path(job.dataset_root))
    plain, method = attached_segmenter(job.run, task=BENCHMARKS.get("kvasir").task, num_classes=2, checkpoint=None)
    given: Any = {"device": torch.device("cpu"), "stages": Stopwatch(), "report": lambda _: None, "cache": InMemory()}
    scoring = Scoring(data, rules, run=job.run, **given)
    scoring.remember_frozen(plain, method)  # images go through the encoder one by one, as in the run
    summary, _ = scoring.test(plain, model="plain")
    assert record.scores["best"]["test"] == summary["test"]
    assert record.scores["last"] == record.scores["best"]


def test_it_makes_no_update_and_costs_nothing(done: tuple[Job, Record]) -> None:
    job, record = done
    assert record.parameters["trainable"] == 0
    assert record.budget == {"weight_updates": 0.0}
    assert (record.history, record.selected_epoch) == ([], None)
    assert {record.cost[name] for name in ("steps", "step_time_s", "train_time_s", "peak_memory_bytes")} == {0.0}
    shape = backbone_shape("tiny")
    assert run_flops(job.run, ImageCounts(train=9, val=5, test=3)) == 3 * forward_flops(job.run, shape)


@pytest.mark.parametrize(("changes", "reason"), [
    ({"backbones": ("timm/test_vit",), "overrides": {"image_size": "160"}}, "no decoder"),
    ({"benchmarks": ("trans10k_v2",)}, "class head"),
    ({"protocol": "mini", "backbones": ("tiny",), "overrides": {"image_size": "128"}, "checkpoints": {"": Path("none")}},
     "random weights"),
])  # fmt: skip
def test_where_nothing_is_pretrained_it_is_refused(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        plan_of(tmp_path, "zeroshot", "decoder", **changes)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    made = plan_of(tmp_path, "zeroshot", "decoder", leave_out_unfit=True, **changes)  # as in a study
    assert {job.run.method for job in made.jobs} == {"decoder"}
    assert any("zeroshot is left out on" in line and reason in line for line in made.problems)
    with pytest.raises(UsageError, match=reason):
        plan_of(tmp_path, "zeroshot", leave_out_unfit=True, **changes)


def test_all_methods_are_those_that_train() -> None:
    assert "zeroshot" not in all_methods()
    assert "decoder" in all_methods()


def test_a_rate_is_refused_and_tuning_one_passes_it_by(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--protocol", "demo", "--methods", "zeroshot[lr=1]", "--datasets", "kvasir", "--results", str(tmp_path)]
    assert run.main([*words, "--plan"]) == 2
    assert "nothing" in capsys.readouterr().err
    rows = (PlannedRow(method="zeroshot"), PlannedRow(method="decoder"))
    requested = Request(rows=rows, benchmarks=("kvasir",), protocol=load_protocol("demo"), results=tmp_path)
    step = plan_step(requested, Tuning(grids={"lr": [1e-3, 1e-4]}), find(requested))
    assert [trial.row.method for trial in step.trials] == ["decoder"]
