"""A run under prompts: its record and its table; and objects that a user points out, to a run and to a published SAM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from segment_anything import SamPredictor
from segment_anything.modeling import Sam

from harness.archive.archive import Archive
from harness.archive.schema import Record
from harness.cli import predict, tables
from harness.comparison.tables import grids
from harness.datasets.readers.decoding import read_image
from harness.evaluation.resize import resize_bilinear
from harness.experiment import predicting
from harness.experiment.experiment import run_experiment
from harness.experiment.framing import AsPublished
from harness.experiment.trained import of_results
from harness.models.build import build_segmenter
from harness.models.catalog import backbone, backbone_shape
from harness.models.mask_decoder import plain_mask_decoder
from harness.models.original_sam import plain_sam, prompt_encoder_of, sam_state_dict
from harness.models.segmenter import Prompts, probabilities
from harness.planning.request import Job
from harness.protocols.load import from_rules
from harness.studies import study_from_dict
from harness.system.errors import UsageError
from harness.training.feeding import normalise
from tests.harness.experiment.finished import finished
from tests.harness.planned import job_of, plan_of
from tests.values import REPOSITORY

SMALL: dict[str, Any] = {"epochs": 1, "train_limit": 4, "val_limit": 2, "test_limit": 3}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, Record]:
    job = job_of(tmp_path_factory.mktemp("prompted"), "decoder", prompt="box", **SMALL)
    record = run_experiment(job)
    assert record.code == "OK", record.message
    return job, record


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


def test_a_comparison_under_boxes_has_a_table_for_each_noise_which_moves_boxes_of_tests_alone(tmp_path, capsys) -> None:
    records: dict[float, list[Record]] = {}
    for noise in (0.0, 0.2):
        planned = plan_of(tmp_path, "zeroshot", "decoder", "lora", prompt="box", prompt_noise=noise, **SMALL)
        records[noise] = [run_experiment(job) for job in planned.jobs]
    exact, *moved = records.values()
    for each in moved:
        assert not {record.key for record in each} & {record.key for record in exact}
        for record, other in zip(each, exact, strict=True):
            assert [epoch["loss"] for epoch in record.history] == [epoch["loss"] for epoch in other.history]
            assert record.scores["best"].get("val") == other.scores["best"].get("val")
            assert record.scores["best"]["test"] != other.scores["best"]["test"]
    assert tables.main(["--results", str(tmp_path)]) == 0
    (page,) = (tmp_path / "tables").glob("*.md")
    _, *apart = page.read_text().split("\n## ")
    assert sorted("prompt noise" in table.partition("\n")[0] for table in apart) == [False, True]
    assert all("prompt box" in table and "| LoRA |" in table and "| Zero-shot |" in table for table in apart)
    assert page.read_text().count("moved by up to 0.2 of its side") == 1


def test_a_study_of_prompts_has_a_table_for_each(tmp_path: Path) -> None:
    fields = {"title": "x", "protocol": "demo", "benchmarks": ["kvasir"], "seeds": [0], "prompts": ["box", "none"]}
    study = study_from_dict({**fields, "set": SMALL, "entries": ["zeroshot"]}, name="prompts-x")
    jobs = [job_of(tmp_path, "zeroshot", prompt=prompt, **SMALL) for prompt in (*study.prompts, "points")]
    records = [run_experiment(job) for job in jobs]
    found = grids(Archive(tmp_path), study=study)
    assert len({grid.title for grid in found}) == 2
    assert [[record.key for record in grid.records] for grid in found] == [[record.key] for record in records[:2]]
    with pytest.raises(UsageError, match="under one prompt"):
        study_from_dict({**fields, "entries": ["lora"], "choose": {"lr": [1e-3, 1e-2]}}, name="prompts-x")


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


def photo(folder: Path, name: str = "photo.png", *, width: int = 160, height: int = 100) -> Path:
    path = folder / name
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return path


BOXED = {"box": [0, 0, 80, 50]}
DOTTED = {"points": [[16, 10], [80, 50, 0]]}
SCALED = [
    {"boxes": torch.tensor([[0.0, 0, 64, 64]])},
    {"points": torch.tensor([[[12.8, 12.8], [64, 64]]]), "labels": torch.tensor([[1, 0]])},
]


@pytest.mark.parametrize(("given", "kinds"), [
    (["--box", "0,0,80,50"], [0]),
    (["--point", "16,10", "--point", "80,50,0"], [1]),
    ([{"image": "photo.png", **BOXED}, {"image": "photo.png", **DOTTED}], [0, 1]),
    ("image;x0;y0;x1;y1;points\nphoto.png;0;0;80;50;\nphoto.png;;;;;16,10 80,50,0\n", [0, 1]),
], ids=["box", "points", "JSON", "CSV"])  # fmt: skip
def test_a_run_gets_boxes_and_points_in_pixels_of_the_file(done, tmp_path, given, kinds) -> None:
    job, _ = done
    image, (side, rules) = photo(tmp_path), (128, from_rules(job.run.rules))
    if isinstance(given, str) or kinds == [0, 1]:
        file = tmp_path / ("given.csv" if isinstance(given, str) else "given.json")
        file.write_text(given if isinstance(given, str) else json.dumps(given))
        given = ["--prompts", str(file)]
    words = ["--run", job.run.key, "--results", job.results, "--images", str(image), "--out", str(tmp_path / "out")]
    assert predict.main([*words, *given, "--probabilities"]) == 0
    segmenter, _ = of_results(Path(job.results), job.run.key).segmenter(None)
    shown = Image.fromarray(read_image(image)).resize((side, side), Image.Resampling.BICUBIC)
    pixels = normalise(torch.from_numpy(np.asarray(shown).transpose(2, 0, 1).copy())[None], rules.pixels)
    with torch.no_grad():
        outputs = [segmenter(pixels, Prompts(image=torch.zeros(1, dtype=torch.long), **SCALED[kind])) for kind in kinds]
        merged = outputs[0]._replace(masks=torch.cat([output.masks for output in outputs]).amax(0, keepdim=True))
        all_of_them = [probabilities(output, (side, side))[0].numpy() for output in (*outputs, merged)]
    *objects, whole = (resize_bilinear(each, (100, 160)) for each in all_of_them)
    assert np.array_equal(np.load(tmp_path / "out" / "probabilities" / "photo.npy"), whole)
    assert len(list((tmp_path / "out" / "objects").iterdir())) == len(kinds)
    for number, expected in enumerate(objects, start=1):
        mask = np.asarray(Image.open(tmp_path / "out" / "objects" / f"photo_{number}.png"))
        assert np.array_equal(mask, np.uint8(255) * (expected > rules.evaluation.threshold))


def logits_of(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> list[np.ndarray]:
    """Of every object of the one image at its own size, then of all."""
    seen: list[torch.Tensor] = []
    whole = AsPublished.logits

    def recording(*given: Any) -> torch.Tensor:
        seen.append(whole(*given))
        return seen[-1]

    monkeypatch.setattr(AsPublished, "logits", recording)
    assert predict.main(words) == 0
    return [each.numpy() for each in seen]


@pytest.mark.parametrize(("width", "height"), [(160, 100), (75, 120), (90, 90)], ids=["wide", "high", "square"])
def test_a_sam_without_a_run_gives_what_its_own_predictor_gives(tmp_path, monkeypatch, width, height, capsys) -> None:
    state = sam_state_dict(build_segmenter("tiny", task="binary", head_seed=3))
    torch.save(state, tmp_path / "sam.pth")
    sam = plain_sam("tiny")
    sam.load_state_dict(state, strict=True)
    predictor, image = SamPredictor(sam), photo(tmp_path, width=width, height=height)
    predictor.set_image(read_image(image))
    box, points = [10, 20, 60, 85], [[30, 40, 1], [50, 60, 0]]
    objects: list[dict[str, Any]] = [
        {"box": box},
        {"points": points},
        {"points": points[:1]},
        {"box": box, "points": points},
    ]
    (tmp_path / "given.jsonl").write_text("\n".join(json.dumps({"image": "photo.png", **each}) for each in objects))
    words = ["--backbone", "tiny", "--checkpoint", str(tmp_path / "sam.pth"), "--images", str(image)]
    prompts = ["--prompts", str(tmp_path / "given.jsonl"), "--out", str(tmp_path / "out")]
    *found, _ = logits_of(monkeypatch, words + prompts)
    assert "without prompts" not in capsys.readouterr().err, "a published SAM follows them"
    assert len(found) == len(objects)
    for number, (each, logits) in enumerate(zip(objects, found, strict=True), start=1):
        dots: Any = np.array(each.get("points", []), dtype=float)
        given = {"point_coords": dots[:, :2], "point_labels": dots[:, 2]} if len(dots) else {}
        given |= {"box": np.array(each["box"])} if "box" in each else {}
        mask, _, _ = predictor.predict(**given, multimask_output=False, return_logits=True)
        np.testing.assert_allclose(logits, mask[0], atol=1e-4, rtol=0, err_msg=str(each))
        written = np.asarray(Image.open(tmp_path / "out" / "objects" / f"photo_{number}.png"))
        assert np.array_equal(written, np.uint8(255) * (logits > 0))


SHARED = REPOSITORY.parent / "shared"


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared: MobileSAM's weights and Kvasir-SEG")
def test_mobile_sam_with_a_box_gives_what_the_predictor_gives_on_a_real_image(tmp_path, monkeypatch) -> None:
    weights, shape = SHARED / "weights" / "mobile_sam.fp16.safetensors", backbone_shape("mobile_sam")
    image = next(iter(sorted((SHARED / "data" / "Kvasir-SEG" / "images").iterdir())))
    truth = np.asarray(Image.open(image.parents[1] / "masks" / image.name).convert("L")) > 127
    rows, columns = np.nonzero(truth)
    box = [int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())]
    segmenter: Any = build_segmenter("mobile_sam", task="binary", checkpoint=weights).eval()
    segmenter.encoder.img_size = shape.image_size
    entry = backbone("mobile_sam")
    decoder, prompt_encoder = plain_mask_decoder(entry.decoder), prompt_encoder_of(entry, shape)
    decoder.load_state_dict(segmenter.mask_decoder.plain_state())
    prompt_encoder.load_state_dict(segmenter.prompt_encoder.state_dict())
    predictor = SamPredictor(Sam(segmenter.encoder, prompt_encoder, decoder).eval())
    predictor.set_image(read_image(image))
    expected, _, _ = predictor.predict(box=np.array(box), multimask_output=False, return_logits=True)
    words = ["--backbone", "mobile_sam", "--checkpoint", str(weights), "--images", str(image), "--out"]
    found, whole = logits_of(monkeypatch, [*words, str(tmp_path / "out"), "--box", ",".join(map(str, box))])
    np.testing.assert_allclose(found, expected[0], atol=1e-4, rtol=0)
    assert np.array_equal(found, whole)
    dice = 2 * (truth & (found > 0)).sum() / (truth.sum() + (found > 0).sum())
    assert dice > 0.8


@pytest.mark.parametrize(("given", "reason"), [
    (["--box", "0.1,0.2,0.5,1"], "left,top,right,bottom"),
    (["--box", "80,10,10,50"], "left and top the smaller"),
    (["--point", "a,b"], "a point is x,y"),
    (["--point", "0.5,0.5"], "not shares"),
    (["--point", "1,2,3"], "followed by 0"),
    (["--box", "10,10,161,50"], "160 x 100"),
    (["--point", "3,-1"], "160 x 100"),
    (["--box", "1,1,9,9", "--box", "2,2,9,9", "--point", "3,3"], "--prompts FILE"),
    (["--box", "1,1,9,9", "--prompts", "x.csv"], "leave out --box"),
    (["--images", "FOLDER", "--box", "1,1,9,9"], "pixels of one image"),
    (["--images", "FOLDER", "--prompts", "EMPTY"], "and 1 more"),
    ("photo.png,1,1,9,9", "columns image"),
    ("image,x0,y0,x1,y1\nphoto.png,1,1,9", "object 1: a box is"),
    ("image,x0,y0,x1,y1\nphoto.png,1,1,9,9\nother.png,1,1,9,9", "object 2 belongs to other.png"),
    ("image,x0,y0,x1,y1\nelsewhere/photo.png,1,1,9,9", "--images does not name"),
    ("image,x0,y0,x1,y1\nphoto.png,,,,", "neither box nor points"),
    ('[{"image": "photo.png", "box": "1199"}]', "object 1: a box is"),
])  # fmt: skip
def test_prompts_that_do_not_fit_are_refused_in_one_line_and_nothing_is_written(done, tmp_path, says, given, reason):
    job, _ = done
    (folder := tmp_path / "two").mkdir()
    photo(folder, "a.png"), photo(folder, "b.png")
    if isinstance(given, str):
        file = tmp_path / ("given.json" if given.startswith("[") else "given.csv")
        file.write_text(given)
        given = ["--prompts", file]
    (empty := tmp_path / "empty.csv").write_text("image,x0,y0,x1,y1\n")
    given = [{"FOLDER": folder, "EMPTY": empty}.get(word, word) for word in given]
    words = ["--run", job.run.key, "--results", job.results, "--out", tmp_path / "out", "--images", photo(tmp_path)]
    assert reason in says(predict.main, *words, *given, code=2)
    assert not (tmp_path / "out").exists()


def test_a_run_of_several_classes_takes_no_prompts_and_an_image_takes_so_many(
    done, tmp_path, says, monkeypatch
) -> None:
    run = finished(tmp_path, "lora", benchmark="trans10k_v2")
    words = ["--run", run.key, "--results", tmp_path, "--out", tmp_path / "out", "--images", photo(tmp_path)]
    assert "one foreground" in says(predict.main, *words, "--box", "1,1,9,9", code=2)
    monkeypatch.setattr("harness.experiment.pointed._MOST", 1)
    words[1:4] = [done[0].run.key, "--results", done[0].results]
    assert "give at most 1" in says(predict.main, *words, "--box", "1,1,9,9", "--box", "2,2,9,9", code=2)
    monkeypatch.setattr(predicting.Framing, "scores", lambda self, output: output.masks[:, 0] * torch.nan)
    assert "not finite" in says(predict.main, *words, "--box", "1,1,9,9", code=2)


def test_a_sam_without_a_run_says_what_it_needs(tmp_path, says) -> None:
    torch.save({}, tmp_path / "sam.pth")
    words = ["--images", photo(tmp_path), "--out", tmp_path / "out"]
    box = ["--box", "1,1,9,9"]
    for more, reason in (
        (box, "--backbone NAME"),
        (["--backbone", "tiny", *box], "--checkpoint FILE"),
        (["--backbone", "tiny", "--checkpoint", tmp_path / "sam.pth"], "--box, --point or --prompts"),
        (["--backbone", "tiny_timm", "--checkpoint", tmp_path / "sam.pth", *box], "no mask decoder"),
    ):
        assert reason in says(predict.main, *words, *more, code=2)
    assert not (tmp_path / "out").exists()
