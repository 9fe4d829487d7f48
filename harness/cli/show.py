"""``sam-peft show``: show a run with its rules, scores, cost and files."""

from __future__ import annotations

import json

from harness.archive.store import RecordStore
from harness.cli.command import CommandParser, add_results, command, results_of, verb
from harness.cli.find import find_record
from harness.report.runs import in_terminal, record_as_data
from harness.system.errors import UsageError
from harness.system.streams import show_text


def parser() -> CommandParser:
    p = command("show", __doc__)
    p.add_argument(
        "run",
        metavar="KEY",
        nargs="+",
        help="a run that has a record: its key, its beginning, or words that fit only one: lora kvasir 0",
    )
    add_results(p)
    p.add_argument("--json", action="store_true", help="print JSON")
    return p


@verb
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    root = results_of(arguments)
    if not root.is_dir():
        raise UsageError(f"results folder {root} does not exist; give the one of your runs with --results DIR")
    store = RecordStore(root)
    record = find_record(store, " ".join(arguments.run))
    if arguments.json:
        print(json.dumps(record_as_data(record, store), indent=1))
    else:
        show_text(in_terminal(record, store))
    return 0
