"""The question as typed cells: the differences of NAS-LoRA to LoRA that answer it, by model, what speaks for and against each, and
the controls (cell, search, rate). docs/findings.md and its figures draw these (`harness.report.findings`)."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from harness import statistics as stats
from harness.archive.archive import Shares
from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.comparison.alpha import Noise, domains, noise, spread
from harness.comparison.cells import Cell, Column, Difference, Grid, ImageScores, image_differences, paired_difference
from harness.comparison.draws import (
    COLLAPSE,
    RERUN,
    Collapses,
    Draws,
    collapsed,
    of_seeds,
    with_pooled_runs,
    with_reruns,
    without_collapsed,
)
from harness.comparison.grids import grids
from harness.comparison.names import METHOD_TITLES, PAPER_METRICS, SCORE_TITLES, benchmark_title
from harness.comparison.rows import Row
from harness.protocols.load import load_protocol
from harness.registry import operation_names
from harness.studies import load_study

QUESTION = (
    "question-sam", "question-sam-isic", "question-sam-folds", "question-sam-road", "question-sam-cvc612",
    "question-sam-512", "question-vit", "question-vit-folds",
)  # fmt: skip
"""The studies of docs/plan.md that ask the question."""
ROWS_OF_PLAN = {
    "NAS-LoRA, whole map": "NAS-LoRA on whole maps of MobileSAM",
    "LoRA, scale 1": "LoRA at NAS-LoRA's scale on MobileSAM",
    "NAS-LoRA, joint (one pass)": "the one-pass search on MobileSAM",
    "NAS-LoRA, no search": "the cell without search on MobileSAM",
}
"""Its rows beside the two of the answer, as the page names them where they were not run."""
METHODS_OF_PLAN = ("full", "convlora", "naspclora", "adaptformer", "bitfit", "dora")
"""The other methods that it wants on MobileSAM."""
OPERATIONS = ("sam-search", "sam-operations")
"""Studies of MobileSAM that leave operations out of the cell."""
SEARCHES_OF_PLAN: Mapping[str, tuple[Sequence[str], int]] = {
    "when the search starts (T_B) on MobileSAM": (("sam-stagewise",), 2),
    "candidate operations on MobileSAM": (OPERATIONS, 3),
    "α's rate and shuffled masks on MobileSAM": (("sam-search",), 6),
}
"""Of the search itself: the studies that ask, and on how many benchmarks docs/plan.md wants them (all six where it names no number)."""
NOT_ASKED = (
    "residual, normalisation and scale, each alone, on MobileSAM",
    "rank, placement and channel ratio at tuned rates",
    "SBU Shadow",
)
"""What docs/plan.md wants to know and no study here asks yet: a study that does takes its line away."""
SAM = "mobile_sam"
MODELS = {SAM: "MobileSAM", "timm/vit_small_patch14_dinov2": "ViT-S"}
PLANNED_DRAWS = 12
"""That the plan wants on a benchmark whose draws share one split."""
FEW_DRAWS, FEW_IMAGES = 6, 30
"""Below so many runs or test images a row of the answer says so."""
DECODER_ALONE = ("decoder alone", "decoder only")
"""How studies call the row that trains neck and mask decoder alone."""
ALL_DRAWS = "again/avx512"
"""Runs made again on another processor, below the results folder."""
REDRAWN = "again/collapse"
"""One folder a way of rounding, each with the run that collapsed and its twin with a warm-up; named after what it changes."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two rows of a study on one benchmark; ``what`` says what their difference is."""

    study: str
    benchmark: str
    first: str
    second: str
    what: str = ""


