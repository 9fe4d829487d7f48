"""``python -m harness.tables``: regenerate the tables of a results folder from its records, or check them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.cli import verb
from harness.errors import UsageError
from harness.records.schema import Record
from harness.records.store import RecordStore, write_atomically
from harness.reporting.page import SUFFIX, Format
from harness.reporting.published import read
from harness.reporting.tables import render
from harness.studies import Study, load_study, study_names


@verb
def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    if options.study == "list":
        print("\n".join(f"{name:14s} {load_study(name).title}" for name in study_names()))
        return 0
    records = _records(options.results)
    pages = tables(
        options.results, records, study=load_study(options.study) if options.study else None, style=options.format
    )
    if options.check:
        return _check(options.results, pages, style=options.format, whole=not options.study)
    for path, text in pages.items():
        write_atomically(path, text)
        print(text, end="" if len(pages) == 1 else "\n")
    for path in pages:
        print(f"written: {path}", file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m harness.tables", description=__doc__)
    parser.add_argument(
        "--results", type=Path, default=Path("runs"), metavar="ROOT", help="results folder (default: runs)"
    )
    parser.add_argument(
        "--study", metavar="NAME", help="a study by name, a YAML file, or `list`; without it, a page a protocol"
    )
    parser.add_argument("--format", choices=sorted(SUFFIX), default="markdown", help="default: markdown")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if a table differs from what the records give"
    )
    return parser


def tables(
    root: Path, records: Sequence[Record], *, study: Study | None = None, style: Format = "markdown"
) -> dict[Path, str]:
    """Path -> content: the page of ``study``, or one a protocol and one a study whose page is there already."""
    folder, suffix = root / "tables", SUFFIX[style]
    if study is not None:
        return {folder / f"{study.name}{suffix}": render(records, study=study, published=read(), style=style)}
    pages = {}
    for protocol in sorted({record.run.protocol for record in records}):
        mine = [record for record in records if record.run.protocol == protocol]
        pages[folder / f"{protocol}{suffix}"] = render(mine, style=style)
    for name in study_names():
        path = folder / f"{name}{suffix}"
        if path.is_file() and path not in pages:
            pages[path] = render(records, study=load_study(name), published=read(), style=style)
    return pages


def _records(root: Path) -> list[Record]:
    store = RecordStore(root)
    if not store.folder.is_dir():
        raise UsageError(
            f"{store.folder} does not exist; run something first (python -m harness.run …), or give --results ROOT"
        )
    records, problems = store.summaries()
    for path, reason in problems.items():
        print(f"skipped: {path}: {reason}", file=sys.stderr)
    return records


def _check(root: Path, pages: Mapping[Path, str], *, style: Format, whole: bool) -> int:
    wrong = 0
    for path, text in pages.items():
        found = path.read_text(encoding="utf-8") if path.is_file() else None
        if found == text:
            continue
        wrong += 1
        print(f"{path}: {'is missing' if found is None else 'differs from the records'}")
    if whole:
        for path in sorted((root / "tables").glob(f"*{SUFFIX[style]}")):
            if path not in pages:
                wrong += 1
                print(f"{path}: no record gives this table")
    hint = f"; run python -m harness.tables --results {root}" if wrong else ""
    print(f"{len(pages)} tables checked, {wrong} wrong{hint}")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
