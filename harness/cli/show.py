"""``sam-peft show``: show one run with its rules, learning curve, mixtures, scores, cost and files."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.archive.archive import Archive
from harness.archive.store import RecordStore, find_record
from harness.cli.command import CommandParser, command, require_effect, verb
from harness.comparison.names import METRICS, benchmark_title
from harness.report.runs import TwoFolders, compared, compared_in_terminal, in_terminal, record_as_data
from harness.settings.read import add_results, results_of
from harness.system.errors import UsageError
from harness.system.text import printable


def parser() -> CommandParser:
    p = command("show", __doc__, epilog="sam-peft status and sam-peft why print the keys of runs.")
    p.add_argument(
        "key",
        metavar="KEY",
        nargs="*",
        help="key of a run that has a record, or the beginning of it; or words of a table's cell: lora kvasir 0",
    )
    p.add_argument(
        "--compare",
        nargs=2,
        metavar=("A", "B"),
        help="two runs by key or words: in what they differ, and their numbers; or two results folders",
    )
    add_results(p)
    p.add_argument("--json", action="store_true", help="print JSON instead of a page")
    return p


@verb
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    asked = " ".join(arguments.key)
    if bool(asked) == bool(arguments.compare):
        raise UsageError("give the KEY of a run, or --compare A B with those of two")
    folders_given = [(Path(one) / "records").is_dir() for one in arguments.compare or ()]
    if any(folders_given):
        if not all(folders_given):
            other = arguments.compare[folders_given.index(False)]
            raise UsageError(f"--compare: {other} is no results folder (it has no records/), and the other one is")
        require_effect(arguments, "results", without="with two results folders to compare")
        folders = TwoFolders.of(*(Archive(Path(one)) for one in arguments.compare))
        _print(folders.as_data, folders.in_terminal, arguments)
        return 0
    root = results_of(arguments)
    if not root.is_dir():
        raise UsageError(f"results folder {root} does not exist; give the one of your runs with --results DIR")
    store = RecordStore(root)
    titles = [METRICS[name].title for name in METRICS]
    found = [find_record(store, one, title=benchmark_title, metrics=titles) for one in arguments.compare or (asked,)]
    if arguments.compare:
        first, second = found
        _print(
            lambda: {"A": first.key, "B": second.key, **compared(first, second)},
            lambda: compared_in_terminal(first, second),
            arguments,
        )
        return 0
    _print(
        lambda: record_as_data(found[0], store),
        lambda: in_terminal(found[0], store),
        arguments,
    )
    return 0


def _print(data: Callable[[], Any], text: Callable[[], str], arguments: argparse.Namespace) -> None:
    print(json.dumps(data(), indent=1) + "\n" if arguments.json else printable(text()), end="")


if __name__ == "__main__":
    raise SystemExit(main())
