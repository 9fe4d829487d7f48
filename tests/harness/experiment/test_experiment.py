"""What one run scores and how often, what it leaves out, keeps with its record, times and reports."""

from __future__ import annotations

import csv
import errno
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from harness.archive.masks import KeptMask, read_masks
from harness.archive.merge import merge
from harness.archive.schema import UNTRAINED, Record
from harness.archive.store import RecordStore
from harness.cli import records, tables
from harness.datasets.base import Pair
from harness.evaluation.conventions import improves
from harness.experiment import building
from harness.experiment.building import RunData, attached_segmenter, attention_of, open_data
from harness.experiment.environment import STAGES, Stopwatch, one_line
from harness.experiment.experiment import Experiment, run_experiment
from harness.models.original_sam import plain_sam
from harness.protocols.protocol import Protocol
from harness.registry import BENCHMARKS
from harness.training.batches import draw_number
from harness.training.cache import EmbeddingCache
from harness.training.images import ImageSource
from harness.training.outcome import Interrupted, StopRequest
from tests.harness.experiment.test_prompted import SMALL
from tests.harness.planned import job_of


def data(name: str, *stems: str) -> RunData:
    benchmark = BENCHMARKS.get(name)()
    source = ImageSource(benchmark, [Pair(stem=stem, image=Path(), mask=Path()) for stem in stems], image_size=8)
    return RunData(benchmark=benchmark, train=source, val=source, tests={"test": source})


def test_frames_of_a_sequence_share_a_group_and_other_images_have_none() -> None:
    assert data("cvc612", "1", "25", "26").groups("test") == {
        "1": "sequence 01",
        "25": "sequence 01",
        "26": "sequence 02",
    }
    assert data("cvc612", "1", "26").groups("test") == {}, "each stands alone here"
    assert data("kvasir", "a", "b").groups("test") == {}
    assert data("road", "7_r0c0", "7_r0c1", "8_r0c0").groups("test")["7_r0c1"] == "7"


@pytest.mark.parametrize("name", ["kvasir", "cvc612"])
def test_images_that_nothing_trains_on_are_tested_but_for_relatives_of_those_that_do(tmp_path: Path, name: str) -> None:
    def opened(**rules: object) -> RunData:
        limits = {"train_limit": 2, "val_limit": 2, "test_limit": 0, **rules}
        job = job_of(tmp_path, "decoder", benchmarks=(name,), **limits)
        return open_data(job.run, Path(job.dataset_root))

    plain, more = opened(), opened(test_untrained=True)
    group = plain.benchmark.group
    used = [*more.train.pairs, *more.val.pairs]
    assert (plain.train.pairs, plain.val.pairs) == (more.train.pairs, more.val.pairs)
    rest = [pair for pair in opened(train_limit=0).train.pairs if group(pair) not in {group(pair) for pair in used}]
    assert [pair.stem for pair in more.tests["test"].pairs] == [p.stem for p in (*plain.tests["test"].pairs, *rest)]
    assert rest or name == "cvc612"
    given = plain.tests["test"].pairs
    assert len(opened(test_untrained=True, test_limit=3).tests["test"].pairs) == 3
    for limit, others in ((0, len(rest)), (len(given) + 1, min(1, len(rest))), (len(given), 0), (2, 0)):
        first = opened(test_untrained=True, test_given_first=True, test_limit=limit)
        assert first.tests["test"].pairs == opened(test_limit=limit).tests["test"].pairs
        drawn = first.tests[UNTRAINED].pairs if others else []
        assert {pair.stem for pair in drawn} <= {pair.stem for pair in rest}
        assert len(drawn) == others
        assert first.tests.keys() == ({"test", UNTRAINED} if others else {"test"})


def test_an_image_left_out_is_counted_and_its_record_agrees_with_its_images(tmp_path, monkeypatch) -> None:
    read = ImageSource.mask_native

    def ignored(source: ImageSource, index: int) -> np.ndarray:  # the first of three test images
        drawn = read(source, index)
        return np.full_like(drawn, 255) if (len(source), index) == (3, 0) else drawn

    monkeypatch.setattr(ImageSource, "mask_native", ignored)
    record = run_experiment(job_of(tmp_path, "zeroshot", **SMALL))
    assert record.available == {"train": 28, "val": 4, "test": 4}
    assert record.counts == {"train": 4, "val": 2, "test": 3}
    assert (record.tested, record.ignored) == ({"test": 2}, {"test": 1})
    assert list(record.foreground) == ["test"]
    assert records.main(["check", str(tmp_path)]) == 0
    assert merge(tmp_path, tmp_path / "merged") == (1, 0, [])
    assert tables.main(["--results", str(tmp_path)]) == 0
    (page,) = (tmp_path / "tables").glob("*.md")
    assert "28 → 4 / 4 → 2 / 4 → 2 training/validation/test images; test images left out" in page.read_text()


