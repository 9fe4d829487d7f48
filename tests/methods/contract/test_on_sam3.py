"""Every method on a small trunk as SAM 3's, with rotary positions: the clauses that depend on a trunk."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness import methods
from harness.methods.parts.placement import MethodError
from harness.models.catalog import backbone_shape
from harness.registry import method_config_class
from tests.methods.contract.cases import TRUNK_CLAUSES, Options, under_every_clause

OPTIONS: dict[str, Options] = {"ssf": {"outside": False}, "fact": {"sites": "qkv,proj"}}


@under_every_clause(
    ((name, OPTIONS.get(name, {})) for name in methods.BUILTIN),
    backbone="tiny_sam3",
    checks=TRUNK_CLAUSES,
)
def test_method_fulfils_contract(clause: Callable[[], str]) -> None:
    clause()


@pytest.mark.parametrize(
    ("name", "hint"),
    [("ssf", r"no bias at its patch projection; take ssf\[outside=false\]"), ("fact", "leave mlp out")],
)
def test_what_the_trunk_has_no_place_for_is_refused_in_one_line(name: str, hint: str) -> None:
    with pytest.raises(MethodError, match=hint) as caught:
        method_config_class(name)().encoder_parameters(backbone_shape("tiny_sam3"))
    assert "\n" not in str(caught.value)
