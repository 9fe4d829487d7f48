"""Every method on a small trunk as DINOv3's, with rotary positions: the clauses that depend on a trunk."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness import methods
from harness.methods.parts.placement import MethodError
from harness.models.catalog import backbone_shape
from harness.registry import method_config_class
from tests.methods.contract.cases import TRUNK_CLAUSES, under_every_clause

REFUSED = "ssf"


@under_every_clause(
    ((name, {}) for name in methods.BUILTIN if name != REFUSED),
    backbone="tiny_dinov3",
    checks=TRUNK_CLAUSES,
)
def test_method_fulfils_contract(clause: Callable[[], str]) -> None:
    clause()


def test_what_the_trunk_has_no_place_for_is_refused_in_one_line() -> None:
    with pytest.raises(MethodError, match="no bias at q, k and v; take another method") as caught:
        method_config_class(REFUSED)().encoder_parameters(backbone_shape("tiny_dinov3"))
    assert "\n" not in str(caught.value)
