"""Conv-LoRA, as it comes, on a tiny timm ViT."""

from __future__ import annotations

from collections.abc import Callable

from tests.methods.contract.cases import under_every_clause


@under_every_clause([("convlora", {})], backbone="tiny_timm")
def test_method_fulfils_contract(clause: Callable[[], str]) -> None:
    clause()
