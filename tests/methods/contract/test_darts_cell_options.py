"""NAS-LoRA with options that change its cell, whose operations keep activation and norm as DARTS has them."""

from __future__ import annotations

from collections.abc import Callable

from tests.methods.contract.cases import Options, under_every_clause

OPTIONS: list[tuple[str, Options]] = [
    ("naslora", {"operations": "no-conv", "sites": "q,v"}),
    ("naslora", {"norm": "batch-affine", "residual": True}),
    ("naslora", {"norm": "none", "operations": "no-pool"}),
    ("naslora", {"operations": "wide", "norm": "batch-affine"}),
]


@under_every_clause(OPTIONS)
def test_method_fulfils_contract(clause: Callable[[], str]) -> None:
    clause()
