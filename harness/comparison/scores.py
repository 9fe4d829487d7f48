"""Scores of rows on a column, and differences of two rows: paired by seed, and by image where a score is a mean over images."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from harness import statistics as stats
from harness.archive.files import rounding
from harness.archive.schema import Record, Run
from harness.comparison.names import Metric, metric
from harness.protocols.keys import content_hash, hashed_rules

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from harness.archive.archive import Archive

Mark = Literal["", "best", "tied"]
"""Best of its column, or not significantly different from the best."""

MISSING = "MISSING"
"""The code of a planned run that has no record."""

CONFLICT = "CONFLICT"
"""The code of runs that are not of one kind: one seed has two scores, or the rules differ, as where some runs have a tuned
``decoder_lr``."""

COLLAPSE = 0.2
"""A run that scores this much below the median of its row has collapsed. It stays in the mean and is marked. Its row is not
compared with the best, and has no interval on a leaderboard."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """Benchmark, test split and metric. ``manifest``: hash of the split; ``title``: of the benchmark; ``note``: on its data."""

    benchmark: str
    split: str
    metric: str
    manifest: str = ""
    title: str = ""
    note: str = ""

    @cached_property
    def measure(self) -> Metric:
        return metric(self.metric)

    @property
    def sign(self) -> int:
        """The factor of a score that makes higher better."""
        return self.measure.sign

    @property
    def name(self) -> str:
        """``Trans10K-v1 easy mIoU``"""
        return (
            f"{self.title} {self.split} {self.measure.title}"
            if self.split != "test"
            else f"{self.title} {self.measure.title}"
        )

    def holds(self, run: Run) -> bool:
        """Whether a run was scored on this benchmark and this split."""
        return run.benchmark == self.benchmark and run.manifest in (self.manifest, "")


ImageScores = tuple[tuple[str, ...], "NDArray[np.float64]"]
"""The stems of the images, in order, and the score of each."""

Over = Literal["seeds and images", "seeds", "splits", "images"]
"""What an interval covers. ``splits``: every seed has its own split (Nadeau and Bengio 2003). ``images``: those of a single seed, so that
other seeds may differ."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The scores of one row on one column, in points, higher is better.

    Args:
        by_seed: seed -> score.
        images: seed -> scores by image, where they average to the run's score.
        clusters: stem -> its cluster, where images are not independent.
        test_share: images tested over images trained on where every seed has its own split, else 0.
    """

    by_seed: Mapping[int, float]
    images: Mapping[int, ImageScores] = field(default_factory=dict)
    clusters: Mapping[str, str] = field(default_factory=dict)
    test_share: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Difference:
    """First minus second in points, positive is better.

    Args:
        low, high: the 95 % interval; None for a single seed.
        n: seeds that both have.
        estimate: the mean with the parts of its variance.
        simultaneous: whether the interval holds for all rows of its table at once.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    over: Over = "seeds"
    estimate: stats.Estimate | None = None
    simultaneous: bool = False

    @classmethod
    def of(cls, estimate: stats.Estimate, *, over: Over = "seeds") -> Difference:
        interval = estimate.interval()
        low, high = (interval.low, interval.high) if interval else (None, None)
        return cls(mean=estimate.mean, low=low, high=high, n=estimate.n, over=over, estimate=estimate)

    @property
    def is_none(self) -> bool:
        """Whether the two are not significantly different: the interval holds 0, or there is no interval."""
        return self.low is None or self.high is None or self.low <= 0 <= self.high


def difference(scores: pd.DataFrame, row: str, baseline: str) -> Difference | None:
    """Row minus baseline on one column.

    Args:
        scores: a frame of one benchmark, split, metric and model with the columns row, metric, seed and value (in
            [0, 1]); with scores by image also stem and group, as of `Archive.frame("images")`; ``test_share`` where
            every seed has its own split.

    None where they have no seed in common.
    """
    return of_samples(*(sample(scores, name) for name in (row, baseline)))


