"""``sam-peft records``: check, merge and export records."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.archive.archive import Archive
from harness.archive.measured import CostStore
from harness.archive.merge import checked, merge
from harness.archive.store import RecordStore
from harness.cli.command import (
    CommandParser,
    add_plugins,
    add_results,
    command,
    load_own_plugins,
    results_of,
    subcommand,
    verb,
)
from harness.cli.find import find_run
from harness.experiment.number_code import has_changed
from harness.report.trackers import TARGETS, export_records
from harness.studies import load_study
from harness.submission import check_rows
from harness.system.errors import UsageError
from harness.system.streams import say_skipped
from harness.system.text import printable_line


def parser() -> CommandParser:
    p = command("records", __doc__)
    commands = p.add_subparsers(dest="command", required=True)
    checking = subcommand(
        commands, "check", "read every record and its sidecar files; exit code 1 if one is damaged or was edited"
    )
    checking.add_argument(
        "results", nargs="?", type=Path, metavar="DIR", help="results folder (default: the setting, else runs)"
    )
    checking.add_argument(
        "--study",
        metavar="NAME",
        help="also check that they are complete rows of this study; exit code 1 with what is missing",
    )
    add_plugins(checking, help="with --study: the file of a plug-in's method, to compare with the code that ran")
    merging = subcommand(
        commands, "merge", "copy what B lacks from A into B (merge A B); exit code 1 if something is left out"
    )
    merging.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR", help="results folders; the last is written to, and may be new"
    )
    out = subcommand(commands, "export", "write finished runs for TensorBoard or Weights & Biases (offline), or as CSV")
    out.add_argument("--to", required=True, choices=TARGETS, help="format")
    out.add_argument("out", type=Path, metavar="DIR", help="folder to write; new or empty")
    add_results(out)
    out.add_argument(
        "--run", action="append", default=[], metavar="KEY", help="only this run, by its key or words; repeatable"
    )
    return p


@verb
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if arguments.command == "merge":
        return _merge(arguments.folders)
    if arguments.command == "export":
        return _export(arguments)
    root = results_of(arguments)
    if not (folder := RecordStore(root).folder).is_dir():
        raise UsageError(f"{root} holds no records (there is no folder {folder})")
    return _check_rows(root, arguments) if arguments.study else _check(root)


def _check(root: Path) -> int:
    store, codes = RecordStore(root), list[str]()
    wrong = CostStore(root).sessions()[1]
    for path in store.files():
        try:
            codes.append(checked(path).code)
        except ValueError as error:
            wrong[path] = str(error)
    for path, reason in wrong.items():
        print(f"wrong: {printable_line(str(path))}: {reason}")
    print(f"{root}: {len(codes)} records ({sum(code != 'OK' for code in codes)} of failed runs), {len(wrong)} wrong")
    return 1 if wrong else 0


def _check_rows(root: Path, arguments: argparse.Namespace) -> int:
    study, changed = load_study(arguments.study), None
    if load_own_plugins(arguments):  # a plug-in's code needs torch
        changed = has_changed
    findings = check_rows(root, study, changed=changed)
    for finding in findings:
        print(f"{'wrong' if finding.wrong else 'right'}  {finding.what}: {finding.message}")
    wrong = [finding.what for finding in findings if finding.wrong]
    print(f"{root}: " + (f"not ready for {study.name}: {', '.join(wrong)}" if wrong else f"ready for {study.name}"))
    return 1 if wrong else 0


def _merge(folders: list[Path]) -> int:
    *sources, destination = folders
    if not sources:
        raise UsageError("merge needs two folders: merge A B copies A into B")
    failed = False
    for source in sources:
        copied, same, left_out = merge(source, destination)
        for line in left_out:
            print(line)
        print(f"{source} -> {destination}: {copied} copied, {same} there already, {len(left_out)} left out")
        failed |= bool(left_out)
    return 1 if failed else 0


def _export(arguments: argparse.Namespace) -> int:
    root = results_of(arguments)
    archive = Archive(root)
    chosen = {find_run(root, words).key for words in arguments.run}
    say_skipped(archive.problems)
    keys = [record.key for record in archive.records if record.code == "OK" and record.key in (chosen or {record.key})]
    if not keys:
        raise UsageError(f"no finished run below {root} fits; sam-peft status --results {root} lists them")
    export_records(archive, keys, arguments.to, arguments.out)
    print(f"{arguments.out}: {len(keys)} runs")
    return 0
