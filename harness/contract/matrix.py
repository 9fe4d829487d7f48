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
from harness.methods.base import Method, MethodConfig
from harness.methods.parts.placement import MethodError
from harness.models.build import build_segmenter
from harness.models.catalog import backbone_shape, trained_in_decoder
from harness.registry import METHODS, method_config
from harness.system.errors import UsageError, line_in

CONTRACT_BACKBONES = ("tiny", "tiny_timm")


@dataclass(frozen=True, kw_only=True)
class Capability:
    """One row of the matrix; counts are closed forms on ``backbone``, which the contract compares with attached models.

    Args:
        code: ``own``, a package's name, or ``plug-in``.
        encoder_parameters, trainable_parameters: without and with mask decoder and head.
        refusal: why it does not attach to ``backbone``, empty where it does; not a failure.
        declared: clause that, as the method declares, does not hold -> the reason.
        failures: ``clause@backbone`` -> what was seen; ``passed`` means that there are none.
    """

    method: str
    backbone: str
    paper: str = ""
    code: str = ""
    encoder_parameters: int | None = None
    trainable_parameters: int | None = None
    total_parameters: int | None = None
    identity_at_init: bool | None = None
    merge_modes: tuple[str, ...] = ()
    placement: tuple[str, ...] = ()
    refusal: str = ""
    declared: dict[str, str] = field(default_factory=dict)
    passed: bool = False
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """The verdict on the contract, in words."""
        if not self.passed:
            return f"broken ({len(self.failures)})"
        if self.refusal:
            return f"not on {self.backbone}"
        return f"holds except {', '.join(self.declared)}" if self.declared else "holds"


def examine(name: str, *, backbone: str, options: Mapping[str, Any] | None = None) -> Capability:
    """Run the contract on one method and count its parameters on ``backbone``. What the method's code raises becomes a failure. Raises
    UsageError: unknown method or backbone."""
    row: dict[str, Any] = {"method": METHODS.resolve(name), "backbone": backbone}
    failures: dict[str, str] = {}
    try:
        method = METHODS.get(row["method"])
        config = method_config(row["method"], dict(options or {}))
    except (UsageError, MethodError) as error:
        return Capability(**row, failures={"configuration": str(error)})
    for tiny in CONTRACT_BACKBONES:
        case = ContractCase(method=method, config=config, backbone=tiny)
        for clause in (clause for clause in CHECKS if clause not in method.lacks):
            try:
                CHECKS[clause](case)
            except Exception as error:  # a plug-in may raise anything; the other methods are examined all the same
                failures[f"{clause}@{tiny}"] = _describe(error, method)
    try:
        return capability(method, config, **row, failures=failures)
    except MethodError as error:
        return Capability(**row, refusal=str(error), passed=not failures, failures=failures)


def capability(
    kind: type[Method], config: MethodConfig, *, method: str, backbone: str, failures: dict[str, str]
) -> Capability:
    """The row of a method whose contract has been run. Raises MethodError: it does not fit the backbone."""
    with torch.device("meta"):
        plain: Any = build_segmenter(backbone, task="binary")
    shape = backbone_shape(backbone)
    encoder = config.encoder_parameters(shape)
    linears = [plain.get_submodule(leaf) for leaf in plain.decoder_linears()] if config.freezes_decoder else []
    in_decoder = config.decoder_parameters([(part.in_features, part.out_features) for part in linears])
    names = {f.name for f in fields(config)}
    entry = methods.BUILTIN.get(method)
    instance = kind(config)
    return Capability(
        method=method,
        backbone=backbone,
        paper=entry.paper if entry else kind.paper,
        code=", ".join(kind.packages) or ("own" if entry else "plug-in"),
        encoder_parameters=encoder,
        trainable_parameters=encoder + trained_in_decoder(config, backbone, task="binary"),
        total_parameters=sum(p.numel() for p in plain.parameters()) + config.added_parameters(shape) + in_decoder,
        identity_at_init=instance.identity_at_init,
        merge_modes=tuple(instance.merge_modes),
        placement=tuple(key for key in ("blocks", "sites") if key in names),
        declared=dict(kind.lacks),
        passed=not failures,
        failures=failures,
    )


def _describe(error: Exception, method: type[Method]) -> str:
    """The first line of an error; for a foreign one also its type and the line of the method's file that raised it."""
    line = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, AssertionError | UsageError | MethodError):
        return line
    file = getattr(sys.modules.get(method.__module__), "__file__", None)  # a method from a notebook has none
    return f"{type(error).__name__}: {line}{line_in(file, error)}"


def matrix_markdown(rows: Sequence[Capability]) -> str:
    """The rows as a markdown table, the same bytes for the same rows; the columns *trained: …* are counts of parameters."""

    def count(number: int | None) -> str:
        return "" if number is None else f"{number:,}"

    cells = [
        {
            "method": f"`{row.method}`",
            "paper": row.paper or "–",
            "code": row.code,
            "identity at init": {None: "", True: "yes", False: "declared deviation"}[row.identity_at_init],
            "merges": ", ".join(row.merge_modes) or "–",
            "placement": ", ".join(row.placement) or "–",
            f"trained: encoder ({row.backbone})": count(row.encoder_parameters),
            "trained: with mask decoder": count(row.trainable_parameters),
            "contract": row.verdict,
        }
        for row in rows
    ]
    alignment = ["right" if title.startswith("trained") else "left" for title in cells[0]]
    return tabulate(cells, headers="keys", tablefmt="github", colalign=alignment, disable_numparse=True)
