"""The verb: a finished run's best state is loaded again, its record is written, and bad input is one line."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.archive.files import compact, seal_holds, sealed
from harness.archive.measured import EvidenceRecord, EvidenceStore
from harness.cli.evidence import _summary as evidence_line
from harness.cli.evidence import main
from harness.cli.records import main as records
from harness.evidence.measuring import Measure, frozen_encoder, measure_insides
from harness.experiment.building import attached_segmenter
from harness.experiment.experiment import run_experiment
from harness.models.original_sam import plain_sam
from harness.statistics.cka import cka
from tests.harness.planned import job_of, plan_of
from tests.harness.report.sample import evidence, record


def trained(results: Path, *methods: str, backbone: str = "tiny") -> list[str]:
    """Keys of finished runs on a few generated images."""
    few: dict[str, Any] = {"epochs": 1, "train_limit": 4, "val_limit": 2, "test_limit": 8}
    return [run_experiment(job).key for job in plan_of(results, *methods, backbones=(backbone,), **few).jobs]


class Finished:
    """Two finished runs on generated images, and the evidence of both."""

    def __init__(self, results: Path) -> None:
        self.results = results
        self.lora, self.decoder = trained(results, "lora", "decoder")
        assert main(["--run", self.lora, "--run", self.decoder[:6], "--results", str(results)]) == 0

    def evidence(self, key: str) -> EvidenceRecord:
        return EvidenceStore.load(EvidenceStore(self.results).path(key))

    def copied(self, root: Path, *folders: str) -> Path:
        """A results folder with some of this one's folders."""
        for folder in folders:
            shutil.copytree(self.results / folder, root / folder)
        return root


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return Finished(tmp_path_factory.mktemp("results"))


def test_a_method_that_leaves_the_encoder_alone_is_the_frozen_model(finished: Finished):
    record = finished.evidence(finished.decoder)
    for block in record.blocks:
        assert block.trained == block.frozen
        assert set(block.update.values()) == {0.0}
        assert cka(block.trained.grams, block.frozen.grams) == pytest.approx(1)
    assert record.merge == {}


def test_a_trained_one_is_measured_on_the_same_images_of_the_same_backbone(finished: Finished):
    lora, decoder = finished.evidence(finished.lora), finished.evidence(finished.decoder)
    assert lora.images == decoder.images
    assert [block.window for block in lora.blocks] == [3, 0, 3, 0]
    for adapted, other in zip(lora.blocks, decoder.blocks, strict=True):
        assert adapted.frozen == other.frozen
        assert adapted.trained != adapted.frozen
        assert adapted.update["q"] > 0
        assert adapted.update["proj"] == 0
    assert max(lora.merge["exact"]) < 1e-5


def test_the_same_run_again_says_the_same(finished: Finished, says) -> None:
    before = finished.evidence(finished.lora)
    said = says(main, "--run", finished.lora, "--results", finished.results)
    assert "attention distance in 2 windowed blocks" in said
    after = finished.evidence(finished.lora)
    assert (before.blocks, before.state, before.merge) == (after.blocks, after.state, after.merge)


def test_the_line_tells_the_trained_distance_before_the_frozen_one():
    run = record().run
    said = evidence_line(run, evidence(run.key, shift=3.0))
    assert said.count("2 windowed blocks 25.0 px, frozen 22.0, uniform 25.0") == 1
    assert said.count("2 global blocks 25.0 px, frozen 22.0, uniform 25.0") == 1


def test_edited_copied_and_foreign_files_are_named(finished: Finished, tmp_path: Path, says) -> None:
    root = finished.copied(tmp_path / "results", "records", "evidence")
    store = EvidenceStore(root)
    says(records, "check", root)
    content = json.loads(store.path(finished.lora).read_text())
    content["blocks"][0]["trained"]["distance_px"][0] = 1.0
    store.path(finished.lora).write_text(json.dumps(content))
    shutil.copy(store.path(finished.decoder), store.folder / "copy.json")
    (store.folder / "other.json").write_text('{"run": 1}')
    said = says(records, "check", root, code=1)
    for reason in ("its seal does not fit", f"belongs to run {finished.decoder}", "no evidence record", "3 wrong"):
        assert reason in said
    assert store.find(finished.lora) is store.find("nothing") is None


