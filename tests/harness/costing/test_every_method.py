"""Every method can be measured; those of `test_cost` are there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.costing.measure import measure
from harness.registry import METHODS, method_config_class
from tests.harness.costing.small import session_of


@pytest.mark.parametrize(
    "name", [name for name in METHODS.names() if name not in ("full", "lora", "naslora", "decoder")]
)
def test_every_method_can_be_measured_from_training_to_merged_inference(name: str) -> None:
    record = measure(replace(session_of(name), rounds=1))
    (method,) = record.methods
    assert record.dropped == {}
    assert method.merge_failures == {}
    merged = {f"merged-{mode}" for mode in METHODS.get(name)(method_config_class(name)()).merge_modes}
    assert set(method.inference_seconds) == {"unmerged", *merged}
    for seconds in (method.step_seconds["total"], *method.inference_seconds.values()):
        assert len(seconds) == 1
        assert seconds[0] > 0
