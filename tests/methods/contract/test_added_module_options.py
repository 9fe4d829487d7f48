"""Adapters, prompts and a side network with options that change what they insert."""

from __future__ import annotations

from collections.abc import Callable

from tests.methods.contract.cases import Options, under_every_clause

OPTIONS: list[tuple[str, Options]] = [
    ("adapter", {"sites": "mlp", "hidden": 8}),
    ("vpt", {"blocks": "global", "tokens": 3}),
    ("lst", {"blocks": "0,2-3", "reduction": 4}),
    ("samadapter", {"scale": 16, "blocks": "windowed", "patch_embedding": "released"}),
]


@under_every_clause(OPTIONS)
def test_method_fulfils_contract(clause: Callable[[], str]) -> None:
    clause()