def embeddings_key(results: Path, **rules: Any) -> bytes:
    experiment = Experiment(job_of(results, "decoder", **rules), device=torch.device("cpu"), report=lambda _: None)
    cache = experiment.scoring.remember_frozen(*experiment._attached())
    assert cache is not None
    return cache._encoder


@pytest.mark.parametrize("rules", [{"precision": "bf16"}, {"pixel_mean": (0.5, 0.5, 0.5)}, {"pixel_std": (0.5,) * 3}])
def test_embeddings_of_another_precision_or_normalisation_are_no_others(results: Path, rules: dict[str, Any]) -> None:
    assert embeddings_key(results, **rules) != embeddings_key(results)
    assert embeddings_key(results) == embeddings_key(results, lr=0.5)


def test_embeddings_of_an_earlier_run_are_read_by_the_threads_that_read_images(tmp_path: Path, monkeypatch) -> None:
    run_experiment(job_of(tmp_path, "decoder", flip=0.0, **SMALL))
    look_up, main = EmbeddingCache.look_up, set[bool]()

    def noted(self: EmbeddingCache, image: Any) -> Any:
        main.add(threading.current_thread() is threading.main_thread())
        return look_up(self, image)

    monkeypatch.setattr(EmbeddingCache, "look_up", noted)
    monkeypatch.setattr("harness.training.feeding.encoded", lambda *_, **__: pytest.fail("encoded once more"))
    record = run_experiment(job_of(tmp_path, "decoder", flip=0.0, lr=2e-3, **SMALL))
    assert (record.code, main) == ("OK", {False})


@pytest.mark.parametrize(
    ("at", "other"),
    [
        ("torch.__version__", "0"),
        ("harness.experiment.scoring.device_name", lambda device: "another"),
        ("harness.experiment.scoring.number_code", lambda *kinds: {"numbers": "of an older version"}),
    ],
)
def test_kept_embeddings_depend_on_device_torch_and_code(results: Path, monkeypatch, at: str, other: Any) -> None:
    before = embeddings_key(results)
    monkeypatch.setattr(at, other)
    assert embeddings_key(results) != before


