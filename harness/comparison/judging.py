"""Claims against records: every reading of a claim gets an estimate, an interval and a verdict of its own.

Verdicts are those of an equivalence test: reproduced only where the whole interval says so. What was made otherwise than the
paper's numbers (card, every rule, backbone, checkpoint, data, kind of device) is shown and not judged.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from harness import statistics as stats
from harness.archive.archive import Archive, Shares
from harness.archive.measured import CostRecord, EvidenceRecord, MethodCost, Ratio, places
from harness.archive.schema import Record
from harness.comparison.alpha import alpha_codes, beside_noise, domains, without_search
from harness.comparison.cells import Cell, Column, Difference, paired_difference
from harness.comparison.claims import Claim, Subject
from harness.comparison.evidence import comparable, mean_change
from harness.comparison.grids import grids, sheets
from harness.comparison.names import PAPER_METRICS, benchmark_title
from harness.comparison.papers import Papers, shortly
from harness.comparison.rankings import ModelPair, chance_in_words, model_pairs
from harness.comparison.rows import Row, Sheet, grouped, is_entry, results_among
from harness.comparison.rules import overrides
from harness.comparison.step_costs import paired_ratio, ratios_within
from harness.protocols.load import card_names
from harness.statistics import ALPHA, POWER, Estimate, Interval, seeds_for_power
from harness.studies import load_study
from harness.system.errors import UsageError, did_you_mean

Verdict = Literal[
    "reproduced", "not reproduced", "inconclusive", "no interval", "no data", "ambiguous", "not judged", "unknown"
]
"""Inconclusive: an interval reaches over an edge. No interval: one run a side says nothing of the next. No data: nothing was run."""
RATES = ("lr", "alpha_lr", "encoder_lr")
"""Options in which two rows of one method may both differ from the card, if they do alike."""


def judge(interval: Interval | None, *, low: float, high: float) -> Verdict:
    """Reproduced where the interval lies inside [low, high], not reproduced where wholly outside, else inconclusive; "no interval"
    without one.

    Args:
        interval: ours; None where n is too small to have one.
        low, high: published value ± tolerance, both included; infinite on one side for "greater than" and "less than",
            to which the other edge itself does not belong.
    """
    if interval is None:
        return "no interval"
    inside, outside = operator.le, operator.lt
    if math.isinf(low) or math.isinf(high):
        inside, outside = outside, inside
    if inside(low, interval.low) and inside(interval.high, high):
        return "reproduced"
    if outside(interval.high, low) or outside(high, interval.low):
        return "not reproduced"
    return "inconclusive"


def seeds_to_settle(estimate: Estimate, *, low: float, high: float) -> tuple[int, int | None] | None:
    """From how many to how many seeds an inconclusive interval needs to leave the nearest edge, with 80 % power, if the
    mean stays as it is; None where no number of seeds would do, or the SD is unknown."""
    distance = min(abs(estimate.mean - edge) for edge in (low, high) if math.isfinite(edge))
    return seeds_for_power(estimate, distance)


def seeds_in_words(seeds: tuple[int, int | None] | None) -> str:
    """What a page says about `seeds_to_settle`."""
    if seeds is None:
        return "more seeds alone would not settle it (or over a thousand)"
    fewest, most = seeds
    if fewest == most:
        return f"{fewest} seeds would settle it with {100 * POWER:.0f} % power"
    return f"{fewest} to {'over 1000' if most is None else most} seeds would settle it with {100 * POWER:.0f} % power"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One way to read a claim, judged on one set of runs or one session.

    Args:
        what: benchmark, cost and denominator of this reading.
        where: protocol, backbone and hash, or the device of a cost session.
        estimate: in the claim's unit, None without data.
        interval: None where n is too small.
        n: seeds or rounds.
        verdict: of this reading alone.
        settle: what an inconclusive one needs, in words; empty where that cannot be told.
        differs: how it was measured otherwise than what the claim speaks of; it is then not judged.
        backbone: of its runs; empty where it is of no runs.
        here: what its interval says of the sentence on that backbone and these rules, whether or not they are the paper's.
    """

    what: str
    where: str
    estimate: float | None
    interval: Interval | None
    n: int
    verdict: Verdict
    settle: str = ""
    differs: tuple[str, ...] = ()
    backbone: str = ""
    here: Verdict = "no data"

    @classmethod
    def without_data(cls, what: str, where: str) -> Reading:
        return cls(what=what, where=where, estimate=None, interval=None, n=0, verdict="no data")

    @classmethod
    def by_interval(
        cls, claim: Claim, what: str, where: str, value: float, interval: Interval | None, n: int
    ) -> Reading:
        verdict = judge(interval, low=claim.low, high=claim.high)
        return cls(what=what, where=where, estimate=value, interval=interval, n=n, verdict=verdict)

    @classmethod
    def exact(cls, claim: Claim, what: str, where: str, value: float) -> Reading:
        """Of a number that has no spread, such as a count."""
        return cls.by_interval(claim, what, where, value, Interval.exact(value), 1)

    @classmethod
    def by_seeds(
        cls, claim: Claim, what: str, sheet: Sheet, estimate: Estimate, *, differs: tuple[str, ...], more: str = ""
    ) -> Reading:
        """Judged by the interval over seeds; what was made otherwise than the paper's is not judged, but for ``here``."""
        where = _where(sheet) + more
        reading = cls.by_interval(claim, what, where, estimate.mean, estimate.interval(), estimate.n)
        settle = "at least 2 seeds are needed" if reading.verdict == "no interval" else ""
        if reading.verdict == "inconclusive":
            settle = seeds_in_words(seeds_to_settle(estimate, low=claim.low, high=claim.high))
        reading = replace(reading, backbone=sheet.backbone, here=reading.verdict)
        if claim.is_unknown:
            return replace(reading, verdict="unknown", differs=differs)
        if differs:
            return replace(reading, verdict="not judged", differs=differs, settle=settle)
        return replace(reading, settle=settle)

    @property
    def verdict_in_words(self) -> str:
        return f"{self.verdict}: {shortly(self.differs)}" if self.differs else self.verdict


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A claim with its readings; where it speaks of several benchmarks, ``averages`` are the means over them, once for each denominator and
    set-up: a sentence that must hold on each of nine benchmarks can hardly ever be shown with few seeds."""

    claim: Claim
    readings: tuple[Reading, ...]
    averages: tuple[Reading, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """Unknown where nobody here knows what the paper shows; ambiguous if the claim says so; reproduced if every reading
        is; not reproduced if one is not.

        A reading of another set-up than the published one is no evidence either way: what has no other (a benchmark, say)
        is open as if it had not been run, and with none at all the claim is not judged. Where nothing was run there is no
        data, which is no verdict of any kind.
        """
        if self.claim.is_unknown:
            return "unknown"
        if self.claim.ambiguous:
            return "ambiguous"
        judged = [reading for reading in self.readings if reading.verdict not in ("not judged", "no data")]
        verdicts = {reading.verdict for reading in judged}
        if not judged:
            return "not judged" if any(reading.verdict == "not judged" for reading in self.readings) else "no data"
        if "not reproduced" in verdicts:
            return "not reproduced"
        if verdicts == {"no interval"}:
            return "no interval"
        everything = {reading.what for reading in judged} == {reading.what for reading in self.readings}
        return "reproduced" if verdicts == {"reproduced"} and everything else "inconclusive"

    @property
    def here(self) -> dict[str, Verdict]:
        """Backbone -> what its runs say of the sentence there, on the mean over benchmarks where there is one: reproduced only
        if every row of rules says so, not reproduced if one says so."""
        by_backbone: dict[str, list[Verdict]] = {}
        for reading in self.averages or self.readings:
            if reading.backbone and not self.claim.is_unknown:
                by_backbone.setdefault(reading.backbone, []).append(reading.here)
        return {backbone: _together(verdicts) for backbone, verdicts in by_backbone.items()}

    @property
    def in_words(self) -> str:
        """``not judged; on mobile_sam: inconclusive``"""
        return "; ".join([self.verdict, *(f"on {backbone}: {verdict}" for backbone, verdict in self.here.items())])

    def details(self) -> list[str]:
        """The sentence, what it holds for, and every reading, a line each."""
        claim = self.claim
        lines = [f"  {claim.text} [{claim.mark}: {claim.source}]", f"  holds for {claim.expected}"]
        if claim.ambiguous:
            lines.append(f"  ambiguous: {claim.ambiguous}; every reading on its own:")
        return [*lines, *(f"    {_line(claim, reading)}" for reading in (*self.readings, *self.averages))]

    def why(self, archive: Archive) -> list[str]:
        return self.details()


def _together(verdicts: Sequence[Verdict]) -> Verdict:
    if "not reproduced" in verdicts:
        return "not reproduced"
    return verdicts[0] if len(set(verdicts)) == 1 else "inconclusive"


def require_protocol(name: str, records: Iterable[Record]) -> None:
    """Raises UsageError where neither a card nor a record has this name."""
    known = sorted({*card_names(), *(record.run.protocol for record in records)})
    if name not in known:
        raise UsageError(f"unknown protocol {name!r}{did_you_mean(name, known)}")


Count = Callable[[str, Mapping[str, Any], str], int | None]
"""(method, options, backbone) -> trained parameters in closed form, mask decoder included; None where that cannot be told."""


def judge_claims(
    claims: Iterable[Claim], archive: Archive, *, protocol: str, papers: Papers, closed_form: Count
) -> list[Finding]:
    """Judge every claim on the scores under ``protocol`` and on every cost session, each on its own; ``papers``: what their numbers were
    made with, ``closed_form``: for claims on parameters."""
    scored = [record for record in archive.records if record.run.protocol == protocol]
    by_sheet = sheets(scored)
    findings = []
    for claim in claims:
        averages: list[Reading] = []
        if claim.quantity == "score difference":
            readings, averages = score_readings(claim, by_sheet, archive, papers)
        elif claim.quantity == "rank agreement":
            readings = rank_readings(claim, scored, archive, protocol=protocol)
        elif claim.quantity == "evidence difference":
            readings = evidence_readings(claim, by_sheet, archive, papers)
        elif claim.quantity == "prior distance":
            readings = prior_readings(claim, by_sheet, archive, papers)
        elif claim.quantity == "trained parameters":
            readings = [_parameters(claim, closed_form)]
        else:
            readings = cost_readings(claim, archive.costs, papers)
        findings.append(Finding(claim=claim, readings=tuple(readings), averages=tuple(averages)))
    return findings


def _parameters(claim: Claim, closed_form: Count) -> Reading:
    count = closed_form(claim.numerator.method, claim.numerator.options, claim.backbone)
    what, where = f"{claim.numerator.text}, closed form", claim.backbone
    return Reading.without_data(what, where) if count is None else Reading.exact(claim, what, where, count / 1e6)


def score_readings(
    claim: Claim, by_sheet: Mapping[Sheet, Sequence[Record]], archive: Archive, papers: Papers
) -> tuple[list[Reading], list[Reading]]:
    """(by benchmark, means over the benchmarks), each once for every denominator and sheet of records; a mean holds the sheets that
    `_of_one_mean` puts together."""

    def departures(difference: Difference) -> tuple[str, ...]:
        return papers.departures(claim.paper, [*difference.first.records, *difference.second.records])

    readings, averages = [], []
    by_mean: dict[str, dict[Sheet, dict[str, Difference]]] = {}
    for benchmark in claim.benchmarks:
        for other in claim.denominator:
            what = f"{benchmark_title(benchmark)}, {claim.numerator.text} − {other.text}"
            here = []
            for sheet, members in by_sheet.items():
                on = [record for record in members if record.run.benchmark == benchmark]
                sides = _differences(claim, other, benchmark, sheet, on, archive)
                for manifest, (difference, rates) in sides.items():
                    more = f" · split {manifest[:6]}" if len(sides) > 1 else ""
                    more += "".join(f" · {name} {value:g}" for name, value in rates.items())
                    estimate, differs = difference.estimate, departures(difference)
                    here.append(Reading.by_seeds(claim, what, sheet, estimate, differs=differs, more=more))
                if sides:  # one split a benchmark enters the mean: that of most seeds
                    best = max((difference for difference, _ in sides.values()), key=lambda side: side.estimate.n)
                    by_mean.setdefault(other.text, {}).setdefault(sheet, {})[benchmark] = best
            readings += here or [Reading.without_data(what, "no run")]
    for text, each in ((text, each) for text, of_sheets in by_mean.items() for each in _means(of_sheets, by_sheet)):
        what = f"mean over {len(each)} of {len(claim.benchmarks)} benchmarks, {claim.numerator.text} − {text}"
        differs = tuple(dict.fromkeys(word for difference in each.values() for word in departures(difference)))
        if len(each) < len(claim.benchmarks):
            differs = (*differs, "not all benchmarks")
        mean = stats.average_of([difference.estimate for difference in each.values()])
        first, *others = dict.fromkeys(difference.first.row.sheet for difference in each.values())
        more = f" · and the hashes {', '.join(sheet.protocol_hash for sheet in others)}" if others else ""
        averages.append(Reading.by_seeds(claim, what, first, mean, differs=differs, more=more))
    return readings, averages


OF_A_BENCHMARK = frozenset({
    *("decoder_lr", "split_rule", "split_seed", "split_follows_seed"),
    *("train_limit", "val_limit", "test_limit", "own_classes"),
})  # fmt: skip
"""Rules that a card leaves to a benchmark: how its images are split, how many of them are used, and a rate that all its rows share."""


def _means(
    of_sheets: Mapping[Sheet, Mapping[str, Difference]], by_sheet: Mapping[Sheet, Sequence[Record]]
) -> list[dict[str, Difference]]:
    """Two benchmarks or more whose differences enter one mean: those of one sheet, or of several that `_of_one_mean` puts together and
    that have no benchmark in common."""
    together: dict[tuple[object, ...], list[Mapping[str, Difference]]] = {}
    for sheet, each in of_sheets.items():
        together.setdefault(_of_one_mean(sheet, by_sheet[sheet]), []).append(each)
    means: list[dict[str, Difference]] = []
    for parts in together.values():
        whole = {name: difference for part in parts for name, difference in part.items()}
        means += [whole] if len(whole) == sum(map(len, parts)) else [dict(part) for part in parts]
    return [each for each in means if len(each) > 1]


def _of_one_mean(sheet: Sheet, members: Sequence[Record]) -> tuple[object, ...]:
    """Equal for sheets whose benchmarks may enter one mean: one card, one backbone, and no other changes of the card than those of
    `OF_A_BENCHMARK`."""
    changed = overrides(members)
    if changed is None:
        return (sheet,)
    rules = {(name, str(ours)) for difference in changed.values() for name, (ours, _) in difference.items()}
    others = sorted((name, value) for name, value in rules if name not in OF_A_BENCHMARK)
    return (sheet.protocol, sheet.backbone, sheet.checkpoint, *others)


def _where(sheet: Sheet) -> str:
    return f"{sheet.protocol} {sheet.protocol_hash} · {sheet.backbone}"


def _differences(
    claim: Claim, other: Subject, benchmark: str, sheet: Sheet, records: Sequence[Record], archive: Archive
) -> dict[str, tuple[Difference, Mapping[str, Any]]]:
    """Split manifest, in order -> difference and the rates that both were given, for the manifests on which both have a seed.

    Tuned rows with tuned ones where both were, else untuned with untuned at the card's rate, else, of one method, both at
    another one.
    """
    split = "all" if any("all" in scored for record in records for scored in record.scores.values()) else "test"
    metric = claim.metric or PAPER_METRICS[benchmark][0]
    ways: list[tuple[bool, dict[str, Any]]] = [(True, {}), (False, {})]
    if claim.numerator.method == other.method:
        given = [{name: record.run.changed[name] for name in RATES if name in record.run.changed} for record in records]
        ways += [(False, rates) for rates in sorted({str(rate): rate for rate in given if rate}.values(), key=str)]
    sides: dict[str, tuple[Difference, Mapping[str, Any]]] = {}
    for manifest in sorted({record.run.manifest for record in records}):
        column = Column(benchmark=benchmark, split=split, metric=metric, manifest=manifest)
        here = results_among(record for record in records if record.run.manifest == manifest)
        for tuned, rates in ways:
            members = [record for record in here if bool(record.run.tuning) == tuned]
            first, second = (_cell(subject, rates, column, sheet, members) for subject in (claim.numerator, other))
            if (difference := paired_difference(first, second, archive)) is not None:
                sides[manifest] = difference, rates
                break
    return sides


def _cell(subject: Subject, rates: Mapping[str, Any], column: Column, sheet: Sheet, members: Sequence[Record]) -> Cell:
    options = {**rates, **subject.options}
    fitting = [record for record in members if record.run.method == subject.method and is_entry(record, options)]
    row = Row(sheet=sheet, label=subject.text, method=subject.method, score=subject.score, records=fitting)
    return Cell.of(row, column, sorted({record.run.seed for record in fitting}))


def evidence_readings(
    claim: Claim, by_sheet: Mapping[Sheet, Sequence[Record]], archive: Archive, papers: Papers
) -> list[Reading]:
    """Claims on what models do inside, each method against its own frozen backbone: one for every benchmark, kind of blocks,
    denominator and sheet of records that has evidence of both sides."""
    readings = []
    for benchmark in claim.benchmarks:
        for kind in claim.blocks:
            for other in claim.denominator:
                sides = f"{claim.numerator.text} − {other.text}"
                what = f"{benchmark_title(benchmark)}, {claim.measure} of {kind} blocks, {sides}"
                here = []
                for sheet, members in by_sheet.items():
                    on = [record for record in members if record.run.benchmark == benchmark]
                    pairs = _evidence_pairs(claim, other, on, archive)
                    changes = [[mean_change(side, claim.measure, kind) for _, side in pair] for pair in pairs]
                    values = [ours - theirs for ours, theirs in changes if ours is not None and theirs is not None]
                    if not values:
                        continue
                    differs = papers.departures(claim.paper, [record for pair in pairs for record, _ in pair])
                    here.append(Reading.by_seeds(claim, what, sheet, stats.of_seeds(values), differs=differs))
                readings += here or [Reading.without_data(what, "no evidence")]
    return readings


def runs_by_seed(subject: Subject, members: Sequence[Record], *, tuned: bool) -> dict[int, Record]:
    """seed -> the finished run of these options; a seed with several is none."""
    finished = [record for record in members if record.code == "OK" and record.run.method == subject.method]
    alike = [record for record in results_among(finished) if bool(record.run.tuning) == tuned]
    fitting = [record for record in alike if is_entry(record, subject.options)]
    by_seed = grouped(fitting, lambda record: record.run.seed)
    return {seed: records[0] for seed, records in sorted(by_seed.items()) if len(records) == 1}


_WithEvidence = tuple[Record, EvidenceRecord]


def _evidence_pairs(
    claim: Claim, other: Subject, members: Sequence[Record], archive: Archive
) -> list[tuple[_WithEvidence, _WithEvidence]]:
    """The two sides at every common seed, tuned with tuned where both were; only where both saw the same images."""
    for tuned in (True, False):
        first, second = (runs_by_seed(subject, members, tuned=tuned) for subject in (claim.numerator, other))
        pairs = []
        for seed in sorted(first.keys() & second.keys()):
            ours, theirs = archive.evidence(first[seed]), archive.evidence(second[seed])
            same_split = first[seed].run.manifest == second[seed].run.manifest
            if same_split and ours and theirs and comparable([ours, theirs]):
                pairs.append(((first[seed], ours), (second[seed], theirs)))
        if pairs:
            return pairs
    return []


def prior_readings(
    claim: Claim, by_sheet: Mapping[Sheet, Sequence[Record]], archive: Archive, papers: Papers
) -> list[Reading]:
    """Claims on α, judged by a permutation test and not by an interval. One a sheet: distance of mixtures between benchmarks
    minus that between seeds, over the benchmarks that have runs; reproduced only where these are all of the claim's."""
    readings = []
    for sheet, members in by_sheet.items():
        on = {name: [record for record in members if record.run.benchmark == name] for name in claim.benchmarks}
        for tuned in (True, False):
            runs = [run for here in on.values() for run in runs_by_seed(claim.numerator, here, tuned=tuned).values()]
            if reading := _prior_reading(claim, _where(sheet), runs, archive, papers):
                readings.append(reading)
                break
    what = f"{claim.numerator.text}, between benchmarks − between seeds"
    return readings or [Reading.without_data(what, "no two benchmarks")]


