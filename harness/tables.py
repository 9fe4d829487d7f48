"""``python -m harness.tables``: regenerate the tables of a results folder from its records, or check them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.cli import verb
from harness.errors import UsageError
from harness.records.cost import CostStore
from harness.records.images import image_scores
from harness.records.schema import Record
from harness.records.store import RecordStore, write_atomically
from harness.reporting import claims
from harness.reporting.costs import render_costs
from harness.reporting.differences import ImagesOf
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
    study = load_study(options.study) if options.study else None
    pages = tables(options.results, study=study, style=options.format)
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


def tables(root: Path, *, study: Study | None = None, style: Format = "markdown") -> dict[Path, str]:
    """Path -> content of the tables that the records below ``root`` give.

    The page of ``study``; without one a page a protocol, the cost page if there are cost records, and the page of every
    study that has one already.
    """
    folder, suffix = root / "tables", SUFFIX[style]
    if study is not None and study.table.kind == "cost":
        return {folder / f"{study.name}{suffix}": _cost_page(root, study, style=style)}
    records = _records(root)
    if study is not None:
        return {folder / f"{study.name}{suffix}": _study_page(root, records, study, style=style)}
    pages = {}
    for protocol in sorted({record.run.protocol for record in records}):
        mine = [record for record in records if record.run.protocol == protocol]
        pages[folder / f"{protocol}{suffix}"] = render(mine, style=style)
    for name in study_names():
        path, one = folder / f"{name}{suffix}", load_study(name)
        if one.table.kind == "cost" and (path.is_file() or any(CostStore(root))):
            pages[path] = _cost_page(root, one, style=style)
        elif path.is_file() and path not in pages:
            pages[path] = _study_page(root, records, one, style=style)
    return pages


def _study_page(root: Path, records: Sequence[Record], study: Study, *, style: Format) -> str:
    return render(records, study=study, published=read(), images_of=images_below(root), style=style)


def images_below(root: Path) -> ImagesOf:
    """Per-image scores from the files beside the records."""
    store = RecordStore(root)

    def images_of(record: Record, score: str, split: str, metric: str) -> Mapping[str, float] | None:
        return image_scores(store.images_path(record.key), variant=score, split=split, metric=metric)

    return images_of


def _cost_page(root: Path, study: Study, *, style: Format) -> str:
    store = CostStore(root)
    for path, reason in store.problems().items():
        print(f"skipped: {path}: {reason}", file=sys.stderr)
    return render_costs(store, title=study.title, claims=claims.read(), style=style)


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
