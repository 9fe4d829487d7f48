"""``sam-peft tables``: make the tables of a results folder, or check them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.archive.archive import Archive, Joined
from harness.archive.store import RecordStore
from harness.cli.command import CommandParser, add_results, command, results_of, verb, write_file
from harness.report.formats import SUFFIX, Format, as_data, write
from harness.report.pages import pages_below, rendered_files
from harness.studies import Study, load_study
from harness.system.errors import UsageError
from harness.system.streams import say, say_skipped, terminal_width


@verb
def main(argv: list[str] | None = None) -> int:
    options = parser().parse_args(argv)
    root = results_of(options)
    study = load_study(options.study) if options.study else None
    prints_only = [name for name in ("details", "json", "with") if getattr(options, name)]
    if joined := getattr(options, "with"):
        _require_joinable(study, joined, root)
    if options.check and prints_only:
        raise UsageError(
            f"--check compares written pages, and --{prints_only[0]} only prints; leave one of the two out"
        )
    archive = Joined(root, joined) if joined else Archive(root)
    makers, skipped = pages_below(archive, study=study, details=options.details)
    say_skipped(skipped)
    pages = {name: make() for name, make in makers.items()}
    if options.json:
        print(json.dumps([as_data(page) for page in pages.values()], indent=1))
        return 0
    if not pages:
        say(f"no record below {root}, so there is no table")
    if options.check:
        stale = [path for path in skipped if path.parent == root / "tables"]
        return _check(root, rendered_files(pages, root, style=options.format), stale)
    width = terminal_width(sys.stdout) if options.format == "markdown" else 0
    files = rendered_files(pages, root, style=options.format)
    try:
        for path, text in files.items():
            if not prints_only:
                write_file(path, text, what="table")
    finally:  # a read-only folder has tables all the same
        style: Format = "text" if width else options.format
        print(*(write(page, style=style, width=width or 100) for page in pages.values()), sep="\n", end="")
    for path in files if not prints_only else ():
        print(f"written: {path}", file=sys.stderr)
    if prints_only:
        print(f"printed only; to write tables, leave out --{prints_only[0]}", file=sys.stderr)
    return 0


def parser() -> CommandParser:
    p = command("tables", __doc__)
    add_results(p)
    p.add_argument(
        "--study",
        metavar="NAME",
        help="a study by name (run --study list) or a YAML file (default: a page for each protocol)",
    )
    p.add_argument(
        "--with", type=Path, metavar="DIR",
        help="also the study's rows of this results folder, those of --results marked as yours; only prints",
    )  # fmt: skip
    p.add_argument(
        "--details",
        action="store_true",
        help="also parameters, updates, rates and how they were chosen; only prints",
    )
    form = p.add_mutually_exclusive_group()
    form.add_argument(
        "--format", choices=sorted(SUFFIX), default="markdown",
        help="csv has one number per line (default: markdown)",
    )  # fmt: skip
    form.add_argument("--json", action="store_true", help="print pages and their numbers as JSON; write nothing")
    p.add_argument(
        "--check", action="store_true", help="write nothing; exit code 1 if a table differs from its records"
    )
    return p


def _require_joinable(study: Study | None, other: Path, root: Path) -> None:
    """Raises UsageError: two folders cannot be shown as one."""
    if study is None or study.table.kind == "cost":
        raise UsageError("--with joins the rows of a study of scores; name the study, for example --study leaderboard")
    if not RecordStore(other).folder.is_dir() or other.resolve() == root.resolve():
        raise UsageError(f"--with {other}: give another results folder than --results, one that holds records")


def _check(root: Path, files: Mapping[Path, str], stale: Sequence[Path]) -> int:
    wrong = [
        f"{path}: {'differs from the records' if path.is_file() else 'is missing'}"
        for path, text in files.items()
        if not path.is_file() or path.read_bytes() != text.encode()
    ]
    wrong += [f"{path}: nothing makes this table" for path in stale]
    hint = f"; run sam-peft tables --results {root}" if wrong else ""
    print(*wrong, f"{len(files)} tables checked, {len(wrong)} wrong{hint}", sep="\n")
    return 1 if wrong else 0