def _prior_reading(
    claim: Claim, where: str, runs: Sequence[Record], archive: Archive, papers: Papers
) -> Reading | None:
    ends: dict[str, dict[int, Shares]] = {}
    for record in runs:
        if (end := archive.mixture(record)) and not without_search(record):
            ends.setdefault(record.run.benchmark, {})[record.run.seed] = end
    sites = {frozenset(end) for seeds in ends.values() for end in seeds.values()}
    compared = domains(ends) if len(sites) == 1 else None
    if compared is None:
        return None
    titles = ", ".join(map(benchmark_title, ends))
    differs = papers.departures(claim.paper, runs)
    flags = alpha_codes(runs, archive)
    p = compared.test.p
    shown = p is not None and p < ALPHA and compared.between > compared.within
    verdict: Verdict = "not judged" if differs else "reproduced" if shown else "inconclusive"
    partial = len(ends) < len(claim.benchmarks)
    if (partial or flags) and verdict == "reproduced":  # the sentence speaks of them all, and of what α would choose
        verdict = "inconclusive"
    settle = "not all benchmarks; " if partial else ""
    settle += "".join(f"{flag} under some runs; " for flag in flags)
    settle += f"{compared.test.text}; {compared.between:.4f} between, {compared.within:.4f} within"
    settle += f"; {beside_noise(runs, archive)}"
    sides = f"{claim.numerator.text}, between benchmarks − between seeds"
    return Reading(
        what=f"{sides}, {len(ends)} of {len(claim.benchmarks)} benchmarks ({titles})",
        where=where, estimate=compared.between - compared.within, interval=None, n=compared.test.n,
        verdict=verdict, settle=settle, differs=differs,
    )  # fmt: skip


