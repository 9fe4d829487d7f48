"""The pages of a results folder: which tables its records give, where each is written, and the table of one command."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from harness.archive.archive import Archive
from harness.archive.measured import CostStore
from harness.archive.schema import Record, Run
from harness.comparison.claims import read_claims
from harness.comparison.papers import Papers
from harness.comparison.rows import is_entry, placeholder
from harness.report.formats import write
from harness.report.page import SUFFIX, Format, Page
from harness.report.score_page import score_page
from harness.studies import Entry, Study, load_study, study_names
from harness.system.errors import UsageError, did_you_mean, os_reason
from harness.system.files import write_atomically
from harness.system.streams import say_skipped


class Lazy(UserDict[str, Any]):
    """name -> page of every table, each built once, when somebody asks for it."""

    def __setitem__(self, name: str, make: Callable[[], Page]) -> None:
        self.data[name] = cache(make)

    def __getitem__(self, name: str) -> Page:
        return self.data[name]()


@dataclass(frozen=True, kw_only=True)
class Pages:
    """The tables of a folder.

    Args:
        content: name -> page of every table.
        skipped: files that no table counts since they cannot be read, with the reason.
    """

    content: Mapping[str, Page]
    skipped: Mapping[Path, str]

    def texts(self, style: Format, *, width: int = 100) -> dict[str, str]:
        """Every page written."""
        return {name: write(self.content[name], style=style, width=width) for name in self.content}

    def files(self, root: Path, *, style: Format = "markdown") -> dict[Path, str]:
        """Path in the results folder -> content."""
        return {root / "tables" / f"{name}{SUFFIX[style]}": text for name, text in self.texts(style).items()}


def pages_below(archive: Archive, *, study: Study | None = None, metrics: Sequence[str] = ()) -> Pages:
    """The tables that the records of a results folder give.

    The page of ``study``; without one a page a protocol, the cost page if there are cost records, and the page of every
    study that has one already.

    Args:
        metrics: columns of these, on the page of ``study`` or on those of the protocols alone.

    Raises:
        UsageError: there is no folder of records, or no record holds one of the metrics.
    """
    root, costs = archive.root, CostStore(archive.root)
    if study is not None and study.table.kind == "cost":
        if metrics:
            raise UsageError(f"the table of {study.name!r} shows costs, no metrics")
        return Pages(content={study.name: page_of_study(archive, study)}, skipped=costs.problems())
    require_records(archive)
    if metrics:
        _require_held(metrics, archive.records)
    if study is not None:
        made = Lazy({study.name: partial(page_of_study, archive, study, metrics=metrics)})
        return Pages(content=made, skipped=archive.problems)
    protocols = sorted({record.run.protocol for record in archive.records})
    makers = {name: partial(page_of_protocol, archive, name, metrics=metrics) for name in protocols}
    if metrics:
        return Pages(content=Lazy(makers), skipped=archive.problems)
    written = {path.stem for path in (root / "tables").glob("*") if path.suffix in SUFFIX.values()}
    has_costs = any(costs)
    for name in study_names():
        if not has_costs and name not in written:
            continue  # all studies together take a second to read
        study = load_study(name)
        if study.table.kind == "cost" or (name in written and name not in makers):
            makers[name] = partial(page_of_study, archive, study)
    return Pages(content=Lazy(makers), skipped={**archive.problems, **costs.problems()})


def require_records(archive: Archive) -> None:
    """Raises UsageError where there is no folder of records."""
    if not archive.store.folder.is_dir():
        raise UsageError(
            f"{archive.store.folder} does not exist; run something first (python -m harness.run …), or give --results DIR"
        )


def _require_held(metrics: Sequence[str], records: Iterable[Record]) -> None:
    held = {metric for record in records for _, _, metric, _ in record.each_score()}
    for name in metrics:
        if name not in held:
            raise UsageError(f"no record holds a metric {name!r}{did_you_mean(name, held)}")


def page_of_study(archive: Archive, study: Study, *, metrics: Sequence[str] = ()) -> Page:
    if study.table.kind == "cost":
        from harness.report.costs import cost_page

        return cost_page(archive.costs, title=study.title, claims=read_claims(), papers=Papers.read())
    return score_page(archive.records, archive, papers=Papers.read(), study=study, metrics=metrics)


def page_of_protocol(archive: Archive, protocol: str, *, metrics: Sequence[str] = ()) -> Page:
    records = [record for record in archive.records if record.run.protocol == protocol]
    return score_page(records, archive, papers=Papers.read(), metrics=metrics)


def page_of(archive: Archive, table: str) -> Page:
    """The page of a protocol, of a study, of a study's YAML file, or that a file holds. Raises UsageError: there is none, or no
    record belongs to it."""
    name = table if table.endswith(".yaml") else Path(table).stem
    protocols = {record.run.protocol for record in archive.records}
    if name in protocols:
        page = page_of_protocol(archive, name)
    elif name in study_names() or name.endswith(".yaml"):
        page = page_of_study(archive, load_study(name))
    else:
        raise UsageError(f"no table {table!r} below {archive.root}{did_you_mean(table, [*protocols, *study_names()])}")
    if not any(table.columns for table in page.tables):
        raise UsageError(f"no record below {archive.root} belongs to table {table!r}")
    return page


def narrowed(study: Study, runs: Sequence[Run], papers: Papers) -> Study:
    """The study as it was planned, where the command line replaced its seeds, benchmarks, backbones, methods or protocol.

    Published numbers stand beside the study's own protocol and the papers' cards.
    """
    entries: dict[str, Entry] = {}
    for run in runs:
        alike = [entry for entry in study.entries if entry.method == run.method]
        fitting = [entry for entry in alike if is_entry(placeholder(run), entry.options)]
        for entry in fitting or [Entry(label=run.variant, method=run.method, options=run.changed)]:
            entries.setdefault(entry.label, entry)
    places = {entry.label: place for place, entry in enumerate(study.entries)}
    rows = sorted(entries.values(), key=lambda entry: places.get(entry.label, len(places)))
    beside_papers = study.table.paper and runs[0].protocol in {study.protocol, *papers.cards}
    return replace(
        study,
        protocol=runs[0].protocol,
        backbones=tuple(dict.fromkeys(run.backbone for run in runs)),
        benchmarks=tuple(dict.fromkeys(run.benchmark for run in runs)),
        entries=tuple(rows),
        seeds=tuple(sorted({run.seed for run in runs})),
        table=replace(study.table, paper=beside_papers),
    )


def finished_table(
    runs: Sequence[Run], results: Path, *, study: str | None, style: Format = "markdown", width: int = 0
) -> tuple[str, Path | None]:
    """The table of what one command planned, from its records; the pages below ``results/tables`` hold every record there.

    Args:
        width: of the terminal that ``text`` is for.

    Returns:
        The table, and the page that holds it too; None where there is none yet.
    """
    planned = load_study(study) if study else None
    archive, papers = Archive(results), Papers.read()
    page = score_page(
        archive.records, archive, papers=papers, runs=runs, study=narrowed(planned, runs, papers) if planned else None
    )
    text = write(page, style=style, width=width)
    if not archive.store.folder.is_dir() or not runs:  # the first runs were all interrupted: no pages yet
        return text, None
    pages = pages_below(archive)
    say_skipped(pages.skipped)
    of_study = pages_below(archive, study=planned).files(results) if planned else {}
    write_files({**pages.files(results), **of_study})
    return text, results / "tables" / f"{planned.name if planned else runs[0].protocol}{SUFFIX['markdown']}"


def write_files(files: Mapping[Path, str]) -> None:
    """Raises UsageError where one cannot be written."""
    for path, text in files.items():
        try:
            write_atomically(path, text)
        except OSError as error:
            raise UsageError(
                f"table {path} could not be written: {os_reason(error)}; regenerate it with sam-peft tables"
            ) from error
