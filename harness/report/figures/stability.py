"""Rank stability: how often each row takes each place when the seeds are drawn again."""

from __future__ import annotations

from harness.report.figures.across import benchmark_words, complete_scores
from harness.report.figures.material import Drawing, Material, NothingToDrawError
from harness.report.figures.style import COLUMN, new_figure
from harness.statistics import rank_stability

RESAMPLES = 2_000


def draw(material: Material) -> list[Drawing]:
    benchmarks, scores = complete_scores(material, least=2)
    if min(len(seeds) for mine in scores.values() for seeds in mine) < 2:
        raise NothingToDrawError("rank stability redraws seeds, and there is one seed only")
    places = rank_stability(scores, resamples=RESAMPLES)
    order = sorted(scores, key=lambda label: sum(place * share for place, share in places[label].items()))
    count = len(order)
    figure = new_figure(COLUMN, 0.75 + 0.2 * count)
    ax = figure.subplots()
    table = [[places[label].get(place, 0.0) for place in range(1, count + 1)] for label in order]
    ax.pcolormesh(
        [place + 0.5 for place in range(count + 1)], [line - 0.5 for line in range(count + 1)], table,
        cmap="Greys", vmin=0, vmax=1, edgecolors="white", linewidth=0.5,
    )  # fmt: skip
    for line, shares in enumerate(table):
        for place, share in enumerate(shares, start=1):
            if share >= 0.005:
                shade = "white" if share > 0.55 else "black"
                ax.text(place, line, f"{100 * share:.0f}", ha="center", va="center", fontsize=6, color=shade)
    ax.set_yticks(range(count), [material.short(label) for label in order])
    ax.set_xticks(range(1, count + 1))
    ax.set_ylim(count - 0.5, -0.5)
    ax.set_xlabel("place (1 is best)")
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)
    caption = (
        f"How often (%) each row takes each place by its mean rank over {benchmark_words(benchmarks)} when its seeds are"
        f" redrawn with replacement ({RESAMPLES} times); rows that tie share the better place. {material.caption}"
    )
    return [Drawing(part="", figure=figure, caption=caption)]
