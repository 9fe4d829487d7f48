"""A page as markdown."""

from __future__ import annotations

from harness.report.page import Page, Text, legend
from harness.system.text import markdown

WRITTEN = "<!-- written by `sam-peft {verb}`; edit no number here -->"


def write(page: Page) -> str:
    lines = [f"# {markdown(page.title)}", "", WRITTEN.format(verb=page.verb)]
    if page.note:
        lines += ["", f"*{markdown(page.note)}*"]
    if page.lead:
        lines += ["", *(f"- {markdown(line)}" for line in page.lead)]
    for block in page.blocks:
        lines += ["", f"{'#' * block.level} {markdown(block.heading)}", ""]
        lines += [f"- {markdown(line)}" for line in block.above] + ([""] if block.above else [])
        if block.columns:
            lines.append("| " + " | ".join(map(markdown, block.columns)) + " |")
            sides = ["---" if block.is_words(place) else "---:" for place in range(len(block.columns))]
            lines.append("|" + "|".join(sides) + "|")
            lines += ["| " + " | ".join(map(_marked, row)) + " |" for row in block.rows]
        lines += ([""] if block.below else []) + [f"{markdown(line)}  " for line in block.below]
    foot = [*page.foot, *legend(page, best="Bold", tied="≈", second="Underlined")]
    lines += ["", "---", "", *(f"{markdown(line)}  " for line in foot)] if foot else []
    return "\n".join(lines).rstrip() + "\n"


def _marked(cell: Text) -> str:
    return {"": "{}", "best": "**{}**", "tied": "{} ≈", "second": "<u>{}</u>"}[cell.mark].format(markdown(cell.text))
