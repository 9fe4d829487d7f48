"""One results folder, its report, and a real browser that shows it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.archive.store import RecordStore
from harness.cli.report import main
from tests.harness.report.html.sample import write_comparison
from tests.harness.report.sample import known_card, record
from tests.values import RESULTS

HOSTILE = "<script>document.title='owned'</script>"
"""A row's label."""
MESSAGE = '=1+1 "><img src=x onerror=alert(1)> asked for 90 GiB'
"""Of a run that failed."""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three methods on two benchmarks, one of them under a label that is markup, a failed run, and costs."""
    root = tmp_path_factory.mktemp("report") / "results"
    write_comparison(
        root, methods=("decoder", "lora", "naslora"), benchmarks=("kvasir", "sbu"), seeds=2, epochs=4, blocks=2,
        side=16, labels={"naslora": HOSTILE},
    )  # fmt: skip
    RecordStore(root).write(record(method="lora", seed=2, code="OOM", message=MESSAGE, planned_seeds=[0, 1, 2]))
    shutil.copytree(RESULTS / "cost", root / "cost")
    return root


@pytest.fixture(scope="session")
def page(folder: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:  # as in every test; what lives for the session is made before them
        patch.setattr("harness.comparison.rules.card_rules", known_card)
        assert main(["--results", str(folder)]) == 0
    return folder / "site" / "demo.html"


@pytest.fixture(scope="session")
def driver() -> Iterator[Any]:
    """Headless Chromium as the distribution has it."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("no chromium and chromedriver here (Debian: apt-get install chromium chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    yield opened
    opened.quit()
