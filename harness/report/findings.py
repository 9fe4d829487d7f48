"""The answer as pages: docs/findings.md, docs/details/, the README's two sentences, and their figures (differences below each
other, with what they are on the left and their intervals on the right), all from records.

Every number on these pages comes from here; the words are the templates below ``harness/report/answer``. A results folder has
such pages where ``docs/findings.md`` beside it begins with `MARK`: that of this repository.
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import statistics as stats
from harness.archive.measured import CostRecord, CostStore, ForgettingStore, MethodCost
from harness.comparison.cells import Cell
from harness.comparison.claims import read_claims
from harness.comparison.grids import contrasts
from harness.comparison.names import benchmark_title
from harness.comparison.question import (
    MODELS,
    QUESTION,
    SAM,
    Case,
    Model,
    Pair,
    Question,
    model_title,
)
from harness.comparison.readings import main_effects, specification_curve
from harness.comparison.step_costs import paired_ratio
from harness.report.figures.style import GREY, PAGE, SHADES, encoded, new_figure, styled
from harness.report.forgetting import forgetting_page
from harness.report.formats import markdown_table
from harness.studies import load_study
from harness.system.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATES = Path(__file__).parent / "answer"
MARK = "<!-- Rendered from the records by sam-peft tables; its words are in harness/report/answer. -->"
START, END = "<!-- answer -->", "<!-- /answer -->"
"""Around what is rendered of a page that people write (the README)."""
PADDED = ", padding computed"
"""Of a session of costs with ``fused_attention=false``, in which no step skips the padding of windows."""
ROWS_OF_QUESTION = ("LoRA", "NAS-LoRA", "decoder alone")
"""Rows that sam-methods has for its own runs and the question has already."""
COST_CLAIM = "training-cost"
"""The abstract's sentence on cost (harness/data/claims.yaml)."""