def test_evidence_travels_with_its_records(finished: Finished, tmp_path: Path, says) -> None:
    out, none = tmp_path / "out", tmp_path / "none"
    says(records, "merge", finished.results, "--out", out)
    assert EvidenceStore(out).find(finished.lora) == finished.evidence(finished.lora)
    says(records, "merge", finished.results, "--out", none, "--protocol", "mini", code=2)
    assert not EvidenceStore(none).folder.exists()


def test_a_file_of_the_old_layout_reads_merges_and_is_rewritten_in_few_lines(finished: Finished, tmp_path, says):
    root = finished.copied(tmp_path / "old", "records", "evidence")
    path = EvidenceStore(root).path(finished.lora)
    written = path.read_bytes()
    assert written.count(b"\n") < 25 * len(finished.evidence(finished.lora).blocks)
    older = sealed(json.loads(written))
    assert older.count(b"\n") > 3 * written.count(b"\n")
    path.write_bytes(older)
    assert seal_holds(older)
    assert EvidenceStore.load(path) == finished.evidence(finished.lora)
    says(records, "check", root)
    assert "other evidence" not in says(records, "merge", finished.results, root)
    assert compact(older) == written


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--images", "3", "--batch", "3"], "a minibatch needs 4 images"),
        (["--images", "4", "--batch", "8"], "a minibatch needs 4 images"),
        (["--run", "zzzz"], "no run"),
    ],
)
def test_bad_input_is_one_line(finished: Finished, words: list[str], said: str, says) -> None:
    assert said in says(main, "--run", finished.lora, "--results", finished.results, *words, code=2)


def test_a_run_whose_state_is_gone_says_so(finished: Finished, tmp_path: Path, says) -> None:
    finished.copied(tmp_path, "records", "sample-data")
    assert "has no trained state" in says(main, "--run", finished.lora, "--results", tmp_path, code=2)


@pytest.mark.parametrize(
    ("backbone", "decoder", "weights"),
    [("tiny", "sam", ""), ("tiny", "sam", "sam.pth"), ("tiny_timm", "sam", ""), ("tiny_timm", "linear", "")],
)
def test_the_frozen_backbone_is_the_one_that_training_met(tmp_path: Path, backbone: str, decoder: str, weights: str):
    """Random weights are drawn again, whatever decoder the run has."""
    checkpoint = tmp_path / weights if weights else None
    if checkpoint:
        torch.save(plain_sam(backbone).state_dict(), checkpoint)
    run = job_of(tmp_path, "decoder", backbones=(backbone,), decoder=decoder).run
    met, _ = attached_segmenter(run, task="binary", num_classes=2, checkpoint=checkpoint)
    ours = frozen_encoder(run, checkpoint).state_dict()
    theirs = met.get_submodule("encoder").state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_the_frozen_backbone_of_a_quantised_run_is_quantised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else rounding would be taken for what the method does."""
    seen: list[tuple[str, bool]] = []
    monkeypatch.setattr(
        "harness.models.quantised.quantise",
        lambda segmenter, how: seen.append((how, any(p.requires_grad for p in segmenter.parameters()))),
    )
    run = job_of(tmp_path, "lora").run
    frozen_encoder(replace(run, rules={**run.rules, "quantise": "nf4"}), None)
    assert seen == [("nf4", False)]


def test_a_hierarchical_encoder_is_refused_in_a_line(tmp_path: Path, says) -> None:
    (key,) = trained(tmp_path, "decoder", backbone="tiny_mobile_sam")
    assert "is hierarchical" in says(main, "--run", key, "--results", tmp_path, code=2)


def test_a_calibrated_merge_is_measured_with_the_images_that_it_needs(tmp_path: Path):
    """Of a search that has not been trained, on as many images as a minibatch needs."""
    run = job_of(tmp_path, "naslora", train_limit=4, val_limit=2, test_limit=4).run
    untrained: Any = SimpleNamespace(
        run=run, digest="", segmenter=lambda weights: attached_segmenter(run, task="binary", num_classes=2, checkpoint=weights),
    )  # fmt: skip
    asked = Measure(
        trained=untrained, checkpoint=None, data=tmp_path / "sample-data" / "kvasir", images=4, batch=4,
        merges=("calibrated",),
    )  # fmt: skip
    record = measure_insides(asked, device=torch.device("cpu"), tell=lambda stage: None)
    assert (len(record.images), record.merge.keys()) == (4, {"calibrated"})
