"""Every method can be measured; those of `test_cost` are there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.costing.measure import measure
from tests.harness.costing.small import measured_alone, modes_of, session_of


@pytest.mark.parametrize("name", measured_alone())
def test_every_method_can_be_measured_from_training_to_inference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.costing.measure.WARMUP", 1)
    record = measure(replace(session_of(name), rounds=1))
    (method,) = record.methods
    assert record.dropped == {}
    assert method.merge_failures == {}
    assert set(method.inference_seconds) == {"unmerged", *(f"merged-{mode}" for mode in modes_of(name))}
    for seconds in (method.step_seconds["total"], *method.inference_seconds.values()):
        assert len(seconds) == 1
        assert seconds[0] > 0
