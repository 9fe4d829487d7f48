"""The methods that train or rescale what the backbone has, as they come, on a tiny timm ViT."""

from __future__ import annotations

from collections.abc import Callable

from tests.methods.contract.cases import OWN, under_every_clause


@under_every_clause(((name, {}) for name in OWN), backbone="tiny_timm")
def test_method_fulfils_contract(clause: Callable[[], str]) -> None:
    clause()
