"""What the site holds, without a browser: verdicts, numbers, explanations, size, and one line for a mistake."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import re
import shlex
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from jinja2 import UndefinedError
from matplotlib import get_data_path
from PIL import Image, ImageFont

from harness.archive.archive import Archive
from harness.archive.store import RecordStore
from harness.cli.report import main
from harness.cli.tables import main as tables
from harness.comparison.cells import Column
from harness.planning.rows import trained_parameters
from harness.report.command import command_of
from harness.report.figures.material import baseline_of
from harness.report.html import rendering
from harness.report.html.build import Asked, _bibtex, _how_chosen, _rate, _tables_page, collect
from harness.report.html.content import Placed, Site, SitePage
from harness.report.html.headline import Headline, Scale, _in_words, _name, _within, headline
from harness.report.html.pictures import drawn_figures, preview
from harness.report.html.rendering import index_html, page_html
from harness.report.html.strip import LARGEST, why_withheld
from harness.report.page import Line, Page, Table, heads
from harness.report.pages import pages_below
from harness.report.runs import behind
from harness.report.titles import titled_grids
from harness.statistics import Interval
from harness.studies import Study, study_from_dict
from tests.harness.report.html.conftest import HOSTILE
from tests.harness.report.html.sample import write_comparison
from tests.harness.report.sample import MadeUp, record, store_of


def asked(**changes: Any) -> Asked:
    return Asked(closed_form=trained_parameters, **changes)


@cache
def site_as_it_is(root: Path) -> Site:
    """Of a folder whose records no test changes any more."""
    return collect(Archive(root), asked())


def site_of(root: Path, **changes: Any) -> Site:
    return collect(Archive(root), asked(**changes)) if changes else site_as_it_is(root)


def page_of(root: Path, name: str = "demo", **changes: Any) -> SitePage:
    return next(page for page in site_of(root, **changes).pages if page.name == name)


def tables_of(page: SitePage, group: str) -> list[Placed]:
    return [table for part in page.groups if part.name == group for table in part.tables]


def html(page: SitePage) -> str:
    return page_html(page, Site(facts=[], pages=[page]))


def column(page: SitePage, title: str, *, where: str = "") -> list[str]:
    """Of the table of every number, the rows that say ``where``."""
    (numbers,) = tables_of(page, "all")
    place = [head.title for head in numbers.table.columns].index(title)
    rows = [[cell.text for cell in line.cells] for line in numbers.table.rows]
    return [row[place] for row in rows if where in " ".join(row)]


def headline_of(records: list[Any], *, study: Study | None = None, compares: bool = True) -> Headline:
    (titled,) = titled_grids(records, MadeUp(records), study=study)
    return headline(titled.grid, baseline=baseline_of(titled.grid, study, ""), compares=compares)


def runs(values: dict[str, list[float]], *, benchmark: str = "kvasir", **more: Any) -> list[Any]:
    return [
        record(value, method=method, benchmark=benchmark, seed=seed, **more)
        for method, by_seed in values.items()
        for seed, value in enumerate(by_seed)
    ]


def test_every_cell_of_every_page_is_explained_as_why_does(folder: Path) -> None:
    archive, site = Archive(folder), site_of(folder)
    pages = pages_below(archive).content
    cells = 0
    for name, placed in (("demo", tables_of(page_of(folder), "tables")), ("cost", None)):
        page = next(page for page in site.pages if page.name == name)
        lines, texts = page.behind.lines, page.behind.texts
        placed = placed or [table for group in page.groups for table in group.tables]
        for shown_table, table in zip(placed, pages[name].tables, strict=False):
            for why, line, same in zip(shown_table.why, shown_table.table.rows, table.rows, strict=True):
                assert line.label == same.label
                for place, cell, shown in zip(why, line.cells, same.cells, strict=True):
                    assert cell.text == shown.text
                    assert [lines[at] for at in texts[place]] == list(behind(shown, archive))
                    cells += 1
    assert cells > 200


def test_a_leaderboard_is_copied_with_the_parameters_of_its_rows(folder: Path) -> None:
    assert "& 0.005 &" in page_of(folder).copies["LaTeX"]


def test_no_two_parts_of_a_page_have_one_name_and_every_number_knows_its_metric(folder: Path) -> None:
    for page in site_of(folder).pages:
        names = re.findall(r'\bid="([^"]+)"', html(page))
        assert len(set(names)) == len(names), page.name
    (numbers,) = tables_of(page_of(folder), "all")
    assert all(line.metric for line in numbers.table.rows)


def test_a_benchmark_has_one_colour_in_every_lane_and_the_mean_its_own(folder: Path) -> None:
    plot = page_of(folder).parts[0].headline.plot
    assert plot is not None
    assert {tuple((point.about, point.kind) for point in lane.points) for lane in plot.lanes} == {
        (("Kvasir-SEG Sα", 1), ("SBU BER", 2), ("mean of 2", 0))
    }


def test_a_preview_holds_the_question_in_large_letters_and_a_lane_a_row(folder: Path) -> None:
    page = page_of(folder)
    plot = page.parts[0].headline.plot
    assert plot is not None
    picture = np.asarray(Image.open(io.BytesIO(preview(page))).convert("RGB")).astype(int)
    written = np.flatnonzero((picture[92:150].sum(axis=2) < 600).any(axis=0))
    large = ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans-Bold.ttf", 46)
    assert (written[0], written[-1]) == pytest.approx((64, 64 + large.getlength(page.question)), abs=6)
    blue = (picture[..., 2] - picture[..., 0] > 100)[13:]
    rows, across = (np.flatnonzero(blue.any(axis=axis)) for axis in (1, 0))
    assert rows[-1] - rows[0] == pytest.approx(40 * (len(plot.across) - 1) + 16, abs=0.5)
    ends = [end for lane in plot.across for end in (lane.points[-1].low, lane.points[-1].high) if end is not None]
    assert (across[0], across[-1]) == pytest.approx([470 + 6.66 * end for end in (min(ends), max(ends))], abs=4)


def test_a_verdict_is_short_and_says_what_differs_and_what_collapsed() -> None:
    rows = {"lora": [0.70, 0.71, 0.72], "naslora": [0.80, 0.81, 0.82], "decoder": [0.60, 0.61, 0.62]}
    said = headline_of(runs(rows)).verdict
    assert said.startswith("NAS-LoRA against LoRA: +10.0 [+10.0, +10.0] points on Kvasir-SEG Sα, significantly better.")
    assert "Decoder only: −10.0" in said
    assert "collapsed" not in said
    said = headline_of(runs({**rows, "naslora": [0.80, 0.81, 0.20]})).verdict
    assert "not significantly different" in said
    assert "A run collapsed: NAS-LoRA on Kvasir-SEG." in said
    alone = headline_of(runs({"lora": [0.7], "naslora": [0.8]})).verdict
    assert alone.startswith("Nothing is ranked")
    assert "NAS-LoRA (80.0, one seed)" in alone


def test_a_row_with_a_gap_hides_no_comparison_of_the_others() -> None:
    """Where its missing seeds keep marks from all rows, the verdict said that every row had one seed."""
    rows = {"lora": [0.70, 0.71, 0.72], "naslora": [0.80, 0.81, 0.82], "bitfit": [0.90, 0.91]}
    made = runs(rows, planned_seeds=(0, 1, 2))
    said = headline_of(made).verdict
    assert said.startswith("NAS-LoRA against LoRA: +10.0 [+10.0, +10.0] points on Kvasir-SEG Sα, significantly better.")
    plot = headline_of(made).plot
    assert plot is not None
    assert [lane.words.partition("], ")[2] for lane in plot.lanes] == ["n = 2", ""]
    said = headline_of(made, compares=False).verdict
    assert said == "Kvasir-SEG Sα: nothing is ranked before all seeds of bitfit are in."


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(-2.1, -0.04, "−1.07 [−2.10, −0.04]"), (-0.03, 1.31, "+0.64 [−0.03, +1.31]"), (0.0, 0.2, "+0.1 [+0.0, +0.2]")],
)
def test_a_bound_beside_zero_keeps_its_sign(low: float, high: float, said: str) -> None:
    interval = Interval(estimate=(low + high) / 2, low=low, high=high, n=3)
    estimate: Any = SimpleNamespace(mean=interval.estimate, interval=lambda: interval)
    assert _in_words(estimate) == said


@pytest.mark.parametrize(("options", "more"), [("alpha=2,rank=6", ""), ("alpha=2,rank=6,sites=qkv", "+1")])
def test_a_name_holds_two_options_and_how_many_more_there_are(options: str, more: str) -> None:
    row: Any = SimpleNamespace(method="lora", label=f"lora[{options}]", note="")
    assert "".join(re.findall(r"\+\d", _name(row))) == more


@pytest.mark.parametrize("sentences", [(40, 1), (39, 1), (41,)])
def test_a_verdict_has_the_whole_sentences_that_fit_into_forty_words(sentences: tuple[int, ...]) -> None:
    assert len(_within([" ".join(["word"] * words) for words in sentences]).split()) == 40


def test_a_verdict_without_a_comparison_counts_who_ties_with_the_best() -> None:
    rows = {"adapter": [0.80, 0.81, 0.82], "full": [0.70, 0.90, 0.76], "bitfit": [0.70, 0.90, 0.77]}
    said = headline_of(runs(rows), compares=False).verdict
    assert said.endswith("Adapter is best (81.0), not significantly different from BitFit and 1 more.")


def test_generated_images_answer_nothing(tmp_path: Path) -> None:
    made = runs({"decoder": [0.9, 0.9], "lora": [0.9, 0.9]}, data_note="generated sample, 20 images")
    page = page_of(store_of(tmp_path, made).root)
    assert "rank" in page.verdict
    assert page.parts[0].headline.plot is None
    assert {score.mark for row in page.parts[0].headline.standings for score in row.scores} == {""}


def test_one_outlier_does_not_stretch_an_axis() -> None:
    values = [-1.0, 0.5, 0.2, 1.0, 0.8, -60.0]
    scale = Scale.around(values, [Interval(estimate=0, low=-1, high=1, n=3)] * 6, zero=True)
    assert scale.low > -4
    assert (scale.at(-60.0), scale.beyond(-60.0)) == (0.0, "low")
    assert [words for _, words in scale.ticks if words == "0"]
    assert Scale.around([0.5], [None], zero=False).at(0.5) == 50.0


def test_names_of_rows_are_names_and_options_are_hints() -> None:
    changed = {"alternate": "joint", "residual": True, "scale": 2.0}
    label = "naslora[alternate=joint,residual=True,scale=2.0]"
    searched = runs({"naslora": [0.7, 0.8]}, variant=label, changed=changed, config=changed)
    records = [*runs({"lora": [0.7, 0.8]}), *searched]
    names = [row.name for row in headline_of(records).standings]
    assert [row.text for row in names] == ["LoRA", "NAS-LoRA, alternate joint, residual +1"]
    assert "scale=2.0" in names[1].hint


def test_the_command_of_a_cell_plans_its_configuration_by_its_method_not_its_row() -> None:
    changed = {"sites": "q,k,v", "rank": 6, "alpha": 12.0}
    words = shlex.split(command_of([record(method="lora", seed=3, changed=changed, config=changed)]))
    assert words[:4] == ["sam-peft", "run", "--methods", "lora"]
    assert words[words.index("--seeds") + 1] == "3,"
    said = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
    assert {"lora.sites=q,k,v", "lora.rank=6", "lora.alpha=12.0"} <= {*said}
    words = shlex.split(command_of([record(method="decoder", variant="decoder alone[decoder_lr=0.0003]")]))
    assert words[words.index("--methods") + 1] == "decoder"


def test_what_may_not_be_passed_on_is_withheld_unless_asked_for() -> None:
    def of(benchmark: str, note: str = "") -> Column:
        return Column(benchmark=benchmark, split="test", metric="iou", manifest="", note=note)

    assert why_withheld(of("isic2017"), "redistributable") == ""
    assert "may not" in why_withheld(of("kvasir"), "redistributable")
    assert "may not" in why_withheld(of("nobody_knows"), "redistributable")
    assert why_withheld(of("kvasir"), "all") == why_withheld(of("kvasir", "generated sample"), "redistributable") == ""
    assert why_withheld(of("isic2017"), "none")


def test_photographs_lie_behind_masks_once_and_only_where_they_may(folder: Path) -> None:
    def pictures(of: Any, split: str, stem: str) -> Any:
        return np.full((16, 2 * LARGEST, 3), 2 * ord(stem), np.uint8)

    shown = page_of(folder, pictures=pictures, photographs="all")
    strip = next(strip for strip in shown.parts[0].strips if strip.benchmark == "kvasir")
    assert [shot.word for shot in strip.shots] == ["best", "median", "worst"]
    assert [tile.name.text for tile in strip.shots[0].tiles] == ["truth", "LoRA", "Decoder only", HOSTILE]
    different = {shot.photograph for strip in shown.parts[0].strips for shot in strip.shots}
    assert {Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).width for url in different} == {LARGEST}
    shots = sum(len(strip.shots) for strip in shown.parts[0].strips)
    assert html(shown).count("data:image/webp") == shots + len(different)
    withheld = page_of(folder, pictures=pictures)
    assert not any(shot.photograph for strip in withheld.parts[0].strips for shot in strip.shots)
    assert withheld.parts[0].strips[0].withheld


def test_a_page_a_study_that_was_run_and_one_for_the_other_rows(tmp_path: Path, monkeypatch) -> None:
    asked = {"title": "A title", "question": "A question?", "protocol": "demo", "benchmarks": ["kvasir"]}
    study = study_from_dict({**asked, "entries": ["lora", "naslora"]}, name="asked")
    monkeypatch.setattr("harness.report.html.build.study_names", lambda: ["asked"])
    monkeypatch.setattr("harness.report.html.build.load_study", lambda name: study)
    store_of(tmp_path, runs({"lora": [0.7, 0.71, 0.72], "naslora": [0.8, 0.81, 0.82], "bitfit": [0.5, 0.51]}))
    site = site_of(tmp_path)
    assert [page.name for page in site.pages] == ["asked", "demo", "claims"]
    assert site.pages[0].question == "A question?"
    rows = [[row.name.text for row in page.parts[0].headline.standings] for page in site.pages[:2]]
    assert rows == [["LoRA", "NAS-LoRA"], ["BitFit"]]
    assert all(f'href="{page.name}.html"' in index_html(site) for page in site.pages)


def test_claims_that_nothing_was_run_for_say_no_data(folder: Path) -> None:
    page = page_of(folder, "claims")
    (table,) = tables_of(page, "verdicts")
    verdicts = {line.cells[0].text: (line.cells[1].text, line.cells[-1].text) for line in table.table.rows}
    assert verdicts["naslora-over-lora"] == ("no data", "0 of 9")
    assert "no data" in page.verdict


def test_every_number_stands_with_its_interval_rank_budget_and_rate(folder: Path) -> None:
    page = page_of(folder)
    assert column(page, "n", where="decoder Kvasir-SEG Sα") == ["2"]
    assert column(page, "n", where="lora Kvasir-SEG Sα OOM") == []
    assert column(page, "mean (%)", where="OOM (seed 2)") == ["–", "–"]
    assert column(page, "n", where="OOM (seed 2)") == ["2 of 3", "2 of 3"]
    assert set(column(page, "rank", where="SBU BER")) == {"1 of 3", "2 of 3", "3 of 3"}
    assert set(column(page, "rank", where="Kvasir-SEG Sα")) == {"1 of 2", "2 of 2", "–"}
    assert set(column(page, "updates", where="decoder")) == {"60"}
    means = dict(zip(column(page, "rank", where="SBU BER"), column(page, "mean (%)", where="SBU BER"), strict=True))
    assert float(means["1 of 3"]) < float(means["2 of 3"]) < float(means["3 of 3"])  # of an error the lowest
    (low, high), *_ = (re.findall(r"[\d.]+", cell) for cell in column(page, "95 % CI", where="decoder SBU BER"))
    mean = float(column(page, "mean (%)", where="decoder SBU BER")[0])
    assert float(low) < mean == pytest.approx((float(low) + float(high)) / 2, abs=0.011)


def test_a_page_of_tables_says_how_to_read_them() -> None:
    tables = [Table(heading=name, columns=heads("method"), rows=[Line.of(["lora"], None)]) for name in ("a", "b")]
    page = _tables_page(
        MadeUp(), Page(title="t", tables=tables, foot=["At home: where it was trained."]), name="t", question="?"
    )
    assert [group.said for group in page.groups] == [["At home: where it was trained."], ()]


OWN: dict[str, Any] = {"config": {"lr": 3e-3}}
TUNED = {"chosen": {"lr": 3e-3}, "trials": [{}] * 3}
FOR_DECODER = {"lr": 1e-3, "decoder_lr": 1e-4}
DECODER: dict[str, Any] = {"method": "decoder", "rules": FOR_DECODER, "parameters": {"encoder": 0, "trainable": 9}}


@pytest.mark.parametrize(
    ("run", "rates", "chosen"),
    [
        ({}, "0.001", "card"),
        ({**OWN, "changed": {"lr": 3e-3}}, "0.003", "this row"),
        (OWN, "0.003", "the method's default"),
        ({"config": {"lr": None, "encoder_lr": 1e-5, "alpha_lr": 0.01}}, "0.001, encoder 1e-05, α 0.01", "card"),
        ({**OWN, "rules": {"lr": 1e-3, "methods": {"lora": {"lr": 3e-3}}}}, "0.003", "card, for this method"),
        ({**OWN, "changed": {"lr": 3e-3}, "tuning": TUNED}, "0.003", "tuned, 3 trials"),
        ({"rules": FOR_DECODER}, "0.001, decoder 0.0001", "card"),
        ({"rules": FOR_DECODER, "config": {"encoder_lr": 1e-5}}, "encoder 1e-05, decoder 0.0001", "card"),
        (
            {**DECODER, "tuning": {"chosen": {"decoder_lr": 1e-4}, "trials": [{}] * 4}},
            "decoder 0.0001",
            "tuned, 4 trials",
        ),
        ({**DECODER, **OWN, "changed": {"lr": 3e-3}}, "decoder 0.0001", "the command, for all rows"),
        ({"method": "zeroshot", "parameters": {"encoder": 0, "decoder": 0, "trainable": 0}}, "", ""),
        ({"config": {"alpha_lr": 0.01}, "budget": {"weight_updates": 60, "alpha_updates": 0}}, "0.001", "card"),
    ],
)
def test_the_rates_that_trained_something_and_how_they_were_chosen(
    run: dict[str, Any], rates: str, chosen: str
) -> None:
    made = record(**{"rules": {"lr": 1e-3}, **run})
    assert (_rate(made), _how_chosen(made)) == (rates, chosen)


class Reader(HTMLParser):
    """Tags with their attributes, and the text inside scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.tags.append((f"/{tag}", {}))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            self.scripts[-1] += data


