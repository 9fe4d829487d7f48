"""Flags of runs beyond their scores: whether α could leave the uniform mixture, and did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from harness.archive.archive import Archive, Shares
from harness.archive.schema import Record

AlphaCode = Literal["", "ALPHA_STUCK", "ALPHA_UNIFORM"]

NEAR_UNIFORM = 1.1
"""Shares up to this multiple of 1/n count as uniform: our choice. α ~ N(0, 0.001²) alone gives 1.003."""

MEANINGS: Mapping[str, str] = {
    "ALPHA_STUCK": "α could not move: its rate summed over its updates allows no operation more than"
    f" {NEAR_UNIFORM:g} times its uniform share (α's start and what Adam steps beyond the rate not counted);"
    " more α updates or a higher alpha_lr would",
    "ALPHA_UNIFORM": f"α stayed uniform: no operation at any site got more than {NEAR_UNIFORM:g} times its uniform share",
}
"""Code -> the footnote of a table."""


def alpha_code(record: Record, last: Shares) -> AlphaCode:
    """The flag of a run whose mixture says nothing about the choice of α. Empty for other runs, without α, and for a control
    without a search. ``last`` is softmax(α) at the end of training. Older records do not hold how far α could move."""
    sizes = [len(shares) for shares in last.values() if len(shares) > 1]
    if not sizes or record.run.never_reached:
        return ""
    cap = record.budget.get("share_cap")
    if record.budget.get("alpha_updates") == 0 or (cap is not None and cap * max(sizes) <= NEAR_UNIFORM):
        return "ALPHA_STUCK"
    largest = max(len(shares) * max(shares) for shares in last.values() if len(shares) > 1)
    return "ALPHA_UNIFORM" if largest <= NEAR_UNIFORM else ""


def alpha_codes(records: Iterable[Record], archive: Archive) -> list[str]:
    """The flags of these runs' α, each once."""
    ends = ((record, archive.mixture(record)) for record in records)
    return sorted({code for record, end in ends if end and (code := alpha_code(record, end))})
