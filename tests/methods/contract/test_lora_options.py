"""LoRA with options that change what it inserts."""

from __future__ import annotations

from collections.abc import Callable

from tests.methods.contract.cases import Options, under_every_clause

OPTIONS: list[tuple[str, Options]] = [
    ("lora", {"sites": "q,k,v,proj,mlp", "blocks": "1,3"}),
    ("lora", {"scaling": "rslora", "rate_ratio": 4.0, "rank": 9}),
    ("lora", {"sites": "decoder"}),
    ("samed", {"initialisation": "pissa"}),
]


@under_every_clause(OPTIONS)
def test_method_fulfils_contract(clause: Callable[[], str]) -> None:
    clause()
