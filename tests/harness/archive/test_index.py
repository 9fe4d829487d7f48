"""The index of records says what the files say, reads what changed and nothing else, and is never needed."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.archive import index as indexing
from harness.archive import index_file
from harness.archive.index import SWITCH
from harness.archive.store import RecordStore
from harness.cli.status import overview
from harness.dispatch.run_states import survey
from harness.dispatch.sweeps import PlannedRun
from harness.dispatch.tally import Tally, tally, tally_of
from tests.harness.report.sample import record
from tests.harness.test_status import finish, make_job, sweep

REPOSITORY = Path(__file__).parents[3]
COUNT = 12


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RecordStore:
    """A folder whose records were written a while ago, large enough for an index; one file is no record."""
    monkeypatch.setattr(indexing, "SMALLEST", 3)
    monkeypatch.setattr(indexing, "_SETTLED_NS", 0)
    made = RecordStore(tmp_path)
    for seed in range(COUNT):
        made.write(record(seed / COUNT, seed=seed, code="OK", history=[{"epoch": 1, "loss": 0.5}]))
    made.path("0" * 16).write_text("{", encoding="utf-8")
    return made


def plain(store: RecordStore, monkeypatch: pytest.MonkeyPatch) -> object:
    with monkeypatch.context() as context:
        context.setenv(SWITCH, "off")
        return store.summaries(), store.endings()


def reads(store: RecordStore, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that one look reads."""
    found: list[str] = []

    def counted(path: Path) -> object:
        found.append(path.stem)
        return load(path)

    load = indexing.load
    with monkeypatch.context() as context:
        context.setattr(indexing, "load", counted)
        store.endings()
    return found


def database(store: RecordStore) -> Path:
    (path,) = store.root.glob("cache/records-*.sqlite")
    return path


def test_the_index_says_what_the_files_say(store: RecordStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        assert (store.summaries(), store.endings()) == plain(store, monkeypatch)
    assert database(store).stat().st_mode & 0o077 == 0
    some = [path.stem for path in store.files()][::3]
    assert list(store.endings([*some, "f" * 16])) == some


def test_the_index_says_what_the_committed_records_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "records").symlink_to(REPOSITORY / "results" / "records")
    monkeypatch.setattr(indexing, "SMALLEST", 3)
    store = RecordStore(tmp_path)
    store.summaries()
    assert (store.summaries(), store.endings()) == plain(store, monkeypatch)
    assert database(store).exists()


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
    assert (store.summaries(), store.endings()) == plain(store, monkeypatch)
    assert edited in store.problems()


def test_a_file_that_just_changed_is_read_again(store: RecordStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "_SETTLED_NS", 3600 * 10**9)
    assert reads(store, monkeypatch)
    assert len(reads(store, monkeypatch)) == COUNT + 1


@pytest.mark.parametrize("damage", ["other version", "no database", "torn", "another's", "busy", "lost table"])
def test_an_index_in_doubt_is_made_anew_or_left_alone(
    store: RecordStore, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    store.endings()
    path, expected = database(store), plain(store, monkeypatch)
    connection = sqlite3.connect(path, isolation_level=None)
    if damage == "other version":
        connection.execute("UPDATE made SET by = 'another'")
    elif damage == "no database":
        path.write_bytes(b"no database" * 1000)
    elif damage == "torn":
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
    elif damage == "another's":
        connection.execute("UPDATE file SET code = 'OOM'")
        path.chmod(0o666)
    elif damage == "busy":
        monkeypatch.setattr(index_file, "_WAIT_S", 0.05)
        connection.execute("BEGIN EXCLUSIVE")
    else:
        connection.execute("DROP TABLE summary")
    for _ in range(2):
        assert (store.summaries(), store.endings()) == expected
    connection.close()


def test_no_small_folder_gets_an_index(store: RecordStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "SMALLEST", COUNT + 2)
    assert store.summaries() == plain(store, monkeypatch)[0]  # type: ignore[index]
    assert not (store.root / "cache").exists()


def test_the_overview_counts_what_the_survey_finds(
    store: RecordStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    jobs = [make_job(tmp_path, seed=seed) for seed in range(6)]
    sweep(tmp_path, jobs[:5], executor="local", job="")
    finish(tmp_path, jobs[0])
    finish(tmp_path, jobs[1], "OOM")
    store.path(jobs[2].run.key).write_text("{", encoding="utf-8")
    whole = {"wall_time_s": 50.0, "stage_training_s": 40.0, "stage_testing_s": 30.0}
    finish(tmp_path, jobs[3], cost=whole)
    finish(tmp_path, jobs[5], cost=whole)
    for _ in range(2):
        counted = tally(tmp_path, tasks=None, cluster="", note="")
        seen = tally_of(survey(tmp_path))
        assert overview(counted) == overview(seen)
        assert len(counted.cells) < len(seen.cells)
        assert times(counted) == times(seen)
        assert times(counted)[True] == (2, 160.0)
        assert counted.problems == seen.problems
    # the same failure, submitted again: it is looked at one by one
    folder = tmp_path / "sweeps" / "20260102-000000-abcd"
    folder.mkdir()
    asked = PlannedRun.of(jobs[1].run, limits=indexing_limits(), replaces="something else")
    (folder / "sweep.json").write_bytes((tmp_path / "sweeps" / "20260101-000000-abcd" / "sweep.json").read_bytes())
    content = {"name": "harness-again", "created": 0.0, "shape": {}, "runs": [vars(asked)]}
    (folder / "chunk.000.json").write_text(json.dumps(content), encoding="utf-8")
    assert overview(tally(tmp_path, tasks=None, cluster="", note="")) == overview(tally_of(survey(tmp_path)))


def times(counted: Tally) -> dict[bool, tuple[int, float]]:
    """Runs and their seconds, by whether those are of the whole run."""
    by_kind = [[cell for cell in counted.cells if cell.whole == whole] for whole in (False, True)]
    return {
        bool(kind): (sum(cell.timed for cell in cells), sum(cell.seconds for cell in cells))
        for kind, cells in enumerate(by_kind)
    }


def indexing_limits():
    from harness.dispatch.sweeps import AttemptLimits

    return AttemptLimits(before=0, limit=3)


COUNTED = """
import collections, os, sys
root, found = sys.argv[1], collections.Counter()
def heard(event, arguments):
    if event in ("open", "os.listdir", "os.scandir") and str(arguments[0]).startswith(root):
        found[event, str(arguments[0])[len(root):]] += 1
from harness.archive import index
index.SMALLEST, index._SETTLED_NS = 3, 0
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
