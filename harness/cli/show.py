"""``sam-peft show``: show one run with its rules, learning curve, scores, cost and files, or what is behind a cell of a table."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.archive.archive import Archive
from harness.archive.store import RecordStore
from harness.cli.command import CommandParser, add_results, command, require_effect, results_of, verb
from harness.comparison.finding import find_record
from harness.report.page import SUFFIX
from harness.report.pages import page_of
from harness.report.runs import (
    TwoFolders,
    compared,
    compared_in_terminal,
    explain,
    explained,
    in_terminal,
    record_as_data,
)
from harness.system.errors import UsageError
from harness.system.streams import say_skipped, show_text


def parser() -> CommandParser:
    p = command(
        "show",
        __doc__,
        epilog="TABLE is the name of a protocol or a study, or the table's file; ROW and COLUMN are what stands there or a part of"
        " it, or BENCHMARK.METRIC such as kvasir.s_measure.",
    )
    p.add_argument(
        "run",
        metavar="KEY",
        nargs="*",
        help="a run that has a record: its key, the beginning of that, or words that fit no other: lora kvasir 0",
    )
    p.add_argument(
        "--cell",
        nargs=3,
        metavar=("TABLE", "ROW", "COLUMN"),
        help="the runs, seeds, hashes, exclusions and files behind a cell: --cell main lora kvasir.s_measure",
    )
    p.add_argument(
        "--compare",
        nargs=2,
        metavar=("A", "B"),
        help="two runs, each as KEY ('lora kvasir 0'): in what they differ, and their numbers; or two results folders",
    )
    add_results(p)
    p.add_argument("--json", action="store_true", help="print it as JSON, of a cell all that is left out too")
    return p


@verb
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    asked = " ".join(arguments.run)
    if sum(map(bool, (asked, arguments.cell, arguments.compare))) != 1:
        raise UsageError("give the KEY of a run, or --cell TABLE ROW COLUMN, or --compare A B")
    if arguments.cell:
        table, row, column = arguments.cell
        archive = Archive(arguments.results or _folder_of(arguments) or results_of(arguments))
        say_skipped(archive.problems)
        page = page_of(archive, table)
        _print(
            lambda: [
                {"cell": head, "why": list(lines)} for head, lines in explained(page, archive, row=row, column=column)
            ],
            lambda: explain(page, archive, row=row, column=column),
            arguments,
        )
        return 0
    are_folders = [(Path(folder) / "records").is_dir() for folder in arguments.compare or ()]
    if any(are_folders):
        if not all(are_folders):
            other = arguments.compare[are_folders.index(False)]
            raise UsageError(f"--compare: {other} is no results folder (it has no records/), and the other one is")
        require_effect(arguments, "results", without="with two results folders to compare")
        folders = TwoFolders.of(*(Archive(Path(folder)) for folder in arguments.compare))
        _print(folders.as_data, folders.in_terminal, arguments)
        return 0
    root = results_of(arguments)
    if not root.is_dir():
        raise UsageError(f"results folder {root} does not exist; give the one of your runs with --results DIR")
    store = RecordStore(root)
    if arguments.compare:
        first, second = (find_record(store, key) for key in arguments.compare)
        _print(
            lambda: {"A": first.key, "B": second.key, **compared(first, second)},
            lambda: compared_in_terminal(first, second),
            arguments,
        )
        return 0
    record = find_record(store, asked)
    _print(lambda: record_as_data(record, store), lambda: in_terminal(record, store), arguments)
    return 0


def _folder_of(arguments: argparse.Namespace) -> Path | None:
    """The results folder ROOT of a table that is given as its file, ROOT/tables/TABLE.md; None for a name."""
    table = Path(arguments.cell[0])
    if table.suffix not in SUFFIX.values() or not (table.is_file() or table.parent.name):
        return None
    return table.parent.parent if table.parent.name else Path("..")


def _print(data: Callable[[], Any], text: Callable[[], str], arguments: argparse.Namespace) -> None:
    if arguments.json:
        print(json.dumps(data(), indent=1))
    else:
        show_text(text())
