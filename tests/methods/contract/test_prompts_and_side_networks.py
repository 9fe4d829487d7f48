"""The methods that add tokens or a network beside the blocks, as they come, on the tiny SAM and a tiny timm ViT."""

from __future__ import annotations

from collections.abc import Callable

from tests.methods.contract.cases import BESIDE, under_every_clause


@under_every_clause((name, {}) for name in BESIDE)
def test_method_fulfils_contract_on_sam(clause: Callable[[], str]) -> None:
    clause()


@under_every_clause(((name, {}) for name in BESIDE), backbone="tiny_timm")
def test_method_fulfils_contract_on_timm(clause: Callable[[], str]) -> None:
    clause()