def test_a_run_that_failed_starts_anew_where_its_masks_were_mended_since(tmp_path: Path, monkeypatch) -> None:
    """After BLANK the masks are mended and the command repeated: what was trained on the old masks must not count for the new."""
    job = job_of(tmp_path, "decoder", **SMALL)

    def blank(*arguments: Any) -> None:
        raise ValueError("drew no object")

    with monkeypatch.context() as patch:
        patch.setattr(Experiment, "test", blank)
        before = run_experiment(job)
    assert before.code == "ERROR"
    for mask in Path(job.dataset_root).rglob("masks/*"):
        Image.fromarray(255 - np.asarray(Image.open(mask).convert("L"))).save(mask, quality=95)
    mended = job_of(tmp_path, "decoder", **SMALL)
    assert mended.run.key == job.run.key
    assert mended.run.data_fingerprint != job.run.data_fingerprint
    reported: list[dict[str, Any]] = []
    repeated = run_experiment(mended, progress=reported.append)
    assert any("have changed since" in note.get("text", "") for note in reported)
    fresh = run_experiment(job_of(tmp_path / "fresh", "decoder", samples=tmp_path, **SMALL))
    assert repeated.history[0]["loss"] == fresh.history[0]["loss"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can be used here")
@pytest.mark.parametrize(("given", "said"), [("0", True), (None, False)])
def test_a_gpu_that_torch_cannot_use_is_reported(
    results: Path, monkeypatch: pytest.MonkeyPatch, given, said: bool
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    notes: list[str | None] = []
    run_experiment(job_of(results, "zeroshot", **SMALL), progress=lambda reported: notes.append(reported.get("text")))
    assert any(f"GPU {given} is there, but torch" in note for note in notes if note) == said
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "7")
    record = run_experiment(job_of(results, "zeroshot", seeds=(1,), **SMALL))
    assert record.code == ("ERROR" if said else "OK")
    assert not said or f"GPU {given} is there, but torch" in record.message


def test_a_test_image_without_an_object_has_no_prompt_and_is_counted(tmp_path: Path, monkeypatch) -> None:
    read = ImageSource.mask_input
    monkeypatch.setattr(ImageSource, "mask_input", lambda source, index: read(source, index) * np.uint8(index > 0))
    assert run_experiment(job_of(tmp_path, "zeroshot", prompt="box", **SMALL)).counts["unprompted"] == 1


def test_weights_that_changed_since_the_plan_are_not_trained_on(tmp_path: Path) -> None:
    weights = tmp_path / "sam.pth"
    torch.save(plain_sam("tiny").state_dict(), weights)
    job = job_of(tmp_path, "decoder", checkpoints={"": weights}, **SMALL)
    torch.save({name: tensor + 1 for name, tensor in plain_sam("tiny").state_dict().items()}, weights)
    record = run_experiment(job)
    assert (record.code, record.scores) == ("ERROR", {})
    assert "changed since this run was planned" in record.message


def test_an_error_of_the_disk_is_said_in_its_words_and_one_of_code_by_its_type() -> None:
    assert one_line(OSError(errno.ENOSPC, "x", "a.pt")) == "the disk is full: a.pt"
    assert one_line(OSError(errno.ENOENT, "not there", "a.pt")).startswith("FileNotFoundError: ")
    assert (one_line(ValueError("a\nb")), one_line(KeyError())) == ("a b", "KeyError: KeyError")


def test_attention_without_fused_kernels_has_no_choice() -> None:
    rules = Protocol(name="x", attention="bias")
    assert set(attention_of("tiny", rules, torch.device("cpu")).values()) == {"bias"}
    assert attention_of("tiny", replace(rules, fused_attention=False), torch.device("cpu")) == {}


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ESTALE, "Stale file handle"),
        RuntimeError("CUDA error: unspecified launch failure\nCUDA kernel errors might be reported later"),
    ],
)
def test_a_file_server_or_gpu_that_is_away_leaves_no_record(results: Path, monkeypatch, error: Exception) -> None:
    def away(source: ImageSource, index: int) -> np.ndarray:
        raise error

    monkeypatch.setattr(ImageSource, "image", away)
    job = job_of(results, "decoder", **SMALL)
    with pytest.raises(type(error), match=r"Stale file handle|launch failure"):
        run_experiment(job)
    assert RecordStore(results).read(job.run.key) is None


def _run(root: Path, method: str, *, benchmark: str = "kvasir", seed: int = 0, **rules: Any) -> Record:
    small = {
        "image_size": 64, "epochs": 1, "train_limit": 4, "val_limit": 2, "test_limit": 5, "merge": [],
        "evaluation.resolution": "input",
    }  # fmt: skip
    record = run_experiment(job_of(root, method, benchmarks=(benchmark,), seeds=(seed,), **{**small, **rules}))
    assert record.code == "OK", record.message
    return record


def _masks(root: Path, record: Record) -> list[KeptMask]:
    return read_masks(RecordStore(root).masks_path(record.key), expected=record.sidecars.get("masks.png", ""))


def test_kept_masks_are_those_that_were_scored_and_of_the_same_images(tmp_path: Path):
    decoder, lora = _run(tmp_path, "decoder", keep_masks=3), _run(tmp_path, "lora", seed=1, keep_masks=3)
    assert [m.stem for m in _masks(tmp_path, decoder)[:3]] == [m.stem for m in _masks(tmp_path, lora)[:3]]
    for record in (decoder, lora):
        rows = csv.DictReader(RecordStore(tmp_path).images_path(record.key).read_text().splitlines())
        scores = {row["stem"]: float(row["iou"]) for row in rows if row["model"] == "best"}
        assert {min(scores, key=scores.__getitem__), max(scores, key=scores.__getitem__)} <= {
            mask.stem for mask in _masks(tmp_path, record)
        }
        for mask in _masks(tmp_path, record):
            predicted, truth = mask.predicted == 1, mask.truth == 1
            assert mask.predicted.shape == (64, 64)
            union = np.count_nonzero(predicted | truth)
            iou = np.count_nonzero(predicted & truth) / union if union else 1.0
            assert iou == pytest.approx(scores[mask.stem], abs=1e-6)
    assert RecordStore(tmp_path).masks_path(lora.key).stat().st_size < 4000


