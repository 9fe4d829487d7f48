"""``sam-peft tables``: regenerate the tables of a results folder from its records, or check them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from harness.archive.archive import Archive
from harness.cli.command import CommandParser, add_results, command, results_of, verb, write_file
from harness.report.formats import as_data, as_parquet
from harness.report.page import SUFFIX, Format
from harness.report.pages import pages_below
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
    metrics = [name.strip() for name in options.metrics.split(",")] if options.metrics is not None else []
    study = load_study(options.study) if options.study else None
    if options.check and (metrics or options.json):
        option = "--metrics" if metrics else "--json"
        raise UsageError(f"{option} only prints and writes no file, so there is nothing to --check")
    archive = Archive(options.results)
    pages = pages_below(archive, study=study, metrics=metrics)
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
    return p


def _check(root: Path, files: Mapping[Path, str], *, style: Format, whole: bool) -> int:
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
    hint = f"; run sam-peft tables --results {root}" if wrong else ""
    print(f"{checked} checked, {wrong} wrong{hint}")
    return 1 if wrong else 0
