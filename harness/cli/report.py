"""``sam-peft report``: write what a results folder says as a site of HTML pages that open offline, a page a question."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from harness.archive.archive import Archive
from harness.archive.schema import Record
from harness.archive.store import require_writable
from harness.cli.command import CommandParser, add_results, command, results_of, verb, write_file
from harness.datasets.base import DatasetError
from harness.planning.data import network_images
from harness.planning.rows import trained_parameters
from harness.report.figures.material import Pictures
from harness.report.html.build import Asked, collect
from harness.report.html.pictures import preview
from harness.report.html.rendering import WRITTEN, index_html, page_html
from harness.studies import load_study
from harness.system.errors import UsageError
from harness.system.files import open_regular
from harness.system.streams import say

PNG = b"\x89PNG\r\n"


@verb
def main(argv: list[str] | None = None) -> int:
    options = parser().parse_args(argv)
    root = results_of(options)
    folder = options.out or root / "site"
    if folder.suffix.lower() in (".html", ".htm") or folder.is_file():
        raise UsageError(
            f"--out {folder}: a site is a folder of pages; name a folder, such as {folder.parent / 'site'}"
        )
    if options.url and not options.url.endswith("/"):
        options.url += "/"
    require_writable(folder.parent, named="folder", option="--out")
    asked = Asked(
        studies=[load_study(name) for name in options.study or ()],
        baseline=options.baseline,
        protocol=options.protocol,
        closed_form=trained_parameters,
        pictures=at_hand(network_images(root, data=options.data)),
        photographs=options.photographs,
    )
    site = collect(Archive(root), asked)
    for line in site.skipped:
        say(f"not counted: {line}")
    pages = {"index": index_html(site, url=options.url)} | {
        page.name: page_html(page, site, url=options.url) for page in site.pages
    }
    files: dict[Path, str | bytes] = {folder / f"{name}.html": text for name, text in pages.items()}
    files |= {folder / f"{page.name}.png": preview(page) for page in site.pages}
    for path in files:
        if not is_free(path):
            raise UsageError(f"--out {folder}: {path.name} is there and is no page of a site; name another folder")
    for path, content in files.items():
        write_file(path, content, what="page")
    largest = max(len(text.encode()) for text in pages.values())
    print(
        f"{folder / 'index.html'}: {len(site.pages)} pages, the largest {largest / 1e6:.1f} MB; {', '.join(site.facts)}"
    )
    return 0


def at_hand(images: Pictures) -> Pictures:
    """``images`` without those of benchmarks that the data folder lacks: their masks are shown alone."""
    missing: set[str] = set()

    def picture(record: Record, split: str, stem: str) -> Any:
        if record.run.benchmark in missing:
            return None
        try:
            return images(record, split, stem)
        except DatasetError as error:
            missing.add(record.run.benchmark)
            say(f"no photographs: {error}")
            return None

    return picture


def is_free(path: Path) -> bool:
    """Whether there is nothing, an empty file, or an earlier page or preview, which may be written over."""
    if not os.path.lexists(path):
        return True
    try:
        with open(open_regular(path), "rb") as file:
            begin = file.read(8192)
    except (OSError, ValueError):  # a link, a pipe, a file that cannot be read
        return False
    return not begin or (begin.startswith(PNG) if path.suffix == ".png" else WRITTEN.encode() in begin)


def parser() -> CommandParser:
    p = command("report", __doc__)
    add_results(p)
    p.add_argument(
        "--study", action="append", metavar="NAME", help="the page of this study alone (give it again for more)"
    )
    p.add_argument("--baseline", default="", metavar="ROW", help="label of the row to compare with (default: LoRA's)")
    p.add_argument(
        "--protocol", default="nas-lora", metavar="CARD", help="whose scores judge claims (default: nas-lora)"
    )
    p.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="the benchmarks' folder, for photographs behind masks (default: as set)",
    )
    p.add_argument(
        "--photographs", choices=("redistributable", "all", "none"), default="redistributable",
        help="which photographs the pages hold: those that may be passed on (default), all (for your own eyes), or none",
    )  # fmt: skip
    p.add_argument("--url", default="", metavar="URL", help="where the site will lie, so that its links show a preview")
    p.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: site in the results folder)")
    return p
