"""The pages of a results folder: the tables of its records, their files, and the table of one command."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from harness.archive.archive import Archive, Joined, frame_of_plan
from harness.archive.schema import Run
from harness.comparison.leaderboard import leaderboards
from harness.comparison.papers import Papers
from harness.comparison.rows import baseline_of
from harness.comparison.tables import grids, has_rules_of
from harness.report.formats import SUFFIX, Format, Page, write
from harness.report.scores import score_page
from harness.studies import Row, Study, load_study, study_names
from harness.system.errors import UsageError, writing_to
from harness.system.files import write_atomically
from harness.system.streams import say_skipped

if TYPE_CHECKING:
    import pandas as pd


Makers = Mapping[str, Callable[[], Page]]
"""Name of a page -> what makes it."""


def rendered_files(pages: Mapping[str, Page], root: Path, *, style: Format = "markdown") -> dict[Path, str]:
    """Path in the results folder -> content; a leaderboard's numbers also as CSV."""
    files = {}
    for name, page in pages.items():
        files[root / "tables" / f"{name}{SUFFIX[style]}"] = write(page, style=style)
        if page.with_csv and style == "markdown":
            files[root / "tables" / f"{name}.csv"] = write(page, style="csv")
    return files


def pages_below(
    archive: Archive, *, study: Study | None = None, details: bool = False
) -> tuple[Makers, Mapping[Path, str]]:
    """What makes the page of ``study``, of two joined folders with the rows that the first adds; and the files that do not count, with the
    reason. Without a study: a page for each protocol, the cost page if there are cost records, and the page of every study that was
    written; a written page that none of these is does not count.

    Args:
        details: as in `harness.report.scores.score_page`.

    Raises:
        UsageError: there is no folder of records.
    """
    of_costs = study is not None and study.table.kind == "cost"
    if not of_costs and not archive.store.folder.is_dir():
        raise UsageError(
            f"{archive.store.folder} does not exist; run something first (sam-peft run …), or give --results DIR"
        )
    if study is not None and isinstance(archive, Joined):
        from harness.submission import with_own_rows

        study = with_own_rows(study, archive)
    if study is not None:
        problems = archive.cost_problems if of_costs else archive.problems
        return {study.name: partial(page_of_study, archive, study, details=details)}, problems
    protocols = sorted({record.run.protocol for record in archive.records})
    makers = {name: partial(score_page, archive, protocol=name, details=details) for name in protocols}
    written = {path: path.stem for path in (archive.root / "tables").glob("*") if path.suffix in SUFFIX.values()}
    for name in study_names():
        if name in written.values() or (name == "cost" and archive.costs):
            makers.setdefault(name, partial(page_of_study, archive, load_study(name), details=details))
    reason = "no record and no built-in study makes this page; write it anew with --study FILE, or delete it"
    stale = {path: reason for path, name in sorted(written.items()) if name not in makers}
    return makers, {**archive.problems, **archive.cost_problems, **stale}


def page_of_study(
    archive: Archive,
    study: Study,
    *,
    runs: pd.DataFrame | None = None,
    details: bool = False,
) -> Page:
    """The page of the kind that a study asks for; ``runs`` and ``details`` as in `harness.report.scores.score_page`."""
    if study.table.kind == "cost":
        from harness.report.costs import cost_page

        return replace(cost_page(archive.costs, title=study.title, details=details), numbers=archive.frame("costs"))
    if study.table.kind == "leaderboard" and baseline_of(study):
        boards = leaderboards(grids(archive, study=study, runs=runs), study)
        if boards:
            from harness.report.leaderboard import leaderboard_page

            return leaderboard_page(boards, study)
    return score_page(archive, study=study, runs=runs, details=details)


def narrowed(study: Study, runs: Sequence[Run]) -> Study:
    """The study with the seeds, benchmarks, backbones, methods and protocol of ``runs``, which the command line may have replaced."""
    from harness.submission import rows_of

    found: dict[str, Row] = {}
    for run in runs:
        for row in rows_of(run, runs, study):
            found.setdefault(row.label, row)
    order = {row.label: number for number, row in enumerate(study.entries)}
    rows = sorted(found.values(), key=lambda row: order.get(row.label, len(order)))
    of_papers = study.table.paper and runs[0].protocol in {study.protocol, *Papers.read().setups}
    return replace(
        study,
        protocol=runs[0].protocol,
        backbones=tuple(dict.fromkeys(run.backbone for run in runs)),
        benchmarks=tuple(dict.fromkeys(run.benchmark for run in runs)),
        entries=tuple(rows),
        seeds=tuple(sorted({run.seed for run in runs})),
        table=replace(study.table, paper=of_papers),
    )


def finished_table(
    runs: Sequence[Run], results: Path, *, study: Study | None, style: Format = "markdown", width: int = 0
) -> tuple[str, Path | None]:
    """The table of the runs that one command planned. Pages of all records of the folder are written below ``results/tables``.

    Args:
        width: of the terminal, for ``text``.

    Returns:
        The table, and the path of the page that also has it; None where there is no page yet.
    """
    archive = Archive(results)
    of_command, own = frame_of_plan(archive, runs), narrowed(study, runs) if study and runs else None
    page = page_of_study(archive, own, runs=of_command) if own else score_page(archive, runs=of_command)
    text = write(page, style=style, width=width)
    if not archive.store.folder.is_dir() or not runs:  # the first runs were all interrupted: no pages yet
        return text, None
    (makers, skipped), name = pages_below(archive), runs[0].protocol
    if study and any(has_rules_of(run, study) for run in runs):  # its page would not show runs under other rules
        makers, name = {**makers, **pages_below(archive, study=study)[0]}, study.name
    page_path = results / "tables" / f"{name}{SUFFIX['markdown']}"
    say_skipped({path: reason for path, reason in skipped.items() if path != page_path})
    for path, page_text in rendered_files({name: make() for name, make in makers.items()}, results).items():
        with writing_to(f"table {path}", then="; regenerate it with sam-peft tables"):
            write_atomically(path, page_text)
    return text, page_path
