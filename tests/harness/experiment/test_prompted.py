"""A run under prompts: its record, its table, and masks of an image with a box or points of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from harness.archive.schema import Record
from harness.cli import predict, tables
from harness.datasets.readers.decoding import read_image
from harness.evaluation.resize import resize_bilinear
from harness.experiment.experiment import run_experiment
from harness.experiment.trained import of_results
from harness.models.segmenter import probabilities
from harness.planning.request import Job
from harness.protocols.keys import hashed_rules
from harness.protocols.load import as_rules, from_rules, load_protocol
from harness.training.feeding import normalise
from harness.training.prompts import together
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


def image_of(job: Job, folder: Path) -> Path:
    path = folder / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 160, 3), dtype=np.uint8)).save(path)
    return path


def words(job: Job, image: Path, out: Path, *more: str) -> list[str]:
    return ["--run", job.run.key, "--results", job.results, "--images", str(image), "--out", str(out), *more]


@pytest.mark.parametrize(("given", "scaled"), [
    (["--box", "0,0,80,50", "--box", "100,60,160,100"], [[0, 0, 64, 64], [80, 76.8, 128, 128]]),  # to its edges
    (["--point", "16,10", "--point", "80,50"], [[[12.8, 12.8], [64, 64]]]),
])  # fmt: skip
def test_a_users_prompt_is_in_pixels_of_the_file(done, tmp_path, given, scaled):
    job, _ = done
    image = image_of(job, tmp_path)
    assert predict.main(words(job, image, tmp_path / "out", *given, "--probabilities")) == 0
    saved = np.load(tmp_path / "out" / "probabilities" / "photo.npy")
    rules = from_rules(job.run.rules)
    segmenter, _ = of_results(Path(job.results), job.run.key).segmenter(None)
    side = rules.image_size
    assert side == 128
    shown = Image.fromarray(read_image(image)).resize((side, side), Image.Resampling.BICUBIC)
    pixels = normalise(torch.from_numpy(np.asarray(shown).transpose(2, 0, 1).copy())[None], rules.pixels)
    with torch.no_grad():
        output = segmenter(pixels, together([np.array(scaled, dtype=np.float32)]))
    expected = resize_bilinear(probabilities(output, (side, side))[0].numpy(), saved.shape)
    assert np.array_equal(saved, expected)


@pytest.mark.parametrize(("given", "reason"), [
    (["--box", "1,2,3"], "4 numbers"),
    (["--point", "a,b"], "2 numbers"),
    (["--box", "10,10,161,50"], "160 x 100"),
    (["--box", "80,10,10,50"], "160 x 100"),
    (["--box", "1,1,9,9", "--point", "3,3"], "not allowed with"),
])  # fmt: skip
def test_a_prompt_that_does_not_fit_is_refused_and_nothing_written(done, tmp_path, capsys, given, reason):
    job, _ = done
    image = image_of(job, tmp_path)
    try:
        code: Any = predict.main(words(job, image, tmp_path / "out", *given))
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
