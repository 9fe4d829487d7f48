"""The contract under decoders of one linear layer: Segmenter's, and a classifier's on the mean patch and on the class token."""

from __future__ import annotations

from collections.abc import Callable

from tests.methods.contract.cases import under_every_clause


@under_every_clause([("lora", {})], backbone="tiny_timm", decoder="linear")
def test_lora_under_the_linear_decoder(clause: Callable[[], str]) -> None:
    clause()


@under_every_clause([("bitfit", {}), ("lora", {}), ("naslora", {})], backbone="tiny_timm", decoder="mean-pool")
def test_three_methods_on_the_mean_patch_in_every_clause(clause: Callable[[], str]) -> None:
    clause()


@under_every_clause(
    [("lora", {}), ("lst", {}), ("naslora", {})],
    backbone="tiny_timm",
    decoder="class-token",
    checks=("identity", "gradient", "count", "batch", "merge"),
)
def test_three_kinds_of_method_on_the_class_token(clause: Callable[[], str]) -> None:
    clause()
