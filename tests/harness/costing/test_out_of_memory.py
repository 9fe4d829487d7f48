"""A method without memory, wherever it runs out of it, is left out of a measurement."""

from __future__ import annotations

import itertools

import pytest
import torch

from harness.archive.cost import CostStore
from harness.cli import cost
from harness.costing import measure as measuring
from harness.costing.contestant import Contestant
from harness.planning.rows import MethodRow

pytestmark = pytest.mark.usefixtures("nobody_else")

COMMAND = ["--backbone", "tiny", "--protocol", "demo", "--rounds", "1", "--image-size", "64", "--shared"]


@pytest.mark.parametrize("place", ["build", "sizes", "training", "inference"])
def test_a_method_that_runs_out_of_memory_is_left_out_and_the_rest_is_written(place, monkeypatch, tmp_path, says):
    def failing(function, sick):
        def called(*arguments, **options):
            if sick(*arguments):
                raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB")
            return function(*arguments, **options)

        return called

    def is_adapter(subject, *_) -> bool:
        return (subject.label if isinstance(subject, MethodRow) else subject.variant) == "adapter"

    counts = itertools.count(1)  # of steps: two to warm up, two for the peak, then the rounds
    owner, name, sick = {
        "build": (measuring, "build_subject", is_adapter),
        "sizes": (measuring, "peak_memory", is_adapter),
        "training": (Contestant, "step", lambda subject, _: is_adapter(subject) and next(counts) > 4),
        "inference": (
            measuring,
            "_infer",
            lambda model, *_: any("adapter" in name for name, _ in model.named_modules()),
        ),
    }[place]
    monkeypatch.setattr(owner, name, failing(getattr(owner, name), sick))
    said = says(cost.main, "--methods", "adapter,decoder", *COMMAND, "--results", tmp_path, code=1)
    (record,) = CostStore(tmp_path)
    reason = "OOM: OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
    assert record.dropped == {"adapter": reason}
    assert [method.variant for method in record.methods] == ["decoder"]
    assert len(record.methods[0].inference_seconds["unmerged"]) == 1
    assert f"not measured: adapter: {reason}" in said
