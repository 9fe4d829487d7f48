"""A method without memory, wherever it runs out of it, is left out of a measurement."""

from __future__ import annotations

import itertools

import pytest
import torch

from harness.archive.cost import CostStore
from harness.cli import cost
from harness.costing import measure as inference
from harness.costing import measure as measuring
from harness.costing.contestant import Contestant
from harness.planning.rows import MethodRow

pytestmark = pytest.mark.usefixtures("nobody_else")

COMMAND = ["--backbone", "tiny", "--protocol", "demo", "--rounds", "1", "--image-size", "64", "--shared"]


@pytest.mark.parametrize("place", ["build", "sizes", "training", "inference"])
def test_a_method_that_runs_out_of_memory_is_left_out_and_the_rest_is_written(place, monkeypatch, tmp_path, capsys):
    def failing(function, sick):
        def called(*arguments, **options):
            if sick(*arguments):
                raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB")
            return function(*arguments, **options)

        return called

    def is_naslora(subject, *_) -> bool:
        return (subject.label if isinstance(subject, MethodRow) else subject.variant) == "naslora"

    if place == "build":
        monkeypatch.setattr(measuring, "build_subject", failing(measuring.build_subject, is_naslora))
    elif place == "sizes":
        monkeypatch.setattr(measuring, "peak_memory", failing(measuring.peak_memory, is_naslora))
    elif place == "training":
        counts = itertools.count(1)
        second_turn = failing(Contestant.step, lambda s, _: is_naslora(s) and next(counts) > 8)
        monkeypatch.setattr(Contestant, "step", second_turn)
    else:
        infer = inference._infer
        monkeypatch.setattr(
            inference, "_infer", failing(infer, lambda model, *_: any("cell" in n for n, _ in model.named_modules()))
        )

    assert cost.main(["--methods", "naslora,lora", *COMMAND, "--results", str(tmp_path)]) == 1

    (record,) = CostStore(tmp_path)
    reason = "OOM: OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
    assert record.dropped == {"naslora": reason}
    assert [method.variant for method in record.methods] == ["lora"]
    assert len(record.methods[0].inference_seconds["unmerged"]) == 1
    assert f"not measured: naslora: {reason}" in capsys.readouterr().out
