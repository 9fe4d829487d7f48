"""A run under prompts: its record and its table, and masks by it without any."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from harness.archive.schema import Record
from harness.cli import predict, tables
from harness.experiment.experiment import run_experiment
from harness.planning.request import Job
from harness.protocols.keys import hashed_rules
from harness.protocols.load import as_rules, load_protocol
from tests.harness.planned import job_of

SMALL = {"epochs": 1, "train_limit": 4, "val_limit": 2, "test_limit": 3}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, Record]:
    job = job_of(tmp_path_factory.mktemp("prompted"), "decoder", prompt="box", **SMALL)
    record = run_experiment(job)
    assert record.code == "OK", record.message
    return job, record


def test_rules_without_prompts_keep_their_keys() -> None:
    rules = as_rules(load_protocol("demo"))
    assert rules["prompt"] == "none"
    assert not {"prompt", "prompt_jitter", "prompt_points"} & hashed_rules(rules).keys()
    assert hashed_rules({**rules, "prompt": "box"}) == {**hashed_rules(rules), "prompt": "box"}


def test_its_table_is_apart_from_others_and_says_what_was_given(done: tuple[Job, Record], capsys) -> None:
    job, record = done
    results = Path(job.results)
    plain = job_of(results, "zeroshot", **SMALL)
    points = job_of(results, "lora", prompt="points", prompt_points=2, **SMALL)
    assert [run_experiment(job).code for job in (plain, points)] == ["OK", "OK"]
    assert record.counts["unprompted"] == 0
    assert tables.main(["--results", str(results)]) == 0
    (page,) = (results / "tables").glob("*.md")
    titles = [line for line in page.read_text().splitlines() if line.startswith("## ")]
    assert len(titles) == 3
    assert sum("prompt box" in title for title in titles) == sum("prompt points" in title for title in titles) == 1
    assert page.read_text().count("a box around each object of the true mask") == 1


def test_training_passes_the_prompts_to_the_decoder(done: tuple[Job, Record], tmp_path: Path) -> None:
    plain = run_experiment(job_of(tmp_path, "decoder", **SMALL))
    losses = [[epoch["loss"] for epoch in record.history] for record in (done[1], plain)]
    assert len(losses[0]) == len(losses[1]) == 1
    assert losses[0] != losses[1]


def test_masks_without_prompts_come_with_a_warning(done: tuple[Job, Record], tmp_path: Path, capsys) -> None:
    job, record = done
    Image.new("RGB", (160, 100)).save(tmp_path / "photo.png")
    words = ["--run", record.key, "--results", job.results, "--images", str(tmp_path), "--out", str(tmp_path / "out")]
    assert predict.main(words) == 0
    assert "trained with prompts (box)" in capsys.readouterr().err
    assert Image.open(tmp_path / "out" / "photo.png").size == (160, 100)
