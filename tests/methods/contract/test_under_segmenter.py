"""The contract under Segmenter's decoders, Mask2Former's and a classifier: every clause for one method of each kind,
the heart of it for all."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import methods
from tests.methods.contract.cases import under_every_clause


@under_every_clause([("naslora", {})], backbone="vit_t_timm", decoder="mask-transformer")
def test_a_cell_under_the_mask_transformer(clause: Callable[[], str]) -> None:
    clause()


@under_every_clause([("lora", {})], backbone="vit_t_timm", decoder="linear")
def test_lora_under_the_linear_decoder(clause: Callable[[], str]) -> None:
    clause()


@under_every_clause(
    [(name, {}) for name in methods.BUILTIN],
    backbone="vit_t_timm",
    decoder="mask-transformer",
    checks=("identity", "gradient", "merge"),
)
def test_every_method_under_the_mask_transformer(clause: Callable[[], str]) -> None:
    clause()


@under_every_clause(
    [("naslora", {}), ("adapter", {})],
    backbone="vit_t_timm",
    decoder="mask2former",
    checks=("identity", "gradient", "count", "merge"),
)
def test_a_cell_and_an_adapter_under_mask2former(clause: Callable[[], str]) -> None:
    pytest.importorskip("transformers")
    clause()


@under_every_clause([("bitfit", {}), ("lora", {}), ("naslora", {})], backbone="vit_t_timm", decoder="mean-pool")
def test_three_methods_on_the_mean_patch_in_every_clause(clause: Callable[[], str]) -> None:
    clause()


@under_every_clause(
    [("lora", {}), ("lst", {}), ("naslora", {})],
    backbone="vit_t_timm",
    decoder="class-token",
    checks=("identity", "gradient", "count", "batch", "merge"),
)
def test_three_kinds_of_method_on_the_class_token(clause: Callable[[], str]) -> None:
    clause()
