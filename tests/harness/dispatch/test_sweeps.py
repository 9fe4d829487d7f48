"""What was submitted, on disk: read back as it was written, and what is damaged named with its reason."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest

from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.check import read_as
from harness.dispatch.attempts import Holder, Lease, state_folder
from harness.dispatch.queue import Task
from harness.dispatch.sweeps import (
    AttemptLimits,
    PlannedRun,
    Problems,
    Sweep,
    attempt_limits,
    begin_sweep,
    chunk_paths,
    create_chunk,
    create_sweep,
    ending_fingerprint,
    read_chunk,
    read_chunks,
    read_sweep,
    read_sweeps,
    settled,
)
from harness.system.errors import UsageError
from tests.harness.dispatch.helpers import make_job

MIB = 1 << 20


def sweep(name="20260101-000000-abcd", **changes):
    fields = {"executor": "slurm", "command": "run", "created": 7.0, "submitter": Holder.here()}
    return Sweep(id=name, **{**fields, **changes})


def chunk_of(results, jobs, *, name="20260101-000000-abcd", number=0):
    limits = {job.run.key: AttemptLimits(before=2, limit=12) for job in jobs}
    return create_chunk(create_sweep(results, sweep(name)), number=number, jobs=jobs, shape={"gpus": 1}, limits=limits)


def test_a_sweep_is_read_as_it_was_written_by_the_name_of_its_folder(tmp_path):
    whole = sweep(
        snapshot="/snapshots/abc",
        code={"commit": "c", "dirty": ""},
        settings={"user": "me", "cluster": "gpu", "request": "r"},
    )
    folder = create_sweep(tmp_path, whole)
    assert read_sweep(folder) == whole
    assert (whole.user, whole.cluster, whole.request) == ("me", "gpu", "r")
    assert whole.environment == {"commit": "c", "dirty": "", "snapshot": "abc"}
    assert (sweep().user, sweep().cluster, sweep().request) == ("", "", "")
    folder.rename(folder.with_name("renamed"))
    assert read_sweeps(tmp_path) == [replace(whole, id="renamed")]


def test_a_later_sweep_comes_later_whatever_the_clock_of_its_submitter_says(tmp_path, monkeypatch):
    first, _ = begin_sweep(tmp_path, executor="slurm", command="")
    (tmp_path / "sweeps" / ".submitting").mkdir()
    (tmp_path / "sweeps" / "moved-by-somebody").mkdir()
    second, _ = begin_sweep(tmp_path, executor="slurm", command="")  # in the same second, or nearly
    monkeypatch.setattr("harness.dispatch.sweeps.time.time", lambda: first.created - 7200.0)
    third, _ = begin_sweep(tmp_path, executor="slurm", command="")
    monkeypatch.setattr("harness.dispatch.sweeps.time.time", lambda: first.created + 7200.0)
    fourth, _ = begin_sweep(tmp_path, executor="slurm", command="")
    ids = [sweep.id for sweep in (first, second, third, fourth)]
    assert [sweep.id for sweep in read_sweeps(tmp_path)] == ids
    assert ids[3][:15] == time.strftime("%Y%m%d-%H%M%S", time.gmtime(first.created + 7200.0))


def test_a_chunk_is_read_as_it_was_written_with_its_answer_and_its_end(tmp_path):
    jobs = [make_job(tmp_path, seed=seed) for seed in range(2)]
    failure = Record(run=jobs[1].run, key=jobs[1].run.key, code="OOM", finished="2026-01-01T00:00:00Z")
    RecordStore(tmp_path).write(failure)
    chunk = chunk_of(tmp_path, jobs)
    assert read_chunk(chunk.path) == chunk
    assert chunk.name == "harness-20260101-000000-abcd-000"
    assert chunk.runs == tuple(
        PlannedRun.of(job.run, limits=AttemptLimits(before=2, limit=12), replaces=replaces)
        for job, replaces in zip(jobs, ("", ending_fingerprint(failure)), strict=True)
    )
    assert chunk.jobs() == jobs
    assert chunk.read_job(1) == jobs[1]
    assert (chunk.task(1), chunk.answered("77").task(1)) == ("", "77_1")
    closed = chunk.answered("77").close("cancelled", ends={jobs[0].run.key: "CANCELLED"})
    assert read_chunk(chunk.path) == closed
    assert list(read_chunks(tmp_path)) == [closed]
    assert list(read_chunks(tmp_path, open_only=True)) == []


def test_chunks_are_those_of_all_sweeps_oldest_first_or_of_one(tmp_path):
    names = ("20260102-000000-aaaa", "20260101-000000-bbbb")
    made = [chunk_of(tmp_path, [make_job(tmp_path)], name=name, number=n) for name in names for n in (1, 0)]
    assert [chunk.path for chunk in read_chunks(tmp_path)] == sorted(chunk.path for chunk in made)
    assert chunk_paths(tmp_path, sweep=names[1]) == [made[3].path, made[2].path]


def test_chunks_beyond_a_thousand_are_read_in_their_order(tmp_path):
    made = [chunk_of(tmp_path, [make_job(tmp_path, seed=n)], number=n).answered("7") for n in (1000, 999, 10_000)]
    made[0].close("done")
    assert [chunk.runs for chunk in read_chunks(tmp_path)] == [made[n].runs for n in (1, 0, 2)]


def test_a_job_of_the_queue_is_ours_by_its_name(tmp_path):
    chunk = chunk_of(tmp_path, [make_job(tmp_path)])
    ours, theirs = (Task(job="7_0", state="RUNNING", name=name) for name in (chunk.name, "another"))
    assert chunk.found_in({"7_0": theirs}).job == ""
    assert chunk.found_in({"7_0": ours}).job == "7"
    assert replace(chunk, job="5").found_in({"7_0": ours}).job == "5"
    known = replace(chunk, job="7")
    assert known.on_cluster({"7_0": ours}, 0) == ours
    assert known.on_cluster({"7_0": theirs}, 0) is None
    assert known.on_cluster({}, 0) is None


def test_a_number_that_no_job_of_the_chunk_has_is_refused(tmp_path):
    chunk = chunk_of(tmp_path, [make_job(tmp_path)])
    with pytest.raises(UsageError, match="has 1 jobs and none with the number 1"):
        chunk.read_job(1)


def test_what_is_damaged_is_left_out_by_name_or_refused(tmp_path):
    good, bad = (chunk_of(tmp_path, [make_job(tmp_path)], name=f"20260101-000000-{name}") for name in ("aaaa", "bbbb"))
    for path in (bad.path, bad.path.with_name("sweep.json")):
        path.write_text("{")
    problems: Problems = {}
    assert list(read_chunks(tmp_path, problems=problems)) == [good]
    assert [sweep.id for sweep in read_sweeps(tmp_path, problems)] == [good.sweep]
    assert set(problems) == {bad.path, bad.path.with_name("sweep.json")}
    with pytest.raises(UsageError, match=r"chunk\.000\.json cannot be read"):
        list(read_chunks(tmp_path))
    with pytest.raises(UsageError, match=r"sweep\.json cannot be read"):
        read_sweeps(tmp_path)
    with pytest.raises(UsageError, match=r"sweep\.json cannot be read \(No such file or directory\)"):
        read_sweep(tmp_path / "nowhere")


def test_files_have_a_bound_and_no_more_is_read(tmp_path):
    chunk = chunk_of(tmp_path, [make_job(tmp_path)])
    with chunk.path.with_name("chunk.000.jobs.jsonl").open("w") as file:
        file.truncate(512 * MIB + 1)
    with pytest.raises(UsageError, match="larger than 512 MiB"):
        chunk.jobs()
    with chunk.path.open("a") as file:
        file.truncate(32 * MIB + 1)
    with pytest.raises(UsageError, match="larger than 32 MiB"):
        read_chunk(chunk.path)


def test_numbers_out_of_all_range_and_control_characters_reach_nobody(tmp_path):
    path = tmp_path / "holder.json"
    whole = {"host": "a\u001b[2Jb", "boot": "", "namespace": "", "pid": 10**12 - 1, "ticks": 0}
    path.write_text(json.dumps(whole))
    assert read_as(path, Holder).host == r"a\x1b[2Jb"
    path.write_text(json.dumps({**whole, "host": "a\x7fb"}))  # JSON leaves this one as it is
    assert read_as(path, Holder).host == r"a\x7fb"
    for number in (10**12, -(10**12)):
        path.write_text(json.dumps({**whole, "pid": number}))
        with pytest.raises(ValueError, match="a number in it is out of all range"):
            read_as(path, Holder)
    path.write_text(json.dumps({**whole, "pid": "7"}))
    with pytest.raises(ValueError, match="pid: must be a valid integer"):
        read_as(path, Holder)


def test_a_run_is_settled_by_a_success_or_by_another_failure_than_the_one_replaced(tmp_path):
    run = make_job(tmp_path).run
    assert settled(tmp_path, run.key, replaces="") is None
    failure = Record(run=run, key=run.key, code="OOM", finished="2026-01-01T00:00:00Z", attempts=1)
    RecordStore(tmp_path).write(failure)
    assert settled(tmp_path, run.key, replaces=ending_fingerprint(failure)) is None
    assert settled(tmp_path, run.key, replaces="another") == failure
    prints = {
        ending_fingerprint(replace(failure, **change))
        for change in ({}, {"code": "ERROR"}, {"attempts": 2}, {"finished": "x"})
    }
    assert len(prints) == 4
    success = replace(failure, code="OK")
    RecordStore(tmp_path).write(success)
    assert settled(tmp_path, run.key, replaces=ending_fingerprint(success)) == success


def test_a_run_at_its_bound_that_is_submitted_again_may_start_as_often_again(tmp_path):
    folder = state_folder(tmp_path, "spent")
    for _ in range(3):
        Lease.acquire(folder, holder=Holder.here()).release("killed")
    limits = attempt_limits(tmp_path, ["spent", "new"], allowed=3)
    assert limits == {"spent": AttemptLimits(before=3, limit=6), "new": AttemptLimits(before=0, limit=3)}
    assert Lease.acquire(folder, holder=Holder.here(), limit=limits["spent"].limit).attempt.number == 4


def test_a_chunk_that_names_anothers_job_is_not_read(tmp_path):
    """Its name and job edited to those of another array had --cancel end that."""
    chunk = chunk_of(tmp_path, [make_job(tmp_path)]).answered("7")
    content = chunk.path.read_text()
    assert read_chunk(chunk.path).name == chunk.name
    chunk.path.write_text(content.replace(chunk.name, "interactive"))
    with pytest.raises(UsageError, match="names another job"):
        read_chunk(chunk.path)
