"""Claims on rankings: whether the rows of a study rank alike under every two of its models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from harness.archive.schema import Record
from harness.comparison.rankings import ModelPair, chance_in_words, pairs
from harness.comparison.sheets import grids
from harness.comparison.sources import Sources
from harness.judging.definitions import Claim
from harness.judging.reading import Reading, without_data
from harness.judging.verdicts import judge
from harness.statistics import ALPHA
from harness.studies import Study, load_study


def rank_readings(claim: Claim, records: Sequence[Record], sources: Sources, *, protocol: str) -> list[Reading]:
    """One for every two models of each of the claim's studies under ``protocol``.

    No set-up is asked for: the sentence speaks of models that the paper did not try.
    """
    readings = []
    for name in claim.studies:
        study = load_study(name)
        if study.protocol != protocol:
            continue
        found = pairs(grids(records, study=study, card_of=sources.card_of), images_of=sources.images_of)
        readings += [_reading(claim, one, study, where=f"{protocol} · study {name}") for one in found]
        models = max(1, len(study.backbones)) * max(1, len(study.decoders))
        if len(found) < (wanted := math.comb(models, 2)):
            some = f"{len(found)} of {wanted} pairs of models have two complete rows in common"
            missing = some if found else "no two models with two rows in common"
            readings.append(without_data(f"rankings of {name}", missing))
    return readings


def _reading(claim: Claim, pair: ModelPair, study: Study, *, where: str) -> Reading:
    """Judged by its interval; open for methods so few that chance agrees as well too often, and for some of the study's
    rows or benchmarks, which are not what the sentence speaks of."""
    agreement = pair.agreement
    verdict = judge(agreement.interval, low=claim.low, high=claim.high)
    if agreement.least_p > ALPHA or (verdict == "reproduced" and agreement.p > ALPHA):
        verdict = "inconclusive"
    settle = ""
    if verdict == "inconclusive":
        settle = f"{agreement.methods} rows agree so well by chance in {chance_in_words(agreement)}"
        settle += "; at least 4 rows are needed" if agreement.least_p > ALPHA else ""
    partial = [
        f"not all {what}"
        for what, here, wanted in (
            ("rows", agreement.methods, pair.of_rows),
            ("benchmarks", len(pair.columns), len(study.benchmarks)),
        )
        if here < wanted
    ]
    if partial:
        verdict, settle = "inconclusive", "; ".join([*partial, *filter(None, [settle])])
    what = (
        f"{pair.models[0]} – {pair.models[1]}, mean τ over {len(pair.columns)} benchmarks of {agreement.methods} rows"
    )
    interval = None if agreement.interval is None else replace(agreement.interval, n=pair.seeds)
    return Reading(
        what=what, where=where, estimate=agreement.mean, interval=interval, n=pair.seeds, verdict=verdict, settle=settle
    )