def sample(scores: pd.DataFrame, row: str) -> Sample:
    """The scores of one row of a frame (`difference`). Raises ValueError: several metrics, splits or models."""
    import numpy as np

    here = scores[scores["row"] == row]
    for name in ("benchmark", "split", "metric", "model"):
        if name in here and here[name].nunique() > 1:
            raise ValueError(f"scores of several values of {name}: choose one")
    scale = 100 * (metric(here["metric"].iloc[0]).sign if len(here) else 1)
    share = float(here["test_share"].max()) if "test_share" in here and len(here) else 0.0
    if "stem" not in here:
        return Sample(
            by_seed={int(seed): scale * float(value) for seed, value in zip(here["seed"], here["value"], strict=True)},
            test_share=share,
        )
    images: dict[int, ImageScores] = {}
    clusters: dict[str, str] = {}
    for seed in sorted({int(value) for value in here["seed"]}):
        lines = here[here["seed"] == seed].sort_values("stem")
        images[seed] = (tuple(lines["stem"]), scale * np.asarray(lines["value"], dtype=float))
        if "group" in lines:
            clusters.update(dict(zip(lines["stem"], lines["group"], strict=True)))
    means = {seed: float(values.mean()) for seed, (_, values) in images.items()}
    return Sample(by_seed=means, images=images, clusters=clusters, test_share=share)


def of_samples(first: Sample, second: Sample) -> Difference | None:
    """First minus second; None where they have no seed in common."""
    seeds = sorted(first.by_seed.keys() & second.by_seed.keys())
    if not seeds:
        return None
    by_seed = [first.by_seed[seed] - second.by_seed[seed] for seed in seeds]
    share = max(first.test_share, second.test_share)
    if share:
        return Difference.of(stats.of_folds(by_seed, test_share=share), over="splits")
    if paired := common_images([first, second], seeds):
        (ours, theirs), clusters = paired
        if (crossed := stats.crossed(ours - theirs, clusters=clusters)) is not None:
            return Difference.of(crossed, over="seeds and images")
    return Difference.of(stats.of_seeds(by_seed))


def over_images(first: Sample, second: Sample) -> Difference | None:
    """First minus second under the first common seed, with an interval over its images, or over their clusters where images are not
    independent; None where they have no common seed or not the same images."""
    paired = common_images([first, second], sorted(first.by_seed.keys() & second.by_seed.keys())[:1])
    if paired is None:
        return None
    (ours, theirs), clusters = paired
    return Difference.of(stats.of_images(ours[0] - theirs[0], clusters=clusters), over="images")


def common_images(
    samples: Sequence[Sample], seeds: Sequence[int]
) -> tuple[NDArray[np.float64], NDArray[np.intp]] | None:
    """(samples, seeds, images) scores, and the number of each image's cluster. None where not all samples scored the same images under
    every seed, or these are one image or one cluster, which say nothing of others."""
    import numpy as np

    by_run = {each.images[seed][0] if seed in each.images else () for each in samples for seed in seeds}
    stems = by_run.pop() if len(by_run) == 1 else ()
    group = {stem: name for each in samples for stem, name in each.clusters.items()}
    names = [group.get(stem, stem) for stem in stems]
    if len(set(names)) < 2:
        return None
    clusters = np.unique(names, return_inverse=True)[1] if group else np.arange(len(stems))
    return np.array([[each.images[seed][1] for seed in seeds] for each in samples]), clusters


