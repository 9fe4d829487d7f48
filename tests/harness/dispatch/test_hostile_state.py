"""State and sweep files that another user, a later version or a broken disk has written: one line, never a traceback."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.cli import status
from harness.dispatch import worker
from harness.dispatch.attempts import Held, Holder, Lease, attempts, state_folder
from harness.dispatch.run_states import survey
from tests.harness.dispatch.helpers import make_job, submitted


def results_folder(root: Path) -> Path:
    """Two runs of a local sweep whose processes are gone: one finished, one interrupted at its second attempt."""
    jobs = [make_job(root, seed=seed) for seed in (0, 1)]
    gone = replace(Holder.here(), ticks=1)
    submitted(root, jobs, executor="local", allowed=10, submitter=gone)
    done, open_run = jobs
    RecordStore(root).write(Record(run=done.run, key=done.run.key, code="OK", cost={"wall_time_s": 60.0}))
    for _ in range(2):
        Lease.acquire(state_folder(root, open_run.run.key), holder=gone).release("interrupted", "requested to stop")
    (state_folder(root, open_run.run.key) / "attempt.2.log").write_text("a log\n")
    position = {"stage": "training", "epoch": 1, "epochs": 2, "step": 1, "steps": 4, "loss": 0.5}
    (state_folder(root, open_run.run.key) / "progress.json").write_text(json.dumps(position))
    return root


def sweep_of(root: Path) -> Path:
    (folder,) = (path for path in (root / "sweeps").iterdir() if path.is_dir())
    return folder


def open_key(root: Path) -> str:
    return make_job(root, seed=1).run.key


def show(root: Path, *words: str) -> tuple[int, str]:
    """Exit code and output of the status verb; an unexpected error is raised."""
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
    assert [attempt.number for attempt in attempts(folder)] == [1, 2, 3]
    assert survey(root).runs[open_key(root)].state == "running"
    with pytest.raises(Held):
        Lease.acquire(folder, holder=Holder.here())


@pytest.mark.parametrize("wreck", OF_AN_ATTEMPT)
def test_a_run_with_a_wrecked_attempt_can_be_taken_over(wreck: str, tmp_path) -> None:
    root = results_folder(tmp_path)
    folder = state_folder(root, open_key(root))
    Lease.acquire(folder, holder=replace(Holder.here(), ticks=1))
    OF_AN_ATTEMPT[wreck](folder / "attempt.3.json")
    assert show(root)[0] == 0
    assert Lease.acquire(folder, holder=Holder.here(), lease_s=0.1).attempt.number == 4
    assert attempts(folder)[2].end == "lost"


@pytest.mark.parametrize("wreck", OF_AN_ATTEMPT)
def test_a_wrecked_end_of_an_attempt_is_an_end(wreck: str, tmp_path: Path) -> None:
    root = results_folder(tmp_path)
    folder = state_folder(root, open_key(root))
    OF_AN_ATTEMPT[wreck](folder / "attempt.2.end.json")
    assert show(root)[0] == 0
    assert attempts(folder)[1].end in ("lost", "interrupted")
    assert Lease.acquire(folder, holder=Holder.here(), lease_s=0.1).attempt.number == 3


@pytest.mark.parametrize("name", ["sweep.json", "jobs.jsonl"])
@pytest.mark.parametrize("wreck", WRECKS)
def test_a_wrecked_sweep_is_left_out_by_name(wreck: str, name: str, tmp_path: Path) -> None:
    if (wreck, name) == ("empty", "jobs.jsonl"):
        return  # a sweep of no runs
    root = results_folder(tmp_path)
    WRECKS[wreck](sweep_of(root) / name)
    code, text = show(root)
    assert code == 0
    (line,) = [line for line in text.splitlines() if line.startswith("skipped")]
    assert str(sweep_of(root)) in line
    assert worker.main([str(sweep_of(root))]) == 3


@pytest.mark.parametrize("lines", [{"first": -(10**11), "runs": 2 * 10**11}, {"first": 0, "runs": 2, "per_task": 0}])
def test_arrays_of_lines_that_are_not_there_are_counted_at_once(tmp_path: Path, lines: dict[str, int]) -> None:
    root = results_folder(tmp_path)
    changed(arrays=[lines])(sweep_of(root) / "sweep.json")
    assert show(root)[0] == 0
