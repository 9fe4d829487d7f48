"""The pages of a results folder: which tables its records give, and where each is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from harness.errors import UsageError, did_you_mean
from harness.records.cost import CostStore
from harness.records.images import image_scores
from harness.records.schema import Record
from harness.records.store import RecordStore
from harness.reporting import claims, published
from harness.reporting.costs import render_costs
from harness.reporting.page import SUFFIX, Format
from harness.reporting.paired import ImagesOf
from harness.reporting.tables import render
from harness.studies import Study, load_study, study_names


@dataclass(frozen=True, kw_only=True)
class Pages:
    """Path -> content of every table; and files that no table counts since they cannot be read, with the reason."""

    content: Mapping[Path, str]
    skipped: Mapping[Path, str]


def pages(root: Path, *, study: Study | None = None, metrics: Sequence[str] = (), style: Format = "markdown") -> Pages:
    """The tables that the records below ``root`` give.

    The page of ``study``; without one a page a protocol, the cost page if there are cost records, and the page of every
    study that has one already.

    Args:
        metrics: columns of these, on the page of ``study`` or on those of the protocols alone.

    Raises:
        UsageError: there is no folder of records, or no record holds one of the metrics.
    """
    folder, suffix = root / "tables", SUFFIX[style]
    if study is not None and study.table.kind == "cost":
        if metrics:
            raise UsageError(f"the table of {study.name!r} shows costs, no metrics")
        costs = CostStore(root)
        page = _cost_page(root, study, style=style)
        return Pages(content={folder / f"{study.name}{suffix}": page}, skipped=costs.problems())
    store = RecordStore(root)
    if not store.folder.is_dir():
        raise UsageError(
            f"{store.folder} does not exist; run something first (python -m harness.run …), or give --results ROOT"
        )
    records, skipped = store.summaries()
    _require_held(metrics, records)
    if study is not None:
        page = study_page(root, records, study, metrics=metrics, style=style)
        return Pages(content={folder / f"{study.name}{suffix}": page}, skipped=skipped)
    found = {}
    for protocol in sorted({record.run.protocol for record in records}):
        mine = [record for record in records if record.run.protocol == protocol]
        found[folder / f"{protocol}{suffix}"] = render(mine, metrics=metrics, style=style)
    if metrics:
        return Pages(content=found, skipped=skipped)
    for name in study_names():
        path, one = folder / f"{name}{suffix}", load_study(name)
        if one.table.kind == "cost" and (path.is_file() or any(CostStore(root))):
            found[path] = _cost_page(root, one, style=style)
        elif path.is_file() and path not in found:
            found[path] = study_page(root, records, one, style=style)
    return Pages(content=found, skipped={**skipped, **CostStore(root).problems()})


def _require_held(metrics: Sequence[str], records: Iterable[Record]) -> None:
    held = {name for one in records for splits in one.scores.values() for scores in splits.values() for name in scores}
    for name in metrics:
        if name not in held:
            raise UsageError(f"no record holds a metric {name!r}{did_you_mean(name, held)}")


def study_page(
    root: Path, records: Sequence[Record], study: Study, *, metrics: Sequence[str] = (), style: Format = "markdown"
) -> str:
    """The page of one study, with published numbers and per-image scores where it asks for them."""
    cells = published.read() if study.table.paper else []
    return render(records, study=study, published=cells, images_of=images_below(root), metrics=metrics, style=style)


def images_below(root: Path) -> ImagesOf:
    """Per-image scores from the files beside the records."""
    store = RecordStore(root)

    @lru_cache(maxsize=32)  # a baseline's images are asked for by every other row
    def scores_of(key: str, expected: str, score: str, split: str, metric: str) -> Mapping[str, float] | None:
        return image_scores(store.images_path(key), variant=score, split=split, metric=metric, expected=expected)

    def images_of(record: Record, score: str, split: str, metric: str) -> Mapping[str, float] | None:
        return scores_of(record.key, record.beside.get("images.csv", ""), score, split, metric)

    return images_of


def _cost_page(root: Path, study: Study, *, style: Format) -> str:
    return render_costs(CostStore(root), title=study.title, claims=claims.read(), style=style)
