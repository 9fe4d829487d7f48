"""``python -m benchmarks.publish``: puts what committed files and records give between the marks of the pages.

A block without files is empty. Nothing is measured.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks import end_to_end, products, shares, startup

ROOT = Path(__file__).parents[1]
MEASURED = ROOT / "results" / "benchmarks"
PAGE, DETAILS = ROOT / "docs" / "performance.md", ROOT / "docs" / "details" / "performance.md"
PICTURE = ROOT / "docs" / "figures" / "end-to-end.svg"
Files = Mapping[str, dict[str, Any]]
"""Name -> content, by name."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """One rendered part of a page.

    Args:
        page: which.
        files: pattern of its files below ``results/benchmarks``.
        render: what they say, as markdown.
    """

    page: Path
    files: str
    render: Callable[[Files], str]

    def content(self) -> Files:
        return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(MEASURED.glob(self.files))}


def trainings(files: Files) -> str:
    return f"{end_to_end.page(list(files.values()))}\n\n![wall time of each](figures/{PICTURE.name})"


def steps(files: Files) -> str:
    """Steps of LoRA beside those of its peers."""
    rows = []
    for name, file in files.items():
        asked = file["options"]
        for contestant, seconds in file["seconds"].items():
            share, ratio = (
                file[key].get(entry)
                for key, entry in (("share_of_limit", contestant), ("ratios", f"lora / {contestant}"))
            )
            rows.append(
                [
                    f"{asked['backbone']}, {asked['image_size']} px, {asked['precision']}", contestant, len(seconds),
                    f"{statistics.median(seconds):.2f}", end_to_end.interval(ratio) if ratio else "",
                    f"{100 * share:.0f} %" if share else "", f"`{name}`",
                ]
            )  # fmt: skip
    heads = ["step", "of", "rounds", "median (s)", "lora / it", "of the limit", "file"]
    return tabulate(rows, headers=heads, tablefmt="github", disable_numparse=True)


def bounds(files: Files) -> str:
    sections = (
        f"`{name}` ({file['shared'] or 'nothing else running'}):\n\n{products.summary(file)}"
        for name, file in files.items()
    )
    return "\n\n".join(sections)


def imports(files: Files) -> str:
    return "\n\n".join(startup.packages_table(file["imports"]) for file in files.values())


BLOCKS = {
    "trainings": Block(page=PAGE, files="end-to-end-*.json", render=trainings),
    "steps in bf16": Block(page=PAGE, files="peers-*-bf16.json", render=steps),
    "products": Block(page=DETAILS, files="products-*.json", render=bounds),
    "imports": Block(page=DETAILS, files="imports.json", render=imports),
}


def published(page: Path, text: str) -> str:
    """The text of a page with its blocks as files and records give them."""
    if page == PAGE:
        text = put(text, "shares of a run", shares.table(shares.by_method(ROOT / "results", "mobile_sam")))
    for name, block in BLOCKS.items():
        if block.page == page:
            files = block.content()
            text = put(text, name, block.render(files) if files else "")
    return text


def put(text: str, name: str, content: str) -> str:
    """``text`` with ``content`` between the marks of a block.

    Raises:
        ValueError: the text has no such marks.
    """
    begin, end = f"<!-- {name}: rendered by python -m benchmarks.publish -->\n", f"<!-- end of {name} -->"
    before, begun, rest = text.partition(begin)
    _, ended, after = rest.partition(end)
    if not begun or not ended:
        raise ValueError(f"no marks of {name}")
    inner = f"\n{content}\n\n" if content else ""
    return f"{before}{begin}{inner}{end}{after}"


def main() -> int:
    for page in (PAGE, DETAILS):
        page.write_text(published(page, page.read_text(encoding="utf-8")), encoding="utf-8")
    if files := BLOCKS["trainings"].content():
        PICTURE.write_bytes(end_to_end.drawn(list(files.values())))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
