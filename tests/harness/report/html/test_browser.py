"""A page of the site in a real browser: it opens offline, sorts, filters, explains its cells, and stays text."""

from __future__ import annotations

import base64
import itertools
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from harness.cli.show import main as show_in_terminal
from harness.cli.tables import main as tables
from tests.harness.report.html.conftest import HOSTILE, MESSAGE
from tests.values import wait_until

pytestmark = pytest.mark.slow

WIDTHS = (1400, 400)
SCORES = "#table-1"
"""The first table of the card's page."""
BOARD = "#board"
PAPER = 1031
"""CSS pixels of A4 lying on its side, less its margins: 273 mm."""
OPEN_ALL = "document.querySelectorAll('main details:not(.choices)').forEach((each) => { each.open = true; })"


@pytest.fixture(params=WIDTHS)
def width(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def opened(driver: Any, page: Path) -> Any:
    """The page at 1400 px, light."""
    return show(driver, page)


def screen(driver: Any, *, width: int, height: int = 900) -> None:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def show(driver: Any, page: Path, *, width: int = 1400, scheme: str = "light") -> Any:
    screen(driver, width=width)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    for kind in ("browser", "performance"):
        driver.get_log(kind)
    driver.get(page.as_uri())
    return driver


def texts(driver: Any, selector: str) -> list[str]:
    """Of what can be seen."""
    shown: list[str] = driver.execute_script(
        "return [...document.querySelectorAll(arguments[0])].filter((e) => e.checkVisibility())"
        ".map((e) => e.textContent.trim())",
        selector,
    )
    return shown


def click(driver: Any, selector: str, *, containing: str = "") -> None:
    """As a reader does: brought into view, then clicked where it is."""
    element = driver.execute_script(
        "const element = [...document.querySelectorAll(arguments[0])].find((e) => e.textContent.includes(arguments[1]));"
        "element.scrollIntoView({block: 'center'}); return element",
        selector,
        containing,
    )
    element.click()


def test_it_opens_without_a_request_or_an_error(driver: Any, page: Path, width: int) -> None:
    show(driver, page, width=width)
    wait_for_pictures(driver)
    sent = [
        message["params"]["request"]["url"]
        for entry in driver.get_log("performance")
        if (message := json.loads(entry["message"])["message"])["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in sent if not url.startswith(("data:", "blob:"))] == [page.as_uri()]
    assert driver.get_log("browser") == []
    assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")


def wait_for_pictures(driver: Any) -> None:
    """Until each is drawn at its own size."""
    ready = "return [...document.querySelectorAll('img')].every((image) => image.complete && image.naturalWidth > 0)"
    driver.execute_script(OPEN_ALL)
    wait_until(lambda: driver.execute_script(ready))


@pytest.mark.parametrize("name", ["index", "cost", "claims"])
def test_the_other_pages_fit_and_open_without_an_error(driver: Any, page: Path, name: str, width: int) -> None:
    show(driver, page.with_name(f"{name}.html"), width=width)
    assert driver.get_log("browser") == []
    assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")


def test_the_first_screen_has_the_verdict_the_plot_the_leaderboard_and_masks(driver: Any, page: Path) -> None:
    script = "return arguments[0].map((each) => document.querySelector(each).getBoundingClientRect().top)"
    show(driver, page)
    tops = driver.execute_script(script, ["h1", ".verdict", ".forest", "#board", ".tile img"])
    assert tops[0] < tops[1] < tops[2]
    assert max(tops) < 850
    # and the page is short until it is unfolded
    assert driver.execute_script("return document.documentElement.scrollHeight") < 8000
    show(driver, page, width=400)
    assert driver.execute_script(script, [".forest"])[0] < 800


def test_a_link_to_a_cell_opens_it_and_a_cell_gives_its_link(driver: Any, page: Path) -> None:
    show(driver, page)
    click(driver, f"{BOARD} tbody tr:nth-of-type(1) td:nth-of-type(1) button")
    said = driver.find_element("id", "why-h").text
    address = driver.execute_script("return location.href")
    assert "#" in address
    driver.get("about:blank")
    driver.get(address)
    assert driver.find_element("id", "why-h").text == said


def test_a_cell_shows_its_seeds_first_and_the_command_that_makes_them_again(opened: Any) -> None:
    place = next(i for i, text in enumerate(texts(opened, f"{BOARD} tbody th"), start=1) if text.startswith("Decoder"))
    click(opened, f"{BOARD} tbody tr:nth-of-type({place}) td:nth-of-type(1) button")
    dots = opened.find_elements("css selector", "#seeds tbody tr:nth-of-type(1) circle")
    assert len(dots) == 2
    assert opened.find_element("css selector", "#again pre").text.startswith("sam-peft run --methods decoder ")
    tops = [opened.find_element("css selector", part).rect["y"] for part in ("#seeds", "#again", "#behind")]
    assert tops == sorted(tops)


def test_a_table_and_a_citation_can_be_copied_or_saved(opened: Any, tmp_path: Path) -> None:
    opened.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    for name, begin in (("LaTeX", "% written by"), ("BibTeX", "@misc{")):
        assert opened.execute_script("return data.copies[arguments[0]]", name).startswith(begin)
        click(opened, f"[data-copy={name}]")
        said = opened.find_element("id", "said")
        wait_until(lambda: said.text.startswith(name))  # noqa: B023 - it is asked here and now
        assert "copied" in said.text or "saved" in said.text


def test_a_heading_sorts_by_number_and_a_third_click_restores(opened: Any) -> None:
    opened.execute_script(OPEN_ALL)
    column = f"{SCORES} tbody td:nth-of-type(1)"
    before = texts(opened, column)
    numbers = [re.match(r"\d+\.\d", cell) for cell in before]
    assert len([number for number in numbers if number]) == 2  # one row has a gap
    heading = f"{SCORES} thead th:nth-of-type(2) button"
    click(opened, heading)
    first = texts(opened, column)
    assert first == sorted(before, key=lambda cell: -float(cell[:4]) if cell[0].isdigit() else 1)
    order = opened.execute_script(f"return document.querySelector('{SCORES} th:nth-of-type(2)').ariaSort")
    assert order == "descending"
    click(opened, heading)
    assert texts(opened, column) == sorted(before, key=lambda cell: float(cell[:4]) if cell[0].isdigit() else 100)
    click(opened, heading)
    assert texts(opened, column) == before
    click(opened, f"{SCORES} thead th:nth-of-type(1) button")
    assert texts(opened, f"{SCORES} tbody th") == sorted(texts(opened, f"{SCORES} tbody th"), key=str.lower)


def test_filters_hide_rows_columns_and_masks(driver: Any, page: Path, width: int) -> None:
    show(driver, page, width=width)
    wait_for_pictures(driver)
    headings, strips = texts(driver, f"{SCORES} thead th"), texts(driver, ".strip > summary")
    click(driver, "#filters summary", containing="Benchmarks")
    click(driver, "#filters label", containing="SBU")
    driver.execute_script("document.body.click()")
    assert texts(driver, f"{SCORES} thead th") == [heading for heading in headings if "SBU" not in heading]
    assert "SBU" not in texts(driver, "#numbers tbody td")
    assert texts(driver, ".strip > summary") == [strip for strip in strips if strip != "SBU"]
    click(driver, "#filters summary", containing="Methods")
    click(driver, '[data-none="method"]')
    click(driver, "#filters label", containing="lora")
    driver.execute_script("document.body.click()")
    assert {name.split()[0] for name in texts(driver, f"{SCORES} tbody th")} == {"lora"}
    assert set(texts(driver, "#numbers tbody th")) == {"lora"}
    driver.execute_script(OPEN_ALL)
    assert {tile.split()[0] for tile in texts(driver, ".tile figcaption")} <= {"LoRA", "photograph", "truth"}
    click(driver, "#filters button[type=reset]")
    time.sleep(0.05)
    assert texts(driver, f"{SCORES} thead th") == headings
    assert len(texts(driver, f"{SCORES} tbody th")) == 3


def test_words_filter_rows_and_an_empty_table_says_so(opened: Any) -> None:
    opened.execute_script(OPEN_ALL)
    box = opened.find_element("css selector", "input[type=search]")
    box.send_keys("decoder")
    assert texts(opened, f"{SCORES} tbody th") == ["decoder"]
    box.send_keys(" that nobody ran")
    assert texts(opened, f"{SCORES} tbody tr") == []
    assert "No row fits the filters." in texts(opened, "#tables .none")
    assert opened.find_element("id", "status").text.startswith("0 of ")


@pytest.mark.parametrize(
    ("table", "row", "column", "asked"),
    [
        (SCORES, "decoder", "Kvasir-SEG Sα", ("demo", "decoder", "kvasir.s_measure")),
        (SCORES, "lora", "params (M)", ("demo", "lora", "params")),
        ("#main table", "full #aa0273", "step (ms)", ("cost", "full #aa0273", "step (ms)")),  # one of two sessions
    ],
)
def test_a_cell_opens_what_why_says(
    driver: Any, folder: Path, page: Path, says, table: str, row: str, column: str, asked: tuple[str, ...], width: int
) -> None:
    show(driver, page if table == SCORES else page.with_name("cost.html"), width=width)
    driver.execute_script(OPEN_ALL)
    place = next(i for i, text in enumerate(texts(driver, f"{table} thead th")) if column in text) + 1
    driver.execute_script(
        "const element = [...document.querySelectorAll(arguments[0])].find((e) => `${e.textContent.trim()} `.startsWith(arguments[1]));"
        "element.parentElement.id = 'wanted'",
        f"{table} tbody th",
        f"{row} ",
    )
    click(driver, f"#wanted > :nth-child({place}) button")
    dialog = driver.find_element("id", "why")
    shown = driver.execute_script(
        "return [...arguments[0].querySelectorAll('h2, #behind')].map((e) => e.textContent)", dialog
    )
    assert "\n".join(shown) in says(show_in_terminal, "--cell", *asked, "--results", folder)
    box = dialog.rect
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    click(driver, "#why button")
    assert not dialog.is_displayed()


def test_keys_alone_reach_a_cell_and_what_is_behind_it(opened: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    focused = "return document.activeElement.closest('td, th')?.textContent"
    opened.execute_script(OPEN_ALL)
    opened.execute_script(f"document.querySelector('{SCORES} tbody button[tabindex=\"0\"]').focus()")
    label = opened.execute_script(focused)
    for key in (Keys.ARROW_RIGHT, Keys.ARROW_DOWN):
        opened.switch_to.active_element.send_keys(key)
    cell = opened.execute_script(focused)
    assert cell != label
    assert len(opened.find_elements("css selector", f'{SCORES} tbody button[tabindex="0"]')) == 1
    opened.switch_to.active_element.send_keys(Keys.ENTER)
    assert opened.find_element("id", "why-h").text.endswith(cell.strip())
    opened.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not opened.find_element("id", "why").is_displayed()
    assert opened.execute_script(focused) == cell  # and one goes on from there


def test_what_a_record_says_stays_text(opened: Any) -> None:
    assert opened.title != "owned"
    opened.execute_script(OPEN_ALL)
    assert any(HOSTILE in text for text in texts(opened, "#numbers tbody th"))
    assert any(MESSAGE in text for text in texts(opened, "#gaps td"))
    assert opened.find_elements("css selector", "img[src=x]") == []
    assert len(opened.find_elements("css selector", "script")) == 2


def test_csv_of_rows_and_of_all_numbers(opened: Any, folder: Path, tmp_path: Path, says) -> None:
    opened.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    opened.execute_script(OPEN_ALL)
    click(opened, "[data-numbers=demo]")
    assert arrived(tmp_path / "demo-numbers.csv") in says(tables, "--results", folder, "--format", "csv")
    opened.find_element("css selector", "input[type=search]").send_keys("decoder")
    click(opened, "#numbers-section .tools button")
    rows = arrived(tmp_path / "numbers.csv").splitlines()
    assert rows[0].startswith("method,benchmark,metric,mean (%)")
    assert len(rows) == 1 + len(texts(opened, "#numbers tbody tr")) > 1
    opened.find_element("css selector", "#filters button[type=reset]").click()
    time.sleep(0.05)
    click(opened, "#gaps-section .tools button")
    assert '"\'=1+1 ""><img' in arrived(tmp_path / "gaps.csv").replace("OOM (seed 2): ", "'")


def arrived(path: Path) -> str:
    """A download, when it is there; its first mark tells Excel that it is UTF-8."""
    wait_until(path.is_file)
    assert path.read_bytes().startswith("\ufeff".encode())
    return path.read_text(encoding="utf-8-sig")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_can_be_read_in_light_and_dark(driver: Any, page: Path, scheme: str) -> None:
    """Contrast of WCAG 2.2, level AA: 4.5 to 1."""
    show(driver, page, scheme=scheme)
    driver.execute_script(OPEN_ALL)
    selectors = ["body", ".facts", "a", ".above", ".below", ".best b", ".tied", ".tied i", "td small", ".forest .n"]
    selectors += ["thead button", "figcaption", "#filters summary", ".chosen"]
    for selector in selectors:
        words, ground = driver.execute_script(
            "let place = document.querySelector(arguments[0]); const words = getComputedStyle(place).color;"
            "const ground = (place) => getComputedStyle(place).backgroundColor;"
            "while (ground(place) === 'rgba(0, 0, 0, 0)') place = place.parentElement;"
            "return [words, ground(place)]",
            selector,
        )
        low, high = sorted((luminance(words), luminance(ground)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (selector, words, ground)
    ground = "return getComputedStyle(document.body).backgroundColor"
    for dark in (scheme == "dark", scheme != "dark"):
        assert (luminance(driver.execute_script(ground)) < 0.2) == dark
        click(driver, "#theme")


def luminance(colour: str) -> float:
    """Relative luminance of ``rgb(r, g, b)`` as WCAG defines it."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


HEARD = {*["button", "link", "table", "checkbox", "image", "searchbox", "columnheader", "rowheader"]}


def test_a_screen_reader_hears_a_name_for_everything(opened: Any) -> None:
    opened.execute_script(OPEN_ALL)
    click(opened, "#filters summary", containing="Methods")
    nodes = opened.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    seen = set()
    for node in nodes:
        role = node.get("role", {}).get("value")
        if role in {*HEARD, "region", "heading", "form"} and not node.get("ignored"):
            seen.add(role)
            assert node["name"]["value"].strip(), node
    assert seen >= HEARD
    script = "return [...document.querySelectorAll('main :is(h2, h3, h4, h5)')].map((each) => Number(each.tagName[1]))"
    levels = opened.execute_script(script)
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_paper_gets_everything(opened: Any) -> None:
    closed = len(opened.find_elements("css selector", "main details:not([open], .choices)"))
    assert closed
    pdf = base64.b64decode(opened.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})["data"])
    assert pdf.startswith(b"%PDF")
    assert re.search(rb"/MediaBox \[0 0 84[12]", pdf)  # A4 lying on its side
    assert len(opened.find_elements("css selector", "main details:not([open], .choices)")) == closed
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    screen(opened, width=PAPER, height=700)
    opened.execute_script("document.documentElement.dataset.theme = 'dark'")
    ground = opened.execute_script("return getComputedStyle(document.documentElement).getPropertyValue('--tie')")
    assert ground.strip() == "#e6f0e9"  # black letters are printed on it
    opened.execute_script("delete document.documentElement.dataset.theme")
    widths = opened.execute_script(
        "return [...document.querySelectorAll('main table')].map((each) => each.offsetWidth)"
    )
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert 0 < max(widths) <= PAPER
