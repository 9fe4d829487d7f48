"""What each method can do: the contract's verdict on the tiny backbones, and counts on a named backbone."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from tabulate import tabulate

from harness import methods
from harness.contract.case import ContractCase
from harness.contract.checks import CHECKS
from harness.methods.base import Method
from harness.methods.configs import MethodConfig
from harness.methods.parts.placement import MethodError
from harness.models.build import build_segmenter
from harness.models.catalog import backbone_shape, require_stands, trained_in_decoder
from harness.models.decoders import Decoder
from harness.registry import METHODS, method_config
from harness.system.errors import UsageError, line_in

CONTRACT_BACKBONES = ("tiny", "tiny_timm")
BEGIN, END = "<!-- doctor:begin -->", "<!-- doctor:end -->"


@dataclass(frozen=True, kw_only=True)
class Capability:
    """One row of the matrix; counts are closed forms on ``backbone``, which the contract holds against attached models.

    Args:
        code: whose: ``own``, a package's name, or ``plug-in``.
        encoder_parameters, trainable_parameters: without and with mask decoder and head.
        on_mobile_sam: trainable in MobileSAM's encoder; None where the method does not attach to it.
        refusal: why it does not attach to ``backbone``, empty where it does; no failure.
        declared: what it does not hold and says so, with the reason.
        failures: ``clause@backbone`` -> what was seen; ``passed`` where there is none.
    """

    method: str
    backbone: str
    decoder: Decoder = "sam"
    paper: str = ""
    code: str = ""
    encoder_parameters: int | None = None
    trainable_parameters: int | None = None
    total_parameters: int | None = None
    identity_at_init: bool | None = None
    merge_modes: tuple[str, ...] = ()
    placement: tuple[str, ...] = ()
    on_mobile_sam: int | None = None
    refusal: str = ""
    declared: dict[str, str] = field(default_factory=dict)
    passed: bool = False
    failures: dict[str, str] = field(default_factory=dict)


def examine(
    name: str, *, backbone: str, decoder: Decoder = "sam", options: Mapping[str, Any] | None = None
) -> Capability:
    """Run the contract on one method and count it on ``backbone``, on the tiny timm ViT alone under one of Segmenter's decoders. What
    the method's code raises becomes a failure. Raises UsageError: unknown method or backbone, or a decoder that does not stand on it."""
    require_stands(decoder, backbone)
    name = METHODS.resolve(name)
    try:
        method = METHODS.get(name)
    except UsageError as error:
        return Capability(method=name, backbone=backbone, decoder=decoder, failures={"import": str(error)})
    try:
        config = method_config(name, dict(options or {}))
    except (UsageError, MethodError) as error:
        return Capability(method=name, backbone=backbone, decoder=decoder, failures={"configuration": str(error)})
    failures = run_contract(method, config, decoder=decoder)
    try:
        return capability(method, config, name=name, backbone=backbone, decoder=decoder, failures=failures)
    except UsageError:
        raise
    except MethodError as error:
        return Capability(
            method=name, backbone=backbone, decoder=decoder, refusal=str(error), passed=not failures, failures=failures
        )
    except Exception as error:
        failures[f"count@{backbone}"] = _describe(error, method)
        return Capability(method=name, backbone=backbone, decoder=decoder, failures=failures)


def run_contract(method: type[Method], config: MethodConfig, *, decoder: Decoder = "sam") -> dict[str, str]:
    """Violations and crashes by ``clause@backbone``, but for what the method declares; empty if the contract holds."""
    failures = {}
    for backbone in CONTRACT_BACKBONES if decoder == "sam" else ("tiny_timm",):
        subject = ContractCase(method=method, config=config, backbone=backbone, decoder=decoder)
        for clause, check in CHECKS.items():
            if clause in method.lacks:
                continue
            try:
                check(subject)
            except Exception as error:  # a plug-in may raise anything, and the other methods still want their turn
                failures[f"{clause}@{backbone}"] = _describe(error, method)
    return failures