def simultaneous(columns: Sequence[Mapping[str, Sample]], baseline: str) -> dict[str, list[Difference]]:
    """Every row against one baseline, with 95 % intervals that hold for all rows at once (max-T,
    `harness.statistics.max_t`).

    Args:
        columns: for each benchmark row -> its scores. Rows that lack a seed of the baseline's on any column are left out.

    Returns:
        Row -> its differences, one for each column, then their mean. Empty for a baseline of fewer than two seeds.
    """
    import numpy as np

    seeds = [sorted(column[baseline].by_seed) if baseline in column else [] for column in columns]
    rows = [
        row
        for row in columns[0]
        if row != baseline and all(row in c and set(s) <= c[row].by_seed.keys() for c, s in zip(columns, seeds, strict=True))
    ]  # fmt: skip
    if not rows or min(map(len, seeds)) < 2:
        return {}
    families: list[stats.Family] = []
    over: list[Over] = []
    for column, here in zip(columns, seeds, strict=True):
        samples = [column[row] for row in (baseline, *rows)]
        runs = np.array([[each.by_seed[seed] for seed in here] for each in samples])
        share = max(each.test_share for each in samples)
        images, clusters = (None if share else common_images(samples, here)) or (None, None)
        families.append(stats.family(runs, images, clusters=clusters, test_share=share))
        over.append("splits" if share else "seeds" if images is None else "seeds and images")
    means = [each.means for each in families] + [np.mean([each.means for each in families], axis=0)]
    halves = [stats.max_t([each]) for each in families] + [stats.max_t(families)]
    counts = [len(here) for here in seeds] + [min(map(len, seeds))]
    differences: dict[str, list[Difference]] = {}
    for index, row in enumerate(rows):
        differences[row] = [
            Difference(
                mean=float(mean[index]), low=float(mean[index] - half[index]), high=float(mean[index] + half[index]), n=n,
                over=kind, simultaneous=True,
            )
            for mean, half, n, kind in zip(means, halves, counts, [*over, over[0]], strict=True)
        ]  # fmt: skip
    return differences


def _under_other_rules(runs: Sequence[Run]) -> set[int]:
    """The seeds of runs whose rules differ from those of most runs, or from those of any other where no rules are the most frequent; none
    where some rules have every seed. Rules that change no number do not count, nor does which fold of the data is a seed's."""
    rules = [
        {
            name: value
            for name, value in run.rules.items()
            if name != "split_seed" or not run.rules.get("split_follows_seed")
        }
        for run in runs
    ]
    if all(each == rules[0] for each in rules):
        return set()
    kinds = [content_hash(hashed_rules(each)) for each in rules]
    seeds: dict[str, set[int]] = {}
    for run, kind in zip(runs, kinds, strict=True):
        seeds.setdefault(kind, set()).add(run.seed)
    if {run.seed for run in runs} in seeds.values():
        return set()
    (first, most), *others = Counter(kinds).most_common()
    led = most > others[0][1]
    return {run.seed for run, kind in zip(runs, kinds, strict=True) if not led or kind != first}


