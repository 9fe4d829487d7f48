"""Pages that nothing touched are not built again, and everything that a page is made of touches it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from harness.archive import cache
from harness.archive.archive import Archive
from harness.archive.store import RecordStore
from harness.cli import tables
from harness.report import pages
from tests.harness.report.sample import record

IMAGES = "variant,split,stem,s_measure\nbest,test,a,0.5\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cache, "SMALLEST", 3)
    monkeypatch.setattr(cache, "_SETTLED_NS", 0)
    for seed in range(6):
        RecordStore(tmp_path).write(record(0.8 + seed / 100, seed=seed, protocol=("demo", "mini")[seed % 2]), IMAGES)
    return tmp_path


def built(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The pages that are built when tables are asked for; what they say is what they say without a cache."""
    protocols = []

    def noted(records, archive, **options):
        protocols.append(records[0].run.protocol)
        return score_page(records, archive, **options)

    score_page = pages.score_page
    with monkeypatch.context() as context:
        context.setattr(pages, "score_page", noted)
        texts = pages.pages_below(Archive(root)).files(root)
    assert texts == pages.pages_below(Archive(root), anew="anew").files(root)
    return protocols


def test_a_page_that_nothing_touched_is_not_built(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert built(root, monkeypatch) == ["demo", "mini"]
    assert built(root, monkeypatch) == []


def test_what_touches_a_page_builds_it_and_no_other(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built(root, monkeypatch)
    store = RecordStore(root)
    path = store.write(record(0.5, seed=7, protocol="mini"), IMAGES)
    assert built(root, monkeypatch) == ["mini"]
    store.images_path(path.stem).write_text(IMAGES.replace("0.5", "0.6"), encoding="utf-8")
    assert built(root, monkeypatch) == ["mini"]
    path.unlink()
    assert built(root, monkeypatch) == ["mini"]
    monkeypatch.setattr(pages, "_around", lambda: b"other code")
    assert built(root, monkeypatch) == ["demo", "mini"]
    assert built(root, monkeypatch) == []


def test_what_another_look_saw_first_touches_a_page_all_the_same(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``status`` between two calls of ``tables``."""
    built(root, monkeypatch)
    store = RecordStore(root)
    path = store.write(record(0.5, seed=7, protocol="mini"), IMAGES)
    store.ended()
    assert built(root, monkeypatch) == ["mini"]
    path.unlink()
    store.ended()
    assert built(root, monkeypatch) == ["mini"]
    assert built(root, monkeypatch) == []


def test_pages_that_nothing_touched_cost_one_listing_of_the_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a network file system a listing is the cost."""

    def listings() -> int:
        paths = []

        def noted(path: str | os.PathLike[str] = ".") -> Any:
            paths.append(Path(path))
            return scandir(path)

        scandir = os.scandir
        with monkeypatch.context() as context:
            context.setattr(os, "scandir", noted)
            pages.pages_below(Archive(root)).files(root)
        return paths.count(root / "records")

    built(root, monkeypatch)
    assert listings() == 1
    for path in (root / "records").glob("*.images.csv"):
        path.write_text(IMAGES.replace("0.5", "0.7"), encoding="utf-8")
    assert listings() == 1
    assert listings() == 1


def test_a_check_believes_nothing_that_was_kept(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tables.main(["--results", str(root)]) == 0
    seen = cache.look(root)
    seen.pages = {page: (made_of, "forged") for page, (made_of, _) in seen.pages.items()}
    seen.changed = True
    seen.save()
    assert tables.main(["--results", str(root)]) == 0
    assert "forged" in (root / "tables" / "demo.md").read_text(encoding="utf-8")  # it is a cache: the check is not
    assert tables.main(["--results", str(root), "--check"]) == 1
    assert "differs from the records" in capsys.readouterr().out
