"""``sam-peft show``: show a run with its rules, scores, cost and files, or two runs."""

from __future__ import annotations

import json

from harness.archive.store import RecordStore
from harness.cli.command import CommandParser, add_results, command, results_of, verb
from harness.cli.find import find_record
from harness.report.runs import compared, compared_in_terminal, in_terminal, record_as_data
from harness.system.errors import UsageError
from harness.system.streams import show_text


def parser() -> CommandParser:
    p = command("show", __doc__)
    p.add_argument(
        "run",
        metavar="KEY",
        nargs="*",
        help="a run that has a record: its key, its beginning, or words that fit only one: lora kvasir 0",
    )
    p.add_argument(
        "--compare",
        nargs=2,
        metavar=("A", "B"),
        help="in what two runs differ; each is a KEY ('lora kvasir 0')",
    )
    add_results(p)
    p.add_argument("--json", action="store_true", help="print JSON")
    return p


@verb
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    words = " ".join(arguments.run)
    if bool(words) == bool(arguments.compare):
        raise UsageError("give the KEY of a run, or --compare A B")
    root = results_of(arguments)
    if not root.is_dir():
        raise UsageError(f"results folder {root} does not exist; give the one of your runs with --results DIR")
    store = RecordStore(root)
    if arguments.compare:
        first, second = (find_record(store, key) for key in arguments.compare)
        data, text = compared(first, second), compared_in_terminal(first, second)
    else:
        record = find_record(store, words)
        data, text = record_as_data(record, store), in_terminal(record, store)
    if arguments.json:
        print(json.dumps(data, indent=1))
    else:
        show_text(text)
    return 0
