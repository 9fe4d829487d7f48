"""Claims of papers as data: read from YAML, validated, each with the interval in which it counts as true."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from harness.comparison.evidence import KINDS, MEASURES
from harness.comparison.names import METRICS, PAPER_METRICS
from harness.registry import BENCHMARKS, METHODS, method_config
from harness.studies import load_study
from harness.system.errors import UsageError, did_you_mean
from harness.system.yaml_files import read_yaml

FILE = Path(__file__).parents[1] / "data" / "claims.yaml"
UNKNOWN = "unknown"
"""Expected where a paper shows something and no number or direction of it is known here."""
NEEDED = {
    "score difference": ("numerator", "benchmarks", "denominator"),
    "cost change": ("numerator", "costs", "denominator"),
    "inference change": ("numerator", "costs", "denominator"),
    "trained parameters": ("numerator", "backbone"),
    "rank agreement": ("studies",),
    "evidence difference": ("numerator", "denominator", "benchmarks", "measure", "blocks"),
    "prior distance": ("numerator", "benchmarks"),
}
"""Quantity -> what a claim on it must name."""
COSTS = {
    "cost change": ("time", "device_hours", "flops", "memory"),
    "inference change": ("time", "memory", "parameters"),
}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One side of a claim.

    Args:
        method: canonical name.
        options: configuration fields that differ from the protocol's.
        score: which of its models: ``best``, ``decoded``, ``merged-exact``, …; ``unmerged`` or ``merged-…`` of inference costs.
    """

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    score: str = "best"

    @property
    def text(self) -> str:
        options = ",".join(f"{name}={_short(value)}" for name, value in self.options.items())
        score = "" if self.score in ("best", "unmerged") else f" ({self.score})"
        return f"{self.method}[{options}]{score}" if options else f"{self.method}{score}"


NOTHING = Subject(method="")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One sentence of a paper.

    Args:
        name: short name.
        text: what is claimed.
        source: where.
        mark: how sure the source is, see `harness.comparison.papers.MARKS`.
        quantity: one of `NEEDED`.
        numerator: what is praised; for parameters, what is counted; nothing for rankings.
        denominator: what it is compared with; each is a reading of its own.
        benchmarks: where scores are compared; each is a reading of its own.
        metric: of the scores, empty for the first by which a benchmark is reported.
        costs: which costs, each a reading of its own.
        backbone: for parameters.
        studies: for rankings: studies whose rows are ranked under several models.
        measure: for evidence: one of `harness.comparison.evidence.MEASURES`, always against the frozen backbone.
        blocks: for evidence: which of `harness.comparison.evidence.KINDS`, each a reading of its own.
        unit: ``points``, ``percent``, ``millions``, ``tau``, ``px``, ``ln amplitude`` or ``total variation``.
        low, high: the claim holds for values in between; without bounds where what it says is unknown.
        paper: whose numbers; what they were made with is in ``results/paper/setups.yaml``.
        ambiguous: why the sentence cannot be judged as it stands, empty if it can.
    """

    name: str
    text: str
    source: str
    mark: str
    quantity: str
    unit: str
    low: float
    high: float
    numerator: Subject = NOTHING
    denominator: tuple[Subject, ...] = ()
    benchmarks: tuple[str, ...] = ()
    metric: str = ""
    costs: tuple[str, ...] = ()
    backbone: str = ""
    studies: tuple[str, ...] = ()
    measure: str = ""
    blocks: tuple[str, ...] = ()
    paper: str = "nas-lora"
    ambiguous: str = ""

    @property
    def is_unknown(self) -> bool:
        """Whether nobody here knows what the sentence expects."""
        return math.isinf(self.low) and math.isinf(self.high)

    @property
    def expected(self) -> str:
        if self.is_unknown:
            return f"{UNKNOWN}: nothing published that could be held against ours"
        if math.isinf(self.high):
            return f"> {self.low:g} {self.unit}"
        if math.isinf(self.low):
            return f"< {self.high:g} {self.unit}"
        middle, half = (self.low + self.high) / 2, (self.high - self.low) / 2
        return f"{middle:g} ± {half:.3g} {self.unit}"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def read_claims(path: Path = FILE) -> list[Claim]:
    """Raises UsageError with the claim's name and what is wrong with it."""
    data = read_yaml(path, what="claims")
    if not isinstance(data, list):
        raise UsageError(f"{path}: expected a list of claims")
    claims = []
    for number, item in enumerate(data, start=1):
        name = item.get("name", "without a name") if isinstance(item, Mapping) else "without a name"
        where = f"{path}, claim {number} ({name})"
        claim = _claim(item, where)
        try:
            claims.append(_checked(claim))
        except ValueError as error:  # UsageError, or what a method itself refuses
            raise UsageError(f"{where}: {error}") from error
    names = [claim.name for claim in claims]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"{path}: two claims are named {twice[0]!r}")
    return claims


