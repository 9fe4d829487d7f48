"""Every method on small trunks with rotary positions, DINOv3's and SAM 3's: the clauses that depend on a trunk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from harness.contract.case import ContractCase
from harness.contract.checks import CHECKS
from harness.models.catalog import backbone_shape
from harness.registry import METHODS, method_config_class
from methods.parts.placement import MethodError
from tests.methods.contract.cases import Options

CLAUSES = ("identity", "gradient", "count", "merge")
OPTIONS: dict[tuple[str, str], Options | None] = {
    ("ssf", "vit_t_dinov3"): None,  # refused: see below
    ("ssf", "vit_t_sam3"): {"outside": False},
    ("fact", "vit_t_sam3"): {"sites": "qkv,proj"},
}


def _clauses() -> list[Any]:
    cases = []
    for backbone in ("vit_t_dinov3", "vit_t_sam3"):
        for name in METHODS.names():
            options = OPTIONS.get((name, backbone), {})
            if options is not None:
                config = method_config_class(name)(**options)
                case = ContractCase(method=METHODS.get(name), config=config, backbone=backbone)
                cases += [
                    pytest.param(
                        lambda case=case, clause=clause: CHECKS[clause](case), id=f"{name}-{backbone}-{clause}"
                    )
                    for clause in CLAUSES
                ]
    return cases


@pytest.mark.parametrize("clause", _clauses())
def test_method_fulfils_contract(clause: Callable[[], str]) -> None:
    clause()


@pytest.mark.parametrize(
    ("name", "backbone", "hint"),
    [
        ("ssf", "vit_t_dinov3", "no bias at q, k and v; take another method"),
        ("ssf", "vit_t_sam3", r"no bias at its patch projection; take ssf\[outside=false\]"),
        ("fact", "vit_t_sam3", "leave mlp out"),
    ],
)
def test_what_a_trunk_has_no_place_for_is_refused_in_one_line(name: str, backbone: str, hint: str) -> None:
    with pytest.raises(MethodError, match=hint) as caught:
        method_config_class(name)().encoder_parameters(backbone_shape(backbone))
    assert "\n" not in str(caught.value)