class Answer(Question):
    """What the templates see: the question's numbers, and functions that put others into words."""

    def score(self, study: str, benchmark: str, row: str, **rules: Any) -> str:
        return mean_sd(self.seeds(study, benchmark, row, **rules))

    def d(self, study: str, benchmark: str, first: str, second: str, **rules: Any) -> str:
        """``+0.40 [-1.36, +2.16]``"""
        case = self.case(Pair(study=study, benchmark=benchmark, first=first, second=second), **rules)
        if case is None:
            raise LookupError(f"{study} has no difference of {first} and {second} on {benchmark}")
        return of_estimate(case.estimate)

    def mean_of(self, cell: Cell, case: Case) -> str:
        """Mean ± SD of a side, over the draws that both sides have."""
        return mean_sd([100 * cell.values[seed] for seed in case.seeds]).rpartition(" ")[0]

    def decoder_alone(self, case: Case) -> str:
        """Mean ± SD of the row that trains neck and mask decoder alone, in the same study and on the draws of the case; ``–`` where it
        has none."""
        row = case.decoder_row
        cell = case.grid.cells[row, case.column] if row else None
        values = [100 * cell.values[seed] for seed in case.seeds if seed in cell.seeds] if cell else []
        shown, _, count = mean_sd(values).rpartition(" ") if values else ("–", "", "")
        return shown if not values or len(values) == case.n else f"{shown} {count}"

    def counted(self, cases: Sequence[Case]) -> str:
        """How many of these intervals lie on which side of zero, in words."""
        intervals = [interval for case in cases if (interval := case.difference.interval)]
        above, below = sum(interval.low > 0 for interval in intervals), sum(interval.high < 0 for interval in intervals)
        means = [case.estimate.mean for case in cases]
        alone = len(cases) - len(intervals)
        one_run = f", {alone} {'has' if alone == 1 else 'have'} one draw and no interval" if alone else ""
        apart = ", ".join(f"{case.column.short}: {case.pair.what}" for case in cases if case.is_apart)
        return (
            f"{len(cases)} comparisons: {above} above zero, {below} below, {len(intervals) - above - below} across it{one_run}"
            f"{f' (apart from zero: {apart})' if apart else ''};"
            f" their means run from {min(means):+.2f} to {max(means):+.2f} points"
        )

    @property
    def apart(self) -> list[Case]:
        """Rows of a mean whose own interval leaves zero out."""
        return [case for model in self.models if len(model.cases) > 1 for case in model.cases if case.is_apart]

    @property
    def corrected(self) -> list[str]:
        """Those of them that do so after a correction, too."""
        return [case.column.short for case in self.apart if self.passes(case.estimate)]

    def passes(self, estimate: stats.Estimate) -> bool:
        """Whether a row's p-value stands Bonferroni's correction for all rows of the answer."""
        return estimate.p * len(self.clean) <= stats.ALPHA

    def seen(self, cases: Sequence[Case]) -> str:
        """``not seen``, or ``seen in 1 of 3 comparisons``: a gain is, where an interval lies above zero."""
        above = sum(case.is_apart and case.estimate.mean > 0 for case in cases)
        return f"seen in {above} of {len(cases)} comparisons" if above else "not seen"

    def narrowest(self, cases: Sequence[Case]) -> Case | None:
        """The one with the shortest interval; None where all have one draw."""
        known = [(interval.half, index) for index, case in enumerate(cases) if (interval := case.difference.interval)]
        return cases[min(known)[1]] if known else None

    @property
    def decoder_share(self) -> float:
        """Of what LoRA trains on ViT-S, the part in SAM's neck and mask decoder."""
        counts = self.cell("small-search", "kvasir", "LoRA").records[0].parameters
        return 1 - counts["encoder"] / counts["trainable"]

    def images_at_hand(self, study: str, benchmark: str) -> int:
        """Of all splits of a benchmark, as the study's runs were given it."""
        counts = self.cell(study, benchmark, "LoRA, lr 1e-3").records[0].counts
        return sum(counts[split] for split in ("train", "val", "test"))

    def lowest_tried(self, study: str, rows: Sequence[str]) -> int:
        """How many of these rows took the lowest rate of their grid."""
        tunings = [self.cell(study, "kvasir", row).records[0].run.tuning for row in rows]
        return sum(
            any(value == min(tuning["grid"][name]) for name, value in tuning["chosen"].items()) for tuning in tunings
        )

    @property
    def paper_cost(self) -> str:
        """What the paper says of training cost against full fine-tuning, in %."""
        (claim,) = (claim for claim in read_claims() if claim.name == COST_CLAIM)
        return f"{(claim.low + claim.high) / 2:.2f}"

    @cached_property
    def sessions(self) -> Mapping[str, CostRecord]:
        """By model of the answer, its session of costs on a CPU of its own that has the most methods. The name ends in `PADDED` where
        a step of MobileSAM without cells computes the padding of windows too."""
        made: dict[str, CostRecord] = {}
        for session in CostStore(self.root):
            where = session.comparability
            padded = PADDED if where.backbone == SAM and not where.options["fused_attention"] else ""
            model = model_title(where.backbone, where.image_size) + padded
            alone = where.backbone in MODELS and not session.shared and not where.on_gpu
            if alone and len(session.methods) > len(made[model].methods if model in made else ()):
                made[model] = session
        return dict(sorted(made.items()))

    def cost_of(self, model: str, method: str) -> MethodCost:
        (named,) = (cost for cost in self.sessions[model].methods if cost.variant == method)
        return named

    @property
    def steps_in_turns(self) -> float:
        """How many times as many steps as LoRA's a search in turns takes for as many updates of the weights."""
        costs = (cost for session in self.sessions.values() for cost in session.methods)
        return 1 / next(cost.shares["weights"] for cost in costs if cost.variant == "naslora[alternate=iteration]")

    def measured(self, model: str) -> list[str]:
        """Variants of the session of a model."""
        return [cost.variant for cost in self.sessions[model].methods]

    def time(self, model: str, first: str, second: str = "lora") -> stats.Interval:
        """Ratio of training step times, paired by round."""
        sides = [self.cost_of(model, name).step_seconds["total"] for name in (first, second)]
        ratio = paired_ratio(*sides)
        assert ratio.low is not None
        assert ratio.high is not None
        return stats.Interval(estimate=ratio.value, low=ratio.low, high=ratio.high, n=ratio.rounds)

    def rows_of(self, study: str) -> list[dict[str, str]]:
        """Every row of a study of the plan that has runs."""
        lines = []
        for grid in self.grids(study):
            base = grid.row("LoRA")
            for column, row in itertools.product(grid.first_columns.values(), grid.rows):
                cell = grid.cells[row, column]
                if not cell.seeds:
                    continue
                difference = None if row is base or base is None else grid.difference(row, base, column)
                run = cell.records[0].run
                trains = cell.records[0].parameters.get("trainable", 1)
                options = {**({"decoder_lr": run.rules.get("decoder_lr")} if trains else {}), **run.changed}
                lines.append({
                    "benchmark": f"{column.short}, {run.rules['image_size']} px", "row": row.label,
                    "score": mean_sd([100 * cell.values[seed] for seed in cell.seeds]),
                    "difference": of_estimate(difference.estimate) if difference else "–",
                    "options": ", ".join(f"{name} {_plain(value)}" for name, value in options.items()),
                })  # fmt: skip
        return lines

    def other_methods(self) -> list[dict[str, str]]:
        """The rows of the study sam-methods against LoRA, but for those of the question. Empty where none has runs."""
        lines = []
        for grid in self.grids("sam-methods"):
            column, lora = next(iter(grid.first_columns.values())), grid.row("LoRA")
            for row in grid.rows:
                cell = grid.cells[row, column]
                if row.label in ROWS_OF_QUESTION or not cell.seeds or lora is None:
                    continue
                difference = grid.difference(row, lora, column)
                lines.append({
                    "benchmark": column.short, "row": row.label,
                    "score": mean_sd([100 * cell.values[seed] for seed in cell.seeds]),
                    "difference": of_estimate(difference.estimate) if difference else "–", "draws": str(len(cell.seeds)),
                    "options": ", ".join(f"{name} {_plain(value)}" for name, value in cell.records[0].run.changed.items()),
                })  # fmt: skip
        return lines

    def times_of(self, variant: str) -> list[float]:
        """How many times as long as LoRA's its step takes, by session that has both."""
        return [self.time(model, variant).estimate for model in self.sessions if variant in self.measured(model)]

    def needed(self, estimate: stats.Estimate, points: float) -> str:
        """Draws to see a difference of so many points in 80 of 100 repetitions; ``more images`` where not even a thousand would do."""
        found = stats.seeds_to_detect(estimate, points)
        return str(found) if found else "more images"

    def limited_by_images(self, points: float) -> list[str]:
        """Benchmarks of the answer, by model, on which no number of draws would show so many points."""
        cases = [case for case in self.clean if case.difference.interval]
        limited = [case for case in cases if self.needed(case.estimate, points) == "more images"]
        return [
            f"{', '.join(case.column.benchmark_title for case in limited if case.model == model)} ({model})"
            for model in dict.fromkeys(case.model for case in limited)
        ]

    @property
    def intervals(self) -> Any:
        """What benchmarks/intervals.py found."""
        return json.loads((self.root / "benchmarks" / "intervals.json").read_text(encoding="utf-8"))

    def curve(self) -> list[Any]:
        """Every variant of small-readings against LoRA, worst first."""
        grid = self.grid("small-readings")
        return list(specification_curve(grid, load_study("small-readings"), baseline="LoRA, lr 1e-3"))

    def effects(self) -> list[Any]:
        return list(main_effects(self.grid("small-readings"), load_study("small-readings")))

    def narrowest_effect(self) -> float:
        return min((effect.high - effect.low) / 2 for effect in self.effects())

    def p_images(self, epoch_images: int) -> float:
        """p of the sign flips of images, NAS-LoRA against LoRA on Kvasir-SEG at this length."""
        grid = self.grid("small-lengths", epoch_images=epoch_images)
        base = grid.row("LoRA")
        assert base is not None
        (contrast,) = contrasts(grid, base)
        assert contrast.p_images is not None
        return contrast.p_images

    def trials(self, row: str) -> list[tuple[str, float]]:
        """Of small-search: options and validation score of every rate that was tried, and the one chosen last."""
        named = self.grid("small-search").row(row)
        assert named is not None
        tuning = next(record.run.tuning for record in named.runs if record.run.tuning.get("trials"))
        return [
            (", ".join(f"{name} {value:g}" for name, value in trial["options"].items()), 100 * trial["score"])
            for trial in tuning["trials"]
        ]

    def forgetting(self) -> str:
        """The table of results/tables/forgetting.md."""
        page = forgetting_page(self.own, ForgettingStore(self.root))
        return "\n".join(markdown_table(page.tables[0]))


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def mean_sd(values: Sequence[float]) -> str:
    """``88.7 ± 0.3 (3)``"""
    spread_ = stats.sd(values)
    return f"{statistics.fmean(values):.1f}" + ("" if spread_ is None else f" ± {spread_:.1f}") + f" ({len(values)})"


