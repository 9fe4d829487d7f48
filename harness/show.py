"""``python -m harness.show``: show one run with its rules, learning curve, mixtures, scores, cost and files."""

from __future__ import annotations

import json

from harness.cli import verb
from harness.command_line import CommandParser, command
from harness.errors import UsageError
from harness.protocols.load import card_rules
from harness.records.store import RecordStore
from harness.reporting.show import as_data, find_run, in_terminal
from harness.settings.options import add_results, results_of
from harness.text import printable


def parser() -> CommandParser:
    p = command("show", __doc__, epilog="harness.status and harness.why print the keys of runs.")
    p.add_argument("key", metavar="KEY", help="key of a run that has a record, or the beginning of it")
    add_results(p)
    p.add_argument("--json", action="store_true", help="print JSON instead of a page")
    return p


@verb
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    root = results_of(arguments)
    if not root.is_dir():
        raise UsageError(f"results folder {root} does not exist; give the one of your runs with --results DIR")
    store = RecordStore(root)
    record = find_run(store, arguments.key)
    if arguments.json:
        print(json.dumps(as_data(record, store, card_of=card_rules), indent=1))
    else:
        print(printable(in_terminal(record, store, card_of=card_rules)), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
