"""The card beside every export: what the Hub reads of it, and a command that trains the same run."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

from harness import run as run_verb
from harness.archive.schema import Record, Run
from harness.archive.store import RecordStore
from harness.cli import export
from harness.experiment import exporting
from harness.models import hf_names
from harness.planning.data import sample_writer
from harness.planning.plan import plan
from harness.planning.understand import understand
from harness.report.command import command_of
from harness.report.model_card import model_card
from harness.settings import Settings
from tests.harness.experiment.finished import export_to, finished

SCORES = {"best": {"test": {"s_measure": 0.75, "e_mean": 0.5, "iou": 0.25}, "val": {"s_measure": 1.0}}}


def real(run: Run) -> Run:
    """The same run, as if its images were photographs."""
    return replace(run, data_note="")


def test_the_hub_reads_base_model_data_set_and_scores(results: Path) -> None:
    run = real(finished(results, "lora"))
    record = Record(run=run, key=run.key, code="OK", scores=SCORES)
    card: Any = ModelCard(
        model_card(record, base=None, licence=None, form="it", usage="so", merge="", terms="free", source="here")
    )
    assert card.data.base_model is None  # random weights
    assert (card.data.license, card.data.datasets, card.data.metrics) == (
        "apache-2.0",
        ["kvasir"],
        ["s_measure", "e_mean"],
    )
    values = [(result.metric_type, result.metric_value) for result in card.data.eval_results]
    assert values == [("s_measure", 0.75), ("e_mean", 0.5)]
    assert command_of([record]) in card.text
    assert run.protocol_hash in card.text


@pytest.mark.parametrize(
    ("arguments", "out", "where"),
    [
        (["--adapter-only"], "a.safetensors", "a.README.md"),
        ([], "sam.pth", "sam.README.md"),
        (["--peft"], "p", "p/README.md"),
    ],
)
def test_a_demo_has_no_model_index_and_its_use_is_code_that_runs(results, tmp_path, monkeypatch, arguments, out, where):
    run = finished(results, "lora")
    RecordStore(results).write(Record(run=run, key=run.key, code="OK", scores=SCORES))
    assert export_to(results, run, tmp_path / out, *arguments) == 0
    card = ModelCard.load(tmp_path / where)
    assert card.data.eval_results is None
    assert "model-index" not in card.content
    assert "generated" in card.text
    code = card.text.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    if arguments == ["--peft"]:  # nobody publishes the random weights that it started from
        assert "PeftModel.from_pretrained(" in code
        return
    names: dict[str, Any] = {}
    exec(code, names)
    assert isinstance(names.get("segmenter", names.get("sam")), torch.nn.Module)


@pytest.mark.parametrize(
    ("merge", "scores", "told"),
    [
        ("exact", {}, 0.75),
        ("calibrated", {}, None),
        ("calibrated", {"merged-calibrated": {"test": {"s_measure": 0.625}}}, 0.625),
    ],
)
def test_a_merge_that_changes_the_model_is_not_given_the_scores_of_the_unmerged(results, merge, scores, told):
    run = real(finished(results, "naslora"))
    record = Record(run=run, key=run.key, code="OK", scores=SCORES | scores)
    text = model_card(record, base=None, licence=None, form="it", usage="so", merge=merge, terms="free", source="here")
    card: Any = ModelCard(text)
    values = [result.metric_value for result in card.data.eval_results or [] if result.metric_type == "s_measure"]
    assert values == ([] if told is None else [told])
    assert ("before merging" in text) == (told is None)
    assert f"{told or 0.75:.4f}" in text  # the table says whose scores it holds


def test_the_base_model_has_the_hubs_name_where_the_run_started_from_its_weights(results: Path, tmp_path, monkeypatch):
    run = finished(results, "lora")
    assert exporting.base_model(run) is None
    assert exporting.base_model(replace(run, checkpoint="sha256-0")) is None  # nobody publishes it
    assert exporting.base_model(replace(run, backbone="vit_h", checkpoint="sha256-0")) == "facebook/sam-vit-huge"
    monkeypatch.setattr(exporting, "base_model", lambda run: "facebook/sam-vit-base")
    assert export_to(results, run, tmp_path / "a", "--peft") == 0
    assert (
        json.loads((tmp_path / "a" / "adapter_config.json").read_text())["base_model_name_or_path"]
        == "facebook/sam-vit-base"
    )
    assert ModelCard.load(tmp_path / "a" / "README.md").data.base_model == "facebook/sam-vit-base"
    assert hf_names.MODELS.keys() <= hf_names.LICENCES.keys()


def test_the_command_on_a_card_plans_the_run_of_the_record(results: Path) -> None:
    run = finished(results, "lora", rules={"lr": "2e-4", "merge": ["exact"]}, rank=5, sites="q,v")  # type: ignore[dict-item]
    _, verb, *words = shlex.split(command_of([Record(run=run, key=run.key, code="OK")]))
    assert verb == "run"
    asked = understand(run_verb.parser().parse_args([*words, "--results", str(results)]), Settings())
    (job,) = plan(asked.request, prepare_samples=sample_writer(results)).jobs
    assert job.run.key == run.key


def test_a_folder_is_written_whole_or_not_at_all(results: Path, tmp_path, monkeypatch, capsys) -> None:
    run = finished(results, "lora")
    monkeypatch.setattr(exporting, "CARD", "no/README.md")  # the last file cannot be written
    command = ["--results", str(results), "--run", run.key, "--out", str(tmp_path / "a"), "--peft"]
    assert export.main(command) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "adapter_config.json").write_text("mine")
    assert export.main([*command, "--force"]) == 2
    assert [(file.name, file.read_text()) for file in (tmp_path / "a").iterdir()] == [("adapter_config.json", "mine")]