def of_estimate(estimate: stats.Estimate) -> str:
    """``+0.40 [-1.36, +2.16]``"""
    interval = estimate.interval()
    return f"{estimate.mean:+.2f} " + ("(one draw)" if interval is None else f"{interval:+.2f}")


def has_pages(root: Path) -> bool:
    """Whether a results folder is the published one, ``results`` beside the pages of the answer: a user's ``runs`` in a clone
    stands beside them too, and must neither fail for want of its records nor rewrite them."""
    page = root.resolve().parent / "docs" / "findings.md"
    return root.resolve().name == "results" and page.is_file() and page.read_text(encoding="utf-8").startswith(MARK)


def files(root: Path, answer: Answer | None = None) -> dict[Path, str]:
    """Path -> content of every page beside a results folder; empty where it has none. ``answer``: what was read of it already."""
    home = root.resolve().parent
    if not has_pages(root):
        return {}
    answer, words = answer or Answer(root), environment()
    rendered: dict[Path, str] = {}
    for template in sorted(TEMPLATES.glob("*.j2")):
        name = template.name.removesuffix(".j2")
        text = words.get_template(template.name).render(a=answer, studies=QUESTION)
        if name == "readme.md":
            readme = home / "README.md"
            rendered[readme] = _between(readme.read_text(encoding="utf-8"), text.strip())
            continue
        folder = home / "docs" if name == "findings.md" else home / "docs" / "details"
        lines = (line.rstrip() for line in text.strip().splitlines())
        rendered[folder / name] = "\n".join([MARK, *lines, ""])
    return rendered


