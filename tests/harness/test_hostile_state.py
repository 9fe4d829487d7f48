"""State and sweep files that somebody else, a later version or a broken disk has written: one line, never a traceback."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness import run
from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.cli import status
from harness.dispatch import worker
from harness.dispatch.attempts import Exhausted, Held, Holder, Lease, attempts, state_folder
from harness.dispatch.run_states import survey
from harness.dispatch.sweeps import read_sweep
from harness.system.errors import UsageError
from tests.harness.dispatch.helpers import make_job, submitted
from tests.harness.planned import job_of
from tests.harness.test_fuzzed_records import damage, spoil_content

VERBS: tuple[list[str], ...] = ([], ["--failed"], ["--json"], ["--sweep", "last"], ["--logs", "{key}"])


def results_folder(root: Path) -> Path:
    """Two runs of a local sweep whose processes are gone: one finished, one interrupted at its second start."""
    jobs = [make_job(root, seed=seed) for seed in (0, 1)]
    gone = replace(Holder.here(), ticks=1)
    submitted(root, jobs, executor="local", allowed=10, submitter=gone)
    done, open_run = jobs
    RecordStore(root).write(Record(run=done.run, key=done.run.key, code="OK", cost={"wall_time_s": 60.0}))
    for _ in range(2):
        Lease.acquire(state_folder(root, open_run.run.key), holder=gone).release("interrupted", "asked to stop")
    (state_folder(root, open_run.run.key) / "attempt.2.log").write_text("a log\n")
    position = {"stage": "training", "epoch": 1, "epochs": 2, "step": 1, "steps": 4, "loss": 0.5}
    (state_folder(root, open_run.run.key) / "progress.json").write_text(json.dumps(position))
    return root


def sweep_of(root: Path) -> Path:
    (folder,) = (path for path in (root / "sweeps").iterdir() if path.is_dir())
    return folder


def open_key(root: Path) -> str:
    return make_job(root, seed=1).run.key


def shown(root: Path, *words: str) -> tuple[int, str]:
    """Exit code and output of the status verb; what nobody foresaw is raised."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = status.main(["--results", str(root), "--debug", *(word.format(key=open_key(root)) for word in words)])
    return code, out.getvalue()


def changed(**values: Any) -> Callable[[Path], object]:
    return lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def instead(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def wreck(path: Path) -> None:
        path.unlink()
        make(path)

    return wreck


WRECKS: dict[str, Callable[[Path], object]] = {
    "pipe": instead(os.mkfifo),
    "folder": instead(Path.mkdir),
    "link to zeros": instead(lambda path: path.symlink_to("/dev/zero")),
    "sparse": lambda path: os.truncate(path, 1 << 40),
    "empty": lambda path: path.write_text(""),
    "deep": lambda path: path.write_text("[" * 200_000),
    "list": lambda path: path.write_text("[]"),
}
OF_AN_ATTEMPT = {**WRECKS, "endless number": changed(seen=10**400), "no holder": changed(holder="me")}


def test_a_lease_of_a_later_version_is_still_a_lease(tmp_path: Path) -> None:
    root = results_folder(tmp_path)
    folder = state_folder(root, open_key(root))
    Lease.acquire(folder, holder=Holder.here())
    path = folder / "attempt.3.json"
    changed(colour="blue", holder={**json.loads(path.read_text())["holder"], "rack": 7})(path)
    assert [start.number for start in attempts(folder)] == [1, 2, 3]
    assert survey(root).runs[open_key(root)].state == "running"
    with pytest.raises(Held):
        Lease.acquire(folder, holder=Holder.here())


@pytest.mark.parametrize("wreck", OF_AN_ATTEMPT)
def test_a_wrecked_attempt_is_named_and_the_run_can_be_taken_over(wreck: str, tmp_path) -> None:
    root = results_folder(tmp_path)
    folder = state_folder(root, open_key(root))
    Lease.acquire(folder, holder=replace(Holder.here(), ticks=1))
    OF_AN_ATTEMPT[wreck](folder / "attempt.3.json")
    code, text = shown(root)
    assert code == 0
    (line,) = [line for line in text.splitlines() if line.startswith("unreadable")]
    assert f"{folder / 'attempt.3.json'}: " in line
    assert Lease.acquire(folder, holder=Holder.here(), lease_s=0.1).attempt.number == 4
    assert attempts(folder)[2].end == "lost"


@pytest.mark.parametrize("wreck", OF_AN_ATTEMPT)
def test_a_wrecked_end_of_an_attempt_is_an_end(wreck: str, tmp_path: Path) -> None:
    root = results_folder(tmp_path)
    folder = state_folder(root, open_key(root))
    OF_AN_ATTEMPT[wreck](folder / "attempt.2.end.json")
    assert shown(root)[0] == 0
    assert attempts(folder)[1].end in ("lost", "interrupted")
    assert Lease.acquire(folder, holder=Holder.here(), lease_s=0.1).attempt.number == 3


@pytest.mark.parametrize("name", ["sweep.json", "jobs.jsonl"])
@pytest.mark.parametrize("wreck", WRECKS)
def test_a_wrecked_sweep_is_left_out_by_name(wreck: str, name: str, tmp_path: Path) -> None:
    if (wreck, name) == ("empty", "jobs.jsonl"):
        return  # a sweep of no runs
    root = results_folder(tmp_path)
    WRECKS[wreck](sweep_of(root) / name)
    code, text = shown(root)
    assert code == 0
    (line,) = [line for line in text.splitlines() if line.startswith("unreadable")]
    assert str(sweep_of(root)) in line
    assert worker.main([str(sweep_of(root))]) == 3


@pytest.mark.parametrize(
    ("field", "value"),
    [("key", "../../../etc"), ("key", "0" * 15), ("key", None), ("limit", "1"), ("seed", "x")],
)
def test_what_a_line_of_a_sweep_names_is_checked(field: str, value: object, tmp_path: Path) -> None:
    path = sweep_of(results_folder(tmp_path)) / "jobs.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0][field] = value
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UsageError, match=r"jobs.jsonl cannot be read .* move the folder .* away"):
        read_sweep(path.parent).runs  # noqa: B018


