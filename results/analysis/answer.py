"""The tables and figures of the pages on results, from the committed records: the leaderboard, and *Is NAS-LoRA better than LoRA?*

``python results/analysis/answer.py [--results results] [--docs docs]`` prints both as markdown: the leaderboard, then the difference of
NAS-LoRA to LoRA on each model and benchmark, paired by seed and test image, their mean over MobileSAM's benchmarks at 256 px, what a
training step costs, and what cell and search add. With ``--docs`` it writes the leaderboard between the marks of short-training.md and of
the README above it, and the figures. `nas-lora-plan.md`, in this folder, was committed before the scores were seen.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from block import as_block, summary, write_between_marks

from harness.archive.archive import Archive
from harness.comparison import Column, Difference, Grid, Leaderboard, grids, leaderboards
from harness.report.figures import differences
from harness.report.style import BETTER, GREY, INK, PAGE, WORSE, encoded_figure, limits, new_figure, styled
from harness.statistics import average_of
from harness.studies import load_study

LEADERBOARD, SHORT = "leaderboard", "leaderboard-short"
"""Studies: the leaderboard, and its first edition."""
NAMED = (
    "NAS-LoRA",
    "NAS-LoRA r=8 on all linears",
    "Conv-LoRA",
    "LoRA r=8 on all linears",
    "LoRA r=23 on all linears",
    "Decoder alone",
    "Zero-shot",
)
"""Rows of the leaderboard that pages always show."""
ROWS = 4
"""How many others of each verdict are on the page of findings."""
STUDIES = Path(__file__).parent / "studies"
MODELS = {"mobile_sam": "MobileSAM", "timm/vit_small_patch14_dinov2": "ViT-S"}
QUESTION = (
    *("question-sam", "question-sam-isic", "question-sam-folds", "question-sam-road", "question-sam-cvc612"),
    *("question-sam-512", "question-vit"),
)
"""Studies that ask the question; the first five are averaged."""
CONTROLS = (
    ("question-sam", "NAS-LoRA, no search", "LoRA", "cell without search − LoRA"),
    ("question-sam-isic", "NAS-LoRA, no search", "LoRA", "cell without search − LoRA"),
    ("question-sam", "NAS-LoRA", "NAS-LoRA, no search", "search − no search"),
    ("question-sam-isic", "NAS-LoRA", "NAS-LoRA, no search", "search − no search"),
    ("question-sam", "NAS-LoRA, joint (one pass)", "LoRA", "one-pass search − LoRA"),
    ("question-sam", "NAS-LoRA, whole map", "LoRA", "cells on whole maps − LoRA"),
)
"""(study, row, other row, what their difference is)"""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One benchmark of one study."""

    study: str
    grid: Grid
    column: Column
    difference: Difference

    @property
    def model(self) -> str:
        rules = self.grid.rules
        return f"{MODELS.get(self.grid.backbone, self.grid.backbone)} at {rules['image_size']} px"

    def score(self, row: str) -> str:
        cell = self.grid.cells[row, self.column]
        return f"{100 * cell.mean:.1f} ± {100 * (cell.sd or 0):.1f}" if cell.values else "–"


def lines(archive: Archive) -> Iterator[Line]:
    for name in QUESTION:
        for grid, column in columns_of(archive, name):
            difference = grid.difference("NAS-LoRA", "LoRA", column)
            if difference is not None:
                yield Line(study=name, grid=grid, column=column, difference=difference)


def columns_of(archive: Archive, study: str) -> Iterator[tuple[Grid, Column]]:
    """The study's table and the first column of each benchmark that has runs."""
    for grid in grids(archive, study=load_study(str(STUDIES / f"{study}.yaml")))[:1]:
        for column in grid.first_columns.values():
            if grid.cells["LoRA", column].values:
                yield grid, column


def words(difference: Difference) -> str:
    bounds = "" if difference.low is None else f" [{difference.low:+.2f}, {difference.high:+.2f}]"
    return f"{difference.mean:+z.2f}{bounds}"


def mean_of(of: list[Line]) -> Difference:
    return Difference.of(average_of([line.difference.estimate for line in of if line.difference.estimate is not None]))


