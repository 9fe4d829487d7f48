"""LaTeX is tried by compiling it: every character is known, and every table fits the width of a page."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from harness.comparison.cells import Mark
from harness.comparison.names import METHOD_ORDER, PAPER_METRICS
from harness.comparison.papers import Papers
from harness.report.formats import MOST_FLOATS, tex, write
from harness.report.page import Line, Page, Shown, Table, heads
from harness.report.score_page import score_page
from harness.studies import study_from_dict
from tests.harness.report.sample import MadeUp, record

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
    boxes = re.findall(r"Overfull \\[hv]box \(([\d.]+)pt|Float too large for page by ([\d.]+)pt", log)
    return [width for over, large in boxes if (width := float(over or large)) > 2]


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
    return score_page(records, MadeUp(records), study=study, papers=Papers.read())


@needs_latex
@pytest.mark.slow
def test_a_whole_table_compiles_and_fits(tmp_path: Path) -> None:
    log = compiled(write(whole_table(), style="latex"), tmp_path)
    assert sticking_out(log) == []
    assert "undefined" not in log.lower()


def test_a_table_that_is_taken_out_says_what_its_marks_mean_and_has_few_parts() -> None:
    trials = [{"options": {"lr": rate}, "score": rate} for rate in (1e-3, 3e-3)]
    tuning = {"chosen": {"lr": 3e-3}, "edge": ["lr"], "trials": trials, "metric": "iou", "on": ["leaf"], "hours": 1.0}
    names = ("kvasir", "cvc612", "isic2017", "leaf", "road")
    records = [
        record(
            seed=seed, method=method, benchmark=name, data_note="352 px copy", tuning=tuning if method == "lora" else {},
            scores={"best": {"test": dict.fromkeys(PAPER_METRICS[name], base + 0.01 * seed)}},
        )
        for method, base in (("lora", 0.9), ("decoder", 0.5)) for name in names for seed in range(3)
    ]  # fmt: skip
    parts = write(score_page(records, MadeUp(records), papers=Papers()), style="latex").split(r"\begin{table}")[1:]
    scored = [part for part in parts if r"\caption{demo $\cdot$ tiny (part" in part]
    assert len(scored) == 2  # of ten columns of scores, headings over several lines
    for part in scored:
        assert "\nlora \\S{} & " in part  # not how many trials there were, which a table of its own tells
        assert part.count(r"\footnotesize \S{} a chosen value is the first or last of its grid") == 1
        assert part.count(r"\footnotesize Bold: best mean") == (r"\textbf" in part)
    assert r"\footnotesize \S{}" not in "".join(part for part in parts if part not in scored)


def test_rows_that_only_their_trials_tell_apart_keep_them_and_tall_rows_share_fewer_a_part() -> None:
    names = ("lora", "lora, tuned, 2–4 trials")
    rows = [Line.of([name, "0.001: 79.4; " * 12]) for name in names for _ in range(10)]
    text = write(
        Page(title="", tables=[Table(heading="", columns=heads("method", "trials", words=["trials"]), rows=rows)]),
        style="latex",
    )
    parts = text.split(r"\begin{table}")[1:]
    assert "lora, tuned, 2--4 trials" in text
    assert [part.count("\nlora") for part in parts] == [5, 5, 5, 5]
    assert r"0.001: 79.4; 0.001: 79.4; \\ 0.001: 79.4; " in text


@needs_latex
@pytest.mark.slow
def test_whatever_is_in_a_label_compiles(tmp_path: Path) -> None:
    letters = "".join(map(chr, range(32, 127))) + "±↑↓†‡·≈≤≥×Σαβφωλσγµθ Δ§–—…²⁻³−→←√∞é"
    marks: tuple[Mark, ...] = ("", "best", "tied", "second")
    rows = [Line(label="", cells=[Shown(text=text, mark=mark) for text in (letters, "[1.0, 2.0]")]) for mark in marks]
    table = Table(heading=letters, above=[letters], columns=heads("method", letters), rows=rows, below=[letters])
    page = Page(title=letters, lead=[letters], note=letters, tables=[table])
    compiled(write(page, style="latex"), tmp_path)


def test_a_page_is_cleared_before_latex_runs_out_of_floats() -> None:
    tables = [Table(heading=f"Number {place}") for place in range(2 * MOST_FLOATS + 1)]
    text = write(Page(title="Many", tables=tables), style="latex")
    assert [part.count(r"\end{table}") for part in text.split(r"\clearpage")] == [MOST_FLOATS, MOST_FLOATS, 1]


def test_greek_letters_of_tables_are_known_to_every_latex() -> None:
    assert tex("α β φ χ² τ ω Δ Σ λ σ γ µ μ ε θ Ω √2 → ∞ 10⁻³").isascii()