@pytest.mark.parametrize("change", ["results", "seed", "brackets"])
def test_a_worker_runs_only_the_jobs_of_its_sweep(change: str, tmp_path: Path, capsys: Any) -> None:
    path = sweep_of(results_folder(tmp_path / "runs")) / "jobs.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    if change == "results":
        lines[1]["job"]["results"] = str(tmp_path / "elsewhere")
    elif change == "seed":
        lines[1]["job"]["run"]["seed"] = 5
    path.write_text("[" * 100_000 if change == "brackets" else "".join(json.dumps(line) + "\n" for line in lines))
    before = sorted(tmp_path.rglob("*"))
    assert worker.main([str(path.parent)]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert sorted(tmp_path.rglob("*")) == before


# Anything at all in any of these files.


@contextlib.contextmanager
def spoilt(path: Path, data: st.DataObject) -> Iterator[None]:
    """Something else in a file's place, for a while."""
    backup = path.read_bytes()
    damage(path, data) if data.draw(st.booleans()) else spoil_content(path, data)
    try:
        yield
    finally:
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        path.write_bytes(backup)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return results_folder(tmp_path_factory.mktemp("state") / "runs")


@pytest.fixture(scope="module")
def priced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the demo card, whose attempts tell what the next seed will take."""
    root = tmp_path_factory.mktemp("state") / "runs"
    job = job_of(root)
    cost = {"wall_time_s": 60.0}
    counts = {"train": 28, "val": 4, "test": 4}
    RecordStore(root).write(Record(run=job.run, key=job.run.key, code="OK", cost=cost, counts=counts))
    Lease.acquire(state_folder(root, job.run.key), holder=replace(Holder.here(), ticks=1)).release("finished")
    return root


def test_a_start_before_all_time_is_priced(priced: Path) -> None:
    (path,) = priced.glob("state/*/attempt.1.json")
    backup = path.read_bytes()
    path.write_bytes(backup.replace(b'"started": ', b'"started": -9e11, "x": '))
    assert_priced(priced)
    path.write_bytes(backup)


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(name=st.sampled_from(["attempt.1.json", "attempt.1.end.json"]), data=st.data())
def test_whatever_stands_in_an_attempt_a_plan_is_priced(priced: Path, name: str, data: st.DataObject) -> None:
    (path,) = priced.glob(f"state/*/{name}")
    with spoilt(path, data):
        assert_priced(priced)


def assert_priced(root: Path) -> None:
    grid = ["--methods", "lora", "--datasets", "kvasir", "--protocol", "demo", "--seeds", "2", "--results", str(root)]
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        assert run.main([*grid, "--plan", "--debug"]) == 0
    assert "2 runs, 1 finished" in out.getvalue()


FILES = 7


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(which=st.integers(0, FILES - 1), data=st.data())
def test_whatever_stands_in_a_file_a_verb_answers_in_lines(pristine: Path, which: int, data: st.DataObject) -> None:
    root = pristine
    files = sorted(path for path in root.rglob("*.json*") if path.parent.name != "records")
    assert len(files) == FILES
    outside = sorted(root.parent.rglob("*"))
    with spoilt(files[which], data):
        for words in VERBS:
            code, text = shown(root, *words)
            assert code in (0, 1, 2)
            assert code == 0 or text.count("\n") == 1
            assert not any(character < " " and character != "\n" for character in text)
        assert sorted(root.parent.rglob("*")) == outside
        state = state_folder(root, open_key(root))
        before = set(state.iterdir())
        with contextlib.suppress(Held, Exhausted):
            Lease.acquire(state, holder=Holder.here(), limit=9, lease_s=0.01)
        for path in set(state.iterdir()) - before:
            path.unlink()