def table(of: list[Line], mean: Difference) -> str:
    rows = [
        "| model, benchmark | decoder alone | LoRA | NAS-LoRA | difference | seeds |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for line in of:
        alone = "decoder alone" if "decoder alone" in line.grid.rows else "decoder only"
        scores = " | ".join(line.score(row) if row in line.grid.rows else "–" for row in (alone, "LoRA", "NAS-LoRA"))
        rows.append(f"| {line.model}: {line.column.name} | {scores} | {words(line.difference)} | {line.difference.n} |")
    count = len(averaged(of))
    rows.append(f"| **{of[0].model}: mean of {count}** | | | | **{words(mean)}** | |")
    return "\n".join(rows)


def averaged(of: list[Line]) -> list[Line]:
    return [line for line in of if line.study in QUESTION[:5]]


def costs(of: list[Line]) -> list[str]:
    """A training step of NAS-LoRA over LoRA's, a line a model."""
    by_model = {}
    for line in of:
        (board,) = leaderboards([line.grid], baseline="LoRA")
        if line.model not in by_model and (ratio := board.ratio("NAS-LoRA", "time")):
            by_model[line.model] = (
                f"{line.model}: a training step takes {ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}] times LoRA's"
            )
    return list(by_model.values())


def controls(archive: Archive) -> Iterator[str]:
    for study, row, other, what in CONTROLS:
        for grid, column in columns_of(archive, study):
            if {row, other} <= grid.rows.keys() and (difference := grid.difference(row, other, column)):
                yield f"{what}, {column.name}: {words(difference)} ({difference.n} seeds)"


def draw(of: list[Line], mean: Difference, path: Path) -> None:
    shown = [
        *((f"{line.model}: {line.column.name}", line.difference) for line in of),
        (f"{of[0].model}: mean of {len(averaged(of))}", mean),
    ]
    with styled():
        figure = new_figure(PAGE, 0.5 + 0.17 * len(shown))
        ax = figure.subplots()
        ends = [end for _, d in shown for end in (d.low, d.high) if end is not None]
        low, high = limits([0.0, *ends])
        ax.axvline(0, color=INK, linewidth=0.6)
        for height, (_, d) in enumerate(shown):
            colour = BETTER if (d.low or 0) > 0 else WORSE if (d.high or 0) < 0 else GREY
            if d.low is not None and d.high is not None:
                width = 3 if d is mean else 1.5
                ax.plot([d.low, d.high], [height, height], color=colour, linewidth=width, solid_capstyle="butt")
            ax.plot([d.mean], [height], color=colour, marker="o")
        ax.set_xlim(low, high)
        ax.set_yticks(range(len(shown)), [name for name, _ in shown])
        ax.set_ylim(len(shown) - 0.4, -0.6)
        ax.tick_params(axis="y", length=0)
        ax.grid(visible=True, axis="x")
        ax.set_xlabel("NAS-LoRA − LoRA, points (95 % confidence intervals)")
        path.write_bytes(
            encoded_figure(figure, "svg", title="NAS-LoRA − LoRA", caption="Differences by model and benchmark.")
        )


def board(archive: Archive, name: str = LEADERBOARD) -> Leaderboard:
    study = load_study(name)
    return leaderboards(grids(archive, study=study), study)[0]


def blocks(archive: Archive) -> dict[str, str]:
    """Page -> its leaderboard, between two marks."""
    leaders = board(archive)
    return {
        "docs/short-training.md": summary(
            board(archive, SHORT), named=NAMED, most=ROWS, whole=f"../results/tables/{SHORT}.md"
        ),
        "docs/findings.md": summary(leaders, named=NAMED, most=ROWS, whole=f"../results/tables/{LEADERBOARD}.md"),
        "README.md": as_block(leaders, named=NAMED, most=2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--docs", type=Path, help="the folder of findings.md, to write into")
    options = parser.parse_args()
    archive = Archive(options.results)
    of = list(lines(archive))
    mean = mean_of(averaged(of))
    leaders = board(archive)
    print(summary(leaders) + "\n")
    print(table(of, mean))
    print("\n" + "\n".join(f"- {line}" for line in (*costs(of), *controls(archive))))
    if options.docs:
        figures = options.docs / "figures"
        for page, text in blocks(archive).items():
            write_between_marks(options.docs.parent / page, text)
        draw(of, mean, figures / "answer.svg")
        with styled():
            if made := differences(leaders, leaders.leading, width=PAGE):
                (figures / "leaderboard.svg").write_bytes(
                    encoded_figure(made[0], "svg", title="Leaderboard", caption=made[1])
                )


if __name__ == "__main__":
    main()