def rank_readings(claim: Claim, records: Sequence[Record], archive: Archive, *, protocol: str) -> list[Reading]:
    """Whether the rows of a study rank alike: one for every two models of each of the claim's studies under ``protocol``.

    No set-up is asked for: the sentence speaks of models that the paper did not try.
    """
    readings = []
    for name in claim.studies:
        study = load_study(name)
        if study.protocol != protocol:
            continue
        pairs = model_pairs(grids(records, archive, study=study))
        where = f"{protocol} · study {name}"
        readings += [_rank_reading(claim, pair, where=where, benchmarks=len(study.benchmarks)) for pair in pairs]
        models = max(1, len(study.backbones)) * max(1, len(study.decoders))
        if len(pairs) < (possible := math.comb(models, 2)):
            some = f"{len(pairs)} of {possible} pairs of models have two complete rows in common"
            missing = some if pairs else "no two models with two rows in common"
            readings.append(Reading.without_data(f"rankings of {name}", missing))
    return readings


def _rank_reading(claim: Claim, pair: ModelPair, *, where: str, benchmarks: int) -> Reading:
    """Judged by its interval; open for methods so few that chance agrees as well too often, and for some of the study's
    rows or benchmarks, which are not what the sentence speaks of."""
    agreement = pair.agreement
    verdict = judge(agreement.interval, low=claim.low, high=claim.high)
    if verdict != "no interval" and (agreement.least_p > ALPHA or (verdict == "reproduced" and agreement.p > ALPHA)):
        verdict = "inconclusive"
    settle = ""
    if verdict in ("inconclusive", "no interval"):
        settle = f"{agreement.methods} rows agree so well by chance in {chance_in_words(agreement)}"
        settle += "; at least 4 rows are needed" if agreement.least_p > ALPHA else ""
    partial = ["not all rows"] * (agreement.methods < pair.of_rows)
    partial += ["not all benchmarks"] * (len(pair.columns) < benchmarks)
    if partial:
        verdict, settle = (
            "no interval" if verdict == "no interval" else "inconclusive",
            "; ".join([*partial, *filter(None, [settle])]),
        )
    first, second = pair.models
    interval = None if agreement.interval is None else replace(agreement.interval, n=pair.seeds)
    return Reading(
        what=f"{first} – {second}, mean τ over {len(pair.columns)} benchmarks of {agreement.methods} rows",
        where=where, estimate=agreement.mean, interval=interval, n=pair.seeds, verdict=verdict, settle=settle,
    )  # fmt: skip


