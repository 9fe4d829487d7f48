"""``sam-peft why``: show the runs, seeds, hashes, exclusions and files behind a cell."""

from __future__ import annotations

from pathlib import Path

from harness.archive.store import RecordStore
from harness.cli.command import CommandParser, command, verb
from harness.comparison.provenance import Folder
from harness.protocols.load import card_rules
from harness.report.page import SUFFIX
from harness.report.pages import cost_page_below, sources_below
from harness.report.tables import score_page
from harness.report.why import explain
from harness.settings.options import results_of
from harness.studies import load_study, study_names
from harness.system.errors import UsageError, did_you_mean
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
    store = RecordStore(root)
    records, skipped = store.summaries()
    say_skipped(skipped)
    sources = sources_below(root, card_of=card_rules)
    table = options.table if options.table.endswith(".yaml") else Path(options.table).stem
    protocols = {record.run.protocol for record in records}
    if table in protocols:
        page = score_page((record for record in records if record.run.protocol == table), sources=sources)
    elif table in study_names() or table.endswith(".yaml"):
        study = load_study(table)
        cost = study.table.kind == "cost"
        page = (
            cost_page_below(root, study, card_of=card_rules)
            if cost
            else score_page(records, study=study, sources=sources)
        )
    else:
        raise UsageError(f"no table {options.table!r} below {root}{did_you_mean(table, [*protocols, *study_names()])}")
    if not any(block.columns for block in page.blocks):
        raise UsageError(f"no record below {root} belongs to table {options.table!r}")
    folder = Folder(store=store, records=records)
    print(printable(explain(page, folder, row=options.row, column=options.column)), end="")
    return 0


def _folder_of(table: Path) -> Path | None:
    """ROOT of ROOT/tables/TABLE.md; None for a name."""
    if table.suffix not in SUFFIX.values() or not (table.is_file() or table.parent.name):
        return None
    return table.parent.parent if table.parent.name else Path("..")


if __name__ == "__main__":
    raise SystemExit(main())
