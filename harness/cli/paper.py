"""``sam-peft paper``: type in a paper's numbers from its PDF, and check those that are there."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from harness.cli.command import CommandParser, command, verb
from harness.comparison.papers import FOLDER, MARKS, PARAMETERS, Published, add, problems, read_file, read_published
from harness.registry import BENCHMARKS, METHODS
from harness.system.errors import UsageError


@verb
def main(argv: list[str] | None = None) -> int:
    options = parser().parse_args(argv)
    if options.command == "check":
        return _check(options.folder)
    if options.value is None:
        return _ask(options)
    missing = [name for name in ("table", "method", "metric", "source") if not getattr(options, name)]
    if missing:
        raise UsageError(f"--value needs --{missing[0]} too; without --value the empty cells are asked for one by one")
    print(add(options.folder, _cell(options)))
    return 0


def parser() -> CommandParser:
    p = command("paper", __doc__)
    commands = p.add_subparsers(dest="command", required=True)
    adding = commands.add_parser("add", help="add one cell, or be asked for every empty one")
    adding.add_argument("--paper", required=True, help="nas-lora, conv-lora, or a new name")
    adding.add_argument("--table", default="", help="its number in the paper")
    adding.add_argument("--method", default="", help="lora, naslora, …")
    adding.add_argument("--benchmark", default="", help=f"kvasir, …; none for --metric {PARAMETERS}")
    adding.add_argument("--split", default="test", help="test; all, easy or hard for Trans10K-v1 (default: test)")
    adding.add_argument("--metric", default="", help=f"s_measure, iou, …, or {PARAMETERS}")
    adding.add_argument(
        "--options", default="", help="what an ablation changes in the method: 'rank=6', several with ;"
    )
    adding.add_argument("--value", help="as printed, in percent; without it the paper's empty cells are asked for")
    adding.add_argument("--spread", default="", help="the number after ±")
    adding.add_argument("--spread-kind", default="", choices=("se", "sd"), help="standard error or deviation")
    adding.add_argument("--runs", default="", help="runs that the paper averaged")
    adding.add_argument("--source", default="", help="where you read it, such as 'PDF v2, Table 1'")
    adding.add_argument("--mark", default="P", choices=[mark for mark in MARKS if mark != "?"], help="default: P")
    commands.add_parser("check", help="names, ranges, sources, duplicates; exit 1 if anything is wrong")
    for each in commands.choices.values():
        each.add_argument(
            "--folder", type=Path, default=FOLDER, help="folder of the CSV files (default: results/paper)"
        )
    return p


def _cell(options: argparse.Namespace) -> Published:
    parameters = options.metric == PARAMETERS
    return Published(
        paper=options.paper,
        table=options.table,
        method=METHODS.resolve(options.method),
        benchmark="" if parameters else BENCHMARKS.resolve(options.benchmark),
        split="" if parameters else options.split,
        metric=options.metric,
        options=options.options,
        value=options.value,
        spread=options.spread,
        spread_kind=options.spread_kind,
        runs=options.runs,
        source=options.source,
        mark=options.mark,
    )


def _ask(options: argparse.Namespace) -> int:
    """Every empty cell of the paper in turn: a number as printed, ``91.2 0.3 se`` with its spread, or nothing."""
    path = options.folder / f"{options.paper}.csv"
    if not path.is_file():
        raise UsageError(f"{path} does not exist; give --table, --method, --benchmark, --metric, --value to start it")
    wanted = [cell for cell in read_file(path) if not cell.value and options.table in ("", cell.table)]
    wanted = [cell for cell in wanted if options.method in ("", cell.method)]
    source = options.source or f"{options.paper}, typed in from the PDF"
    print(f"{len(wanted)} empty cells. Type a number as printed (91.2, or 91.2 0.3 se), Enter to skip, q to stop.")
    filled = 0
    for cell in wanted:
        method = f"{cell.method}[{cell.options}]" if cell.options else cell.method
        name = f"table {cell.table} · {method} · {cell.benchmark or 'all'} · {cell.split} · {cell.metric}"
        while True:
            print(f"{name}: ", end="", flush=True)
            words = sys.stdin.readline().split()
            if not words or words == ["q"]:
                break
            typed = replace(cell, source=source, mark=options.mark)
            typed = replace(typed, **dict(zip(("value", "spread", "spread_kind"), words, strict=False)))
            try:
                add(options.folder, typed)
            except UsageError as error:
                print(error)
                continue
            filled += 1
            break
        if words == ["q"]:
            break
    print(f"{filled} cells filled")
    return 0


def _check(folder: Path) -> int:
    cells = read_published(folder)
    wrong = problems(cells, methods=METHODS.names())
    for line in wrong:
        print(line)
    empty = sum(not cell.value for cell in cells)
    print(f"{len(cells)} cells, {empty} of them empty, {len(wrong)} problems")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
