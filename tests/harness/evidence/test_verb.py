"""The verb: a finished run's best state is loaded again, its record is written, and bad input is one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from harness.archive.files import compact, seal_holds, sealed
from harness.archive.measured import EvidenceRecord, EvidenceStore
from harness.cli.evidence import _summary as evidence_line
from harness.cli.evidence import main
from harness.cli.records import main as records
from harness.evidence.measuring import frozen_encoder
from harness.experiment.building import attached_segmenter
from harness.experiment.experiment import run_experiment
from harness.planning.data import sample_writer
from harness.planning.plan import plan
from harness.planning.request import Request, Variant
from harness.statistics.cka import cka
from tests.harness.report.sample import evidence, record


class Finished:
    """Two finished runs on generated images, and the evidence of both."""

    def __init__(self, results: Path) -> None:
        self.results = results
        request = Request(
            entries=tuple(Variant(method=name, options={}) for name in ("lora", "decoder")),
            benchmarks=("kvasir",),
            protocol="demo",
            overrides={"epochs": "1"},
            backbones=("tiny",),
            results=results,
        )
        jobs = plan(request, prepare_samples=sample_writer(results)).jobs
        self.lora, self.decoder = (run_experiment(job).key for job in jobs)
        assert main(["--run", self.lora, "--run", self.decoder[:6], "--results", str(results)]) == 0

    def evidence(self, key: str) -> EvidenceRecord:
        return EvidenceStore.load(EvidenceStore(self.results).path(key))


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
    for mine, other in zip(lora.blocks, decoder.blocks, strict=True):
        assert mine.frozen == other.frozen
        assert mine.trained != mine.frozen
        assert mine.update["q"] > 0
        assert mine.update["proj"] == 0
    assert max(lora.merge["exact"]) < 1e-5


def test_the_same_run_again_says_the_same(finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    before = finished.evidence(finished.lora)
    assert main(["--run", finished.lora, "--results", str(finished.results)]) == 0
    assert "attention distance in 2 windowed blocks" in capsys.readouterr().out
    after = finished.evidence(finished.lora)
    assert (before.blocks, before.state, before.merge) == (after.blocks, after.state, after.merge)


def test_the_line_tells_the_trained_distance_before_the_frozen_one():
    run = record().run
    said = evidence_line(run, evidence(run.key, shift=3.0))
    assert said.count("2 windowed blocks 25.0 px, frozen 22.0, uniform 25.0") == 1
    assert said.count("2 global blocks 25.0 px, frozen 22.0, uniform 25.0") == 1


def test_edited_copied_and_foreign_files_are_named(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    root = tmp_path / "results"
    shutil.copytree(finished.results / "records", root / "records")
    store = EvidenceStore(root)
    shutil.copytree(finished.results / "evidence", store.folder)
    assert records(["check", str(root)]) == 0
    content = json.loads(store.path(finished.lora).read_text())
    content["blocks"][0]["trained"]["distance_px"][0] = 1.0
    store.path(finished.lora).write_text(json.dumps(content))
    shutil.copy(store.path(finished.decoder), store.folder / "copy.json")
    (store.folder / "other.json").write_text('{"run": 1}')
    capsys.readouterr()
    assert records(["check", str(root)]) == 1
    said = capsys.readouterr().out
    for reason in ("its seal does not fit", f"belongs to run {finished.decoder}", "no evidence record", "3 wrong"):
        assert reason in said
    assert store.find(finished.lora) is None
    assert store.find("nothing") is None


def test_evidence_travels_with_its_records(finished: Finished, tmp_path: Path):
    out = tmp_path / "out"
    assert records(["merge", str(finished.results), "--out", str(out)]) == 0
    assert EvidenceStore(out).find(finished.lora) == finished.evidence(finished.lora)
    assert records(["merge", str(finished.results), "--out", str(tmp_path / "none"), "--protocol", "mini"]) == 2
    assert not EvidenceStore(tmp_path / "none").folder.exists()


def test_a_file_of_the_old_layout_reads_merges_and_is_rewritten_in_few_lines(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    root = tmp_path / "old"
    shutil.copytree(finished.results / "records", root / "records")
    shutil.copytree(finished.results / "evidence", root / "evidence")
    path = EvidenceStore(root).path(finished.lora)
    written = path.read_bytes()
    assert written.count(b"\n") < 25 * len(finished.evidence(finished.lora).blocks)
    older = sealed(json.loads(written))
    assert older.count(b"\n") > 3 * written.count(b"\n")
    path.write_bytes(older)
    assert seal_holds(older)
    assert EvidenceStore.load(path) == finished.evidence(finished.lora)
    assert records(["check", str(root)]) == 0
    assert records(["merge", str(finished.results), str(root)]) == 0
    assert "other evidence" not in capsys.readouterr().err
    assert compact(older) == written


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--images", "3", "--batch", "3"], "a minibatch needs 4 images"),
        (["--images", "4", "--batch", "8"], "a minibatch needs 4 images"),
        (["--run", "zzzz"], "no run"),
    ],
)
def test_bad_input_is_one_line(finished: Finished, words: list[str], said: str, capsys: pytest.CaptureFixture[str]):
    assert main(["--run", finished.lora, "--results", str(finished.results), *words]) == 2
    assert said in capsys.readouterr().err


def test_a_run_whose_state_is_gone_says_so(finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shutil.copytree(finished.results / "records", tmp_path / "records")
    shutil.copytree(finished.results / "sample-data", tmp_path / "sample-data")
    assert main(["--run", finished.lora, "--results", str(tmp_path)]) == 2
    assert "has no trained state" in capsys.readouterr().err


@pytest.mark.parametrize(("backbone", "decoder"), [("tiny", "sam"), ("tiny_timm", "sam"), ("tiny_timm", "linear")])
def test_the_frozen_backbone_is_the_one_that_training_met(tmp_path: Path, backbone: str, decoder: str):
    """Random weights are drawn again, whatever decoder the run has."""
    request = Request(
        entries=(Variant(method="decoder", options={}),), benchmarks=("kvasir",), protocol="demo",
        overrides={"decoder": decoder}, backbones=(backbone,), results=tmp_path,
    )  # fmt: skip
    run = plan(request, prepare_samples=sample_writer(tmp_path)).jobs[0].run
    met, _ = attached_segmenter(run, task="binary", num_classes=2, checkpoint=None)
    ours = frozen_encoder(run, None).state_dict()
    theirs = met.get_submodule("encoder").state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_a_hierarchical_encoder_is_refused_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    request = Request(
        entries=(Variant(method="decoder"),),
        benchmarks=("kvasir",),
        protocol="demo",
        overrides={"epochs": "1", "train_limit": 2, "val_limit": 1, "test_limit": 4},
        backbones=("tiny_mobile_sam",),
        results=tmp_path,
    )
    (job,) = plan(request, prepare_samples=sample_writer(tmp_path)).jobs
    assert main(["--run", run_experiment(job).key, "--results", str(tmp_path)]) == 2
    assert "is hierarchical" in capsys.readouterr().err