def _claim(item: Any, where: str) -> Claim:
    """The claim with every field of its type; ``expected`` and ``tolerance`` say where it holds."""
    from harness.check import from_mapping

    if not isinstance(item, Mapping):
        raise UsageError(f"{where}: expected a mapping")
    known = {field.name for field in fields(Claim)} - {"low", "high"} | {"expected", "tolerance"}
    if unknown := [key for key in item if key not in known]:
        raise UsageError(f"{where}: unknown key {unknown[0]!r}{did_you_mean(str(unknown[0]), known)}")
    low, high = _region(item, where)
    content = {key: value for key, value in item.items() if key not in ("expected", "tolerance")}
    denominator = content.get("denominator", [])
    content["denominator"] = denominator if isinstance(denominator, list | tuple) else [denominator]
    return from_mapping(Claim, {**content, "low": low, "high": high}, where=where, endless=("low", "high"))


def _region(item: Mapping[str, Any], where: str) -> tuple[float, float]:
    expected, tolerance = item.get("expected"), item.get("tolerance")
    if expected == UNKNOWN:
        if item.get("mark") != "?" or tolerance is not None:
            raise UsageError(f"{where}: what is expected: {UNKNOWN} has the mark '?' and no tolerance")
        return -math.inf, math.inf
    if not isinstance(expected, Mapping) or len(expected) != 1 or not expected.keys() <= {"equal", "greater", "less"}:
        raise UsageError(f"{where}: expected must be one of equal: X, greater: X, less: X, or {UNKNOWN}")
    ((kind, value),) = expected.items()
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise UsageError(f"{where}: expected {kind} {value!r} is not a number")
    if kind != "equal":
        if tolerance is not None:
            raise UsageError(f"{where}: a tolerance belongs to 'equal'; put the margin into {kind!r}")
        return (float(value), math.inf) if kind == "greater" else (-math.inf, float(value))
    if not isinstance(tolerance, int | float) or not tolerance > 0:
        raise UsageError(f"{where}: 'equal' needs a tolerance above zero")
    return value - tolerance, value + tolerance


def _checked(claim: Claim) -> Claim:
    """With canonical names. Raises ValueError for words that name nothing, and for what the quantity needs and has not."""
    _require_known("quantity", [claim.quantity], NEEDED)
    benchmarks = tuple(map(BENCHMARKS.resolve, claim.benchmarks))
    for name in benchmarks:
        if name not in PAPER_METRICS and not claim.metric:
            raise UsageError(f"no paper reports {name!r}; name the 'metric'")
    _require_known("metric", [claim.metric] if claim.metric else [], METRICS)
    for cost in claim.costs:
        if cost not in COSTS.get(claim.quantity, ()):
            raise UsageError(f"{claim.quantity} has no {cost!r}")
    for known, given in ((MEASURES, [claim.measure] if claim.measure else []), (KINDS, claim.blocks)):
        if unknown := [word for word in given if word not in known]:
            raise UsageError(f"{unknown[0]!r} is none of {', '.join(known)}")
    for name in NEEDED[claim.quantity]:
        if getattr(claim, name) in ((), "", NOTHING):
            raise UsageError(f"a {claim.quantity} needs {'a ' if name == 'denominator' else ''}{name!r}")
    for name in claim.studies:
        load_study(name)
    numerator = claim.numerator if claim.numerator == NOTHING else _resolved(claim.numerator)
    denominator = tuple(map(_resolved, claim.denominator))
    return replace(claim, benchmarks=benchmarks, numerator=numerator, denominator=denominator)


def _require_known(kind: str, words: Sequence[str], known: Mapping[str, Any]) -> None:
    for word in words:
        if word not in known:
            raise UsageError(f"unknown {kind} {word!r}{did_you_mean(word, known)}")


def _resolved(subject: Subject) -> Subject:
    name = METHODS.resolve(subject.method)
    method_config(name, subject.options)
    return replace(subject, method=name)
