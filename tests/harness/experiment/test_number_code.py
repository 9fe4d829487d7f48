"""The fingerprint of code that makes numbers moves with what can touch one, and with nothing else."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from harness.datasets.kvasir import Kvasir
from harness.experiment import experiment
from harness.experiment import number_code as module
from harness.experiment.experiment import run_experiment
from harness.experiment.number_code import number_code
from harness.registry import METHODS, load_plugin
from harness.training.outcome import Interrupted, StopRequest
from tests.harness.planned import job_of

PLUGIN = '''
from dataclasses import dataclass
from harness.methods.lora import LoRA
from harness.methods.linears import LowRankConfig

SCALE = 2.0


@dataclass(frozen=True, kw_only=True)
class MineConfig(LowRankConfig):
    """Options."""

    width: int = 3


def half(value: float) -> float:
    return value / 2


class Mine(LoRA):
    """Docstring."""

    name = "mine"
    config_class = MineConfig

    def auxiliary_loss(self) -> None:
        # nothing here
        return None
'''


@pytest.fixture
def fingerprint(tmp_path: Path):
    def of(source: str) -> dict[str, str]:
        path = tmp_path / "mine.py"
        path.write_text(source, encoding="utf-8")
        load_plugin(path)
        method = METHODS.get("mine")
        code = number_code(method, method.config_class, Kvasir)
        del sys.modules[method.__module__]
        METHODS._loaded.pop("mine")
        return code

    return of


@pytest.mark.parametrize(
    ("old", "new"), [("2.0", "2.5"), ("value / 2", "value / 3"), ("width: int = 3", "width: int = 4")]
)
def test_code_of_the_method_changes_its_part_alone(fingerprint, old: str, new: str) -> None:
    first, second = fingerprint(PLUGIN), fingerprint(PLUGIN.replace(old, new))
    assert first["numbers_method"] != second["numbers_method"]
    assert first == fingerprint(PLUGIN.replace('"""Docstring."""', '"""Another."""').replace("# nothing here", ""))
    assert (first["numbers"], first["numbers_benchmark"]) == (second["numbers"], second["numbers_benchmark"])


def test_rooms_that_every_run_uses_count_and_exports_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / name for name in ("training/loop.py", "experiment/scoring.py", "experiment/exporting.py")]
    monkeypatch.setattr(module, "HARNESS", tmp_path)
    lora = METHODS.get("lora")

    def numbers(edited: Path | None = None) -> str:
        for file in files:
            file.parent.mkdir(exist_ok=True)
            file.write_text(f"def work():\n    return {2 if file == edited else 1}\n", encoding="utf-8")
        return number_code(lora, lora.config_class, Kvasir)["numbers"]

    first = numbers()
    assert [numbers(file) == first for file in files] == [False, False, True]


def test_what_a_method_is_made_of_counts_and_other_methods_do_not() -> None:
    sources = {path.stem for path in module._sources(METHODS.get("lora"), "parts")}
    assert {"lora", "base", "lowrank"} <= sources
    assert "naslora" not in sources


def test_a_record_names_the_code_that_began_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = {"epochs": 1, "train_limit": 4, "val_limit": 2, "test_limit": 2, "keep_masks": 0, "merge": []}
    job = job_of(tmp_path, **rules)
    stop = StopRequest()
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "device_name", lambda device: "another machine")
        patch.setattr(experiment, "number_code", lambda *parts: {"numbers": "earlier", "numbers_method": "method"})
        with pytest.raises(Interrupted):
            run_experiment(job, stop=stop, progress=lambda reported: stop.request() if reported.get("step") else None)
    record = run_experiment(job)
    assert (record.message, record.code, record.environment.get("begun_by")) == ("", "OK", "earlier method")
    assert record.environment["numbers"] != "earlier"
    assert record.environment["begun_on"] == f"another machine, torch {torch.__version__}"