def capability(
    method: type[Method],
    config: MethodConfig,
    *,
    name: str,
    backbone: str,
    failures: dict[str, str],
    decoder: Decoder = "sam",
) -> Capability:
    """The row of a method whose contract has been run. Raises MethodError: it does not fit the backbone."""
    with torch.device("meta"):
        plain: Any = build_segmenter(backbone, task="binary", decoder=decoder)
    shape = backbone_shape(backbone)
    encoder = config.encoder_parameters(shape)
    of_decoder = trained_in_decoder(config, backbone, task="binary", decoder=decoder)
    linears = [plain.get_submodule(leaf) for leaf in plain.decoder_linears()] if config.freezes_decoder else []
    in_decoder = config.decoder_parameters([(part.in_features, part.out_features) for part in linears])
    names = {f.name for f in fields(config)}
    entry = methods.BUILTIN.get(name)
    made = method(config)
    return Capability(
        method=name,
        backbone=backbone,
        decoder=decoder,
        paper=entry.paper if entry else method.paper,
        code=", ".join(method.packages) or ("own" if entry else "plug-in"),
        encoder_parameters=encoder,
        trainable_parameters=encoder + of_decoder,
        total_parameters=sum(p.numel() for p in plain.parameters()) + config.added_parameters(shape) + in_decoder,
        identity_at_init=made.identity_at_init,
        merge_modes=tuple(made.merge_modes),
        placement=tuple(key for key in ("blocks", "sites") if key in names),
        on_mobile_sam=_on_mobile_sam(config) if decoder == "sam" else None,
        declared=dict(method.lacks),
        passed=not failures,
        failures=failures,
    )


def _on_mobile_sam(config: MethodConfig) -> int | None:
    """Trained parameters on MobileSAM by the closed form, which the contract checks and which refuses what does not attach."""
    try:
        return config.encoder_parameters(backbone_shape("mobile_sam"))
    except Exception:  # a plug-in may raise anything
        return None


def _describe(error: Exception, method: type[Method]) -> str:
    """The first line of an error; where it is not one of ours with its type, and where in the method's file it arose."""
    line = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, AssertionError | UsageError | MethodError):
        return line
    file = getattr(sys.modules.get(method.__module__), "__file__", None)  # none of a method made in a notebook
    return f"{type(error).__name__}: {line}{line_in(file, error)}"


WORDS = (True,) * 6 + (False,) * 3 + (True,)
"""Which of the matrix's columns hold words, and not counts."""


def matrix_cells(rows: Sequence[Capability]) -> tuple[list[str], list[list[str]]]:
    """Headings, and the cells of every method."""
    backbone = rows[0].backbone if rows else ""
    decoder = "mask decoder" if not rows or rows[0].decoder == "sam" else f"{rows[0].decoder} decoder"
    headers = ["method", "paper", "code", "identity at init", "merges", "placement", f"trained: encoder ({backbone})"]
    headers += [f"trained: with {decoder}", "trained: encoder (mobile_sam)", "contract"]
    cells = [
        [
            row.method,
            row.paper or "–",
            row.code,
            "" if row.identity_at_init is None else "yes" if row.identity_at_init else "declared deviation",
            ", ".join(row.merge_modes) or "–",
            ", ".join(row.placement) or "–",
            _number(row.encoder_parameters),
            _number(row.trainable_parameters),
            "does not attach" if row.on_mobile_sam is None else _number(row.on_mobile_sam),
            _verdict(row),
        ]
        for row in rows
    ]
    return headers, cells


def _verdict(row: Capability) -> str:
    if not row.passed:
        return f"broken ({len(row.failures)})"
    if row.refusal:
        return f"not on {row.backbone}"
    return f"holds, but {', '.join(row.declared)}" if row.declared else "holds"


def matrix_markdown(rows: Sequence[Capability]) -> str:
    """The matrix as a markdown table, the same bytes for the same rows."""
    headers, cells = matrix_cells(rows)
    cells = [[f"`{name}`", *rest] for name, *rest in cells]
    alignment = ["left" if words else "right" for words in WORDS]
    return tabulate(cells, headers=headers, tablefmt="github", colalign=alignment, disable_numparse=True)


def replace_section(text: str, table: str) -> str:
    """``text`` with ``table`` between the doctor's two markers. Raises UsageError: a marker is missing."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise UsageError(f"no place for the table: the file needs a line {BEGIN} and, below it, a line {END}")
    return f"{head}{BEGIN}\n{table}\n{END}{tail}"


def _number(count: int | None) -> str:
    return "" if count is None else f"{count:,}"