def cost_readings(claim: Claim, sessions: Sequence[CostRecord], papers: Papers) -> list[Reading]:
    """Ratios of training cost, and inference after a merge: one for every cost, denominator and session that measured both
    sides."""
    readings = []
    named = places(sessions)
    for cost in claim.costs:
        for other in claim.denominator:
            what = f"{cost.replace('_', ' ')}, {claim.numerator.text} / {other.text}"
            here = []
            for session in sessions:
                sides = [measured(session, subject) for subject in (claim.numerator, other)]
                if None in sides:
                    continue
                where = named[session.key] + (" · device shared" if session.shared else "")
                reading = _cost_reading(claim, cost, other, *filter(None, sides), what=what, where=where)
                if reading is None:
                    continue
                differs = papers.departures_of_session(claim.paper, session)
                here.append(replace(reading, verdict="not judged", differs=differs) if differs else reading)
            readings += here or [Reading.without_data(what, "not measured")]
    return readings


def measured(session: CostRecord, subject: Subject) -> MethodCost | None:
    """The entry of the session that has these options and changes nothing else; None where there is none.

    In older sessions, which keep no card, an entry changes what differs from the entry that bears the method's own name;
    without such an entry nobody knows.
    """
    alike = [entry for entry in session.methods if entry.method == subject.method]
    unchanged = next((entry.config for entry in alike if entry.variant == entry.method), None)

    def changed(entry: MethodCost) -> set[str] | None:
        if entry.changed is not None or unchanged is None:
            return None if entry.changed is None else set(entry.changed)
        return {name for name, value in entry.config.items() if value != unchanged.get(name)}

    fitting = [
        entry
        for entry in alike
        if (names := changed(entry)) is not None
        and names <= subject.options.keys()
        and all(entry.config.get(name) == value for name, value in subject.options.items())
    ]
    return min(fitting, key=lambda entry: (entry.variant != entry.method, entry.variant), default=None)


