"""What the report holds, without a browser: answers, numbers, explanations, size, and one line for a mistake."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jinja2 import UndefinedError

from harness.archive.archive import Archive
from harness.archive.store import RecordStore
from harness.cli.report import main
from harness.planning.closed_form import trained_parameters
from harness.report.html import rendering
from harness.report.html.build import Asked, collect
from harness.report.html.content import Content, Picture
from harness.report.html.pictures import compact_svg, within
from harness.report.html.rendering import html
from harness.report.html.tables import _how_chosen, _rate
from harness.report.pages import pages_below
from harness.report.why import behind
from tests.harness.report.html.conftest import HOSTILE
from tests.harness.report.html.sample import write_comparison
from tests.harness.report.sample import record


def asked(**changes: Any) -> Asked:
    return Asked(closed_form=trained_parameters, **changes)


def content_of(root: Path, **changes: Any) -> Content:
    return collect(Archive(root), asked(**{"figures": False, **changes}))


def column(content: Content, title: str, *, where: str = "") -> list[str]:
    """Of the table of every number, the rows that say ``where``."""
    place = [head.title for head in content.numbers.table.columns].index(title)
    rows = [[cell.text for cell in line.cells] for line in content.numbers.table.rows]
    return [row[place] for row in rows if where in " ".join(row)]


def test_every_cell_of_every_page_is_explained_as_why_does(folder: Path) -> None:
    content = content_of(folder)
    archive = Archive(folder)
    pages = pages_below(archive).content
    assert pages.keys() == {"demo", "cost"}
    cells = 0
    for group in (*content.groups, *content.costs):
        for placed, table in zip(group.tables, pages[group.name].tables, strict=False):
            for why, line, same in zip(placed.why, placed.table.rows, table.rows, strict=True):
                assert line.label == same.label
                for place, cell, shown in zip(why, line.cells, same.cells, strict=True):
                    assert cell.text == shown.text
                    assert [content.lines[at] for at in content.behind[place]] == list(behind(shown, archive))
                    cells += 1
    assert cells > 300


def test_the_answer_comes_first_and_says_what_it_cost_and_what_is_missing(folder: Path) -> None:
    (answer,) = content_of(folder).answers
    said = " ".join(answer.sentences)
    assert answer.sentences[0].startswith("Over 2 benchmarks, best or not distinguishable from the best: ")
    assert "is best (" in said
    assert "trains least in the encoder" in said
    assert f"60 weight updates in most rows, but 40 + 20 α in {HOSTILE}" in said
    assert "without a score: lora on Kvasir-SEG (OOM, seed 2)" in said
    assert "not run under these rules: CVC-612, ISIC 2017, CAMO" in said
    assert "Origin of an image" not in said  # labels are another task, under other rules


def test_generated_images_answer_nothing(tmp_path: Path) -> None:
    for seed in (0, 1):
        for method in ("decoder", "lora"):
            RecordStore(tmp_path).write(record(method=method, seed=seed, data_note="generated sample, 20 images"))
    (answer,) = content_of(tmp_path).answers
    assert not answer.ranks
    assert "nothing is ranked" in answer.sentences[0]
    assert "is best" not in " ".join(answer.sentences)


def test_every_number_stands_with_its_interval_rank_budget_and_rate(folder: Path) -> None:
    content = content_of(folder)
    assert column(content, "n", where="decoder Kvasir-SEG Sα") == ["2"]
    assert column(content, "n", where="lora Kvasir-SEG Sα OOM") == []
    assert column(content, "mean (%)", where="OOM (seed 2)") == ["–", "–"]
    assert column(content, "n", where="OOM (seed 2)") == ["2 of 3", "2 of 3"]
    assert set(column(content, "rank", where="SBU BER")) == {"1 of 3", "2 of 3", "3 of 3"}
    assert set(column(content, "rank", where="Kvasir-SEG Sα")) == {"1 of 2", "2 of 2", "–"}
    assert set(column(content, "updates", where="decoder")) == {"60"}
    (low, high), *_ = (re.findall(r"[\d.]+", one) for one in column(content, "95 % CI", where="decoder SBU BER"))
    assert float(low) < float(column(content, "mean (%)", where="decoder SBU BER")[0]) < float(high)


def test_an_error_rate_ranks_the_lowest_first(folder: Path) -> None:
    content = content_of(folder)
    means = dict(
        zip(column(content, "rank", where="SBU BER"), column(content, "mean (%)", where="SBU BER"), strict=True)
    )
    assert float(means["1 of 3"]) < float(means["2 of 3"]) < float(means["3 of 3"])


@pytest.mark.parametrize(
    ("run", "rates", "chosen"),
    [
        ({}, "0.001", "card"),
        ({"config": {"lr": 3e-3}, "changed": {"lr": 3e-3}}, "0.003", "this row"),
        ({"config": {"lr": 3e-3}}, "0.003", "the method's default"),
        ({"config": {"lr": None, "encoder_lr": 1e-5, "alpha_lr": 0.01}}, "0.001, encoder 1e-05, α 0.01", "card"),
        (
            {"config": {"lr": 3e-3}, "rules": {"lr": 1e-3, "methods": {"lora": {"lr": 3e-3}}}},
            "0.003",
            "card, for this method",
        ),
        (
            {
                "config": {"lr": 3e-3},
                "changed": {"lr": 3e-3},
                "tuning": {"chosen": {"lr": 3e-3}, "trials": [{}, {}, {}]},
            },
            "0.003",
            "tuned, 3 trials",
        ),
    ],
)
def test_how_a_rate_was_chosen(run: dict[str, Any], rates: str, chosen: str) -> None:
    one = record(**{"rules": {"lr": 1e-3}, **run})
    assert (_rate(one), _how_chosen(one)) == (rates, chosen)


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


def test_the_policy_runs_this_script_alone_and_nothing_is_loaded(folder: Path) -> None:
    page = html(content_of(folder))
    read = Reader(page)
    policy = next(attrs["content"] for tag, attrs in read.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(read.scripts[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in str(policy)
    assert "default-src 'none'" in str(policy)
    assert len(read.scripts) == 2
    assert json.loads(read.scripts[0])["behind"]
    loading = [
        attrs.get(name) for _, attrs in read.tags for name in ("src", "srcset", "data", "poster") if attrs.get(name)
    ]
    links = [attrs["href"] for tag, attrs in read.tags if attrs.get("href") is not None]
    assert loading == []
    assert all(str(link).startswith(("#", "data:")) for link in links)
    assert not [name for _, attrs in read.tags for name in attrs if name.startswith("on")]
    names = [attrs["id"] for _, attrs in read.tags if "id" in attrs]
    assert len(names) == len(set(names))
    targets = {str(link)[1:] for link in links if str(link).startswith("#")}
    assert targets <= {str(name) for name in names}


def test_markup_in_a_record_is_text(folder: Path) -> None:
    page = html(content_of(folder))
    assert HOSTILE not in page
    assert "&lt;script&gt;document.title=&#39;owned&#39;&lt;/script&gt;" in page
    assert "<img src=x" not in page


def test_what_turns_text_around_is_spelt_out(tmp_path: Path) -> None:
    RecordStore(tmp_path).write(record(variant="lora\u202egpj.exe"))
    page = html(content_of(tmp_path))
    assert "\u202e" not in page
    assert "lora\\u202egpj.exe" in page


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    write_comparison(tmp_path, methods=("decoder", "lora"), benchmarks=("kvasir",), seeds=2, epochs=2, blocks=1, side=8)
    written = []
    for name in ("a.html", "b.html"):
        assert main(["--results", str(tmp_path), "--out", str(tmp_path / name)]) == 0
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1]
    assert b"data-picture" in written[0]


def test_tables_of_fourteen_methods_on_nine_benchmarks_leave_room_for_figures(tmp_path: Path) -> None:
    write_comparison(tmp_path, seeds=3, epochs=1, blocks=1, side=8)
    content = content_of(tmp_path)
    assert len(content.numbers.table.rows) == 14 * 18
    assert len(html(content).encode()) + asked().room < 5_000_000


def picture(size: int, title: str = "a") -> Picture:
    return Picture(title=title, about="forest", caption="", packed="x" * size, width=9, height=9)


def test_what_does_not_fit_is_left_out_and_smaller_ones_behind_it_are_not() -> None:
    first, large, last = picture(40, "a"), picture(100, "b"), picture(50, "c")
    assert within([first, large, last], room=100) == ([first, last], [large])


def test_figures_of_one_kind_stand_together_in_the_order_in_which_kinds_come() -> None:
    first, other, again = picture(1, "a"), replace(picture(1, "b"), about="curves"), picture(1, "c")
    content = SimpleNamespace(pictures=[first, other, again])
    assert rendering._by_kind(content) == [("forest", [first, again]), ("curves", [other])]  # type: ignore[arg-type]


def test_a_packed_figure_is_the_figure(folder: Path) -> None:
    import xml.etree.ElementTree as ElementTree

    page = Reader(html(collect(Archive(folder), asked(room=10**9))))
    packed = json.loads(page.scripts[0])["pictures"]
    assert any("masks" in name for name in packed)
    for svg in packed.values():
        root = ElementTree.fromstring(gzip.decompress(base64.b64decode(svg)))
        assert root.tag == "{http://www.w3.org/2000/svg}svg"


def test_a_name_that_a_template_does_not_know_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="'nothing' is undefined"):
        rendering._environment().from_string("{{ nothing }}").render()


def test_coordinates_are_rounded_and_shapes_of_letters_are_not() -> None:
    svg = '<g id="a"><path id="D-1" d="M 2034 4250.123456 z" transform="scale(0.015625)"/><use x="1.23456" y="-2.34567"/></g>'
    expected = '<g><path id="D-1" d="M 2034 4250.12 z" transform="scale(0.015625)"/><use x="1.23" y="-2.34"/></g>'
    assert compact_svg(svg) == expected


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--baseline", "dora"], "no row is called 'dora'; choose from"),
        (["--study", "cost"], "study 'cost' has costs and no scores"),
        (["--study", "rank"], "no record below"),
        (["--study", "mian"], "mian"),
        (["--out", "nowhere/there/\0.html"], ""),
        (["--protocol", "nas-loar"], "unknown protocol 'nas-loar' (did you mean 'nas-lora'?)"),
        (["--out", "page.md/r.html"], "folder page.md cannot be written (Not a directory); choose another with --out"),
        (["--out", "."], "--out . is a folder; name a file in it, such as report.html"),
        (["--out", "page.md"], "--out page.md: a report is a page; name a file that ends in .html"),
        (["--no-figures", "--data", "."], "--data has no effect with --no-figures; leave it away"),
    ],
)
def test_a_mistake_is_one_line(
    folder: Path,
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page.md").touch()
    assert main(["--results", str(folder), "--no-figures", *words]) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert len(shown.strip().splitlines()) == 1


@pytest.mark.parametrize("make", ["a page", "a link", "a pipe"])
def test_a_file_that_is_no_report_is_not_written_over(
    folder: Path, make: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, theirs = tmp_path / "mine.html", tmp_path / "theirs.html"
    theirs.write_text("<html>by hand</html>", encoding="utf-8")
    if make == "a page":
        path.write_bytes(theirs.read_bytes())
    elif make == "a link":
        path.symlink_to(theirs)
    else:
        os.mkfifo(path)
    words = ["--results", str(folder), "--no-figures", "--out", str(path)]
    assert main(words) == 2
    assert "is no report" in capsys.readouterr().err
    assert theirs.read_text(encoding="utf-8") == "<html>by hand</html>"
    path.unlink()
    path.touch()
    assert (main(words), main(words)) == (0, 0)  # an empty file, then a report


def test_a_folder_without_records_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--results", str(tmp_path)]) == 2
    assert "does not exist; run something first" in capsys.readouterr().err
    (tmp_path / "records").mkdir()
    assert main(["--results", str(tmp_path)]) == 2
    assert "holds no record" in capsys.readouterr().err


def test_runs_that_all_failed_are_a_report_of_gaps(tmp_path: Path) -> None:
    RecordStore(tmp_path).write(record(code="OOM", message="asked for 90 GiB"))
    content = collect(Archive(tmp_path), asked())
    assert [cell.text for cell in content.gaps.table.rows[0].cells][:4] == ["lora", "Kvasir-SEG", "0", "OOM"]
    assert "asked for 90 GiB" in html(content)
    assert "holds no finished run" in content.left_out[0]


def test_a_damaged_record_is_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RecordStore(tmp_path).write(record())
    (tmp_path / "records" / ("0" * 16 + ".json")).write_text("{")
    assert main(["--results", str(tmp_path), "--no-figures"]) == 0
    assert "0000000000000000.json" in capsys.readouterr().err
    assert "0000000000000000.json" in (tmp_path / "report.html").read_text(encoding="utf-8")
