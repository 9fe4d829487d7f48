"""What is kept of a large folder is what its files say; only what changed is read, and nobody else can write to it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.archive import cache
from harness.archive.cache import SWITCH
from harness.archive.store import RecordStore
from tests.harness.report.sample import record
from tests.values import REPOSITORY, RESULTS

COUNT = 12


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RecordStore:
    """A folder whose records were written a while ago, large enough for a cache; one file is no record."""
    monkeypatch.setattr(cache, "SMALLEST", 3)
    monkeypatch.setattr(cache, "_SETTLED_NS", 0)
    made = RecordStore(tmp_path)
    for seed in range(COUNT):
        made.write(record(seed / COUNT, seed=seed, code="OK", history=[{"epoch": 1, "loss": 0.5}]))
    made.path("0" * 16).write_text("{", encoding="utf-8")
    return made


def told(store: RecordStore) -> object:
    return store.summaries(), store.ended()


def plain(store: RecordStore, monkeypatch: pytest.MonkeyPatch) -> object:
    """Without a cache."""
    with monkeypatch.context() as context:
        context.setenv(SWITCH, "off")
        return told(store)


def reads(store: RecordStore, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that one look reads."""
    stems: list[str] = []

    def counted(path: Path) -> object:
        stems.append(path.stem)
        return load(path)

    load = cache.load
    with monkeypatch.context() as context:
        context.setattr(cache, "load", counted)
        store.ended()
    return stems