EARLIER_CARD = "small"
EARLIER = (
    Pair(study="small-methods", benchmark="kvasir", first="NAS-LoRA", second="LoRA"),
    Pair(study="small-warmup", benchmark="cvc612", first="NAS-LoRA", second="LoRA", what="with a warm-up"),
    Pair(study="small-warmup", benchmark="isic2017", first="NAS-LoRA", second="LoRA", what="with a warm-up"),
    Pair(study="small-methods", benchmark="leaf", first="NAS-LoRA", second="LoRA"),
    Pair(study="small-rate", benchmark="road", first="NAS-LoRA, lr 1e-3", second="LoRA, lr 3e-4", what="each at its best rate"),
)  # fmt: skip
"""Of the card small, the rows without a confounder that was found since: a benchmark's row until a study of the plan has run it."""
CELL = (
    Pair(study="small-operations", benchmark="kvasir", first="all eight, no search", second="skip connection only",
         what="cell, no search − plain LoRA, both at scale 1 and rate 3e-3"),
    Pair(study="small-rate", benchmark="road", first="NAS-LoRA, lr 1e-3", second="LoRA, scale 1, lr 1e-3",
         what="NAS-LoRA − LoRA, both at scale 1 and rate 1e-3"),
    Pair(study="small-rate", benchmark="road", first="NAS-LoRA, scale 32/3, lr 1e-3", second="LoRA, lr 1e-3",
         what="NAS-LoRA − LoRA, both at scale 32/3 and rate 1e-3"),
)  # fmt: skip
CELL_QUESTION = (
    ("NAS-LoRA, no search", "LoRA, scale 1", "cell, no search − LoRA, both at scale 1"),
    ("NAS-LoRA, no search", "LoRA", "cell, no search − LoRA, each at its scale"),
)
SEARCH = tuple(
    Pair(study="small-stagewise", benchmark="kvasir", first=row, second="never", what=f"search from {when} on − no search")
    for row, when in (("T_B = 0", "the start"), ("T_B = 1 (25 %)", "a quarter"), ("T_B = 2 (50 %)", "the half"))
) + tuple(
    Pair(study="small-alpha", benchmark="kvasir", first=f"α's rate × {factor}", second="no search",
         what=f"search at {times} α's rate − no search")
    for factor, times in (("10", "ten times"), ("0.1", "a tenth of"))
)  # fmt: skip
SEARCH_OF_PLAN = tuple(
    Pair(study=study, benchmark=benchmark, first=row, second=control, what=f"search {how} − no search")
    for study, benchmark, control, row, how in (
        ("sam-stagewise", "isic2017", "never", "T_B = 0", "from the start on"),
        ("sam-stagewise", "isic2017", "never", "T_B = 2 (50 %)", "from the half on"),
        ("sam-stagewise", "leaf", "never", "T_B = 0", "from the start on"),
        ("sam-stagewise", "leaf", "never", "T_B = 1 (25 %)", "from a quarter on"),
        ("sam-stagewise", "leaf", "never", "T_B = 2 (50 %)", "from the half on"),
        ("sam-search", "kvasir", "no search", "α's rate × 10", "at ten times α's rate"),
        ("sam-search", "kvasir", "no search", "α's rate × 0.1", "at a tenth of α's rate"),
    )
)
SEARCH_QUESTION = (
    ("NAS-LoRA", "NAS-LoRA, no search", "search − no search"),
    ("NAS-LoRA, joint (one pass)", "NAS-LoRA, no search", "search in one pass − no search"),
)
RATE = (
    Pair(study="small-methods", benchmark="road", first="NAS-LoRA", second="LoRA",
         what="rates tuned on other sets: 3e-3 and 1e-3"),
    Pair(study="small-rate", benchmark="road", first="NAS-LoRA, lr 1e-3", second="LoRA, lr 1e-3", what="both at 1e-3"),
    Pair(study="small-rate", benchmark="road", first="NAS-LoRA, lr 1e-3", second="LoRA, lr 3e-4",
         what="each at its best: 1e-3 and 3e-4"),
    Pair(study="small-methods", benchmark="isic2017", first="NAS-LoRA", second="LoRA", what="no warm-up"),
    Pair(study="small-warmup", benchmark="isic2017", first="NAS-LoRA", second="LoRA", what="with a warm-up"),
    Pair(study="small-methods", benchmark="cvc612", first="NAS-LoRA", second="LoRA", what="no warm-up"),
    Pair(study="small-warmup", benchmark="cvc612", first="NAS-LoRA", second="LoRA", what="with a warm-up"),
)  # fmt: skip

MERGED = tuple(
    Pair(
        study="sam-merge", benchmark="kvasir", first=f"NAS-LoRA ({SCORE_TITLES[score]})", second="NAS-LoRA", what=score
    )
    for score in ("merged-exact", "merged-calibrated")
)
"""A trained model of MobileSAM after each merge, against itself."""