@pytest.mark.parametrize("which", ["page", "index"])
def test_the_policy_runs_this_script_alone_and_nothing_is_loaded(folder: Path, which: str) -> None:
    site = site_of(folder)
    read = Reader(index_html(site) if which == "index" else page_html(page_of(folder), site))
    policy = next(attrs["content"] for tag, attrs in read.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(read.scripts[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in str(policy)
    assert "default-src 'none'" in str(policy)
    assert len(read.scripts) == 2
    json.loads(read.scripts[0])
    loading = [attrs.get(name) for _, attrs in read.tags for name in ("src", "srcset", "data", "poster")]
    links = [str(attrs["href"]) for tag, attrs in read.tags if attrs.get("href") is not None]
    assert [url for url in loading if url and not url.startswith("data:")] == []
    pages = {"index.html", *(f"{page.name}.html" for page in site.pages)}
    assert all(link.startswith(("#", "data:")) or link in pages for link in links)
    assert not [name for _, attrs in read.tags for name in attrs if name.startswith("on")]
    names = [attrs["id"] for _, attrs in read.tags if "id" in attrs]
    assert len(names) == len(set(names))
    assert {link[1:] for link in links if link.startswith("#")} <= {str(name) for name in names}


def test_a_link_to_a_page_shows_its_question_and_its_picture(folder: Path) -> None:
    page = page_of(folder)
    written = page_html(page, Site(facts=[], pages=[page]), url="https://example.org/results/")
    told = {attrs["property"]: attrs["content"] for _, attrs in Reader(written).tags if "property" in attrs}
    assert told["og:title"] == page.question
    assert told["og:image"] == "https://example.org/results/demo.png"


def test_markup_in_a_record_is_text_and_what_turns_text_around_is_spelt_out(folder: Path, tmp_path: Path) -> None:
    page = html(page_of(folder))
    assert HOSTILE not in page
    assert "&lt;script&gt;document.title=&#39;owned&#39;&lt;/script&gt;" in page
    assert "<img src=x" not in page
    RecordStore(tmp_path).write(record(variant="lora\u202egpj.exe"))
    turned = html(page_of(tmp_path))
    assert "\u202e" not in turned
    assert "lora\\u202egpj.exe" in turned


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A results folder with two rows on one benchmark."""
    write_comparison(tmp_path, methods=("decoder", "lora"), benchmarks=("kvasir",), seeds=2, epochs=2, blocks=1, side=8)
    return tmp_path


def test_the_same_records_give_the_same_bytes(small: Path, says) -> None:
    written = []
    for name in ("a", "b"):
        says(main, "--results", small, "--out", small / name)
        written.append({path.name: path.read_bytes() for path in sorted((small / name).iterdir())})
    assert written[0] == written[1]
    assert written[0].keys() == {"index.html", "demo.html", "demo.png", "claims.html", "claims.png"}


def test_the_check_of_tables_covers_the_site_but_not_its_photographs(small: Path, says) -> None:
    words, page = ["--results", small], small / "site" / "demo.html"
    says(main, *words, "--photographs", "none")
    says(tables, *words)
    says(tables, *words, "--check")
    (value,) = {score.text for score in page_of(small).parts[0].headline.standings[0].scores}
    page.write_text(page.read_text(encoding="utf-8").replace(value, "99.9"), encoding="utf-8")
    page.with_name("nobody.html").touch()
    page.with_name("claims.html").write_text("")
    said = says(tables, *words, "--check", code=1)
    wrong = [name for name in ("index", "demo", "claims", "nobody") if f"{name}.html: " in said]
    assert wrong == ["demo", "claims", "nobody"]


def test_the_check_says_so_where_a_site_cannot_be_compared(small: Path, says) -> None:
    words, site = ["--results", small], small / "site"
    says(tables, *words)
    site.mkdir()
    for name in ("index", "study-of-mine"):
        (site / f"{name}.html").write_bytes(b"\xff")
    assert "the site" not in says(tables, *words, "--check")
    (site / "small-search.html").touch()  # of a study with no records here
    assert str(site) in says(tables, *words, "--check", code=1)


def test_fourteen_methods_on_nine_benchmarks_are_a_small_page(tmp_path: Path) -> None:
    write_comparison(tmp_path, seeds=3, epochs=1, blocks=1, side=8)
    page = page_of(tmp_path)
    assert len(tables_of(page, "all")[0].table.rows) == 14 * 18
    assert len(html(page).encode()) < 1_500_000


def test_figures_of_a_study_are_packed_with_their_captions(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    svg = '<svg xmlns="http://www.w3.org/2000/svg" width="72pt" height="36pt"><path d="M 1.23456 2"/></svg>'
    (tmp_path / "figures" / "small-0123abcd-forest.svg").write_text(svg, encoding="utf-8")
    (tmp_path / "figures" / "small-0123abcd-forest.txt").write_text("A caption.", encoding="utf-8")
    (tmp_path / "figures" / "small-search-0123abcd-forest.svg").write_text(svg, encoding="utf-8")
    (picture,) = drawn_figures(tmp_path, "small")
    assert (picture.caption, picture.width, picture.height) == ("A caption.", 126, 63)
    assert gzip.decompress(base64.b64decode(picture.packed)).decode() == svg


def test_a_name_that_a_template_does_not_know_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="'nothing' is undefined"):
        rendering._environment().from_string("{{ nothing }}").render()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--baseline", "dora"], "no row is called 'dora'; choose from"),
        (["--study", "cost"], "study 'cost' has costs and no scores"),
        (["--study", "rank"], "no record below"),
        (["--study", "mian"], "mian"),
        (["--out", "nowhere/there/\0"], ""),
        (["--protocol", "nas-loar"], "unknown protocol 'nas-loar' (did you mean 'nas-lora'?)"),
        (["--out", "page.md/site"], "folder page.md cannot be written (Not a directory); choose another with --out"),
        (["--out", "page.md"], "--out page.md: a site is a folder of pages"),
        (["--photographs", "some"], "--photographs"),
    ],
)
def test_a_mistake_is_one_line(folder: Path, words: list[str], said: str, tmp_path: Path, monkeypatch, says) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page.md").touch()
    assert said in says(main, "--results", folder, *words, code=2)


@pytest.mark.parametrize("make", ["a page", "a link", "a pipe"])
def test_a_file_that_is_no_page_of_a_site_is_not_written_over(tmp_path: Path, make: str, says) -> None:
    RecordStore(tmp_path).write(record())
    path, theirs = tmp_path / "mine" / "index.html", tmp_path / "theirs.html"
    path.parent.mkdir()
    theirs.write_text("<html>by hand</html>", encoding="utf-8")
    if make == "a page":
        path.write_bytes(theirs.read_bytes())
    elif make == "a link":
        path.symlink_to(theirs)
    else:
        os.mkfifo(path)
    words = ["--results", tmp_path, "--out", path.parent]
    assert "is no page" in says(main, *words, code=2)
    assert theirs.read_text(encoding="utf-8") == "<html>by hand</html>"
    assert [file.name for file in path.parent.iterdir()] == ["index.html"]
    if make == "a page":
        path.write_bytes(b"")
        for _ in range(2):  # an empty file, then a page
            says(main, *words)


def test_a_folder_without_records_is_one_line_and_a_damaged_record_is_named(tmp_path: Path, says) -> None:
    words = ["--results", tmp_path]
    assert "does not exist; run something first" in says(main, *words, code=2)
    (tmp_path / "records").mkdir()
    assert "holds no record" in says(main, *words, code=2)
    RecordStore(tmp_path).write(record())
    (tmp_path / "records" / ("0" * 16 + ".json")).write_text("{")
    assert "0000000000000000.json" in says(main, *words)
    assert "0000000000000000.json" in (tmp_path / "site" / "index.html").read_text(encoding="utf-8")


def test_runs_that_all_failed_are_a_page_of_gaps(tmp_path: Path) -> None:
    RecordStore(tmp_path).write(record(code="OOM", message="asked for 90 GiB"))
    page = page_of(tmp_path)
    (gaps,) = tables_of(page, "missing")
    assert [cell.text for cell in gaps.table.rows[0].cells][:4] == ["lora", "Kvasir-SEG", "0", "OOM"]
    assert "asked for 90 GiB" in html(page)


def test_an_entry_for_a_paper_means_its_characters() -> None:
    entry = _bibtex("my_study", "Does R&D at 50 % help?")
    assert r"title  = {{Does R\&D at 50 \% help?}}" in entry
    assert r"page my\_study" in entry
    assert entry.startswith("@misc{sam_peft_my_study,")
