"""The methods that add low-rank factors of a site's own to its weights, as they come, on a tiny timm ViT."""

from __future__ import annotations

from collections.abc import Callable

from tests.methods.contract.cases import LOW_RANK, under_every_clause


@under_every_clause(((name, {}) for name in LOW_RANK), backbone="tiny_timm")
def test_method_fulfils_contract(clause: Callable[[], str]) -> None:
    clause()
