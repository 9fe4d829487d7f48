"""Conv-LoRA as it comes and with options that change its experts, on the tiny SAM."""

from __future__ import annotations

from collections.abc import Callable

from tests.methods.contract.cases import Options, under_every_clause

OPTIONS: list[tuple[str, Options]] = [
    ("convlora", {}),
    ("convlora", {"gate": "switch", "expert_bias": "zero"}),
    ("convlora", {"scope": "image", "sites": "q,v"}),
]


@under_every_clause(OPTIONS)
def test_method_fulfils_contract(clause: Callable[[], str]) -> None:
    clause()
