"""``sam-peft report``: write what a results folder says as one HTML page that opens offline."""

from __future__ import annotations

import os
from pathlib import Path

from harness.archive.archive import Archive
from harness.archive.store import require_writable
from harness.cli.command import CommandParser, command, require_effect, verb
from harness.planning.closed_form import trained_parameters
from harness.planning.pictures import network_images
from harness.report.html.build import Asked, collect
from harness.report.html.rendering import TITLE, html
from harness.settings.read import add_results, results_of
from harness.studies import load_study
from harness.system.errors import UsageError, os_reason
from harness.system.files import open_regular, write_atomically
from harness.system.streams import say


@verb
def main(argv: list[str] | None = None) -> int:
    options = parser().parse_args(argv)
    root = results_of(options)
    path = options.out or root / "report.html"
    if path.is_dir():
        raise UsageError(f"--out {path} is a folder; name a file in it, such as {path / 'report.html'}")
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--out {path}: a report is a page; name a file that ends in .html")
    if options.no_figures:
        require_effect(options, "data", without="with --no-figures")
    require_writable(path.parent, named="folder", option="--out")
    if not is_free(path):
        raise UsageError(f"--out {path} is there and is no report; name another file, or remove it")
    asked = Asked(
        study=load_study(options.study) if options.study else None,
        baseline=options.baseline,
        protocol=options.protocol,
        figures=not options.no_figures,
        closed_form=trained_parameters,
        pictures=network_images(root, data=options.data),
    )
    content = collect(Archive(root), asked)
    for line in content.skipped:
        say(f"not counted: {line}")
    page = html(content)
    try:
        write_atomically(path, page)
    except OSError as error:
        raise UsageError(f"cannot write the report {path}: {os_reason(error)}") from error
    print(f"{path}: {len(page.encode()) / 1e6:.1f} MB, {content.facts[1]}")
    return 0


def is_free(path: Path) -> bool:
    """Whether there is nothing, an empty file, or an earlier report, which may be written over."""
    if not os.path.lexists(path):
        return True
    try:
        with open(open_regular(path), "rb") as file:
            begin = file.read(8192)
    except (OSError, ValueError):  # a link, a pipe, a file that cannot be read
        return False
    return not begin or TITLE.encode() in begin


def parser() -> CommandParser:
    p = command("report", __doc__)
    add_results(p)
    p.add_argument("--study", metavar="NAME", help="only the rows, benchmarks and seeds of a study")
    p.add_argument("--baseline", default="", metavar="ROW", help="label of the row to compare with (default: LoRA's)")
    p.add_argument(
        "--protocol", default="nas-lora", metavar="CARD", help="whose scores judge claims (default: nas-lora)"
    )
    p.add_argument(
        "--data", type=Path, metavar="DIR", help="the benchmarks' folder, to show images beside masks (default: as set)"
    )
    p.add_argument("--no-figures", action="store_true", help="tables alone, in seconds")
    p.add_argument(
        "--out", type=Path, metavar="FILE", help="where to write (default: report.html in the results folder)"
    )
    return p


if __name__ == "__main__":
    raise SystemExit(main())
