"""The verb: its record and what it prints, baselines by their words, one line an error."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness.archive.measured import CostStore
from harness.cli import cost

pytestmark = pytest.mark.usefixtures("nobody_else")

COMMAND = [
    "--methods", "lora,decoder", "--backbone", "tiny", "--protocol", "demo", "--rounds", "1", "--set", "image_size=64",
]  # fmt: skip


def test_the_verb_writes_a_record_and_prints_it(tmp_path: Path, says) -> None:
    out = says(cost.main, *COMMAND, "--shared", "--results", tmp_path, "--device", "cpu", "--set", "lora.rank=2")
    (record,) = CostStore(tmp_path).sessions()[0]
    assert record.methods[0].config["rank"] == 2
    assert "activations" in out
    assert "merged-exact" in out


def test_a_device_in_use_is_refused(tmp_path, says, monkeypatch) -> None:
    monkeypatch.setattr(
        "harness.costing.instruments.used_by_others", lambda device: "other processes use 1.5 of 2 cores"
    )
    error = says(cost.main, *COMMAND, "--results", tmp_path, code=2)
    assert "1.5 of 2 cores" in error
    assert "--shared" in error
    assert not list(tmp_path.iterdir())
    says(cost.main, "--methods", "decoder", *COMMAND[2:], "--shared", "--results", tmp_path)
    (record,) = CostStore(tmp_path).sessions()[0]
    assert record.shared == "other processes use 1.5 of 2 cores"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "lorra"], "did you mean 'lora'"),
        (["--methods", "lora", "--backbone", "vit_x"], "unknown backbone"),
        (["--methods", "lora", "--rounds", "0"], "--rounds 0: give at least 1"),
        (["--methods", "lora", "--backbone", "tiny", "--set", "image_size=100"], "or 96 or 112"),
        (["--methods", "lora", "--threads", "-2"], "--threads -2"),
        (["--methods", "lora", "--classes", "-3"], "--classes -3"),
        (["--methods", "lora", "--set", "batch_size=0"], "at least 1"),
        (["--methods", "lora", "--backbone", "tiny", "--shared", "--results", "/proc/nope"], "cannot be written"),
        (["--methods", "lora", "--backbone=tiny", "--clock=processor", "--threads=2", "--shared"], "--threads 1"),
        (["--methods", "lora", "--device", "gpu"], "give cpu or cuda:N"),
        (["--methods", "lora", "--device", "cuda:77"], "CUDA devices"),
        (["--methods", "lora,lora", "--backbone", "tiny", "--shared"], "have the same name"),
        (["--methods", "lora", "--set", "fused_atention=false"], "fused_attention"),
    ],
)
def test_bad_input_gets_one_line(arguments: list[str], message: str, says) -> None:
    threads = torch.get_num_threads()
    assert message in says(cost.main, *arguments, "--protocol", "demo", code=2)
    torch.set_num_threads(threads)
