"""What α chose where: softmax(α) at the end, sites by operations, on a scale fixed around the uniform level."""

from __future__ import annotations

from collections.abc import Sequence

from harness.report.figures.material import Drawing, Material
from harness.report.figures.mixtures import RowMixture, end_by_site, heading, mixtures, title
from harness.report.figures.style import COLUMN, PAGE, panels, split_by_length

SPAN = 2.0
"""The scale's ends are 1/n divided and multiplied by this, whatever the data, so that figures compare."""


def draw(material: Material) -> list[Drawing]:
    several = list(split_by_length(mixtures(material), columns=3, height=_height))
    return [
        _page(material, found, part=str(number) if len(several) > 1 else "")
        for number, found in enumerate(several, start=1)
    ]


def _height(found: Sequence[RowMixture]) -> float:
    """Inches of a row of panels."""
    return 0.95 + 0.13 * min(max(len(mixture.runs[0].architecture[-1]) for mixture in found), 40)


def _page(material: Material, found: list[RowMixture], *, part: str) -> Drawing:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import TwoSlopeNorm

    columns = min(3, len(found))
    width = COLUMN if columns == 1 else PAGE
    figure, axes = panels(len(found), columns=columns, width=width, height=_height(found))
    norm = TwoSlopeNorm(1.0, vmin=1 / SPAN, vmax=SPAN)
    for place, (ax, mixture) in enumerate(zip(axes, found, strict=True)):
        ends = end_by_site(mixture.runs)
        table = [[share * mixture.n for share in shares] for shares in ends.values()]
        ax.pcolormesh(table, cmap="PuOr_r", norm=norm, edgecolors="white", linewidth=0.3)
        below = found[place + columns] if place + columns < len(found) else None
        said = below is None or below.operations != mixture.operations
        labels = [title(one) if said else "" for one in mixture.operations]
        ax.set_xticks([at + 0.5 for at in range(mixture.n)], labels, rotation=90)
        step = max(1, -(-len(ends) // 32))
        sites = [site.replace("blocks.", "").replace(".qkv", "") for site in ends][::step]
        ax.set_yticks([at * step + 0.5 for at in range(len(sites))], sites, fontsize=5.5)
        ax.set_ylim(len(ends), 0)
        ax.tick_params(length=0)
        ax.set_title(heading(mixture), loc="left", fontsize=6)
        if place % columns == 0:
            ax.set_ylabel("block")
    bar = figure.colorbar(ScalarMappable(norm=norm, cmap="PuOr_r"), ax=axes, shrink=0.8, aspect=30, pad=0.02)
    bar.set_ticks([0.5, 0.75, 1.0, 1.5, 2.0], labels=["1/2", "3/4", "1", "3/2", "2"])
    bar.set_label("share ÷ uniform share")
    caption = (
        "softmax(α) at the end of training by block and operation, mean over seeds, as a multiple of the uniform share 1/n."
        f" The scale is fixed from 1/2 to 2: white says that α chose nothing. {material.caption}"
    )
    return Drawing(part=part, figure=figure, caption=caption)
