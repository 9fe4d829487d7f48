"""The low-rank methods with a cell between their factors, as they come, on a tiny timm ViT."""

from __future__ import annotations

from collections.abc import Callable

from tests.methods.contract.cases import CELLS, under_every_clause


@under_every_clause(((name, {}) for name in CELLS), backbone="tiny_timm")
def test_method_fulfils_contract(clause: Callable[[], str]) -> None:
    clause()
