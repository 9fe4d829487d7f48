"""The contract under Segmenter's mask transformer: the heart of it for every method."""

from __future__ import annotations

from collections.abc import Callable

from harness import methods
from tests.methods.contract.cases import under_every_clause


@under_every_clause(
    [(name, {}) for name in methods.BUILTIN],
    backbone="tiny_timm",
    decoder="mask-transformer",
    checks=("identity", "gradient", "merge"),
)
def test_every_method_under_the_mask_transformer(clause: Callable[[], str]) -> None:
    clause()