def model_title(backbone: str, image_size: int) -> str:
    """``ViT-S at 196 px``"""
    return f"{MODELS.get(backbone, backbone)} at {image_size} px"


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """One difference on the pages: of ``pair``, in ``grid``."""

    pair: Pair
    grid: Grid
    difference: Difference

    @property
    def estimate(self) -> stats.Estimate:
        return self.difference.estimate

    @property
    def column(self) -> Column:
        return self.difference.first.column

    @property
    def model(self) -> str:
        """``ViT-S at 196 px``"""
        return model_title(self.grid.sheet.backbone, self.difference.first.records[0].run.rules["image_size"])

    @property
    def images(self) -> int:
        """Test images of a run."""
        return max((record.tested.get(self.column.split, 0) for record in self.difference.first.records), default=0)

    @property
    def n(self) -> int:
        return len(self.difference.by_seed)

    @property
    def seeds(self) -> list[int]:
        """Those that both sides have, reruns as `RERUN` and more."""
        return sorted(set(self.difference.first.seeds) & set(self.difference.second.seeds))

    @property
    def draws(self) -> str:
        """``6``, or ``6 (3 seeds, 3 made again)``."""
        again = sum(seed >= RERUN for seed in self.seeds)
        return f"{self.n} ({self.n - again} seeds, {again} made again)" if again else f"{self.n}"

    @property
    def groups(self) -> int:
        """Groups of test images of one draw, such as the frames of a video or the tiles of a photograph; 0 where images are independent."""
        if self.difference.clusters or not self.difference.folds:
            return self.difference.clusters
        cell = self.difference.first
        images = self.grid.archive.images(cell.records[0], cell.row.score, self.column.split, self.column.metric)
        return len({images.clusters.get(stem, stem) for stem in images.scores}) if images and images.clusters else 0

    @property
    def is_earlier(self) -> bool:
        """Whether its runs are not those of docs/plan.md: on the answer's page, a row that was chosen after its scores were known."""
        return self.grid.sheet.protocol == EARLIER_CARD

    @property
    def is_sam(self) -> bool:
        return self.grid.sheet.backbone == SAM

    @property
    def is_apart(self) -> bool:
        """Whether its interval leaves zero out."""
        return not self.difference.is_none

    @property
    def lost(self) -> int:
        """Runs of either side that collapsed."""
        return sum(len(collapsed(cell)) for cell in (self.difference.first, self.difference.second))

    @property
    def without_collapsed(self) -> Difference | None:
        first, second = (without_collapsed(cell) for cell in (self.difference.first, self.difference.second))
        return paired_difference(first, second, self.grid.archive)

    def first_draws(self, count: int) -> Difference | None:
        """The same difference on the draws that were made first."""
        first, second = (of_seeds(cell, self.seeds[:count]) for cell in (self.difference.first, self.difference.second))
        return paired_difference(first, second, self.grid.archive)

    @property
    def over_decoder(self) -> Difference | None:
        """LoRA, or what stands second, − the row that trains neck and mask decoder alone; None where the study has no such row."""
        row = self.decoder_row
        return self.grid.difference(self.difference.second.row, row, self.column) if row else None

    @property
    def decoder_row(self) -> Row | None:
        """The row of the same study that trains neck and mask decoder alone."""
        return next(filter(None, (self.grid.row(label) for label in DECODER_ALONE)), None)

    @property
    def on_validation(self) -> float | None:
        """The same difference on validation images, mean over draws, in points; None where a record has no such score."""
        first, second = (
            {
                record.run.seed: record.scores.get("best", {}).get("val", {}).get(self.column.metric)
                for record in cell.records
            }
            for cell in (self.difference.first, self.difference.second)
        )
        pairs = [(first.get(seed), second.get(seed)) for seed in self.seeds]
        known = [
            100 * self.column.sign * (ours - theirs)
            for ours, theirs in pairs
            if ours is not None and theirs is not None
        ]
        return statistics.fmean(known) if len(known) == len(pairs) else None

    @cached_property
    def images_by_draw(self) -> ImageScores | None:
        """The difference by draw and test image."""
        sides = self.difference.first, self.difference.second
        return image_differences(*sides, self.grid.archive, seeds=self.seeds)

    @cached_property
    def over_splits(self) -> stats.Estimate | None:
        """Of a benchmark whose every draw splits the images anew: the difference with the variance of runs and of the images that they
        share; None for any other, or where they share too few."""
        images = self.images_by_draw if self.difference.folds else None
        return stats.of_splits(images.scores, clusters=images.clusters) if images else None

    @property
    def selecting(self) -> int:
        """Validation images of a run."""
        return max(record.counts.get("val", 0) for record in self.difference.first.records)

    @property
    def pooled(self) -> stats.Interval | None:
        """The interval whose spread of runs is pooled over all rows of the study; none of a mean that holds a collapsed run."""
        estimate = None if self.lost else with_pooled_runs(self.difference, self.grid)
        return estimate.interval() if estimate else None

    @property
    def trust(self) -> str:
        """``6 draws, …; *not: 67 % padding*``: reasons for and against, by the same rules for every row."""
        rules = self.difference.first.records[0].run.rules
        good: list[str] = []
        bad: list[str] = []
        seeds = sum(seed < RERUN for seed in self.seeds)
        again = f" of {seeds} seeds" if seeds < self.n else ""
        (good if seeds >= FEW_DRAWS else bad).append(f"{self.n} {'draws' if self.n > 1 else 'draw'}{again}")
        if self.groups:
            bad.append(f"{self.groups} groups of test images")
        else:
            (good if self.images >= FEW_IMAGES else bad).append(f"{self.images} test images")
        if self.difference.folds:
            good.append("a new split each draw")
        if rules.get("decoder_lr") is None:
            bad.append("decoder at the method's rate")
        else:
            good.append("shared decoder rate")
        if not self.is_earlier and not any(record.run.tuning for record in self.difference.first.records):
            bad.append("rates not tuned here")
        for cell in (self.difference.first, self.difference.second):
            if any(record.run.tuning.get("edge") for record in cell.records):
                bad.append(f"{cell.row.label} at the edge of its rates")
        if self.over_decoder is None:
            bad.append("no draws of the decoder alone beside them")
        elif (above := self.over_decoder.interval) is None or above.low <= 0:
            bad.append("LoRA not significantly above the decoder alone")
        if self.is_sam:
            bad.append(f"{100 * padding(rules['image_size']):.0f} % padding")
        if self.lost:
            bad.append(f"{self.lost} collapsed")
        return "; ".join(filter(None, (", ".join(good), f"*not: {', '.join(bad)}*" if bad else "")))


