"""The pages of a results folder: which tables its records give, and where each is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from harness.errors import UsageError, did_you_mean
from harness.records.cost import CostStore
from harness.records.images import image_groups, image_scores
from harness.records.schema import Record
from harness.records.store import RecordStore
from harness.registry import groups_by_rule
from harness.reporting import published, setups
from harness.reporting.alpha import alpha_codes_below
from harness.reporting.claims import definitions as claims
from harness.reporting.costs import cost_page
from harness.reporting.page import SUFFIX, Format, Page
from harness.reporting.paired import ImagesOf, PerImage
from harness.reporting.rules import CardOf, no_card
from harness.reporting.sources import Sources
from harness.reporting.tables import score_page
from harness.reporting.writing import write
from harness.studies import Study, load_study, study_names


@dataclass(frozen=True, kw_only=True)
class Pages:
    """The same as files: path -> content."""

    content: Mapping[Path, str]
    skipped: Mapping[Path, str]


@dataclass(frozen=True, kw_only=True)
class Built:
    """name -> page of every table; and files that no table counts since they cannot be read, with the reason."""

    content: Mapping[str, Page]
    skipped: Mapping[Path, str]


def pages(root: Path, *, study: Study | None = None, card_of: CardOf = no_card) -> Pages:
    """`built_pages` as markdown."""
    return written(built_pages(root, study=study, card_of=card_of), root)


def written(built: Built, root: Path, *, style: Format = "markdown") -> Pages:
    """Pages as the files of a results folder."""
    content = {
        root / "tables" / f"{name}{SUFFIX[style]}": write(page, style=style) for name, page in built.content.items()
    }
    return Pages(content=content, skipped=built.skipped)


def built_pages(
    root: Path, *, study: Study | None = None, metrics: Sequence[str] = (), card_of: CardOf = no_card
) -> Built:
    """The tables that the records below ``root`` give.

    The page of ``study``; without one a page a protocol, the cost page if there are cost records, and the page of every
    study that has one already.

    Args:
        metrics: columns of these, on the page of ``study`` or on those of the protocols alone.
        card_of: the harness's own cards, to say what was run with instead (`harness.reporting.rules`).

    Raises:
        UsageError: there is no folder of records, or no record holds one of the metrics.
    """
    if study is not None and study.table.kind == "cost":
        if metrics:
            raise UsageError(f"the table of {study.name!r} shows costs, no metrics")
        page = cost_page_below(root, study, card_of=card_of)
        return Built(content={study.name: page}, skipped=CostStore(root).problems())
    store = RecordStore(root)
    if not store.folder.is_dir():
        raise UsageError(
            f"{store.folder} does not exist; run something first (python -m harness.run …), or give --results ROOT"
        )
    records, skipped = store.summaries()
    _require_held(metrics, records)
    sources = sources_below(root, card_of=card_of)
    if study is not None:
        page = score_page(records, study=study, sources=sources, metrics=metrics)
        return Built(content={study.name: page}, skipped=skipped)
    found = {}
    for protocol in sorted({record.run.protocol for record in records}):
        mine = [record for record in records if record.run.protocol == protocol]
        found[protocol] = score_page(mine, metrics=metrics, sources=sources)
    if metrics:
        return Built(content=found, skipped=skipped)
    written = {path.stem for path in (root / "tables").glob("*") if path.suffix in SUFFIX.values()}
    for name in study_names():
        one = load_study(name)
        if one.table.kind == "cost" and (name in written or any(CostStore(root))):
            found[name] = cost_page_below(root, one, card_of=card_of)
        elif name in written and name not in found:
            found[name] = score_page(records, study=one, sources=sources)
    return Built(content=found, skipped={**skipped, **CostStore(root).problems()})


def _require_held(metrics: Sequence[str], records: Iterable[Record]) -> None:
    held = {name for one in records for splits in one.scores.values() for scores in splits.values() for name in scores}
    for name in metrics:
        if name not in held:
            raise UsageError(f"no record holds a metric {name!r}{did_you_mean(name, held)}")


def sources_below(root: Path, *, card_of: CardOf = no_card) -> Sources:
    """Everything that pages of this results folder look at besides its records."""
    return Sources(
        images_of=images_below(root),
        alpha_of=alpha_codes_below(root),
        card_of=card_of,
        published=published.read(),
        setups=setups.read_setups(),
    )


def images_below(root: Path) -> ImagesOf:
    """Per-image scores from the files beside the records; clusters by the benchmark's rule where a file has none."""
    store = RecordStore(root)

    @lru_cache(maxsize=32)  # a baseline's images are asked for by every other row
    def scores_of(key: str, expected: str, score: str, split: str, metric: str) -> dict[str, float] | None:
        return image_scores(store.images_path(key), variant=score, split=split, metric=metric, expected=expected)

    @lru_cache(maxsize=32)
    def groups_of(
        key: str, expected: str, benchmark: str, score: str, split: str, stems: frozenset[str]
    ) -> dict[str, str]:
        told = image_groups(store.images_path(key), variant=score, split=split, expected=expected)
        return told or groups_by_rule(benchmark, stems)

    def images_of(record: Record, score: str, split: str, metric: str) -> PerImage | None:
        expected = record.beside.get("images.csv", "")
        scores = scores_of(record.key, expected, score, split, metric)
        if not scores:
            return None
        groups = groups_of(record.key, expected, record.run.benchmark, score, split, frozenset(scores))
        return PerImage(scores=scores, clusters=groups)

    return images_of


def cost_page_below(root: Path, study: Study, *, card_of: CardOf = no_card) -> Page:
    """The page of the cost records below ``root``."""
    return cost_page(
        CostStore(root), title=study.title, claims=claims.read(), card_of=card_of, setups=setups.read_setups()
    )
