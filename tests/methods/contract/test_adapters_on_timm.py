"""The methods that put small modules into a block, as they come, on a tiny timm ViT."""

from __future__ import annotations

from collections.abc import Callable

from tests.methods.contract.cases import ADAPTERS, under_every_clause


@under_every_clause(((name, {}) for name in ADAPTERS), backbone="tiny_timm")
def test_method_fulfils_contract(clause: Callable[[], str]) -> None:
    clause()