def _between(page: str, text: str) -> str:
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise UsageError(f"README.md has no lines {START} and {END} around its answer; put them back")
    return f"{before}{START}\n{text}\n{END}{after}"


def _interval(value: stats.Interval | None, sign: str = "+", digits: int = 2) -> str:
    return "–" if value is None else f"{value:{sign}.{digits}f}"


FILTERS: Mapping[str, Callable[..., str]] = {
    "signed": lambda value, digits=2: f"{value:+.{digits}f}",
    "number": lambda value, digits=2: f"{value:.{digits}f}",
    "unbroken": lambda text: text.replace(" ", "\u00a0"),
    "thousands": lambda value: f"{value:,}",
    "percent": lambda value, digits=0: f"{100 * value:.{digits}f} %",
    "change": lambda interval: "(one seed)" if interval is None else f"{interval.estimate:+.2f} {interval:+.2f}",
    "slower": lambda model, answer: answer.time(model, "naslora").estimate,
    "estimate": of_estimate, "interval": _interval, "value": _plain, "title_of": benchmark_title,
}  # fmt: skip
"""How templates write numbers."""


def environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # markdown files of our own words and numbers
    )
    made.filters |= FILTERS
    return made


FIGURES: Mapping[str, tuple[str, str]] = {
    "answer": ("clean", "points, NAS-LoRA − LoRA"),
    "cell": ("cell_cases", "points that the cell adds"),
    "search": ("search_cases", "points that the search adds"),
    "rate": ("rate_cases", "points, NAS-LoRA − LoRA"),
}
"""Figure -> the cases that it shows, and its axis."""


