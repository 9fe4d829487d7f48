"""LaTeX is tried by compiling it: every character is known, and every table fits the width of a page."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from harness.comparison.names import METHOD_ORDER, PAPER_METRICS
from harness.comparison.published import read_published
from harness.comparison.setups import read_setups
from harness.protocols.load import card_rules
from harness.report.page import Block, Page, Text
from harness.report.pages import built_pages
from harness.report.tables import score_page
from harness.report.writing import latex, write
from harness.studies import study_from_dict
from tests.harness.report.sample import record, sources

RESULTS = Path(__file__).parents[4] / "results"
DOCUMENT = r"""\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage{booktabs,graphicx}
\extrafloats{200}
\begin{document}
%s
\end{document}
"""

needs_latex = pytest.mark.skipif(
    shutil.which("pdflatex") is None, reason="pdflatex is not installed (texlive-latex-recommended)"
)


def compiled(text: str, folder: Path) -> str:
    """The log of pdflatex, its lines put together again."""
    (folder / "page.tex").write_text(DOCUMENT % text, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, errors="replace")
    log = (folder / "page.log").read_text(encoding="utf-8", errors="replace")
    assert done.returncode == 0, re.findall(r"^!.*(?:\n.*){3}", log, re.MULTILINE)
    return log


def sticking_out(log: str) -> list[float]:
    """Points by which boxes stick out of a line or a page, beyond what nobody sees."""
    found = re.findall(r"Overfull \\[hv]box \(([\d.]+)pt|Float too large for page by ([\d.]+)pt", log)
    return [width for one, other in found if (width := float(one or other)) > 2]


def whole_table() -> Page:
    """Fourteen methods on nine benchmarks with every block that a study can have."""
    splits = {name: "all" if name == "trans10k_v1" else "test" for name in PAPER_METRICS}
    records = [
        record(
            seed=seed, method=method, benchmark=name, data_note="352 px copy",
            scores={"best": {splits[name]: dict.fromkeys(metrics, 0.4 + 0.01 * number + 0.003 * seed)}},
        )
        for number, method in enumerate(METHOD_ORDER) for name, metrics in PAPER_METRICS.items() for seed in range(3)
    ]  # fmt: skip
    data = {"title": "Main", "protocol": "demo", "benchmarks": list(PAPER_METRICS), "entries": list(METHOD_ORDER)}
    study = study_from_dict({**data, "table": {"baseline": "lora", "paper": True}}, name="main")
    return score_page(records, study=study, sources=sources(published=read_published(), setups=read_setups()))


@needs_latex
@pytest.mark.slow
def test_a_whole_table_compiles_and_fits(tmp_path: Path) -> None:
    log = compiled(write(whole_table(), style="latex"), tmp_path)
    assert sticking_out(log) == []
    assert "undefined" not in log.lower()


@needs_latex
@pytest.mark.slow
def test_the_committed_pages_compile_and_fit(tmp_path: Path) -> None:
    pages = built_pages(RESULTS, card_of=card_rules).content
    assert len(pages) >= 3
    log = compiled("\n".join(write(page, style="latex") for page in pages.values()), tmp_path)
    assert sticking_out(log) == []


@needs_latex
@pytest.mark.slow
def test_whatever_is_in_a_label_compiles(tmp_path: Path) -> None:
    letters = "".join(map(chr, range(32, 127))) + "±↑↓†‡·≈≤≥×Σαβφω Δ§–—…²−→é"
    rows = [
        [Text(text=letters, mark=mark), Text(text="[1.0, 2.0]", mark=mark)] for mark in ("", "best", "tied", "second")
    ]
    block = Block(heading=letters, above=[letters], columns=["method", letters], rows=rows, below=[letters])
    page = Page(title=letters, lead=[letters], note=letters, blocks=[block])
    compiled(write(page, style="latex"), tmp_path)


def test_a_page_is_cleared_before_latex_runs_out_of_floats() -> None:
    blocks = tuple(Block(heading=f"Number {place}") for place in range(2 * latex.MOST_FLOATS + 1))
    text = write(Page(title="Many", blocks=blocks), style="latex")
    before = [part.count(r"\end{table}") for part in text.split(r"\clearpage")]
    assert before == [latex.MOST_FLOATS, latex.MOST_FLOATS, 1]