@dataclass(frozen=True, kw_only=True, eq=False)
class Cell:
    """One cell of a table: the scores of a row on a column.

    Args:
        model: which of the runs' models is scored: ``best``, ``merged-exact``, ….
        values: seed -> score in [0, 1] of runs that ended well.
        codes: seed -> why there is no score, or why it does not count.
        records: the records of this cell.
    """

    row: str
    column: Column
    model: str
    values: Mapping[int, float]
    codes: Mapping[int, str]
    records: tuple[Record, ...] = ()

    @classmethod
    def of(cls, row: str, column: Column, model: str, records: Sequence[Record], *, seeds: Sequence[int]) -> Cell:
        """The cell of a row's records on a benchmark; ``seeds`` without a record are missing."""
        values: dict[int, float] = {}
        codes: dict[int, str] = {}
        own = [record for record in records if column.holds(record.run)]
        for record in own:
            seed = record.run.seed
            scores = record.scores.get(model, {}).get(column.split, {}) if record.code == "OK" else {}
            value = scores.get(column.metric)
            if value is None or not math.isfinite(value):
                if seed not in values:
                    codes[seed] = str(record.code) if record.code != "OK" else "NO_SCORE"
            elif values.setdefault(seed, value) != value:
                codes[seed] = CONFLICT
            elif codes.get(seed) != CONFLICT:
                codes.pop(seed, None)
        others = _under_other_rules([record.run for record in own if record.code == "OK"])
        codes |= dict.fromkeys(others & values.keys(), CONFLICT)
        codes |= {seed: MISSING for seed in seeds if seed not in values and seed not in codes}
        return cls(row=row, column=column, model=model, values=values, codes=codes, records=tuple(own))

    def hash_of(self, seed: int) -> str:
        """The protocol hash of the run whose value is the seed's: the first that ended well, else the first; empty where none ran."""
        own = [record for record in self.records if record.run.seed == seed]
        ended_well = [record for record in own if record.code == "OK"]
        return next((record.run.protocol_hash for record in (*ended_well, *own)), "")

    @property
    def planned(self) -> tuple[int, ...]:
        """The planned seeds; empty where this row was not planned on this benchmark."""
        return tuple(sorted(self.values.keys() | self.codes.keys()))

    @property
    def seeds(self) -> list[int]:
        """The seeds that have a score."""
        return sorted(self.values.keys() - self.codes.keys())

    @property
    def complete(self) -> bool:
        return bool(self.values) and not self.codes

    @property
    def code(self) -> str:
        """The reasons of a gap."""
        return "/".join(sorted(set(self.codes.values())))

    @property
    def by_seed(self) -> list[float]:
        return [self.values[seed] for seed in sorted(self.values)]

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        """Over seeds, in [0, 1]; tables do not show it where there is a gap."""
        return math.fsum(self.values.values()) / len(self.values)

    @property
    def sd(self) -> float | None:
        """With ddof = 1; None for a single run."""
        return stats.sd(self.by_seed)

    @cached_property
    def test_share(self) -> float:
        """Images tested over images trained on where every seed has its own split, else 0."""
        folds = [
            record
            for record in self.records
            if record.run.rules.get("split_follows_seed") and record.counts.get("train")
        ]
        return max((record.tested.get(self.column.split, 0) / record.counts["train"] for record in folds), default=0.0)

    @property
    def interval(self) -> stats.Interval | None:
        """Student's 95 % interval over the seeds, or that of folds where every seed has its own split; None for a single run."""
        return stats.of_folds(self.by_seed, test_share=self.test_share).interval() if self.values else None

    @cached_property
    def blank(self) -> bool:
        """Whether the masks of a run are almost empty: their mean foreground is below a tenth of the true masks'."""
        return any(record.foreground.get(self.column.split, 1.0) < 0.1 for record in self.records)

    @cached_property
    def collapsed(self) -> bool:
        """Whether one of its runs scores more than `COLLAPSE` below their median; never for an NLL, which has no scale from 0 to 1."""
        if self.n < 2 or self.column.metric == "nll":
            return False
        scores = [self.column.sign * value for value in self.by_seed]
        return statistics.median(scores) - min(scores) > COLLAPSE

    def sample(self, archive: Archive) -> Sample:
        """Its scores by seed and image, for `of_samples`; a seed with conflicting records is left out."""
        seeds, scale = set(self.seeds), 100 * self.column.sign
        images: dict[int, ImageScores] = {}
        clusters: dict[str, str] = {}
        for record in self.records if not self.test_share else ():
            if record.code != "OK" or record.run.seed not in seeds:
                continue
            read = archive.image_table(record, self.model, self.column.split)
            scores = read.scores(self.column.metric) if read else None
            if (
                read
                and scores is not None
                and abs(scores.mean() - self.values[record.run.seed]) <= rounding([float(scores.max())])
            ):
                images[record.run.seed] = (read.stems, scale * scores)
                clusters.update(read.clusters)
        by_seed = {seed: scale * self.values[seed] for seed in sorted(seeds)}
        return Sample(by_seed=by_seed, images=images, clusters=clusters, test_share=self.test_share)
