"""Every quirk in docs/quirks.md is a switch that changes the output."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

import harness.experiment.experiment as experiment_module
from harness.experiment.building import attached_segmenter
from harness.experiment.experiment import run_experiment
from harness.experiment.scoring import Scoring
from harness.models.build import build_segmenter
from harness.models.original_sam import plain_sam, sam_state_dict
from harness.models.segmenter import SegmenterOutput, probabilities
from harness.planning.data import data_options
from harness.protocols.load import from_rules, load_protocol, resolve
from harness.protocols.protocol import Quirks
from harness.registry import BENCHMARKS
from harness.run import main as run_verb
from harness.training import loop
from harness.training.losses import build_loss
from tests.datasets.archives import write_archive
from tests.harness.planned import job_of
from tests.values import REPOSITORY


def test_every_quirk_of_the_page_names_a_test_and_a_field_of_the_card() -> None:
    rules = load_protocol("conv-lora")
    tests = "".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "tests").rglob("test_*.py"))
    lines = (REPOSITORY / "docs" / "quirks.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip(" `") for cell in line.split(" | ")] for line in lines if re.match(r"\| \d+ \|", line)]
    for _, title, names, *_, test in rows:
        assert f"\ndef {test.removesuffix(' |').strip('`')}(" in tests, title
        for name in names.split(", "):
            value: Any = rules
            for part in name.split("."):
                value = getattr(value, part)
    of_page = {name for _, _, names, *_ in rows for name in names.split(", ")}
    assert {f"quirks.{field.name}" for field in fields(Quirks)} <= of_page


def test_multiclass_loss_and_masks_change() -> None:
    target = torch.randint(0, 3, (2, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)

    def loss(**overrides: str) -> float:
        rules = load_protocol("demo", overrides)
        masks = torch.randn(2, rules.mask_tokens, 8, 8, generator=torch.Generator().manual_seed(1))
        classes = torch.randn(2, rules.mask_tokens, 4, generator=torch.Generator().manual_seed(2))
        built = build_loss(rules, task="multiclass", num_classes=3)
        return float(built(SegmenterOutput(masks, classes), target))

    assert loss(class_weight="10") != loss(class_weight="2")
    assert classes_in_an_image(mask_tokens=1) == 1
    assert classes_in_an_image(mask_tokens=10) > 1


def test_spare_tokens_change() -> None:
    """Deleting tokens 1-3 before segment_anything's own transformer runs is what the release does."""
    images = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    kept, released = (
        build_segmenter("tiny", task="binary", spare_tokens=quirk).eval() for quirk in ("intended", "released")
    )
    with torch.no_grad():
        assert (kept(images).masks - released(images).masks).abs().max() > 1e-4
        embedding = kept.encode(images)
        decoder: Any = kept.mask_decoder
        decoder.spare_tokens = torch.nn.Parameter(decoder.spare_tokens[:0])
        torch.testing.assert_close(kept.decode(embedding).masks, released(images).masks)
    with pytest.raises(ValueError, match="mask tokens 1-3"):
        sam_state_dict(released)


def classes_in_an_image(*, mask_tokens: int) -> int:
    """How many classes the pixels of an image are given, by a segmenter whose masks differ and are as sure as trained ones."""
    segmenter = build_segmenter("tiny", task="multiclass", num_classes=12, mask_tokens=mask_tokens).eval()
    generator = torch.Generator().manual_seed(0)
    tokens = segmenter.get_parameter("mask_decoder.mask_tokens")
    with torch.no_grad():
        tokens.add_(5 * torch.randn(tokens.shape, generator=generator))
        output = segmenter(torch.randn(1, 3, 128, 128, generator=generator))
    masks, classes = output.masks, output.classes
    assert classes is not None
    sure = SegmenterOutput(100 * (masks - masks.mean(dim=(2, 3), keepdim=True)), 5 * classes)
    return len(probabilities(sure, (128, 128)).argmax(dim=1).unique())


@pytest.mark.parametrize("protocol", ["conv-lora", "nas-lora", "standard", "demo"])
@pytest.mark.parametrize("benchmark", ["trans10k_v1", "trans10k_v2"])
def test_cards_give_several_classes_several_masks_and_one_stays_reachable(protocol: str, benchmark: str) -> None:
    assert resolve(load_protocol(protocol), benchmark).mask_tokens >= 10
    assert resolve(load_protocol(protocol, {f"benchmarks.{benchmark}.mask_tokens": "1"}), benchmark).mask_tokens == 1


def small(benchmark: str) -> dict[str, Any]:
    return {"benchmarks": (benchmark,), "epochs": 2, "image_size": 96, "merge": []}


