"""``sam-peft records``: bring records of several clusters together, publish them, look for damaged ones, note
which file stands behind the short fingerprint of older ones; type in and check a paper's numbers; write runs for
trackers and as tables."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.archive.agreement import disagreement, strays
from harness.archive.archive import Archive
from harness.archive.checkpoints import FILE, read_notes, verify_checkpoint
from harness.archive.measured import CostStore, EvidenceStore, ForgettingStore
from harness.archive.merge import conflicts, merge
from harness.archive.reading import load
from harness.archive.schema import Record
from harness.archive.store import RecordStore, add_seal, is_sealed
from harness.cli.command import CommandParser, command, verb
from harness.comparison.finding import find_run
from harness.comparison.papers import FOLDER, MARKS, PARAMETERS, Published, add, problems, read_file, read_published
from harness.registry import BENCHMARKS, METHODS
from harness.report.trackers import TARGETS, export_records
from harness.settings import load_settings
from harness.system.errors import UsageError
from harness.system.streams import say_skipped
from harness.system.text import printable_line


@verb
def main(argv: list[str] | None = None) -> int:
    options = parser().parse_args(argv)
    if options.command == "paper":
        return _add_published(options) if options.paper_command == "add" else _check_published(options.folder)
    if options.command != "merge":
        options.root = options.root or load_settings().results
    if options.command == "verify-checkpoint":
        used = (record.run.checkpoint for record in RecordStore(options.root))
        print(verify_checkpoint(options.file, options.root, used=used))
        return 0
    if options.command == "export":
        return _export(options)
    if options.command == "seal":
        return _seal(options.root)
    return _merge(options) if options.command == "merge" else _check(options.root)


def parser() -> CommandParser:
    p = command("records", __doc__)
    commands = p.add_subparsers(dest="command", required=True)
    joined = commands.add_parser(
        "merge",
        help="merge A B --out C, or merge A B to bring A into B (merge runs results publishes)",
        description="Copy records from results folders; nothing is overwritten, conflicts are kept apart.",
    )
    joined.add_argument(
        "folders",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="results folders; without --out the last is the destination",
    )
    joined.add_argument("--out", type=Path, metavar="DIR", help="results folder to write; may be new")
    joined.add_argument(
        "--protocol", action="append", default=[], metavar="CARD", help="only records of this protocol; may be repeated"
    )
    checked = commands.add_parser(
        "check",
        help="list records that cannot be read, were edited or do not agree with their files, and conflicts; exit 1 if"
        " a record is wrong",
    )
    seal = commands.add_parser(
        "seal",
        help="give older records that pass the check the seal that new ones have",
        description="Every record is written with a hash of all that it says and of the files beside it. This adds it to "
        "older records; their content and their keys stay.",
    )
    verified = commands.add_parser(
        "verify-checkpoint",
        help="hash all of a checkpoint that older records know by a short fingerprint, and note the hash beside them",
        description="Records made before checkpoints were hashed as a whole count as finished once the file that they "
        "were made with was verified; that is noted in DIR/checkpoints.json.",
    )
    verified.add_argument("file", type=Path, metavar="FILE", help="the checkpoint that the records were made with")
    which: Any = {"type": Path, "metavar": "DIR", "help": "results folder (default: as set, else runs)"}
    for each in (checked, seal, verified):
        each.add_argument("root", nargs="?", **which)
    paper = commands.add_parser(
        "paper",
        help="the numbers that papers print: add one from a PDF, or check those that are there",
        description="Numbers of papers, which tables show beside ours.",
    )
    _paper_options(paper.add_subparsers(dest="paper_command", required=True))
    out = commands.add_parser(
        "export",
        help="write curves, scores, rules, α and pictures of finished runs for TensorBoard, Weights & Biases, trackio or"
        " MLflow, offline; or all numbers as CSV or Parquet",
    )
    out.add_argument("--to", required=True, choices=TARGETS)
    out.add_argument("out", type=Path, metavar="DIR", help="folder to write; new or empty")
    out.add_argument("--results", dest="root", **which)
    out.add_argument("--protocol", metavar="CARD", help="only records of this protocol")
    out.add_argument(
        "--run", action="append", default=[], metavar="KEY", help="only this run, by key or by words; may be repeated"
    )
    return p


def _paper_options(commands: argparse._SubParsersAction[CommandParser]) -> None:
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


def _export(options: argparse.Namespace) -> int:
    archive = Archive(options.root)
    asked = {find_run(options.root, key).key for key in options.run}
    say_skipped(archive.problems)
    keys = [
        record.key
        for record in archive.records
        if record.code == "OK"
        and options.protocol in (None, record.run.protocol)
        and (not asked or record.key in asked)
    ]
    if not keys:
        raise UsageError(
            f"no finished run below {options.root} is meant; sam-peft status --results {options.root} lists them"
        )
    print(f"{options.out}: {export_records(archive, keys, options.to, options.out)} runs")
    return 0


def _merge(options: argparse.Namespace) -> int:
    sources, out = list(options.folders), options.out
    if out is None:
        if len(sources) < 2:
            raise UsageError("merge needs two folders (merge A B brings A into B), or --out DIR")
        out = sources.pop()
    report = merge(sources, out, protocols=options.protocol)
    say_skipped(report.skipped)
    for conflict in report.conflicts:
        print(
            f"conflict: {conflict.key} differs in {', '.join(conflict.differs)}: {conflict.kept} stands under its key"
        )
        for path in conflict.apart:
            print(f"          {path} is kept apart in {out}/records/conflicts")
    kept_apart, skipped = len(report.conflicts), len(report.skipped)
    print(f"{out}: {report.added} added, {report.same} the same, {kept_apart} conflicts, {skipped} skipped")
    return 0


def _check(root: Path) -> int:
    wrong, codes, unsealed = 0, list[str](), 0
    for path, checked in _checked(root):
        if isinstance(checked, str):
            wrong += 1
            print(f"wrong: {printable_line(str(path))}: {checked}")
        else:
            codes.append(checked.code)
            unsealed += not is_sealed(path)
    stores = (CostStore(root), EvidenceStore(root), ForgettingStore(root))
    problems = [checked for store in stores for checked in store.problems().items()]
    try:
        read_notes(root)
    except ValueError as error:
        problems.append((root / FILE, str(error)))
    for path, reason in problems:
        wrong += 1
        print(f"wrong: {printable_line(str(path))}: {reason}")
    apart = conflicts(root)
    for path in apart:
        print(f"conflict kept apart: {printable_line(str(path))}")
    failed = sum(code != "OK" for code in codes)
    print(f"{root}: {len(codes)} records ({failed} of failed runs), {wrong} wrong, {len(apart)} conflicts")
    if unsealed:
        print(f"{unsealed} records are older than seals; sam-peft records seal {root} seals them")
    return 1 if wrong else 0


def _seal(root: Path) -> int:
    wrong = new = 0
    for path, checked in _checked(root):
        if isinstance(checked, str):
            wrong += 1
            print(f"wrong, and not sealed: {printable_line(str(path))}: {checked}")
        elif not is_sealed(path):
            new += 1
            add_seal(path)
    print(f"{root}: {new} records sealed, {wrong} wrong")
    return 1 if wrong else 0


def _checked(root: Path) -> Iterator[tuple[Path, Record | str]]:
    """Every record with all that lies beside it, or what is wrong with it."""
    store = RecordStore(root)
    if not store.folder.is_dir():
        raise UsageError(f"{root} holds no records (there is no folder {store.folder})")
    for path in store.files():
        try:
            record = load(path)
            yield path, disagreement(record, path) or strays(record, path) or record
        except ValueError as error:
            yield path, str(error)


def _add_published(options: argparse.Namespace) -> int:
    """The cell that the options name, or without ``--value`` every empty one in turn."""
    if options.value is None:
        return _ask(options)
    missing = [name for name in ("table", "method", "metric", "source") if not getattr(options, name)]
    if missing:
        raise UsageError(f"--value needs --{missing[0]} too; without --value the empty cells are asked for one by one")
    print(add(options.folder, _cell(options)))
    return 0


def _cell(options: argparse.Namespace) -> Published:
    parameters = options.metric == PARAMETERS
    as_given = ("paper", "table", "metric", "options", "value", "spread", "spread_kind", "runs", "source", "mark")
    return Published(
        method=METHODS.resolve(options.method),
        benchmark="" if parameters else BENCHMARKS.resolve(options.benchmark),
        split="" if parameters else options.split,
        **{name: getattr(options, name) for name in as_given},
    )


def _ask(options: argparse.Namespace) -> int:
    """Every empty cell of the paper in turn: a number as printed, ``91.2 0.3 se`` with its spread, or nothing."""
    path = options.folder / f"{options.paper}.csv"
    if not path.is_file():
        raise UsageError(f"{path} does not exist; give --table, --method, --benchmark, --metric, --value to start it")
    empty = [cell for cell in read_file(path) if not cell.value and options.table in ("", cell.table)]
    empty = [cell for cell in empty if options.method in ("", cell.method)]
    source = options.source or f"{options.paper}, typed in from the PDF"
    print(f"{len(empty)} empty cells. Type a number as printed (91.2, or 91.2 0.3 se), Enter to skip, q to stop.")
    filled = 0
    for cell in empty:
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


def _check_published(folder: Path) -> int:
    cells = read_published(folder)
    wrong = problems(cells, methods=METHODS.names())
    for line in wrong:
        print(line)
    empty = sum(not cell.value for cell in cells)
    print(f"{len(cells)} cells, {empty} of them empty, {len(wrong)} problems")
    return 1 if wrong else 0