@pytest.fixture(autouse=True)
def archives(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder of caches."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home / "sam-peft-harness" / "archives"


def test_the_cache_says_what_the_files_say(store: RecordStore, archives: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.listdir("/dev/fd")
    for _ in range(2):
        assert told(store) == plain(store, monkeypatch)
    assert len(os.listdir("/dev/fd")) <= len(opened)
    (path,) = archives.iterdir()
    assert [place.stat().st_mode & 0o077 for place in (archives, path)] == [0, 0]
    some = [path.stem for path in store.files()][::3]
    assert list(store.ended([*some, "f" * 16])) == some
    # nothing below the results folder is taken for one: others may write there
    assert not (store.root / "cache").exists()


def test_the_cache_says_what_the_committed_records_say(tmp_path, archives: Path, monkeypatch) -> None:
    (tmp_path / "records").symlink_to(RESULTS / "records")
    store = RecordStore(tmp_path)
    monkeypatch.setattr(cache, "SMALLEST", 3)
    store.summaries()
    assert told(store) == plain(store, monkeypatch)
    assert len(list(archives.iterdir())) == 1


def test_only_what_changed_is_read(store: RecordStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(reads(store, monkeypatch)) == COUNT + 1
    assert reads(store, monkeypatch) == []
    new = store.write(record(0.5, seed=COUNT)).stem
    assert reads(store, monkeypatch) == [new]
    gone, edited = store.files()[1:3]
    gone.unlink()
    status = edited.stat()
    edited.write_bytes(edited.read_bytes().replace(b'"seed": ', b'"seed": 1', 1))
    os.utime(edited, ns=(status.st_atime_ns, status.st_mtime_ns))  # the time of the inode tells all the same
    assert reads(store, monkeypatch) == [edited.stem]
    assert told(store) == plain(store, monkeypatch)
    assert edited in store.summaries()[1]


def test_a_file_that_just_changed_is_read_again(store: RecordStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_SETTLED_NS", 3600 * 10**9)
    assert reads(store, monkeypatch)
    assert len(reads(store, monkeypatch)) == COUNT + 1


def test_no_small_folder_gets_a_cache(store: RecordStore, archives: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "SMALLEST", COUNT + 2)
    assert told(store) == plain(store, monkeypatch)
    assert not archives.exists()


@pytest.mark.parametrize("damage", ["another version", "no JSON", "torn", "a field less", "an entry less", "a link"])
def test_a_damaged_cache_is_made_anew(store: RecordStore, archives: Path, monkeypatch, damage: str) -> None:
    store.ended()
    (path,), expected = archives.iterdir(), plain(store, monkeypatch)
    data = path.read_bytes()
    if damage == "a link":
        elsewhere = store.root / "elsewhere"
        path.rename(elsewhere)
        path.symlink_to(elsewhere)
    changes = {
        "another version": data.replace(b'"version":"', b'"version":"0', 1),
        "no JSON": b"no JSON",
        "torn": data[: len(data) // 2],
        "a field less": data.replace(b'"protocol":', b'"protocoll":'),
        "an entry less": data.replace(b'"rules":[', b'"rules":[],"others":['),
    }
    if damage in changes:
        assert changes[damage] != data
        path.write_bytes(changes[damage])
    assert len(reads(store, monkeypatch)) == COUNT + 1
    assert told(store) == expected
    assert reads(store, monkeypatch) == []


@pytest.mark.parametrize("hole", ["others may write", "others may read", "a link"])
def test_a_folder_that_others_may_enter_is_not_believed(store: RecordStore, archives: Path, monkeypatch, hole: str):
    store.ended()
    (path,) = archives.iterdir()
    path.write_bytes(path.read_bytes().replace(b'"code":"OK"', b'"code":"OOM"'))
    assert {end.code for end in store.ended().values() if not isinstance(end, str)} == {"OOM"}  # what a forger wants
    if hole == "a link":
        archives.rename(archives.with_name("elsewhere"))
        archives.symlink_to("elsewhere")
    else:
        archives.chmod(0o722 if hole == "others may write" else 0o744)
    assert told(store) == plain(store, monkeypatch)


@pytest.mark.parametrize("home", ["/proc/no/such/place", "/dev/null"])
def test_without_a_home_every_record_is_read(store: RecordStore, monkeypatch: pytest.MonkeyPatch, home: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    for _ in range(2):
        assert told(store) == plain(store, monkeypatch)


def test_a_cache_that_cannot_take_its_place_leaves_nothing(store: RecordStore, archives: Path, monkeypatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(os, "replace", refused)
        assert len(store.ended()) == COUNT + 1
    assert list(archives.iterdir()) == []


def test_caches_that_nobody_wrote_for_long_are_deleted(store: RecordStore, archives: Path) -> None:
    archives.mkdir(parents=True, mode=0o700)
    for name, days in (("old.json", 91), ("recent.json", 89)):
        (archives / name).write_text("{}")
        then = time.time() - days * 86400
        os.utime(archives / name, (then, then))
    store.ended()
    assert sorted(file.name for file in archives.iterdir() if len(file.name) < 20) == ["recent.json"]


def test_what_the_system_refused_is_read_again(store: RecordStore, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = store.files()[1]
    before = refused.read_bytes()

    def read_regular(path: Path, *, largest: int) -> bytes:
        if path == refused:
            raise ValueError("no") from OSError(5, "Input/output error")
        return path.read_bytes()

    with monkeypatch.context() as context:
        context.setattr("harness.archive.reading.read_regular", read_regular)
        assert isinstance(store.ended()[refused.stem], str)
    assert refused.read_bytes() == before
    assert not isinstance(store.ended()[refused.stem], str)


COUNTED = """
import collections, os, sys
root, found = sys.argv[1], collections.Counter()
def heard(event, arguments):
    if event in ("open", "os.listdir", "os.scandir") and str(arguments[0]).startswith(root):
        found[event, str(arguments[0])[len(root):]] += 1
from harness.archive import cache
cache.SMALLEST, cache._SETTLED_NS = 3, 0
from harness.cli.status import main
sys.addaudithook(heard)
main(["--results", root])
print(sum(n for (event, path), n in found.items() if event == "open" and "/records/" in path), file=sys.stderr)
print(sum(n for (event, path), n in found.items() if event != "open" and path == "/records"), file=sys.stderr)
"""


def test_an_overview_costs_one_listing_and_what_changed(store: RecordStore) -> None:
    """On a network file system a listing is the cost, and an open file a round trip."""

    def look() -> list[int]:
        done = subprocess.run(
            [sys.executable, "-c", COUNTED, str(store.root)], cwd=REPOSITORY, capture_output=True, text=True, check=True
        )
        return [int(line) for line in done.stderr.splitlines()]

    time.sleep(0.01)
    assert look() == [COUNT + 1, 1]
    assert look() == [0, 1]
    store.write(record(0.5, seed=COUNT))
    assert look() == [1, 1]
