"""A sweep on disk: read back as it was written, damage named with its reason; and the frozen code that workers import."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.check import read_as
from harness.dispatch import sweeps as module
from harness.dispatch.attempts import Holder, Lease, state_folder
from harness.dispatch.sweeps import (
    LARGEST_CODE,
    PYTHON_OPTIONS,
    WORKER,
    create_sweep,
    freeze,
    read_sweep,
    read_sweeps,
    record_fingerprint,
    settles,
)  # fmt: skip
from harness.system.errors import UsageError
from tests.harness.dispatch.helpers import make_job, submitted


def test_a_sweep_is_read_as_it_was_written(tmp_path):
    jobs = [make_job(tmp_path, seed=seed) for seed in range(2)]
    failure = Record(run=jobs[1].run, key=jobs[1].run.key, code="OOM", finished="2026-01-01T00:00:00Z")
    RecordStore(tmp_path).write(failure)
    Lease.acquire(state_folder(tmp_path, jobs[0].run.key), holder=Holder.here()).release("killed")
    whole = submitted(tmp_path, jobs, user="me", request="r", settings={"lease_seconds": 30}, allowed=10)
    (read,) = read_sweeps(tmp_path, {})
    assert read == whole
    assert read.runs == whole.runs
    assert [read.job(line) for line in (0, 1)] == jobs
    assert [(run.before, run.limit, run.replaces) for run in read.runs] == [
        (1, 11, ""), (0, 10, record_fingerprint(failure))
    ]  # fmt: skip
    assert (read.lease_s, read.results, read.environment["snapshot"]) == (30.0, tmp_path, "abc")
    assert read.names == [f"harness-{read.id}-0"]


def test_a_key_that_leads_elsewhere_is_refused(tmp_path):
    sweep = submitted(tmp_path, [make_job(tmp_path)])
    path = sweep.folder / "jobs.jsonl"
    path.write_text(path.read_text().replace(f'"key": "{sweep.runs[0].key}"', '"key": "../../mine"', 1))
    with pytest.raises(UsageError, match="is not a key of a run"):
        read_sweep(sweep.folder).runs  # noqa: B018


@pytest.mark.parametrize("change", [{"results": "/elsewhere"}, {"run": None}, {"seed": 7}])
def test_a_job_that_is_not_its_lines_is_refused(tmp_path, change):
    sweep = submitted(tmp_path, [make_job(tmp_path)])
    line = json.loads((sweep.folder / "jobs.jsonl").read_text())
    if "seed" in change:
        line["job"]["run"] |= change
    else:
        line["job"] |= change
    (sweep.folder / "jobs.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(UsageError, match=r"jobs\.jsonl cannot be read"):
        read_sweep(sweep.folder).job(0)


def test_a_line_may_call_the_label_of_a_row_as_older_sweeps_do(tmp_path):
    sweep = submitted(tmp_path, [make_job(tmp_path)])
    path = sweep.folder / "jobs.jsonl"
    path.write_text(path.read_text().replace('"label"', '"variant"'))
    read = read_sweep(sweep.folder)
    assert read.runs[0].label == read.job(0).run.label == sweep.job(0).run.label == "lora"


def test_control_characters_are_escaped_and_numbers_out_of_range_refused(tmp_path):
    job = make_job(tmp_path)
    sweep = submitted(tmp_path, [replace(job, run=replace(job.run, label="a\x1b[2Jb"))])
    assert read_sweep(sweep.folder).runs[0].words == r"a\x1b[2Jb on kvasir, seed 0"
    assert read_sweep(sweep.folder).job(0).run.label == "a\x1b[2Jb"
    path = tmp_path / "holder.json"
    path.write_text(json.dumps({"host": "", "boot": "", "namespace": "", "pid": 10**12, "ticks": 0}))
    with pytest.raises(ValueError, match="far out of range"):
        read_as(path, Holder)


def test_a_run_is_settled_by_a_success_or_by_another_failure_than_the_one_replaced(tmp_path):
    run = make_job(tmp_path).run
    failure = Record(run=run, key=run.key, code="OOM", finished="2026-01-01T00:00:00Z", attempts=1)
    assert not settles(failure, replaces=record_fingerprint(failure))
    changes = ({"code": "ERROR"}, {"attempts": 2}, {"finished": "x"})
    assert all(settles(replace(failure, **change), replaces=record_fingerprint(failure)) for change in changes)
    success = replace(failure, code="OK")
    assert settles(success, replaces=record_fingerprint(success))


def test_each_sweep_has_a_copy_of_its_own_whose_name_is_its_contents(tmp_path, monkeypatch):
    first, second = (
        create_sweep(tmp_path, [make_job(tmp_path)], executor="local", allowed=1, command="", frozen=True)
        for _ in range(2)
    )
    assert first.snapshot != second.snapshot
    assert Path(first.snapshot).name == Path(second.snapshot).name
    assert first.job(0) == make_job(tmp_path)
    assert (Path(first.snapshot) / "harness" / "methods" / "lora.py").is_file()
    assert not list(first.folder.rglob("__pycache__"))
    contents = {**module.contents_of_command(()), "harness/new.py": b""}
    monkeypatch.setattr(module, "contents_of_command", lambda plugins=(): contents)
    other = create_sweep(tmp_path, [make_job(tmp_path)], executor="local", allowed=1, command="", frozen=True)
    assert Path(other.snapshot).name != Path(first.snapshot).name


def test_a_submission_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "code_version", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        create_sweep(tmp_path, [make_job(tmp_path)], executor="local", allowed=1, command="", frozen=True)
    assert not list((tmp_path / "sweeps").iterdir())


def test_plug_ins_are_frozen_with_it_under_their_own_names(tmp_path):
    plugins = [tmp_path / name / "mine.py" for name in "ab"]
    for number, plugin in enumerate(plugins):
        plugin.parent.mkdir()
        plugin.write_text(f"VALUE = {number}\n")
    jobs = [replace(make_job(tmp_path), plugins=(str(plugin),)) for plugin in plugins]
    frozen, moved = freeze(tmp_path, jobs)
    texts = [Path(job.plugins[0]).read_text() for job in moved]
    assert texts == ["VALUE = 0\n", "VALUE = 1\n"]
    assert all(job.plugins[0].startswith(frozen) for job in moved)


def test_a_worker_imports_the_frozen_code_whatever_is_installed_and_wherever_it_is_started(tmp_path):
    frozen, _ = freeze(tmp_path, [make_job(tmp_path)])
    worker = Path(frozen) / "harness" / "dispatch" / "worker.py"
    worker.write_text("def main():\n    print(__file__)\n    return 0\n")
    (tmp_path / "harness.py").write_text("raise RuntimeError('of the working folder')\n")
    command = [sys.executable, PYTHON_OPTIONS, str(Path(frozen) / WORKER)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(worker)
    assert not list(Path(frozen).rglob("__pycache__"))


def test_a_folder_with_more_than_code_is_refused(tmp_path):
    big = tmp_path / "weights.py"
    with big.open("w") as file:
        file.truncate(LARGEST_CODE + 1)
    with pytest.raises(UsageError, match=r"weights\.py"):
        freeze(tmp_path, [replace(make_job(tmp_path), plugins=(str(big),))])