def _cost_reading(
    claim: Claim, cost: str, other: Subject, first: MethodCost, second: MethodCost, *, what: str, where: str
) -> Reading | None:
    if claim.quantity == "cost change":
        ratio = ratios_within(first, second).get(cost)
    else:
        ours, theirs = ("unmerged" if side.score == "best" else side.score for side in (claim.numerator, other))
        amounts = {"time": "inference_seconds", "memory": "inference_memory_bytes"}.get(cost, "inference_parameters")
        numerator, denominator = getattr(first, amounts).get(ours), getattr(second, amounts).get(theirs)
        if not numerator or not denominator:
            return None
        if cost != "time":
            ratio = Ratio(value=numerator / denominator)
        else:
            ratio = paired_ratio(numerator, denominator) if len(numerator) == len(denominator) else None
    if ratio is None:
        return None
    change, interval = 100 * (ratio.value - 1), None
    if cost in ("flops", "memory", "parameters"):
        return Reading.exact(claim, what, where, change)
    if ratio.low is not None and ratio.high is not None:
        interval = Interval(estimate=change, low=100 * (ratio.low - 1), high=100 * (ratio.high - 1), n=ratio.rounds)
    return Reading.by_interval(claim, what, where, change, interval, ratio.rounds)


def findings_text(findings: Sequence[Finding]) -> str:
    """The findings as text, ending in a newline."""
    lines = []
    for finding in findings:
        lines += [f"{finding.claim.name}: {finding.in_words}", *finding.details(), ""]
    return "\n".join([*lines, counted(findings)]).rstrip() + "\n"


