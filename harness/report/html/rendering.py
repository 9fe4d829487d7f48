"""The site as HTML files: templates with every word escaped, script and style inside, nothing fetched."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path
from typing import Any

from harness.archive.archive import Archive
from harness.comparison.judging import Count
from harness.report.html.build import CLAIMS, Asked, collect
from harness.report.html.content import Site, SitePage
from harness.report.html.headline import MOST_LANES
from harness.report.html.strip import AT_FIRST
from harness.studies import load_study, study_names
from harness.system.errors import UsageError
from harness.system.text import printable

WRITTEN = 'name="generator" content="sam-peft report"'
"""In the head of every page, by which a file is known as one of ours."""
TITLE = "Fine-tuning Segment Anything with few parameters"
LEDE = (
    "Which method adapts SAM best, by how much, and at which cost: every page is one question with its answer, and every number"
    " opens the seeds, the command and the records behind it."
)

_NOT_COMPARED = re.compile(
    r'<style>.*?</style>|<meta (?:http-equiv|property="og:image")[^>]*>|<section class="masks".*?</section>|"pictures":{[^}]*}',
    re.DOTALL,
)
"""Of a page: what photographs change, its address, and figures, whose packing changes with the libraries that pack them."""


def wrong_pages(archive: Archive, folder: Path, *, closed_form: Count) -> list[str] | None:
    """Which pages of a site are not what the records give, a line each. Of a site of some studies those are compared that come with
    the harness, and the page of all pages where there are no others; of one of everything, which has the claims, every page. None of a
    site with none of them."""
    there = {path.stem: path.read_text(encoding="utf-8", errors="replace") for path in folder.glob("*.html")}
    studies = [] if CLAIMS in there else [load_study(name) for name in study_names() if name in there]
    if not studies and CLAIMS not in there:
        return None
    try:
        site = collect(archive, Asked(studies=studies, closed_form=closed_form))
    except UsageError as error:  # a page whose records are gone
        return [f"{folder}: {error}"]
    pages = {page.name: page_html(page, site) for page in site.pages}
    if not studies or there.keys() - {"index"} <= pages.keys():
        pages["index"] = index_html(site)
    wrong = [
        f"{folder / name}.html: {'differs from the records' if name in there else 'is missing'}"
        for name, page in pages.items()
        if _NOT_COMPARED.sub("", page) != _NOT_COMPARED.sub("", there.get(name, ""))
    ]
    strays = [] if studies else sorted(there.keys() - pages.keys())
    return [*wrong, *(f"{folder / name}.html: no record gives this page" for name in strays)]


def index_html(site: Site, *, url: str = "") -> str:
    """The page of all pages; ``url``: where the site will lie, for previews of its links."""
    return _written(
        "index.html",
        name=site.pages[0].name,
        title=TITLE,
        description=LEDE,
        url=url,
        site=site,
        data={},
        photographs={},
    )


def page_html(page: SitePage, site: Site, *, url: str = "") -> str:
    """One page. Its policy lets the browser run this script and no other, and load nothing from anywhere."""
    sources = dict.fromkeys(
        shot.photograph for part in page.parts for strip in part.strips for shot in strip.shots if shot.photograph
    )
    data = {
        "behind": page.behind.texts, "lines": page.behind.lines, "opened": page.behind.opened, "copies": page.copies,
        "pictures": {picture.title: picture.packed for picture in page.pictures}, "csv": {page.name: page.csv} if page.csv else {},
    }  # fmt: skip
    return _written(
        "page.html", name=page.name, title=page.question, description=page.verdict, url=url, site=site, data=data, page=page,
        photographs={source: f"photograph-{number}" for number, source in enumerate(sources)},
        at_first=AT_FIRST, most_lanes=MOST_LANES,
    )  # fmt: skip


def _written(template: str, *, photographs: dict[str, str], **shown: Any) -> str:
    environment = _environment()
    script = environment.get_template("site.js").render()
    style = environment.get_template("site.css").render(photographs=photographs)
    page = environment.get_template(template).render(
        script=script, style=style, script_hash=_hash(script), style_hash=_hash(style), photographs=photographs, **shown
    )
    return str(page)


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
