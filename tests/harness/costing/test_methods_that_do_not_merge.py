"""Every method that does not merge can be measured; those of `test_cost` are there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.costing.measure import measure
from tests.harness.costing.small import methods_left, session_of


@pytest.mark.parametrize("name", methods_left(merge=False))
def test_every_method_can_be_measured_from_training_to_inference(name: str) -> None:
    record = measure(replace(session_of(name), rounds=1))
    (method,) = record.methods
    assert record.dropped == {}
    assert method.merge_failures == {}
    assert set(method.inference_seconds) == {"unmerged"}
    for seconds in (method.step_seconds["total"], *method.inference_seconds.values()):
        assert len(seconds) == 1
        assert seconds[0] > 0