def padding(image_size: int, *, stride: int = 16, window: int = 14) -> float:
    """Share of what a cell of MobileSAM sees that is padding, where its map has a token for ``stride`` pixels and its windows ``window``²
    tokens: 8 and 7 in two of the ten blocks with a cell, 16 and 14 in six, 16 and 7 in the last two (TinyViT's configuration)."""
    side = image_size // stride
    return 1 - (side / (-(-side // window) * window)) ** 2


@dataclass(frozen=True, kw_only=True)
class Model:
    """All cases of one backbone at one size, and their mean."""

    name: str
    cases: tuple[Case, ...]

    @property
    def is_sam(self) -> bool:
        return self.cases[0].is_sam

    @property
    def estimate(self) -> stats.Estimate:
        return stats.average_of([case.estimate for case in self.cases])

    @property
    def interval(self) -> stats.Interval | None:
        return self.estimate.interval()

    @property
    def in_words(self) -> str:
        """``ViT-S at 196 px (mean of 5 benchmarks, rows chosen afterwards)``: what its estimate is of."""
        return f"{self.name} ({self.what}{', rows chosen afterwards' if self.is_chosen else ''})"

    @property
    def is_chosen(self) -> bool:
        """Whether any row was chosen after its scores were known."""
        return any(case.is_earlier for case in self.cases)

    @property
    def what(self) -> str:
        """``mean of 5 benchmarks``, or the one that it is of."""
        only = self.cases[0]
        alone = f"{only.column.short} alone, {only.draws} {'runs' if only.n > 1 else 'run'} each"
        return f"mean of {len(self.cases)} benchmarks" if len(self.cases) > 1 else alone

    @property
    def split_anew(self) -> list[str]:
        """Titles of its benchmarks whose every draw splits the images anew."""
        return [case.column.benchmark_title for case in self.cases if case.difference.folds]

    @property
    def over_splits(self) -> stats.Estimate | None:
        """Its mean with `Case.over_splits` for every benchmark that has folds; None where it has none, or one of them lacks it."""
        of_folds = [case for case in self.cases if case.difference.folds]
        if not of_folds or any(case.over_splits is None for case in of_folds):
            return None
        return stats.average_of([case.over_splits or case.estimate for case in self.cases])

    @property
    def share_of_folds(self) -> float:
        """Of the variance of its mean, the share of benchmarks whose every draw splits the images anew."""
        whole = sum(case.estimate.variance for case in self.cases)
        folds = sum(case.estimate.variance for case in self.cases if case.difference.folds)
        return folds / whole if whole else 0.0

    @property
    def without_collapsed(self) -> stats.Estimate | None:
        kept = [case.without_collapsed for case in self.cases]
        return stats.average_of([difference.estimate for difference in kept if difference]) if all(kept) else None

    @property
    def verdict(self) -> str:
        """``better than`` | ``worse than`` | ``not significantly different from`` | ``not to be judged against``"""
        return verdict(self.interval)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run that only served to choose a row's options: its score on validation images, in points."""

    model: str
    benchmark: str
    row: str
    options: Mapping[str, Any]
    score: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What α chose in the runs of one row of a study, beside what noise alone gives at the row's rates of α.

    Args:
        row: its label.
        spreads: seed -> SD of the logarithms of the shares.
        favourites: seed -> the operation with the largest share, averaged over the cells, and that share.
    """

    row: str
    spreads: Mapping[int, float]
    favourites: Mapping[int, tuple[str, float]]
    noise: Noise

    def favouring(self, operation: str) -> int:
        """How many runs gave it the largest share."""
        return sum(name == operation for name, _ in self.favourites.values())


def _beyond(done: Iterable[str]) -> str:
    names = " and ".join(done)
    return f" beyond {names}" if names else ""


def verdict(interval: stats.Interval | None) -> str:
    if interval is None:
        return "not to be judged against"
    return (
        "better than" if interval.low > 0 else "worse than" if interval.high < 0 else "not significantly different from"
    )


def _largest(shares: Sequence[float]) -> int:
    return max(range(len(shares)), key=shares.__getitem__)


def _favourite(end: Shares, names: Sequence[str]) -> tuple[str, float]:
    means = [statistics.fmean(shares) for shares in zip(*end.values(), strict=True)]
    return names[_largest(means)], max(means)


@dataclass(frozen=True, kw_only=True)
class Redrawn:
    """One seed's score, in percent, in several draws that differ in rounding alone."""

    draws: Mapping[str, tuple[float, float]]
    """What changes the rounding -> its score without and with a warm-up."""
    floor: float
    """Below it a run has collapsed, by the row that the first draw is of."""

    def below(self, *, warmed: int) -> int:
        """How many collapsed without (0) or with (1) a warm-up."""
        return sum(scores[warmed] < self.floor for scores in self.draws.values())


class Question:
    """What the records say of the question, as numbers; one that they lack is an error, not a gap. Runs that were made again elsewhere
    (`ALL_DRAWS`) are draws of their own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.archive = Draws(root, again=root / ALL_DRAWS)
        self._grids: dict[tuple[str, str], list[Grid]] = {}

    @cached_property
    def own(self) -> list[Record]:
        """The records without the reruns."""
        return [record for record in self.archive.records if record.run.seed < RERUN]

    def grids(self, study: str, **rules: Any) -> list[Grid]:
        """Those of a study's own card and size that have runs, reruns as draws: several where it was run at several lengths, say."""
        place = (study, str(sorted(rules.items())))
        if place not in self._grids:
            wanted = load_study(study)
            size = wanted.set.get("image_size", load_protocol(wanted.protocol).image_size)
            self._grids[place] = [
                grid
                for grid in grids(self.archive.records, self.archive, study=with_reruns(wanted))
                if grid.sheet.protocol == wanted.protocol
                and grid.rules["image_size"] == size
                and any(row.runs for row in grid.rows)
                and all(grid.rules.get(name) == value for name, value in rules.items())
            ]
        return self._grids[place]

    def grid(self, study: str, **rules: Any) -> Grid:
        """The first of `grids`. Raises LookupError: there is none."""
        made = self.grids(study, **rules)
        if not made:
            raise LookupError(f"no records of {study} with {rules}")
        return made[0]

    def has(self, study: str) -> bool:
        return bool(self.grids(study))

    def ran(self, study: str, benchmark: str | None = None) -> list[str]:
        """Labels of its rows that have a finished run, on any benchmark or on this one."""
        return [
            row.label
            for row in self.grid(study).rows
            if any(record.code == "OK" and benchmark in (None, record.run.benchmark) for record in row.runs)
        ]

    def cell(self, study: str, benchmark: str, row: str, **rules: Any) -> Cell:
        grid = self.grid(study, **rules)
        named = grid.row(row)
        if named is None:
            raise LookupError(f"{study} has no row {row}")
        return grid.cells[named, grid.first_columns[benchmark]]

    def seeds(self, study: str, benchmark: str, row: str, **rules: Any) -> list[float]:
        """Scores in points by seed, reruns last."""
        cell = self.cell(study, benchmark, row, **rules)
        return [100 * cell.values[seed] for seed in cell.seeds]

    def case(self, pair: Pair, **rules: Any) -> Case | None:
        """In the first grid of the study; None where either row has no run there."""
        return next((self._case(pair, grid) for grid in self.grids(pair.study, **rules)[:1]), None)

    def _case(self, pair: Pair, grid: Grid) -> Case | None:
        first, second = grid.row(pair.first), grid.row(pair.second)
        column = grid.first_columns.get(pair.benchmark)
        difference = grid.difference(first, second, column) if first and second and column else None
        return None if difference is None else Case(pair=pair, grid=grid, difference=difference)

    def of_question(self, contrasts: Iterable[tuple[str, str, str]]) -> Iterator[Case]:
        """Every contrast on every benchmark that a study of the plan has run both rows on."""
        wanted = list(contrasts)
        for name in QUESTION:
            for grid in self.grids(name):
                for benchmark in grid.first_columns:
                    for first, second, what in wanted:
                        pair = Pair(study=name, benchmark=benchmark, first=first, second=second, what=what)
                        if case := self._case(pair, grid):
                            yield case

    @cached_property
    def clean(self) -> list[Case]:
        """The table of the answer: the plan's rows, and for what it has not run the earlier ones."""
        new = list(self.of_question([("NAS-LoRA", "LoRA", "")]))
        done = {(case.grid.sheet.backbone, case.pair.benchmark) for case in new}
        old = [case for pair in EARLIER if (case := self.case(pair))]
        return [*new, *(case for case in old if (case.grid.sheet.backbone, case.pair.benchmark) not in done)]

    @cached_property
    def models(self) -> list[Model]:
        names = list(dict.fromkeys(case.model for case in self.clean))
        return [Model(name=name, cases=tuple(case for case in self.clean if case.model == name)) for name in names]

    @cached_property
    def has_sam(self) -> bool:
        return any(case.is_sam for case in self.clean)

    @cached_property
    def cell_cases(self) -> list[Case]:
        return [*self.of_question(CELL_QUESTION), *(case for pair in CELL if (case := self.case(pair)))]

    @cached_property
    def search_cases(self) -> list[Case]:
        pairs = (*SEARCH_OF_PLAN, *SEARCH)
        return [*self.of_question(SEARCH_QUESTION), *(case for pair in pairs if (case := self.case(pair)))]

    @cached_property
    def rate_cases(self) -> list[Case]:
        return [case for pair in RATE if (case := self.case(pair))]

    @cached_property
    def merged_cases(self) -> list[Case]:
        return [case for pair in MERGED if (case := self.case(pair))]

    def named_case(self, study: str, benchmark: str) -> Case:
        """NAS-LoRA against LoRA in a study of the card small."""
        case = self.case(Pair(study=study, benchmark=benchmark, first="NAS-LoRA", second="LoRA"))
        if case is None:
            raise LookupError(f"{study} has no runs of both on {benchmark}")
        return case

    def question_has(self, row: str) -> bool:
        """Whether a study of the plan has a finished run of this row."""
        rows = [grid.row(row) for name in QUESTION for grid in self.grids(name)]
        return any(record.code == "OK" for known in rows if known for record in known.runs)

    def trials_of_plan(self) -> list[Trial]:
        """What tuned the plan's rows: validation scores of seeds that no table counts, best first within a row."""
        studies = {
            (study.protocol, name): study
            for study in map(load_study, QUESTION)
            if study.tune
            for name in study.benchmarks
        }
        trials = []
        for record in self.own:
            study = studies.get((record.run.protocol, record.run.benchmark))
            if study is None or record.run.seed not in study.tune_seeds or record.code != "OK":
                continue
            options = record.run.method_config
            fitting = [
                entry
                for entry in study.entries
                if entry.method == record.run.method and entry.options.items() <= options.items()
            ]
            rules = {**record.run.rules, **record.run.method_config}
            # A trial beyond a study's grid names none: it tried the row's rate.
            rate = next(name for name in ("lr", "encoder_lr", "decoder_lr") if rules.get(name) is not None)
            tuned = sorted(record.run.tuning.get("grid", [rate]))
            trials.append(
                Trial(
                    model=model_title(record.run.backbone, record.run.rules["image_size"]),
                    benchmark=record.run.benchmark,
                    row=max(fitting, key=lambda entry: len(entry.options)).label if fitting else record.run.method,
                    options={name: rules[name] for name in tuned},
                    score=100 * record.scores["best"]["val"][PAPER_METRICS[record.run.benchmark][0]],
                    seed=record.run.seed,
                )
            )
        return sorted(trials, key=lambda trial: (trial.model, trial.benchmark, trial.row, -trial.score))

    def at_loras_rate(self) -> list[tuple[str, float, float]]:
        """By benchmark of the plan on MobileSAM, in points on validation images, one run each: NAS-LoRA − LoRA at LoRA's best rate, and
        each at its own best. Both hold the same run of LoRA, so what differs is NAS-LoRA's rate alone."""
        tried: dict[tuple[str, str], dict[str, list[Trial]]] = {}
        for trial in self.trials_of_plan():
            tried.setdefault((trial.model, trial.benchmark), {}).setdefault(trial.row, []).append(trial)
        differences = []
        for (model, benchmark), rows in tried.items():
            lora, nas = rows.get("LoRA", []), rows.get("NAS-LoRA", [])
            same_rate = next((trial for trial in nas if lora and trial.options == lora[0].options), None)
            if same_rate is not None and model.startswith(MODELS[SAM]):
                differences.append(
                    (benchmark_title(benchmark), same_rate.score - lora[0].score, nas[0].score - lora[0].score)
                )
        return differences

    def against_lora(self, row: str) -> list[Case]:
        """A row of the plan, such as ``NAS-LoRA, whole map``, against LoRA wherever both were run."""
        return list(self.of_question([(row, "LoRA", "")]))

    @property
    def run_benchmarks(self) -> list[str]:
        """Titles of the paper's benchmarks that have a row."""
        names = [case.pair.benchmark for case in self.clean]
        return [benchmark_title(name) for name in PAPER_METRICS if name in names]

    @property
    def not_run(self) -> list[str]:
        """Of the plan, what no record answers."""
        sizes = {case.difference.first.records[0].run.rules["image_size"] for case in self.clean if case.is_sam}
        planned = dict.fromkeys(name for study in map(load_study, QUESTION) for name in study.benchmarks)
        of_sam = {case.pair.benchmark for case in self.clean if case.is_sam}
        elsewhere = ", ".join(benchmark_title(name) for name in planned if name not in of_sam)
        known = {record.run.method for record in self.own if record.run.backbone == SAM and record.code == "OK"}
        methods = ", ".join(METHOD_TITLES[name] for name in METHODS_OF_PLAN if name not in known)
        few = [
            case.column.benchmark_title
            for case in self.clean
            if case.is_sam and not case.difference.folds and case.n < PLANNED_DRAWS and "256" in case.model
        ]
        large = [case.column.benchmark_title for case in self.clean if "512" in case.model]
        plain = [case for case in self.clean if not case.is_sam]
        fair = [case for case in plain if not case.is_earlier]
        parts = {
            "MobileSAM": not self.has_sam,
            "MobileSAM at 512 px": 512 not in sizes,
            f"MobileSAM at 512 px beyond {' and '.join(large)}, and NAS-LoRA's other rates there": bool(large),
            f"{PLANNED_DRAWS} draws of MobileSAM on {' and '.join(few)}": bool(few),
            f"MobileSAM on {elsewhere}": self.has_sam and bool(elsewhere),
            "ViT-S with one decoder rate for all rows"
            + _beyond(f"{case.n} draws on {case.column.benchmark_title}" for case in fair): not fair
            or fair != plain
            or any(case.n < PLANNED_DRAWS for case in fair if not case.difference.folds),
            **{
                f"{what}{_beyond(self._on_sam(row).values())}": self.has_sam and not of_sam <= self._on_sam(row).keys()
                for row, what in ROWS_OF_PLAN.items()
            },
            **{
                f"{what}{_beyond(self._complete(studies))}": self.has_sam and len(self._complete(studies)) < wanted
                for what, (studies, wanted) in SEARCHES_OF_PLAN.items()
            },
            f"other methods on MobileSAM ({methods})": bool(methods),
            "merged scores of searches that moved α": not self.merged_cases,
        }
        parts["collapsed runs drawn again with and without warm-up"] = self.redrawn() is None
        return [*(what for what, missing in parts.items() if missing), *NOT_ASKED]

    def _on_sam(self, row: str) -> dict[str, str]:
        """Benchmarks, with their titles, on which MobileSAM has this row of the plan and LoRA."""
        cases = [case for case in self.against_lora(row) if case.is_sam]
        return {case.pair.benchmark: case.column.benchmark_title for case in cases}

    def missing(self, study: str) -> list[str]:
        """Labels of its rows that have no finished run; rows that it shares with other studies are there before it has run."""
        ran = self.ran(study) if self.has(study) else []
        return [entry.label for entry in load_study(study).entries if entry.label not in ran]

    def _complete(self, studies: Sequence[str]) -> list[str]:
        """Titles of the benchmarks on which every row of one of these studies has run, with all seeds that it plans."""
        return [
            column.benchmark_title
            for study in studies
            for grid in self.grids(study)[:1]
            for column in grid.first_columns.values()
            if all({*load_study(study).seeds} <= {*grid.cells[row, column].seeds} for row in grid.rows)
        ]

    def fewer_operations(self, row: str) -> list[Case]:
        """A row whose cells lack operations against all eight, wherever MobileSAM has both."""
        return [
            case
            for study in OPERATIONS
            for benchmark in load_study(study).benchmarks
            if (case := self.case(Pair(study=study, benchmark=benchmark, first=row, second="all eight, searched")))
        ]

    def collapses(self, protocol: str, warmup: int | None = None) -> Collapses:
        """Over all rows of all tables of a card that have two runs or more; with one warm-up alone where it is given."""
        records = [
            record
            for record in self.own
            if record.run.protocol == protocol
            and warmup in (None, record.run.rules.get("warmup"))
            and record.budget.get("weight_updates", 1)  # one that trains nothing cannot collapse
        ]
        made = grids(records, self.archive)
        return Collapses.of([cell for grid in made for column in grid.first_metrics for cell in grid.below(column)])

    def redrawn(self) -> Redrawn | None:
        """LoRA's collapsed seed on ISIC 2017 under the card small, drawn again; None where that was not run."""
        name = PAPER_METRICS["isic2017"][0]
        draws: dict[str, tuple[float, float]] = {}
        for folder in sorted((self.root / REDRAWN).glob("*/")):
            ended = sorted(
                (record.run.rules["warmup"], 100 * record.scores["best"]["test"][name])
                for record in RecordStore(folder)
                if record.code == "OK"
            )
            if len(ended) == 2:  # the warm-up is longer than none
                (_, without), (_, warmed) = ended
                draws[folder.name.replace("-", " ").capitalize()] = (without, warmed)
        if not draws:
            return None
        row = self.named_case("small-methods", "isic2017").difference.second
        middle = 100 * statistics.median(row.values[seed] for seed in row.seeds)
        return Redrawn(draws=draws, floor=middle - COLLAPSE)

    def every_run(self) -> dict[str, int]:
        """Of the card small at its length, SAM's decoder, no warm-up: all runs, trials and single seeds too, against the median of
        their benchmark: ``runs``, how many lie more than 20 points ``below``, and how many find ``nothing`` (less than 1)."""
        rules = {"epoch_images": 200, "warmup": 0, "decoder": "sam"}
        scores: dict[str, list[float]] = {}
        for record in self.own:
            if (
                record.run.protocol == "small"
                and record.code == "OK"
                and all({"decoder": "sam", **record.run.rules}.get(rule) == value for rule, value in rules.items())
            ):
                name = PAPER_METRICS[record.run.benchmark][0]
                scores.setdefault(record.run.benchmark, []).append(100 * record.scores["best"]["test"][name])
        below = {name: statistics.median(values) - COLLAPSE for name, values in scores.items()}
        return {
            "runs": sum(map(len, scores.values())),
            "below": sum(value < below[name] for name, values in scores.items() for value in values),
            "nothing": sum(below[name] <= value < 1 for name, values in scores.items() for value in values),
        }

    @property
    def sets(self) -> list[tuple[str, str]]:
        """Benchmarks of the earlier series, with their titles."""
        return [(name, benchmark_title(name)) for name in dict.fromkeys(pair.benchmark for pair in EARLIER)]

    def mean_over(self, study: str, sets: Iterable[tuple[str, str]], *, kept: bool = False) -> stats.Estimate:
        """Of NAS-LoRA − LoRA over benchmarks; ``kept``: without collapsed runs."""
        cases = [self.named_case(study, name) for name, _ in sets]
        differences = [case.without_collapsed if kept else case.difference for case in cases]
        return stats.average_of([difference.estimate for difference in differences if difference is not None])

    def significant(self, study: str, rows: Sequence[str], sets: Sequence[str]) -> dict[str, list[str]]:
        """``above`` and ``below``: which rows' intervals to LoRA leave zero out, ``NAME on BENCHMARK``."""
        apart: dict[str, list[str]] = {"above": [], "below": []}
        for row in rows:
            for name in sets:
                case = self.case(Pair(study=study, benchmark=name, first=row, second="LoRA"))
                interval = case.difference.interval if case else None
                if case and interval and not interval.low <= 0 <= interval.high:
                    apart["above" if interval.low > 0 else "below"].append(f"{row} on {case.column.benchmark_title}")
        return apart

    def moved(self) -> tuple[float, float]:
        """The least and the most that a run moved when it was made again, in points."""
        scores = [self.seeds("small-methods", "kvasir", row) for row in ("LoRA", "NAS-LoRA")]
        moves = [abs(again - first) for draws in scores for first, again in zip(draws[:3], draws[3:], strict=True)]
        return min(moves), max(moves)

    def detectable(self, estimate: stats.Estimate, seeds: int | None = None) -> float:
        least = stats.detectable(estimate, seeds=seeds)
        assert least is not None
        return least

    def searched(self, benchmark: str) -> list[Record]:
        """The runs of the clean search (scale 1, 3e-3, T_B after a quarter) under the card small, by seed."""
        row = self.grid("small-search").row("NAS-LoRA")
        assert row is not None
        return [record for record in row.finished(benchmark) if record.run.seed < RERUN]

    def alpha(self, benchmark: str) -> dict[str, Any]:
        """What the search chose there under the card small, beside what noise alone gives."""
        return self._chosen(self.searched(benchmark))

    @cached_property
    def alpha_of_plan(self) -> list[tuple[Case, dict[str, Any]]]:
        """What the search chose in each row of MobileSAM that has draws to compare."""
        chosen = []
        for case in self.clean:
            known = [run for run in case.difference.first.records if run.run.seed in case.seeds]
            runs = sorted(filter(self.archive.mixture, known), key=lambda run: run.run.seed)
            if case.is_sam and len(runs) > 1:
                chosen.append((case, self._chosen(runs)))
        return chosen

    def _chosen(self, runs: Sequence[Record]) -> dict[str, Any]:
        ends = [end for record in runs if (end := self.archive.mixture(record))]
        null = noise(runs[0], ends[0])
        assert null is not None
        none, skip = 0, 3  # DARTS's order: none, max_pool, avg_pool, skip_connect, …
        flat = [[share for site in sorted(end) for share in end[site]] for end in ends]
        pairs = list(itertools.combinations(range(len(ends)), 2))
        nones, skips = ([statistics.fmean(of[which] for of in end.values()) for end in ends] for which in (none, skip))
        return {
            "spreads": [spread(end) for end in ends],
            "noise": null,
            "nones": nones,
            "skips": skips,
            "largest": max(max(map(max, end.values())) for end in ends),
            "correlations": [statistics.correlation(flat[a], flat[b]) for a, b in pairs],
            "same": [sum(_largest(ends[a][site]) == _largest(ends[b][site]) for site in ends[a]) for a, b in pairs],
            "spread_above": sum(null.exceeded(end) for end in ends),
            "none_above": sum(share > null.mean_share[1] for share in nones),
            "skip_above": sum(share > null.mean_share[1] for share in skips),
            "skip_below": sum(share < null.mean_share[0] for share in skips),
            "sites": len(ends[0]),
        }

    def choices(self, study: str) -> dict[str, Choice]:
        """By row of the study that has runs on Kvasir-SEG in which α was trained; empty where it has none."""
        choices = {}
        for row in itertools.chain.from_iterable(grid.rows for grid in self.grids(study)[:1]):
            runs = [run for run in row.finished("kvasir") if run.run.seed < RERUN]
            ends = {run.run.seed: end for run in runs if (end := self.archive.mixture(run))}
            null = noise(runs[0], next(iter(ends.values()))) if ends else None
            if null is not None:
                names = operation_names(runs[0].run.method, runs[0].run.method_config)
                choices[row.label] = Choice(
                    row=row.label,
                    spreads={seed: spread(end) for seed, end in sorted(ends.items())},
                    favourites={seed: _favourite(end, names) for seed, end in sorted(ends.items())},
                    noise=null,
                )
        return choices

    def more_spread(self, study: str, first: str, second: str) -> stats.Interval | None:
        """Of the spreads of two rows' shares, first − second, paired by seed."""
        choices = self.choices(study)
        spreads, reference = choices[first].spreads, choices[second].spreads
        seeds = sorted(spreads.keys() & reference.keys())
        return stats.t_interval([spreads[seed] - reference[seed] for seed in seeds])

    def domains(self, benchmarks: Sequence[str]) -> Any:
        ends = {
            name: {record.run.seed: end for record in self.searched(name) if (end := self.archive.mixture(record))}
            for name in benchmarks
        }
        return domains(ends)
