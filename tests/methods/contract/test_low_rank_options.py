"""What descends from LoRA, with options that change what it inserts, but for mixtures."""

from __future__ import annotations

from collections.abc import Callable

from tests.methods.contract.cases import Options, under_every_clause

OPTIONS: list[tuple[str, Options]] = [
    ("fact", {"form": "tk", "sites": "q,v,mlp", "rank": 4}),
    ("vera", {"sites": "qkv,decoder", "rank": 8}),
    ("dora", {"initialisation": "pissa", "sites": "proj,mlp"}),
]


@under_every_clause(OPTIONS)
def test_method_fulfils_contract(clause: Callable[[], str]) -> None:
    clause()
