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
from harness.models.catalog import backbone_shape, require_stands, trained_in_decoder
from harness.models.decoders import Decoder
from harness.registry import METHODS, method_config
from harness.system.errors import UsageError, line_in

CONTRACT_BACKBONES = ("tiny", "tiny_timm")


@dataclass(frozen=True, kw_only=True)
class Capability:
    """One row of the matrix; counts are closed forms on ``backbone``, which the contract compares with attached models.

    Args:
        code: ``own``, a package's name, or ``plug-in``.
        encoder_parameters, trainable_parameters: without and with mask decoder and head.
        on_mobile_sam: trained in MobileSAM's encoder; None where the method does not attach to it.
        refusal: why it does not attach to ``backbone``, empty where it does; no failure.
        declared: clause that the method declares not to hold -> the reason.
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

    @property
    def verdict(self) -> str:
        """On the contract, in words."""
        if not self.passed:
            return f"broken ({len(self.failures)})"
        if self.refusal:
            return f"not on {self.backbone}"
        return f"holds except {', '.join(self.declared)}" if self.declared else "holds"


def examine(
    name: str, *, backbone: str, decoder: Decoder = "sam", options: Mapping[str, Any] | None = None
) -> Capability:
    """Run the contract on one method and count it on ``backbone``; another decoder than SAM's on the tiny timm ViT alone.

    What the method's code raises becomes a failure. Raises UsageError: unknown method or backbone, or a decoder that does not stand
    on it.
    """
    require_stands(decoder, backbone)
    row: dict[str, Any] = {"method": METHODS.resolve(name), "backbone": backbone, "decoder": decoder}
    failures: dict[str, str] = {}
    stage = "import"
    try:
        method = METHODS.get(row["method"])
        stage = "configuration"
        config = method_config(row["method"], dict(options or {}))
    except (UsageError, MethodError) as error:
        return Capability(**row, failures={stage: str(error)})
    for tiny in CONTRACT_BACKBONES if decoder == "sam" else ("tiny_timm",):
        case = ContractCase(method=method, config=config, backbone=tiny, decoder=decoder)
        for clause in (clause for clause in CHECKS if clause not in method.lacks):
            try:
                CHECKS[clause](case)
            except Exception as error:  # a plug-in may raise anything; the other methods are examined all the same
                failures[f"{clause}@{tiny}"] = _describe(error, method)
    try:
        return capability(method, config, **row, failures=failures)
    except UsageError:
        raise
    except MethodError as error:
        return Capability(**row, refusal=str(error), passed=not failures, failures=failures)
    except Exception as error:
        return Capability(**row, failures=failures | {f"count@{backbone}": _describe(error, method)})


def capability(
    kind: type[Method],
    config: MethodConfig,
    *,
    method: str,
    backbone: str,
    failures: dict[str, str],
    decoder: Decoder = "sam",
) -> Capability:
    """The row of a method whose contract has been run. Raises MethodError: it does not fit the backbone."""
    with torch.device("meta"):
        plain: Any = build_segmenter(backbone, task="binary", decoder=decoder)
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
        decoder=decoder,
        paper=entry.paper if entry else kind.paper,
        code=", ".join(kind.packages) or ("own" if entry else "plug-in"),
        encoder_parameters=encoder,
        trainable_parameters=encoder + trained_in_decoder(config, backbone, task="binary", decoder=decoder),
        total_parameters=sum(p.numel() for p in plain.parameters()) + config.added_parameters(shape) + in_decoder,
        identity_at_init=instance.identity_at_init,
        merge_modes=tuple(instance.merge_modes),
        placement=tuple(key for key in ("blocks", "sites") if key in names),
        on_mobile_sam=_on_mobile_sam(config) if decoder == "sam" else None,
        declared=dict(kind.lacks),
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
    """The first line of an error; of a foreign one also its type and the line of the method's file that raised it."""
    line = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, AssertionError | UsageError | MethodError):
        return line
    file = getattr(sys.modules.get(method.__module__), "__file__", None)  # none of a method made in a notebook
    return f"{type(error).__name__}: {line}{line_in(file, error)}"


def matrix_cells(rows: Sequence[Capability]) -> tuple[dict[str, bool], list[list[str]]]:
    """Headings, each with whether its column holds words and not counts, and the cells of every method."""
    decoder = "mask" if rows[0].decoder == "sam" else rows[0].decoder
    counts = (f"encoder ({rows[0].backbone})", f"with {decoder} decoder", "encoder (mobile_sam)")
    columns = dict.fromkeys(("method", "paper", "code", "identity at init", "merges", "placement"), True)
    columns |= {**{f"trained: {name}": False for name in counts}, "contract": True}

    def count(number: int | None, *, without: str = "") -> str:
        return without if number is None else f"{number:,}"

    return columns, [
        [
            row.method,
            row.paper or "–",
            row.code,
            {None: "", True: "yes", False: "declared deviation"}[row.identity_at_init],
            ", ".join(row.merge_modes) or "–",
            ", ".join(row.placement) or "–",
            count(row.encoder_parameters),
            count(row.trainable_parameters),
            count(row.on_mobile_sam, without="does not attach"),
            row.verdict,
        ]
        for row in rows
    ]


def matrix_markdown(rows: Sequence[Capability]) -> str:
    """The matrix as a markdown table, the same bytes for the same rows."""
    columns, cells = matrix_cells(rows)
    cells = [[f"`{name}`", *rest] for name, *rest in cells]
    alignment = ["left" if words else "right" for words in columns.values()]
    return tabulate(cells, headers=[*columns], tablefmt="github", colalign=alignment, disable_numparse=True)
