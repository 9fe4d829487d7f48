"""The methods beside LoRA's family that add modules, as they come, on the tiny SAM."""

from __future__ import annotations

from collections.abc import Callable

from tests.methods.contract.cases import OTHERS, under_every_clause


@under_every_clause((name, {}) for name in OTHERS)
def test_method_fulfils_contract(clause: Callable[[], str]) -> None:
    clause()
