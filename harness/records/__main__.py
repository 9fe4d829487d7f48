"""``python -m harness.records``: bring records of several clusters together, publish them, look for damaged ones, note
which file stands behind the short fingerprint of older ones."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from harness.cli import verb
from harness.errors import UsageError
from harness.records.merge import conflicts, merge
from harness.records.store import RecordStore
from harness.records.verify import verify_checkpoint


@verb
def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    if options.command == "verify-checkpoint":
        print(verify_checkpoint(options.file, options.root))
        return 0
    return _merge(options) if options.command == "merge" else _check(options.root)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m harness.records", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    joined = commands.add_parser(
        "merge",
        help="merge A B --out C, or merge A B to bring A into B (merge runs results publishes)",
        description="Copy records from results folders; nothing is overwritten, conflicts are kept apart.",
    )
    joined.add_argument(
        "folders",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help="results folders; without --out the last is the destination",
    )
    joined.add_argument("--out", type=Path, metavar="FOLDER", help="results folder to write; may be new")
    joined.add_argument(
        "--protocol", action="append", default=[], metavar="CARD", help="only records of this protocol; may be repeated"
    )
    checked = commands.add_parser(
        "check", help="list unreadable files and conflicts; exit 1 if there are unreadable ones"
    )
    checked.add_argument(
        "root", nargs="?", type=Path, default=Path("runs"), metavar="FOLDER", help="results folder (default: runs)"
    )
    verified = commands.add_parser(
        "verify-checkpoint",
        help="hash all of a checkpoint that older records know by a short fingerprint, and note the hash beside them",
        description="Records made before checkpoints were hashed as a whole count as finished once the file that they "
        "were made with was verified; that is noted in FOLDER/checkpoints.json.",
    )
    verified.add_argument("file", type=Path, metavar="FILE", help="the checkpoint that the records were made with")
    verified.add_argument(
        "root", nargs="?", type=Path, default=Path("runs"), metavar="FOLDER", help="results folder (default: runs)"
    )
    return parser


def _merge(options: argparse.Namespace) -> int:
    sources, out = list(options.folders), options.out
    if out is None:
        if len(sources) < 2:
            raise UsageError("merge needs two folders (merge A B brings A into B), or --out FOLDER")
        out = sources.pop()
    report = merge(sources, out, protocols=options.protocol)
    for path, reason in report.skipped.items():
        print(f"skipped: {path}: {reason}", file=sys.stderr)
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
    store = RecordStore(root)
    if not store.folder.is_dir():
        raise UsageError(f"{root} holds no records (there is no folder {store.folder})")
    records, problems = store.summaries()
    for path, reason in problems.items():
        print(f"unreadable: {path}: {reason}")
    for path in conflicts(root):
        print(f"conflict kept apart: {path}")
    failed = sum(record.code != "OK" for record in records)
    apart = len(conflicts(root))
    print(f"{root}: {len(records)} records ({failed} of failed runs), {len(problems)} unreadable, {apart} conflicts")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
