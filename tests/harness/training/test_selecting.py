"""When training validates, which epoch it keeps, and when it stops because none is better."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from harness.training.outcome import Interrupted, Progress, Selection, StopRequest
from tests.harness.training.tiny import Run, protocol, scripted


def test_the_best_epoch_is_kept_and_ties_go_to_the_earlier(tmp_path: Path) -> None:
    rules = protocol(epochs=4)
    result = Run(folder=tmp_path / "four", images=2, rules=rules, validate=scripted(0.1, 0.7, 0.7, 0.3)).train()
    assert result.selected_epoch == 2
    assert [entry["val"]["iou"] for entry in result.history] == [0.1, 0.7, 0.7, 0.3]
    # The state of epoch 2 is the last state of a run that is stopped there.
    stopped = Run(folder=tmp_path / "two", images=2, rules=rules, validate=scripted(0.1, 0.7), stop=StopRequest())
    stop = stopped.stop
    assert stop is not None
    stopped.report = lambda progress: stop.request() if (progress.kind, progress.epoch) == ("epoch", 2) else None
    with pytest.raises(Interrupted):
        stopped.train()
    best = load_file(result.best_state)
    kept = load_file(tmp_path / "two" / "best-0002.safetensors")
    assert all(torch.equal(best[name], kept[name]) for name in best)
    assert not all(torch.equal(best[name], value) for name, value in load_file(result.last_state).items())


@pytest.mark.parametrize(
    ("lower", "values", "best"),
    [(False, (0.2, 0.5, 0.4), 2), (True, (0.5, 0.2, 0.4), 2), (False, (math.nan, 0.1, 0.1), 2)],
)
def test_selection_knows_the_metrics_direction(lower: bool, values: tuple[float, ...], best: int) -> None:
    selection = Selection(metric="x", lower_is_better=lower)
    chosen, kept = 0, None
    for epoch, value in enumerate(values, start=1):
        if selection.improves(value, kept):
            chosen, kept = epoch, value
    assert chosen == best


def test_validation_runs_every_select_every_epochs_and_at_the_end(tmp_path: Path) -> None:
    calls = scripted(0.5, 0.4, 0.6)
    result = Run(folder=tmp_path, images=2, rules=protocol(epochs=5, select_every=2), validate=calls).train()
    assert [bool(entry["val"]) for entry in result.history] == [False, True, False, True, True]
    assert result.selected_epoch == 5


def test_validation_sees_the_segmenter_in_evaluation_mode_without_gradient(tmp_path: Path) -> None:
    run = Run(folder=tmp_path, rules=protocol(epochs=1))
    seen = []

    def look() -> dict[str, float]:
        seen.append((run.segmenter.training, torch.is_grad_enabled()))
        return {"iou": 0.0}

    run.validate = look
    run.train()
    assert seen == [(False, False)]


def test_training_stops_once_patience_runs_out_and_lr_falls_as_if_it_had_not(tmp_path: Path) -> None:
    scores = [0.1, 0.3, 0.2, 0.3, 0.9]
    rules = {"epochs": 5, "patience": 2}
    result = Run(folder=tmp_path / "early", images=2, rules=protocol(**rules), validate=scripted(*scores)).train()
    whole = Run(folder=tmp_path / "whole", images=2, rules=protocol(epochs=5), validate=scripted(*scores)).train()
    assert len(whole.history) == 5
    assert result.selected_epoch == 2
    assert [(e["epoch"], e["loss"], e["lr"]) for e in result.history] == [
        (e["epoch"], e["loss"], e["lr"]) for e in whole.history[:4]
    ], "a tie is no better, so two in a row were none better than epoch 2"
    assert load_file(result.last_state).keys() == load_file(result.best_state).keys()
    again: list[Progress] = []
    Run(folder=tmp_path / "early", images=2, rules=protocol(**rules), validate=scripted(), report=again.append).train()
    assert not [progress for progress in again if progress.kind == "step"], "a finished run stays finished"


def test_patience_counts_validations_and_starts_again_with_each_better_one(tmp_path: Path) -> None:
    rules = protocol(epochs=9, select_every=2, patience=2)
    result = Run(folder=tmp_path, images=2, rules=rules, validate=scripted(0.3, 0.2, 0.4, 0.1, 0.2)).train()
    assert (len(result.history), result.selected_epoch) == (9, 6)
    rules = protocol(epochs=9, select_every=2, patience=1)
    result = Run(folder=tmp_path / "one", images=2, rules=rules, validate=scripted(0.3, 0.4, 0.4)).train()
    assert (len(result.history), result.selected_epoch) == (6, 4)
