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
    Array,
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


def test_a_task_has_the_lines_of_its_array(tmp_path):
    arrays = (Array(first=0, runs=5, per_task=2, job="7"), Array(first=5, runs=2, job="8"))
    sweep = submitted(tmp_path, [make_job(tmp_path, seed=seed) for seed in range(7)], arrays=arrays)
    assert list(sweep.slots()) == [(0, 0, 0), (1, 0, 0), (2, 0, 1), (3, 0, 1), (4, 0, 2), (5, 1, 0), (6, 1, 1)]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("sweep.json", "{", "truncated"),
        ("jobs.jsonl", "{\n", "truncated"),
        ("jobs.jsonl", None, "larger than 512 MiB"),
    ],
)
def test_what_is_damaged_is_left_out_by_name(tmp_path, name, content, reason):
    sweeps = [submitted(tmp_path, [make_job(tmp_path)]) for _ in range(2)]
    path = sweeps[1].folder / name
    if content is None:
        with path.open("w") as file:
            file.truncate((512 << 20) + 1)
    else:
        path.write_text(content)
    problems: dict[Path, str] = {}
    assert [sweep.id for sweep in read_sweeps(tmp_path, problems)] == [sweeps[0].id]
    (said,) = problems.values()
    assert reason in said


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
    with pytest.raises(ValueError, match="out of all range"):
        read_as(path, Holder)


def test_a_run_is_settled_by_a_success_or_by_another_failure_than_the_one_replaced(tmp_path):
    run = make_job(tmp_path).run
    failure = Record(run=run, key=run.key, code="OOM", finished="2026-01-01T00:00:00Z", attempts=1)
    assert not settles(failure, replaces=record_fingerprint(failure))
    changes = ({"code": "ERROR"}, {"attempts": 2}, {"finished": "x"})
    assert all(settles(replace(failure, **change), replaces=record_fingerprint(failure)) for change in changes)
    success = replace(failure, code="OK")
    assert settles(success, replaces=record_fingerprint(success))


def test_the_same_code_is_frozen_once_and_other_code_apart(tmp_path, monkeypatch):
    first, jobs = freeze(tmp_path, [make_job(tmp_path)])
    assert jobs == [make_job(tmp_path)]
    assert (first / "harness" / "methods" / "lora.py").is_file()
    assert not list(first.rglob("__pycache__"))
    assert freeze(tmp_path, jobs)[0] == first
    contents = {**module.contents_of_command(()), "harness/new.py": b""}
    monkeypatch.setattr(module, "contents_of_command", lambda plugins=(): contents)
    assert freeze(tmp_path, jobs)[0] != first
    assert len(list((tmp_path / "snapshots").iterdir())) == 2


@pytest.mark.parametrize(
    "planted",
    ["torch.py", "harness/run.py", "harness/__pycache__/run.cpython-311.pyc", "harness/run.pyc", "plugins/0/mine.py"],
)
def test_frozen_code_with_anything_edited_or_added_is_refused(tmp_path, planted):
    frozen, _ = freeze(tmp_path, [make_job(tmp_path)])
    (frozen / planted).parent.mkdir(parents=True, exist_ok=True)
    assert freeze(tmp_path, [make_job(tmp_path)])[0] == frozen
    (frozen / planted).write_text("print('mine')\n")
    with pytest.raises(UsageError, match=rf"altered.*{planted}"):
        freeze(tmp_path, [make_job(tmp_path)])


@pytest.mark.parametrize("link", ["snapshots", "snapshots/HASH", "snapshots/HASH/harness", "snapshots/HASH/torch"])
def test_frozen_code_behind_a_link_is_not_taken(tmp_path, link):
    frozen, _ = freeze(tmp_path / "elsewhere", [make_job(tmp_path)])
    if not link.endswith("HASH"):
        freeze(tmp_path, [make_job(tmp_path)])
    path = tmp_path / link.replace("HASH", frozen.name)
    if path.is_dir():
        path.rename(tmp_path / "away")
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(tmp_path / "elsewhere" / link.replace("HASH", frozen.name).replace("torch", "harness"))
    with pytest.raises((UsageError, OSError), match=r"altered|link"):
        freeze(tmp_path, [make_job(tmp_path)])


def test_plug_ins_are_frozen_with_it_under_their_own_names(tmp_path):
    plugins = [tmp_path / name / "mine.py" for name in "ab"]
    for number, plugin in enumerate(plugins):
        plugin.parent.mkdir()
        plugin.write_text(f"VALUE = {number}\n")
    jobs = [replace(make_job(tmp_path), plugins=(str(plugin),)) for plugin in plugins]
    frozen, moved = freeze(tmp_path, jobs)
    texts = [Path(job.plugins[0]).read_text() for job in moved]
    assert texts == ["VALUE = 0\n", "VALUE = 1\n"]
    assert all(job.plugins[0].startswith(str(frozen)) for job in moved)


def test_a_worker_imports_the_frozen_code_whatever_is_installed_and_wherever_it_is_started(tmp_path):
    frozen, _ = freeze(tmp_path, [make_job(tmp_path)])
    (frozen / "harness" / "dispatch" / "worker.py").write_text("def main():\n    print(__file__)\n    return 0\n")
    (tmp_path / "harness.py").write_text("raise RuntimeError('of the working folder')\n")
    command = [sys.executable, PYTHON_OPTIONS, str(frozen / WORKER)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(frozen / "harness" / "dispatch" / "worker.py")
    assert not list(frozen.rglob("__pycache__"))


def test_a_folder_with_more_than_code_is_refused(tmp_path):
    big = tmp_path / "weights.py"
    with big.open("w") as file:
        file.truncate(LARGEST_CODE + 1)
    with pytest.raises(UsageError, match=r"weights\.py"):
        freeze(tmp_path, [replace(make_job(tmp_path), plugins=(str(big),))])
