"""The site of a results folder: templates with every word escaped, nothing fetched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

WRITTEN = 'name="generator" content="sam-peft report"'
"""In the head of every page, by which a file is known as one of ours."""


def index_html(scores: pd.DataFrame) -> str:
    """The first page: mean test score of every method on every benchmark."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    chosen = scores[(scores["model"] == "best") & (scores["split"] != "val")]
    where = ["benchmark", "metric", "protocol", "backbone", "variant"]
    means = chosen.groupby(where)["value"].agg(["mean", "std", "count"]).reset_index()
    environment: Any = Environment(
        loader=PackageLoader("harness.report", "html"), autoescape=True, undefined=StrictUndefined
    )
    return str(environment.get_template("index.html").render(rows=means.to_dict("records"), written=WRITTEN))
