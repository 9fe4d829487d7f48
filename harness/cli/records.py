"""``sam-peft records``: bring records of several clusters together, publish them, look for damaged ones, note
which file stands behind the short fingerprint of older ones."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from harness.archive.agreement import disagreement, strays
from harness.archive.checkpoints import FILE, read_notes, verify_checkpoint
from harness.archive.cost import CostStore
from harness.archive.measured import EvidenceStore, ForgettingStore
from harness.archive.merge import conflicts, merge
from harness.archive.reading import load
from harness.archive.schema import Record
from harness.archive.store import RecordStore, add_seal, is_sealed
from harness.cli.command import CommandParser, command, verb
from harness.settings.read import load_settings
from harness.system.errors import UsageError
from harness.system.streams import say_skipped
from harness.system.text import printable_line


@verb
def main(argv: list[str] | None = None) -> int:
    options = parser().parse_args(argv)
    if options.command != "merge":
        options.root = options.root or load_settings().results
    if options.command == "verify-checkpoint":
        used = (record.run.checkpoint for record in RecordStore(options.root))
        print(verify_checkpoint(options.file, options.root, used=used))
        return 0
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
    for each in (checked, seal):
        each.add_argument(
            "root", nargs="?", type=Path, metavar="DIR", help="results folder (default: as set, else runs)"
        )
    verified = commands.add_parser(
        "verify-checkpoint",
        help="hash all of a checkpoint that older records know by a short fingerprint, and note the hash beside them",
        description="Records made before checkpoints were hashed as a whole count as finished once the file that they "
        "were made with was verified; that is noted in DIR/checkpoints.json.",
    )
    verified.add_argument("file", type=Path, metavar="FILE", help="the checkpoint that the records were made with")
    verified.add_argument(
        "root", nargs="?", type=Path, metavar="DIR", help="results folder (default: as set, else runs)"
    )
    return p


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
    for path, found in _checked(root):
        if isinstance(found, str):
            wrong += 1
            print(f"wrong: {printable_line(str(path))}: {found}")
        else:
            codes.append(found.code)
            unsealed += not is_sealed(path)
    stores = (CostStore(root), EvidenceStore(root), ForgettingStore(root))
    others = [found for store in stores for found in store.problems().items()]
    try:
        read_notes(root)
    except ValueError as error:
        others.append((root / FILE, str(error)))
    for path, reason in others:
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
    for path, found in _checked(root):
        if isinstance(found, str):
            wrong += 1
            print(f"wrong, and not sealed: {printable_line(str(path))}: {found}")
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


if __name__ == "__main__":
    raise SystemExit(main())