def test_stages_exclude_each_other_and_add_up() -> None:
    times = iter([100.0, 100.0, 110.0, 113.0, 117.0, 117.5])
    stages = Stopwatch(clock=lambda: next(times))
    with stages.during("training"), stages.during("validating"):
        pass
    cost = stages.cost()
    counted = {"training": 14.0, "validating": 3.0, "other": 0.5}
    assert cost == {f"stage_{name}_s": counted.get(name, 0.0) for name in STAGES}
    assert sum(cost.values()) == 117.5 - 100.0


@pytest.mark.parametrize(
    "stage",
    [("validation", ""), *(pytest.param(("test", of), marks=pytest.mark.slow) for of in ("best", "merged-exact"))],
)
def test_a_stop_while_a_model_is_scored_is_heard_and_counts_nothing_twice(
    tmp_path: Path, stage: tuple[str, str]
) -> None:
    rules: dict[str, Any] = {"image_size": 64, "epochs": 1, "train_limit": 4, "val_limit": 9, "test_limit": 9}
    job = job_of(tmp_path / "stopped", **rules)
    whole = run_experiment(job_of(tmp_path / "whole", **rules))
    stop, reported = StopRequest(), Counter[str]()

    def progress(news: dict[str, Any]) -> None:
        reported[news["stage"]] += 1
        if (news["stage"], news.get("model")) == stage:
            stop.request()

    with pytest.raises(Interrupted, match="was scored"):
        run_experiment(job, progress=progress, stop=stop)
    assert RecordStore(tmp_path / "stopped").find(job.run.key) is None
    record = run_experiment(job)
    images = [RecordStore(tmp_path / name).images_path(job.run.key).read_text() for name in ("whole", "stopped")]
    assert (record.scores, images[1]) == (whole.scores, images[0])


def test_head_mask_tokens_and_method_start_from_the_seed(tmp_path: Path) -> None:
    run = job_of(tmp_path, "lora", benchmarks=("trans10k_v2",)).run
    states = []
    for seed in (0, 1, 1):
        segmenter, method = attached_segmenter(
            replace(run, seed=seed), task="multiclass", num_classes=12, checkpoint=None
        )
        states.append({**segmenter.state_dict(), **method.state()})
    drawn = [
        name
        for name in states[0]
        if name in ("head.weight", "mask_decoder.mask_tokens", "mask_decoder.iou_token.weight")
        or name.endswith((".down", "patch_embed.proj.weight"))
    ]
    assert len(drawn) > 4
    for name in drawn:
        assert not torch.equal(states[0][name], states[1][name]), name
        assert torch.equal(states[1][name], states[2][name]), name


@pytest.mark.parametrize(("benchmark", "first", "better"), [("kvasir", 0.5, 0.6), ("sbu", 0.6, 0.5)])
def test_validation_selects_in_the_direction_of_the_benchmarks_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, benchmark: str, first: float, better: float
) -> None:
    given: dict[str, Any] = {}

    def stop_there(**arguments: Any) -> Any:
        given.update(arguments)
        raise ArithmeticError("as far as this test goes")

    monkeypatch.setattr("harness.experiment.experiment.Training", stop_there)
    assert run_experiment(job_of(tmp_path, benchmarks=(benchmark,))).code == "ERROR"
    assert improves(given["metric"], better, first)
    assert not improves(given["metric"], first, better)


def test_the_head_starts_from_a_number_of_31_bits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seed = next(seed for seed in range(99) if draw_number("head", seed) % 2**32 >= 2**31)
    given: dict[str, Any] = {}

    def build(*_: object, **options: Any) -> None:
        given.update(options)
        raise MemoryError("enough")

    monkeypatch.setattr(building, "build_segmenter", build)
    job = job_of(tmp_path)
    assert run_experiment(replace(job, run=replace(job.run, seed=seed))).code == "OOM"
    assert given["head_seed"] == draw_number("head", seed) % 2**31
