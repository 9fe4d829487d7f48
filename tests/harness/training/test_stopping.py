"""Runs that stop, end and restart in one process: what they keep, continue from and refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from harness.training.optimisers import update
from harness.training.outcome import Interrupted, StopRequest
from tests.harness.training.tiny import Run, protocol, scripted, stop_at, summary


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder and the summary of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, summary(Run(folder=folder))


@pytest.fixture
def finished(whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> dict[str, Any]:
    """Leaves that run's files in ``tmp_path``."""
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    return whole[1]


@pytest.mark.parametrize(("epoch", "step", "following"), [(2, 3, [(2, 4)]), (2, 4, [(3, 1)]), (3, 4, [])])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(tmp_path, whole, epoch, step, following):
    """After the last update too, whose epoch was once neither validated nor in the history."""
    stop_at(tmp_path / "stopped", at={"kind": "step", "epoch": epoch, "step": step})
    reported: list[dict[str, Any]] = []
    assert summary(Run(folder=tmp_path / "stopped", report=reported.append)) == whole[1]
    assert [note.get("text", "") for note in reported if note["kind"] == "note"] == [
        f"continues in epoch {epoch} after step {step}"
    ]
    assert [(progress["epoch"], progress["step"]) for progress in reported if progress["kind"] == "step"][
        :1
    ] == following


class Killed(BaseException):
    """In place of a signal that ends the process: what is on the disk then is all that is left."""


STAGEWISE = {"search_start_epoch": 1, "alpha_data": "holdout", "alternate": "iteration"}
BOTH = {"search_start_epoch": 1, "alternate": "both"}


@pytest.mark.parametrize(
    ("method", "config", "minutes"),
    [
        pytest.param("naslora", STAGEWISE, 1e-9, id="naslora: batch norm, two optimisers, held-out part"),
        pytest.param("naslora", BOTH, 60.0, id="naslora: two passes a step, steps repeated since the epoch's end"),
        pytest.param("convlora", {}, 1e-9, id="convlora: noise", marks=pytest.mark.slow),
    ],
)
def test_killed_at_several_steps_it_ends_bit_identical(tmp_path, method, config, minutes):
    rules = protocol(checkpoint_minutes=minutes)
    alone = summary(Run(folder=tmp_path / "alone", method=method, config=config, rules=rules))
    for last in ({"kind": "step", "epoch": 2, "step": 2}, {"kind": "epoch", "epoch": 2}):

        def die(progress: dict[str, Any], last: dict[str, Any] = last) -> None:
            if progress.items() >= last.items():
                raise Killed

        with pytest.raises(Killed):
            Run(folder=tmp_path / "killed", method=method, config=config, rules=rules, report=die).train()
    notes: list[str] = []
    again = Run(folder=tmp_path / "killed", method=method, config=config, rules=rules)
    again.report = lambda progress: notes.append(progress.get("text", ""))
    assert summary(again) == alone
    assert any("continues in epoch" in note for note in notes)


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_finished_run_is_not_trained_again_and_writes_its_best_state(
    tmp_path: Path, finished: dict[str, Any], epoch: int
) -> None:
    """Where the file is missing, or is of another run: the checkpoint holds it."""
    (tmp_path / "best.safetensors").unlink()
    if epoch:
        foreign = {name: tensor + 1 for name, tensor in Run(folder=tmp_path).attached.state().items()}
        metadata = {"sam-peft-harness": json.dumps({"identity": "another", "epoch": epoch})}
        save_file(foreign, tmp_path / "best.safetensors", metadata=metadata)
    assert summary(Run(folder=tmp_path, validate=scripted())) == finished


def test_a_checkpoint_that_other_code_or_machine_continues_says_so_in_the_result(tmp_path: Path) -> None:
    """A run begun under one schedule and finished under another was unmarked."""
    for code, epoch in (("first", 1), ("first", 1), ("second", 2)):
        stop_at(tmp_path, at={"kind": "step", "epoch": epoch}, code=code, machine=f"{code} GPU")
    result = Run(folder=tmp_path, code="third", machine="second GPU").train()
    assert result.codes[:-1] == ["first", "second"]
    assert result.machines[:-1] == ["first GPU"]


@pytest.mark.usefixtures("finished")
def test_a_checkpoint_that_names_no_code_counts_as_written_by_other(tmp_path: Path) -> None:
    assert Run(folder=tmp_path).train().codes[:-1] == []
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    del content["position"]["codes"]
    torch.save(content, tmp_path / "checkpoint.pt")
    assert Run(folder=tmp_path).train().codes[:-1] == ["unknown"]


def test_a_stop_during_validation_is_heard_before_the_next_epoch(tmp_path, whole: tuple[Path, dict[str, Any]]) -> None:
    stop = StopRequest()
    run = Run(folder=tmp_path / "stopped", stop=stop)

    def validate() -> dict[str, float]:
        stop.request()
        return run.scores()

    run.validate = validate
    with pytest.raises(Interrupted, match="stopped in epoch 2 after step 0"):
        run.train()
    assert summary(Run(folder=tmp_path / "stopped")) == whole[1]


@pytest.mark.usefixtures("finished")
def test_another_runs_checkpoint_is_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({**torch.load(path, weights_only=True), "identity": "other"}, path)
    notes: list[str] = []
    steps: list[int] = []

    def look(progress: dict[str, Any]) -> None:
        if progress.get("text", ""):
            notes.append(progress.get("text", ""))
        if progress["kind"] == "step":
            steps.append(progress["step"])

    Run(folder=tmp_path, report=look).train()
    assert any("belongs to run other" in note for note in notes)
    assert len(steps) == 12


def test_a_run_keeps_the_number_of_threads_that_it_began_with(tmp_path: Path) -> None:
    """Sums in another order differ in the last digits, whatever the machine of a later start has."""
    rules, notes = protocol(epochs=1), []
    torch.set_num_threads(2)
    stop_at(tmp_path, at={}, images=4, rules=rules)
    torch.set_num_threads(1)
    Run(folder=tmp_path, images=4, rules=rules, report=lambda progress: notes.append(progress.get("text", ""))).train()
    assert torch.get_num_threads() == 2
    assert any("uses 2 threads" in text for text in notes)


def test_a_run_in_fp16_goes_on_with_the_scale_of_its_gradients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = protocol(precision="fp16", epochs=1)
    stop_at(tmp_path, at={"kind": "step", "step": 2}, rules=rules)
    file = tmp_path / "checkpoint.pt"
    content = torch.load(file, weights_only=True)
    content["scaler"]["scale"] = 32.0
    torch.save(content, file)
    scales: list[float] = []

    def noted(*arguments: Any, scaler: torch.amp.GradScaler, **options: Any) -> Any:
        scales.append(scaler.get_scale())
        return update(*arguments, scaler=scaler, **options)

    monkeypatch.setattr("harness.training.step.update", noted)
    Run(folder=tmp_path, rules=rules).train()
    assert scales
    assert scales[0] == 32.0
