"""``python -m harness.show``: show one run with its rules, learning curve, mixtures, scores, cost and files."""

from __future__ import annotations

import json

from harness.cli import verb
from harness.command_line import CommandParser, command
from harness.errors import UsageError
from harness.protocols.load import card_rules
from harness.records.store import RecordStore
from harness.reporting.show import as_data, find_run, in_terminal
from harness.reporting.two_runs import compared, compared_in_terminal
from harness.settings.options import add_results, results_of
from harness.text import printable


def parser() -> CommandParser:
    p = command("show", __doc__, epilog="harness.status and harness.why print the keys of runs.")
    p.add_argument("key", metavar="KEY", nargs="?", help="key of a run that has a record, or the beginning of it")
    p.add_argument(
        "--compare", nargs=2, metavar=("A", "B"), help="two keys: in what the runs differ, and their numbers"
    )
    add_results(p)
    p.add_argument("--json", action="store_true", help="print JSON instead of a page")
    return p


@verb
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if bool(arguments.key) == bool(arguments.compare):
        raise UsageError("give the KEY of a run, or --compare A B with those of two")
    root = results_of(arguments)
    if not root.is_dir():
        raise UsageError(f"results folder {root} does not exist; give the one of your runs with --results DIR")
    store = RecordStore(root)
    if arguments.compare:
        first, second = (find_run(store, key) for key in arguments.compare)
        if arguments.json:
            print(json.dumps({"A": first.key, "B": second.key, **compared(first, second)}, indent=1))
        else:
            print(printable(compared_in_terminal(first, second)), end="")
        return 0
    record = find_run(store, arguments.key)
    if arguments.json:
        print(json.dumps(as_data(record, store, card_of=card_rules), indent=1))
    else:
        print(printable(in_terminal(record, store, card_of=card_rules)), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
