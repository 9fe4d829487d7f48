"""``sam-peft report``: write what a results folder says as a site of HTML pages that open offline."""

from __future__ import annotations

from pathlib import Path

from harness.archive.archive import Archive, frame
from harness.archive.store import require_writable
from harness.cli.command import CommandParser, add_results, command, results_of, verb, write_file
from harness.system.errors import UsageError


@verb
def main(argv: list[str] | None = None) -> int:
    from harness.report.html.site import WRITTEN, index_html

    options = parser().parse_args(argv)
    root = results_of(options)
    folder = options.out or root / "site"
    require_writable(folder.parent, named="folder", option="--out")
    archive = Archive(root)
    if not archive.records:
        raise UsageError(f"{archive.store.folder} holds no record; run something first (python -m harness.run …)")
    page = folder / "index.html"
    if page.exists() and WRITTEN not in page.read_text(encoding="utf-8", errors="replace")[:8192]:
        raise UsageError(f"--out {folder}: {page.name} is there and is no page of a site; name another folder")
    write_file(page, index_html(frame(archive, "scores")), what="page")
    print(page)
    return 0


def parser() -> CommandParser:
    p = command("report", __doc__)
    add_results(p)
    p.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: site in the results folder)")
    return p
