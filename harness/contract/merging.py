"""The clause on merging: declared modes merge within their tolerance and report truly, others are refused."""

from __future__ import annotations

import torch

from harness.contract.case import ContractCase, logits
from harness.contract.violation import Violation, first, must_refuse, require
from harness.methods.base import MergeMode, MergeReport
from harness.models.original_sam import plain_sam, sam_state_dict
from harness.models.sam_encoder import SAMEncoder
from harness.models.segmenter import Segmenter

MERGE_TOLERANCE = 1e-4
"""Relative, of ``exact`` and ``conv`` merges; ``calibrated`` approximates and only has to report its error truly."""


def declared_merges(subject: ContractCase) -> str:
    """Every declared mode merges within its tolerance and reports truly; every other mode is refused."""
    modes: tuple[MergeMode, ...] = ("exact", "conv", "calibrated")
    seen = []
    _, method = subject.attached()
    for mode in modes:
        if mode not in method.merge_modes:
            with must_refuse(f"{mode} is not among its merge modes and is accepted"):
                method.merge(mode, calibration=[subject.images], held_out=[subject.images])
            continue
        seen.append(_merged(subject, mode))
    return "; ".join(seen) or "not mergeable"


def _merged(subject: ContractCase, mode: MergeMode) -> str:
    segmenter, method = subject.trained()
    calibration, held_out = subject.images[:2], subject.images[2:]
    before = logits(segmenter, held_out)
    report = method.merge(mode, calibration=[calibration], held_out=[held_out])
    after = logits(segmenter, held_out)
    largest, relative = float((after - before).abs().max()), float((after - before).norm() / before.norm())
    require(report.mode == mode, f"the report of {mode} says {report.mode}")
    if report.max_deviation is None or report.relative_deviation is None:
        raise Violation(f"{mode} reports no deviation although it was given held-out images")
    require(
        _near(report.max_deviation, largest) and _near(report.relative_deviation, relative),
        f"{mode} reports a deviation of {report.max_deviation:.2e} ({report.relative_deviation:.2e} relative); "
        f"measured {largest:.2e} ({relative:.2e})",
    )
    require(relative < float("inf"), f"{mode} gives outputs that are not finite")
    unknown = set(report.partly) - set(report.left)
    require(
        not unknown, f"{mode} reports {first(unknown)} as folded in part, but not among the sites that keep the rest"
    )
    whole = not report.left
    if mode != "calibrated":
        require(relative <= MERGE_TOLERANCE, f"{mode} changes the output by {relative:.1e} (relative)")
    extra = sum(p.numel() for p in segmenter.encoder.parameters()) - sum(
        p.numel() for p in subject.plain().encoder.parameters()
    )
    require(
        extra == report.extra_parameters,
        f"{mode} reports {report.extra_parameters} extra parameters, there are {extra}",
    )
    if whole and mode != "conv":
        _require_plain(subject, segmenter, report)
    return f"{mode} {relative:.1e}"


def _require_plain(subject: ContractCase, segmenter: Segmenter, report: MergeReport) -> None:
    """A whole merge is the plain backbone, for SAM's that of segment_anything's own modules: it loads strictly there and
    embeds images the same."""
    require(
        report.extra_parameters == 0,
        f"{report.mode} folds everything and still needs {report.extra_parameters} parameters",
    )
    plain = subject.plain()
    differ = segmenter.encoder.state_dict().keys() ^ plain.encoder.state_dict().keys()
    require(not differ, f"{report.mode} leaves names that a plain backbone does not have: {first(differ)}")
    encoder = plain.encoder
    if isinstance(segmenter.encoder, SAMEncoder):
        sam = plain_sam(subject.backbone, image_size=subject.images.shape[-1])
        sam.load_state_dict(sam_state_dict(segmenter), strict=True)
        encoder = sam.image_encoder
    else:
        encoder.load_state_dict(segmenter.encoder.state_dict(), strict=True)
    with torch.no_grad():
        images = subject.images[2:]
        largest = float((encoder(images) - segmenter.encoder(images)).abs().max())
    require(
        largest <= MERGE_TOLERANCE,
        f"the plain encoder embeds the {report.mode} merge differently by {largest:.1e}",
    )


def _near(reported: float, measured: float) -> bool:
    return abs(reported - measured) <= 1e-6 + 1e-2 * measured
