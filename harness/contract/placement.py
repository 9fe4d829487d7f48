"""The clause on placement: every ``blocks`` and ``sites`` that a method takes is where it trains, and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import torch

from harness.contract.case import ContractCase
from harness.contract.violation import must_refuse, require
from harness.methods.parts.placement import MethodError, parse_blocks
from harness.models.segmenter import Segmenter

BLOCKS = ("all", "first-half", "last-half", "global", "0")
SITES = ("qkv", "q,v", "q,k,v", "proj", "mlp", "proj,mlp")


def placement(subject: ContractCase) -> str:
    """``blocks`` and ``sites`` restrict the method to what they name, with the closed form's count; nonsense is refused."""
    names = {field.name for field in fields(subject.config)}
    if "blocks" not in names:
        return "no placement"
    for blocks in BLOCKS:
        if blocks == "global" and not subject.shape.global_blocks:
            continue
        _require_blocks(_with(subject, blocks=blocks), blocks)
    for sites, placed in _placed_at(subject) if "sites" in names else ():
        segmenter = _require_count(placed, f"sites={sites}")
        with torch.no_grad():
            finite = math.isfinite(float(segmenter(subject.images[:2]).masks.sum()))
        require(finite, f"sites={sites}: the logits are not finite")
    for nonsense in ("no-such-blocks", str(subject.shape.depth)):
        with must_refuse(f"blocks={nonsense!r} is accepted"):
            _with(subject, blocks=nonsense).attached()
    return "blocks, sites" if "sites" in names else "blocks"


def _placed_at(subject: ContractCase) -> Iterator[tuple[str, ContractCase]]:
    """The sites that the configuration does not refuse."""
    for sites in SITES:
        try:
            yield sites, _with(subject, sites=sites)
        except MethodError:
            continue


def _require_blocks(subject: ContractCase, blocks: str) -> None:
    segmenter = _require_count(subject, f"blocks={blocks}")
    shape = subject.shape
    allowed = set(parse_blocks(blocks, depth=shape.depth, global_blocks=shape.global_blocks))
    for index, block in enumerate(segmenter.encoder.blocks):
        trains = any(parameter.requires_grad for parameter in block.parameters())
        require(index in allowed or not trains, f"blocks={blocks} trains in block {index}")


def _require_count(subject: ContractCase, what: str) -> Segmenter:
    try:
        segmenter, _ = subject.attached()
    except AttributeError as error:
        raise MethodError(f"{what} is accepted, but cannot be attached: {error}") from error
    placed = sum(p.numel() for p in segmenter.encoder.parameters() if p.requires_grad)
    expected = subject.config.encoder_parameters(subject.shape)
    require(placed == expected, f"with {what} {placed} parameters train, the closed form says {expected}")
    return segmenter


def _with(subject: ContractCase, **changes: Any) -> ContractCase:
    return replace(subject, config=replace(subject.config, **changes))
