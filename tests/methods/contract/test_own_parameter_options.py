"""The methods that train or rescale what the backbone has, with options that change what trains."""

from __future__ import annotations

from collections.abc import Callable

from tests.methods.contract.cases import Options, under_every_clause

OPTIONS: list[tuple[str, Options]] = [
    ("ssf", {"init": "released", "outside": False}),
    ("bitfit", {"outside": False}),
    ("layernorm", {"outside": False}),
]


@under_every_clause(OPTIONS)
def test_method_fulfils_contract(clause: Callable[[], str]) -> None:
    clause()