def counted(findings: Sequence[Finding]) -> str:
    """How many claims have which verdict."""
    verdicts: list[str] = [finding.verdict for finding in findings]
    order = (
        "reproduced", "not reproduced", "inconclusive", "no interval", "no data", "not judged", "ambiguous", "unknown",
    )  # fmt: skip
    return f"claims: {len(verdicts)}; " + ", ".join(f"{verdicts.count(word)} {word}" for word in order)


def _line(claim: Claim, reading: Reading) -> str:
    if reading.estimate is None:
        return f"{reading.what}: {reading.verdict} ({reading.where})"
    digits = {"millions": 3, "ln amplitude": 3, "total variation": 4}.get(claim.unit, 2)
    sign = "" if claim.unit == "millions" else "+"
    number = f"{reading.estimate:{sign}.{digits}f}"
    interval = reading.interval
    if interval is None:
        number += f" {claim.unit}, n = {reading.n}, no interval"
    elif interval.n == 1:
        number += f" {claim.unit}, exact"
    else:
        number += f" {interval:{sign}.{digits}f} {claim.unit}, n = {reading.n}"
    settle = f"; {reading.settle}" if reading.settle else ""
    if reading.verdict == "not judged" and reading.backbone:
        settle = f"; on {reading.backbone} itself: {reading.here}" + settle
    return f"{reading.what}: {number}: {reading.verdict_in_words}{settle} ({reading.where})"
