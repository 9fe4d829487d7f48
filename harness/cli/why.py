"""``sam-peft why``: show the runs, seeds, hashes, exclusions and files behind a cell."""

from __future__ import annotations

from pathlib import Path

from harness.archive.archive import Archive
from harness.cli.command import CommandParser, command, verb
from harness.report.page import SUFFIX
from harness.report.pages import page_of
from harness.report.why import explain
from harness.settings.read import results_of
from harness.system.streams import say_skipped
from harness.system.text import printable


def parser() -> CommandParser:
    p = command("why", __doc__)
    p.add_argument(
        "table",
        help="a protocol's or a study's name, or the table's file, which is explained from its own results folder",
    )
    p.add_argument("row", help="the row's label, or a part of it")
    p.add_argument("column", help="the column's heading or a part of it, or BENCHMARK.METRIC such as kvasir.s_measure")
    p.add_argument(
        "--results",
        type=Path,
        metavar="DIR",
        help="results folder (default: that of the table's file, else as set or runs)",
    )
    return p


@verb
def main(argv: list[str] | None = None) -> int:
    options = parser().parse_args(argv)
    root = options.results or _folder_of(Path(options.table)) or results_of(options)
    archive = Archive(root)
    say_skipped(archive.problems)
    page = page_of(archive, options.table)
    print(printable(explain(page, archive, row=options.row, column=options.column)), end="")
    return 0


def _folder_of(table: Path) -> Path | None:
    """ROOT of ROOT/tables/TABLE.md; None for a name."""
    if table.suffix not in SUFFIX.values() or not (table.is_file() or table.parent.name):
        return None
    return table.parent.parent if table.parent.name else Path("..")


if __name__ == "__main__":
    raise SystemExit(main())
