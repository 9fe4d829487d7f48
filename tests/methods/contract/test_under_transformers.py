"""The contract under decoders that are transformers: every clause for a cell under Segmenter's, the heart of it under Mask2Former's."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.methods.contract.cases import under_every_clause


@under_every_clause([("naslora", {})], backbone="tiny_timm", decoder="mask-transformer")
def test_a_cell_under_the_mask_transformer(clause: Callable[[], str]) -> None:
    clause()


@under_every_clause(
    [("naslora", {}), ("adapter", {})],
    backbone="tiny_timm",
    decoder="mask2former",
    checks=("identity", "gradient", "count", "merge"),
)
def test_a_cell_and_an_adapter_under_mask2former(clause: Callable[[], str]) -> None:
    pytest.importorskip("transformers")
    clause()
