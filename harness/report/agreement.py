"""The table that says whether methods rank alike under several models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from harness.comparison import provenance
from harness.comparison.grid import Grid
from harness.comparison.paired import ImagesOf
from harness.comparison.rankings import ModelPair, chance_in_words, interval_bounds, pairs
from harness.report.page import Block, texts


def agreement_blocks(grids: Sequence[Grid], *, title: str, images_of: ImagesOf) -> list[Block]:
    """The table of `pairs`, none where there is no pair."""
    found = pairs(grids, images_of=images_of)
    if not found:
        return []
    places = list(dict.fromkeys(column for one in found for column in one.columns))
    rows = []
    for one in found:
        by_place = dict(zip(one.columns, one.agreement.by_benchmark, strict=True))
        words = (
            f"{one.models[0]} – {one.models[1]}",
            *(f"{by_place[place]:+.2f}" if place in by_place else "–" for place in places),
            f"{one.agreement.mean:+.2f}",
            interval_bounds(one.agreement.interval),
            chance_in_words(one.agreement),
        )
        rows.append(texts(words, behind=partial(_behind, pair=one)))
    return [
        Block(
            heading=f"{title}: do the methods rank alike?",
            columns=["models", *(f"τ {place}" for place in places), "mean τ", "95 % of resamples", "by chance"],
            rows=rows,
            below=[
                f"Kendall's τ-b between two models' scores of the same rows ({_ranked(found)}): 1 is the same order, −1 the"
                " reverse. [The middle 95 % of resamples of seeds and images, the same for all rows and both"
                " models: too narrow for a confidence interval where seeds are few.]",
                "By chance: how many orders of the rows agree at least so well. It is what speaks of other methods; the"
                " resamples speak of other seeds and images for these.",
                *(
                    f"{' – '.join(one.models)}: too few rows are complete on {', '.join(one.left_out)}, which is left out."
                    for one in found
                    if one.left_out
                ),
            ],
        )
    ]


def _ranked(found: Sequence[ModelPair]) -> str:
    """``decoder, lora, bitfit``, by pair where they differ"""
    if len({one.rows for one in found}) == 1:
        return ", ".join(found[0].rows)
    return "; ".join(f"{' – '.join(one.models)}: {', '.join(one.rows)}" for one in found)


def _behind(folder: provenance.Folder, pair: ModelPair) -> list[str]:
    by_benchmark = zip(pair.columns, pair.agreement.by_benchmark, strict=True)
    lines = [f"  {column}: τ {value:+.4f}" for column, value in by_benchmark]
    share = f"{pair.agreement.p:.4f} of {math.factorial(pair.agreement.methods)} orders"
    return [*lines, f"  {share} agree at least so well; {pair.seeds} seeds", f"  {', '.join(pair.keys)}"]
