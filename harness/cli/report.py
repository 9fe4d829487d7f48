"""``sam-peft report``: write the results as an offline website, or as figures.

The site has a leaderboard, then a page for each benchmark.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.archive.archive import Archive
from harness.archive.schema import Record
from harness.archive.store import require_writable
from harness.cli.command import add_plugins, add_results, command, load_own_plugins, results_of, verb, write_file
from harness.comparison import Leaderboard, grids, leaderboards
from harness.datasets.base import DatasetError
from harness.dispatch.sweeps import read_sweeps
from harness.planning.data import network_images
from harness.registry import BENCHMARKS, is_own
from harness.report.figures import draw
from harness.report.site import INDEX, WRITTEN, site
from harness.report.style import FIGURE_FORMATS, encoded_figure
from harness.studies import load_study
from harness.system.errors import UsageError
from harness.system.files import open_regular
from harness.system.streams import say


@verb
def main(argv: list[str] | None = None) -> int:
    options = parser().parse_args(argv)
    load_own_plugins(options)
    root = results_of(options)
    folder = options.out or root / ("figures" if options.figures else "site")
    require_writable(folder, named="folder", option="--out")
    study = load_study(options.study) if options.study else None
    archive = Archive(root)
    boards = leaderboards(grids(archive, study=study), study, options.baseline)
    for path, reason in sorted(archive.problems.items()):
        say(f"not counted: {path}: {reason}")
    if not boards:
        what = f"no record of study {study.name}" if study else "no record"
        raise UsageError(
            f"{archive.store.folder} holds {what}; run something first (sam-peft run …), or give --results DIR"
        )
    pictures = photographs(root, data=options.data, which=options.photographs)
    if options.figures:
        return _figures(folder, boards, pictures)
    pages = site(
        boards, title=study.title if study else "Results", photographs=pictures,
        links=dict(options.link),
        withheld="No photographs are shown with masks whose images are in no known folder (--data DIR) or may not be redistributed "
        "(--photographs all).",
    )  # fmt: skip
    require_own_site(folder)
    for name, text in pages.items():
        write_file(folder / name, text, what="page")
    size = sum(len(text.encode()) for text in pages.values()) / 1e6
    print(f"{folder / INDEX}: {len(pages) - 1} pages, {size:.1f} MB")
    return 0


def _figures(folder: Path, boards: list[Leaderboard], pictures: Callable[[Record, str, str], Any]) -> int:
    count = 0
    for number, board in enumerate(boards, start=1):
        for name, figure, caption in draw(board, pictures):
            stem = name if len(boards) == 1 else f"table-{number}-{name}"
            for form in FIGURE_FORMATS:
                write_file(
                    folder / f"{stem}.{form}", encoded_figure(figure, form, title=stem, caption=caption), what="figure"
                )
            write_file(folder / f"{stem}.txt", f"{board.grid.title}. {caption}\n", what="caption")
            count += 1
    if not count:
        raise UsageError("there is nothing to draw: these runs hold no scores, curves, masks or costs")
    print(f"{count} figures below {folder}")
    return 0


def photographs(root: Path, *, data: list[Path], which: str) -> Callable[[Record, str, str], Any]:
    """(a record, split, stem) -> the image that the network saw; None where it is missing or may not be redistributed."""
    roots = {run.key: str(run.job.get("dataset_root", "")) for sweep in read_sweeps(root, {}) for run in sweep.runs}

    def trained_on(key: str) -> Path | None:
        return Path(folder) if (folder := roots.get(key)) else None

    images = network_images(root, data=data, known=trained_on)
    missing: set[str] = set()

    def picture(record: Record, split: str, stem: str) -> Any:
        benchmark = record.run.benchmark
        if benchmark in missing or which == "none" or (which == "redistributable" and not is_redistributable(record)):
            return None
        try:
            return images(record, split, stem)
        except DatasetError as error:
            missing.add(benchmark)
            say(f"no photographs: {error}")
            return None

    return picture


def is_redistributable(record: Record) -> bool:
    """Whether the images of a run may be redistributed: one's own, and those of benchmarks whose terms allow it."""
    run = record.run
    if run.is_generated or run.rule("own_classes"):
        return True
    try:
        return bool(is_own(run.benchmark) or BENCHMARKS.get(run.benchmark).redistribution)
    except UsageError:  # a benchmark of a plug-in that is not loaded
        return False


def require_own_site(folder: Path) -> None:
    """Raises UsageError: the folder has files, but not the first page of an earlier site."""
    try:
        with open(open_regular(folder / INDEX), "rb") as file:
            is_own = WRITTEN.encode() in file.read(8192)
    except (OSError, ValueError):  # it is missing, a link, a pipe, or a file that cannot be read
        is_own = False
    if not is_own and folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"--out {folder} holds files that are not a report's; name another folder")


def _link(text: str) -> tuple[str, str]:
    name, _, address = text.partition("=")
    if not name or not address or (":" in address and not address.startswith(("https://", "http://"))):
        raise argparse.ArgumentTypeError(f"{text!r} is not a link of the form NAME=https://… or NAME=page.html")
    return name, address


def parser() -> argparse.ArgumentParser:
    p = command("report", __doc__)
    add_results(p)
    p.add_argument(
        "--study", metavar="NAME", help="only rows, benchmarks and seeds of this study (a name or a YAML file)"
    )
    p.add_argument(
        "--baseline", default="", metavar="ROW", help="the row that others are compared with (default: LoRA)"
    )
    p.add_argument("--figures", action="store_true", help="write figures as SVG, PDF and PNG instead of pages")
    p.add_argument(
        "--data", action="append", type=Path, default=[], metavar="DIR",
        help="folder of the images, to show photographs under masks; repeatable (default: the setting, else that of the runs)",
    )  # fmt: skip
    p.add_argument(
        "--photographs", choices=("redistributable", "all", "none"), default="redistributable",
        help="photographs on a page: your own and those that may be redistributed (default), all, or none",
    )  # fmt: skip
    p.add_argument(
        "--out", type=Path, metavar="DIR", help="where to write (default: site or figures in the results folder)"
    )
    p.add_argument(
        "--link", action="append", type=_link, default=[], metavar="NAME=ADDRESS",
        help="a link at the foot of every page, such as Code=https://example.org/code; repeatable",
    )  # fmt: skip
    add_plugins(p, help="a file that defines methods or benchmarks of the runs")
    return p
