"""NAS-LoRA and NAS-PC-LoRA with options that change their cell."""

from __future__ import annotations

from collections.abc import Callable

from tests.methods.contract.cases import Options, under_every_clause

OPTIONS: list[tuple[str, Options]] = [
    ("naslora", {"style": "linear", "scope": "image"}),
    ("naslora", {"operations": "no-conv", "sites": "q,v"}),
    ("naspclora", {"style": "linear"}),
    ("naslora", {"norm": "batch-affine", "residual": True}),
    ("naslora", {"norm": "none", "operations": "no-pool"}),
    ("naspclora", {"style": "linear", "residual": True}),
    ("naslora", {"operations": "wide", "norm": "batch-affine"}),
    ("naslora", {"operations": "wide", "style": "linear", "scope": "image"}),
]


@under_every_clause(OPTIONS)
def test_method_fulfils_contract(clause: Callable[[], str]) -> None:
    clause()