def figures(root: Path, answer: Answer | None = None) -> dict[Path, bytes]:
    """Path -> bytes of every figure of the pages; empty where a results folder has none."""
    if not has_pages(root):
        return {}
    answer, home = answer or Answer(root), root.resolve().parent
    drawn = {}
    for name, (cases, axis) in FIGURES.items():
        with styled():
            figure = _forest(getattr(answer, cases), answer.models if name == "answer" else (), axis=axis)
        caption = f"Bars: 95 % confidence intervals; an arrow: it goes on beyond the axis. {axis}."
        drawn[home / "docs" / "figures" / f"{name}.svg"] = encoded(figure, "svg", title=name, caption=caption)
    return drawn


def _forest(cases: Sequence[Case], models: Sequence[Model], *, axis: str) -> Figure:
    """Differences below each other, one colour a backbone; a bar that reaches beyond the axis ends in an arrow."""
    lines: list[tuple[str, str, stats.Estimate]] = []
    for case in cases:
        what = f" · {case.pair.what}" if case.pair.what else ""
        lines.append((f"{case.column.short}{what} (n = {case.n})", case.model, case.estimate))
    for model in models:
        if len(model.cases) > 1:
            lines.append((f"mean of {len(model.cases)} benchmarks", model.name, model.estimate))
    names = list(dict.fromkeys(name for _, name, _ in lines))
    lines.sort(key=lambda line: names.index(line[1]))
    figure = new_figure(PAGE, 0.75 + 0.2 * len(lines))
    ax = figure.subplots()
    ax.axvline(0, color=GREY, linewidth=0.7, zorder=0)
    reach = _reach([estimate for _, _, estimate in lines])
    for height, (label, name, estimate) in enumerate(lines):
        colour, interval = SHADES[names.index(name) % len(SHADES)], estimate.interval()
        if interval is not None:
            low, high = max(interval.low, -reach), min(interval.high, reach)
            ax.plot([low, high], [height, height], color=colour, linewidth=1.3)
            for end, at, marker in ((interval.low, -reach, "<"), (interval.high, reach, ">")):
                if abs(end) > reach:
                    ax.plot([at], [height], marker=marker, color=colour, markersize=4, clip_on=False)
        mean, is_mean = min(max(estimate.mean, -reach), reach), label.startswith("mean of")
        ax.plot([mean], [height], marker="D" if is_mean else "o", color=colour, linestyle="none")
        ax.annotate(
            of_estimate(estimate),
            (1.01, height),
            xycoords=("axes fraction", "data"),
            fontsize=6,
            va="center",
            annotation_clip=False,
        )
    ax.set_yticks(range(len(lines)), [label for label, _, _ in lines])
    for tick, (_, name, _) in zip(ax.get_yticklabels(), lines, strict=True):
        tick.set_color(SHADES[names.index(name) % len(SHADES)])
    ax.set_ylim(len(lines) - 0.4, -0.6)
    ax.set_xlim(-reach * 1.03, reach * 1.03)
    ax.set_xlabel(axis + ", positive is better")
    ax.grid(visible=True, axis="x")
    for name in names:
        ax.plot([], [], marker="o", linestyle="none", color=SHADES[names.index(name) % len(SHADES)], label=name)
    figure.legend(loc="outside lower left", ncols=len(names), frameon=False)
    return figure


def _reach(estimates: Sequence[stats.Estimate]) -> float:
    """Where the axis ends: beyond all means and the intervals that are not far wider than the others."""
    intervals = [interval for estimate in estimates if (interval := estimate.interval())]
    usual = statistics.median(interval.half for interval in intervals) if intervals else 1.0
    narrow = [interval for interval in intervals if interval.half <= 4 * usual]
    ends = [abs(end) for interval in narrow for end in (interval.low, interval.high)]
    return 1.05 * max([*(abs(estimate.mean) for estimate in estimates), *ends, 1.0])