def test_a_plan_says_that_one_mask_gives_every_pixel_of_an_image_the_same_class(tmp_path, capsys) -> None:
    grid = ["--plan", "--results", str(tmp_path), "--methods", "decoder", "--datasets", "kvasir,trans10k_v2"]
    grid += ["--protocol", "demo"]
    assert run_verb([*grid, "--set", "mask_tokens=1"]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "same class" in line]
    assert line.startswith("trans10k_v2: mask_tokens is 1")
    advised = line.split("--set ")[1].split()[0]
    assert run_verb([*grid, "--set", "mask_tokens=1", "--set", advised]) == 0
    assert "same class" not in capsys.readouterr().err


def test_selection_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the foreground in a record is the best checkpoint's whatever selects."""
    monkeypatch.setattr(BENCHMARKS.get("kvasir"), "selection_metric", "iou")  # as of own data: it counts pixels
    monkeypatch.setattr(loop, "improves", lambda metric, value, best: True)  # so that both test the last epoch
    seen, records = list[set[str]](), []
    original = Scoring.scores
    for quirk in ("released", "intended"):
        splits: list[str] = []

        def watched(
            self: Any, segmenter: Any, sets: Any, *, model: str = "", into: list[str] = splits, **more: Any
        ) -> Any:
            into.extend([] if model else sets)
            return original(self, segmenter, sets, model=model, **more)

        monkeypatch.setattr(Scoring, "scores", watched)
        limits = {"train_limit": 4, "val_limit": 2, "test_limit": 2, "quirks.selection": quirk}
        records.append(run_experiment(job_of(tmp_path, "decoder", **small("kvasir"), **limits)))
        seen.append({*splits})
    assert seen == [{"test"}, {"val"}]
    released, intended = records
    assert released.selected_epoch == intended.selected_epoch == 2
    assert released.scores["last"]["test"] == intended.scores["last"]["test"]
    assert released.foreground == intended.foreground


@pytest.mark.parametrize(
    ("rule", "values", "method", "option"),
    [
        ("quirks.moe_gate", ("released", "intended"), "convlora", "gate"),
        ("quirks.ssf_init", ("released", "intended"), "ssf", "init"),
        ("quirks.samadapter_embedding", ("released", "intended"), "samadapter", "patch_embedding"),
    ],
)
def test_a_switch_of_the_card_reaches_the_method(tmp_path, rule: str, values: tuple[Any, ...], method, option) -> None:
    first, second = (job_of(tmp_path, method, **{rule: value}).run.method_config[option] for value in values)
    assert first != second
    named = job_of(tmp_path, method, **{rule: values[0], f"methods.{method}.{option}": second})
    assert named.run.method_config[option] == second, "what the protocol says of the method itself counts more"


def test_class_count_changes(tmp_path: Path) -> None:
    heads = {}
    for quirk in ("released", "intended"):
        rules = {"quirks.class_count": quirk, "train_limit": 1}
        job = job_of(tmp_path, "decoder", **small("trans10k_v2"), **rules)
        made = experiment_module.Experiment(job, device=torch.device("cpu"), report=lambda _: None)
        heads[quirk] = made.scoring.num_classes
        segmenter, _ = attached_segmenter(job.run, task="multiclass", num_classes=heads[quirk], checkpoint=None)
        with torch.no_grad():
            scores = made.scoring.predictor(segmenter.eval())(torch.zeros(2, 3, 96, 96, dtype=torch.uint8))
        assert scores.shape[:2] == (2, 12)  # a class that no training mask shows is scored, and never drawn
        assert not scores[:, heads[quirk] :].any()
    assert heads["intended"] == 12
    assert heads["released"] < 12


def test_camo_train_changes(tmp_path: Path) -> None:
    root = write_archive("camo", tmp_path, "sinet")
    counts = {}
    for quirk in ("released", "intended"):
        rules = from_rules(
            load_protocol("demo", {"quirks.camo_train": quirk}).__dict__ | {"methods": {}, "benchmarks": {}}
        )
        benchmark = BENCHMARKS.get("camo")(data_options(rules, "camo"))
        counts[quirk] = len(benchmark.splits(benchmark.locate(root)).train)
    assert counts["released"] > counts["intended"]


def test_strict_loading_changes(tmp_path: Path) -> None:
    path = tmp_path / "sam.pth"
    torch.save(plain_sam("tiny").state_dict(), path)
    encodings = {}
    for quirk in ("released", "intended"):
        segmenter = build_segmenter("tiny", task="binary", checkpoint=path, strict_loading=quirk)
        encodings[quirk] = segmenter.get_buffer("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix")
    stored = torch.load(path, weights_only=True)["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
    assert torch.equal(encodings["intended"], stored)
    assert not torch.equal(encodings["released"], stored)
