"""The pages of a results folder: which tables its records give, and where each is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Literal

from harness.archive.cache import collector_paused
from harness.archive.cost import CostStore
from harness.archive.files import image_groups, image_scores
from harness.archive.measured import ForgettingStore
from harness.archive.schema import Record, content_hash
from harness.archive.store import RecordStore
from harness.comparison import published, setups
from harness.comparison.alpha import alpha_codes_below, ends_below
from harness.comparison.evidence import evidence_below
from harness.comparison.paired import ImagesOf, PerImage
from harness.comparison.rules import CardOf, no_card
from harness.comparison.sources import Sources
from harness.judging import definitions as claims
from harness.registry import BENCHMARKS, METHODS, groups_by_rule
from harness.report.costs import cost_page
from harness.report.forgetting import TITLE as FORGETTING
from harness.report.forgetting import forgetting_page
from harness.report.kept_texts import KeptTexts, kept_texts
from harness.report.page import SUFFIX, Format, Page
from harness.report.tables import score_page
from harness.report.writing import write
from harness.studies import Study, load_study, study_names
from harness.system.errors import UsageError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Pages:
    """The same as files: path -> content."""

    content: Mapping[Path, str]
    skipped: Mapping[Path, str]


class Lazy(Mapping[str, Page]):
    """name -> page of every table, each built when somebody asks for it."""

    def __init__(self, makers: Mapping[str, Callable[[], Page]]) -> None:
        self._makers = {name: cache(make) for name, make in makers.items()}

    def __getitem__(self, name: str) -> Page:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


@dataclass(frozen=True, kw_only=True)
class Built:
    """The tables of a folder.

    Args:
        content: name -> page of every table.
        skipped: files that no table counts since they cannot be read, with the reason.
        made_of: page -> digest of what it is made of, where that is known.
        kept: texts of pages that were made before, None where nothing is kept.
    """

    content: Mapping[str, Page]
    skipped: Mapping[Path, str]
    made_of: Mapping[str, str] = field(default_factory=dict)
    kept: KeptTexts | None = None

    def texts(self, style: Format, *, width: int = 100) -> dict[str, str]:
        """Every page written; one that nothing touched is not built again."""
        with collector_paused():
            return self._texts(style, width=width)

    def _texts(self, style: Format, *, width: int) -> dict[str, str]:
        found = {}
        for name in self.content:
            made_of, form = self.made_of.get(name, ""), f"{style} {width}"
            text = self.kept.get(name, form, made_of) if self.kept and made_of else None
            if text is None:
                text = write(self.content[name], style=style, width=width)
                if self.kept and made_of:
                    self.kept.put(name, form, made_of, text)
            found[name] = text
        if self.kept:
            self.kept.keep()
        return found


def pages(root: Path, *, study: Study | None = None, card_of: CardOf = no_card) -> Pages:
    """`built_pages` as markdown."""
    return written(built_pages(root, study=study, card_of=card_of), root)


def written(built: Built, root: Path, *, style: Format = "markdown") -> Pages:
    """Pages as the files of a results folder."""
    content = {root / "tables" / f"{name}{SUFFIX[style]}": text for name, text in built.texts(style).items()}
    return Pages(content=content, skipped=built.skipped)


def built_pages(
    root: Path,
    *,
    study: Study | None = None,
    metrics: Sequence[str] = (),
    card_of: CardOf = no_card,
    anew: Literal["anew", ""] = "",
) -> Built:
    """The tables that the records below ``root`` give.

    The page of ``study``; without one a page a protocol, the cost page if there are cost records, and the page of every
    study that has one already.

    Args:
        metrics: columns of these, on the page of ``study`` or on those of the protocols alone.
        card_of: the harness's own cards, to say what was run with instead (`harness.comparison.rules`).
        anew: build every page, whatever was kept.

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
            f"{store.folder} does not exist; run something first (python -m harness.run …), or give --results DIR"
        )
    kept = (
        None
        if anew or metrics or card_of is no_card or METHODS.is_extended or BENCHMARKS.is_extended
        else kept_texts(root)
    )
    read = cache(lambda: (kept.summaries(), kept.problems) if kept else store.summaries())
    if metrics:
        _require_held(metrics, read()[0])
    sources = sources_below(root, card_of=card_of)

    def scored(protocol: str = "", study: Study | None = None) -> Page:
        mine = [record for record in read()[0] if protocol in ("", record.run.protocol)]
        return score_page(mine, study=study, sources=sources, metrics=metrics)

    skipped = kept.problems if kept else read()[1]
    every = content_hash(kept.made_of) if kept else ""
    if study is not None:
        made_of = {study.name: content_hash([every, repr(study)])} if kept else {}
        alone = Lazy({study.name: partial(scored, study=study)})
        return Built(content=alone, skipped=skipped, made_of=made_of, kept=kept)
    protocols = sorted(kept.made_of if kept else {record.run.protocol for record in read()[0]})
    found: dict[str, Callable[[], Page]] = {protocol: partial(scored, protocol) for protocol in protocols}
    if metrics:
        return Built(content=Lazy(found), skipped=skipped)
    made_of = dict(kept.made_of) if kept else {}
    written = {path.stem for path in (root / "tables").glob("*") if path.suffix in SUFFIX.values()}
    costs = any(CostStore(root))
    for name in study_names():
        if not costs and name not in written:
            continue  # all studies together take a second to read
        one = load_study(name)
        if one.table.kind == "cost":
            found[name] = partial(cost_page_below, root, one, card_of=card_of)
            made_of.pop(name, "")
        elif name in written and name not in found:
            found[name] = partial(scored, study=one)
            made_of |= {name: content_hash([every, repr(one)])} if kept else {}
    elsewhere = ForgettingStore(root)
    if any(elsewhere):
        found[FORGETTING] = lambda: forgetting_page(read()[0], elsewhere)
    problems = {**skipped, **CostStore(root).problems(), **elsewhere.problems()}
    return Built(content=Lazy(found), skipped=problems, made_of=made_of, kept=kept)


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
        end_of=ends_below(root),
        evidence_of=evidence_below(root),
        card_of=card_of,
        published=published.read_published(),
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
        CostStore(root), title=study.title, claims=claims.read_claims(), card_of=card_of, setups=setups.read_setups()
    )
