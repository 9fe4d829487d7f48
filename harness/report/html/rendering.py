"""The content as one HTML file: templates with every word escaped, script and style inside, nothing fetched."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from typing import Any

from harness.report.figures import FIGURES
from harness.report.html.content import Content, Picture
from harness.system.text import printable

TITLE = ": report of results folder "
"""In the title of every report, by which a file is known as one."""
SECTIONS = (
    ("answer", "Answer"), ("rules", "What was compared"), ("scores", "Scores"), ("all", "Every number"), ("missing", "Gaps"),
    ("figures", "Figures"), ("masks", "Masks"), ("cost", "Cost"), ("verdicts", "Claims"),
)  # fmt: skip
"""Anchor and name."""


def html(content: Content) -> str:
    """The file. Its policy lets the browser run this script and no other, and load nothing from anywhere."""
    environment = _environment()
    script = environment.get_template("report.js").render()
    style = environment.get_template("report.css").render()
    page = environment.get_template("report.html").render(
        content=content,
        script=script,
        style=style,
        script_hash=_hash(script),
        style_hash=_hash(style),
        data=_data(content),
        sections=SECTIONS,
        filters=_filters(content),
        drawn=_by_kind(content),
        kinds=FIGURES,
    )
    return str(page)


def _filters(content: Content) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Kind, title and (value, words) of every choice."""
    return [
        ("method", "Methods", [(name, name) for name in content.methods]),
        ("benchmark", "Benchmarks", list(content.benchmarks.items())),
        ("metric", "Metrics", list(content.metrics.items())),
    ]


def _by_kind(content: Content) -> list[tuple[str, list[Picture]]]:
    """Pictures of one kind together, in the order in which the kinds first come."""
    found: dict[str, list[Picture]] = {}
    for picture in content.pictures:
        found.setdefault(picture.about, []).append(picture)
    return list(found.items())


def _data(content: Content) -> dict[str, Any]:
    """What the script reads: what is behind cells, and CSV files."""
    return {
        "behind": content.behind,
        "lines": content.lines,
        "pictures": {one.title: one.packed for one in (*content.pictures, *content.masks)},
        "csv": {group.name: group.csv for group in (*content.groups, *content.costs) if group.csv},
    }


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _harmless(value: Any) -> Any:
    """Words without characters that turn or hide text; what is HTML already stays."""
    return printable(value) if type(value) is str else value


@cache
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=PackageLoader("harness.report.html"),
        autoescape=select_autoescape(("html",)),
        undefined=StrictUndefined,
        finalize=_harmless,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "sort_keys": True, "separators": (",", ":")}
    return environment
