"""NAS-LoRA and NAS-PC-LoRA with a cell of linear operations."""

from __future__ import annotations

from collections.abc import Callable

from tests.methods.contract.cases import Options, under_every_clause

OPTIONS: list[tuple[str, Options]] = [
    ("naslora", {"style": "linear", "scope": "image"}),
    ("naspclora", {"style": "linear"}),
    ("naspclora", {"style": "linear", "residual": True}),
    ("naslora", {"operations": "wide", "style": "linear", "scope": "image"}),
]


@under_every_clause(OPTIONS)
def test_method_fulfils_contract(clause: Callable[[], str]) -> None:
    clause()
