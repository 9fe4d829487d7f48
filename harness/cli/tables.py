"""``sam-peft tables``: regenerate the tables of a results folder from its records, or check them; what the readings of a study
say together (--readings)."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from harness.archive.archive import Archive
from harness.cli.command import CommandParser, add_results, command, require_effect, results_of, verb, write_file
from harness.comparison.claims import read_claims
from harness.report.formats import as_data, as_parquet, write
from harness.report.page import SUFFIX, Format
from harness.report.pages import pages_below
from harness.report.readings import design_text, reading_page
from harness.studies import load_study, study_names
from harness.system.errors import UsageError
from harness.system.streams import say, say_skipped, terminal_width
from harness.system.tables import require_form


@verb
def main(argv: list[str] | None = None) -> int:
    options = parser().parse_args(argv)
    options.results = results_of(options)
    if options.study == "list":
        print("\n".join(f"{name:14s} {load_study(name).title}" for name in study_names()))
        return 0
    require_form(options.format)
    if options.readings:
        require_effect(options, "metrics", "check", without="with --readings")
        if options.format == "parquet":
            raise UsageError(
                "--readings writes a page, which --format parquet has not; sam-peft records export --to parquet"
            )
        return _readings(options)
    require_effect(options, "protocol", without="without --readings: there is a page a protocol")
    metrics = [name.strip() for name in options.metrics.split(",")] if options.metrics is not None else []
    study = load_study(options.study) if options.study else None
    if options.check and (metrics or options.json):
        option = "--metrics" if metrics else "--json"
        raise UsageError(f"{option} only prints and writes no file, so there is nothing to --check")
    archive = Archive(options.results)
    pages = pages_below(archive, study=study, metrics=metrics, anew="anew" if options.check else "")
    say_skipped(pages.skipped)
    if options.json:
        print(json.dumps([as_data(page) for page in pages.content.values()], indent=1))
        return 0
    if options.format == "parquet":
        if options.check or metrics:
            raise UsageError("--format parquet writes what --format csv writes; --check and --metrics look at text")
        for name, page in pages.content.items():
            if page.numbers:
                write_file(path := options.results / "tables" / f"{name}.parquet", as_parquet(page), what="table")
                print(f"written: {path}", file=sys.stderr)
        return 0
    files = pages.files(options.results, style=options.format)
    if not files:
        say(f"no record below {options.results}, so there is no table")
    if options.check:
        return _check(options.results, files, style=options.format, whole=study is None)
    width = terminal_width(sys.stdout) if options.format == "markdown" else 0
    shown = (pages.texts("text", width=width) if width else files).values()
    try:
        for path, text in files.items():
            if not metrics:
                write_file(path, text, what="table")
    finally:  # a folder that is there to be read has tables all the same
        print(*shown, sep="\n", end="")
    if metrics:
        print("printed only: a written table has the metrics of its study or of the papers", file=sys.stderr)
        return 0
    for path in files:
        print(f"written: {path}", file=sys.stderr)
    if study is None and options.format == "markdown":
        for path, content in answer_pages(options.results).items():
            write_file(path, content, what="table")
            print(f"written: {path}", file=sys.stderr)
    return 0


def parser() -> CommandParser:
    p = command("tables", __doc__)
    add_results(p)
    p.add_argument(
        "--study", metavar="NAME", help="a study by name, a YAML file, or 'list'; without it, a page a protocol"
    )
    p.add_argument(
        "--metrics",
        metavar="NAMES",
        help="columns of these metrics, such as iou,dice; only prints, and writes no file (a study's field: table.metrics)",
    )
    form = p.add_mutually_exclusive_group()
    form.add_argument("--format", choices=[*sorted(SUFFIX), "parquet"], default="markdown", help="default: markdown")
    form.add_argument("--json", action="store_true", help="print pages and their numbers as JSON; write nothing")
    p.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if a table differs from what the records give"
    )
    p.add_argument(
        "--readings",
        nargs="?",
        choices=("page", "design"),
        const="page",
        help="of a study with readings (default: readings), which are run like any study: write their specification curve, main"
        " effects and claims, or with 'design' print the design and what it cannot tell apart, which reads no record",
    )
    p.add_argument("--protocol", metavar="CARD", help="with --readings: whose records count (default: the study's)")
    return p


def _readings(options: argparse.Namespace) -> int:
    """The page of a study with readings, or their design."""
    study = load_study(options.study or "readings")
    if study.readings is None:
        raise UsageError(
            f"study {study.name} has no readings; name one that has (readings), or add them to a copy of it"
        )
    if options.readings == "design":
        require_effect(options, "json", "protocol", without="with --readings design, which reads no record")
        print(design_text(study), end="")
        return 0
    archive = Archive(options.results)
    if not archive.store.folder.is_dir():
        raise UsageError(
            f"{options.results} holds no records; run the readings first: sam-peft run --study {study.name} …"
        )
    say_skipped(archive.problems)
    page = reading_page(
        archive.records, study, archive, claims=read_claims(), protocol=options.protocol or study.protocol
    )
    path = options.results / "readings" / f"{study.name}.md"
    write_file(path, write(page), what="table")
    print(write(page, style="json" if options.json else options.format), end="")
    print(f"written: {path}", file=sys.stderr)
    return 0


def answer_pages(root: Path) -> dict[Path, str | bytes]:
    """docs/findings.md, its details and figures, where a results folder has such pages beside it (this repository's has)."""
    from harness.report import findings  # jinja2 and matplotlib, for one folder of all

    read = findings.Answer(root)
    return {**findings.files(root, read), **findings.figures(root, read)}


def _check(root: Path, files: Mapping[Path, str], *, style: Format, whole: bool) -> int:
    from harness.report.figures import figure_files, wrong_figures  # a third of a second that tables do not need

    wrong = 0
    for path, text in files.items():
        there = path.read_bytes() if path.is_file() else None
        if there == text.encode():
            continue
        wrong += 1
        print(f"{path}: {'is missing' if there is None else 'differs from the records'}")
    if whole:
        for path in sorted((root / "tables").glob(f"*{SUFFIX[style]}")):
            if path not in files:
                wrong += 1
                print(f"{path}: no record gives this table")
    checked = f"{len(files)} tables"
    if whole and style == "markdown" and (pages := answer_pages(root)):
        wrong += _check_answer(pages)
        checked += f", {len(pages)} files of the answer"
    if whole and style == "markdown" and (root / "site" / "index.html").is_file():
        from harness.planning.rows import trained_parameters
        from harness.report.html.rendering import wrong_pages

        lines = wrong_pages(Archive(root), root / "site", closed_form=trained_parameters)
        for line in lines or ():
            print(f"{line}; write it again with sam-peft report")
        wrong += len(lines or ())
        checked += ", the site" if lines is not None else ""
    if whole and style == "markdown" and (figures := figure_files(root)):
        lines, notes = wrong_figures(root)
        for note in notes:
            say(note)
        for line in lines:
            print(f"{line}; draw it again with sam-peft figures")
        wrong += len(lines)
        checked += f" and {len(figures)} figures"
    hint = f"; run sam-peft tables --results {root}" if wrong else ""
    print(f"{checked} checked, {wrong} wrong{hint}")
    return 1 if wrong else 0


def _check_answer(pages: Mapping[Path, str | bytes]) -> int:
    """How many differ from what the records give; a figure of another matplotlib is not compared."""
    from harness.report.figures import drawn_by_another

    wrong = 0
    for path, content in pages.items():
        there = path.read_bytes() if path.is_file() else b""
        if isinstance(content, bytes) and (version := drawn_by_another(there)):
            say(f"{path}: drawn by matplotlib {version}: not compared")
        elif there != (content if isinstance(content, bytes) else content.encode()):
            wrong += 1
            print(f"{path}: {'differs from the records' if there else 'is missing'}")
    return wrong
