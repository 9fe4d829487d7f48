"""Runs on this machine, with the stand-in experiment: shared queue, crashes, Ctrl-C, a dead parent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from harness.dispatch import run_jobs as module
from harness.dispatch.attempts import Holder, Lease, _ticks, attempts, state_folder
from harness.dispatch.run_jobs import LocalExecutor, make_executor
from harness.dispatch.target import target_of
from harness.system.errors import UsageError
from harness.system.machine import visible_gpus
from tests.harness.dispatch.helpers import STANDIN, make_job, record_of, starts, use_standin
from tests.signals import as_in_a_terminal
from tests.values import REPOSITORY, on_linux, wait_until

BACKGROUND = """
import sys
from pathlib import Path
from harness.dispatch import sweeps
from harness.dispatch.target import target_of
from harness.dispatch.run_jobs import run_jobs
from tests.harness.dispatch.helpers import with_standin
from tests.harness.dispatch.test_executors import Plan
from tests.harness.dispatch.test_local import held_jobs
sweeps.contents_of_command = with_standin(sweeps.contents_of_command)
results = Path(sys.argv[1])
print("begun", flush=True)
run_jobs(Plan(jobs=tuple(held_jobs(results))), target_of("local", workers=2), results=results)
"""


@pytest.fixture
def standin(monkeypatch):
    use_standin(monkeypatch)


def run_all(results, jobs, *, workers=2):
    executor = make_executor(target_of("local", workers=workers), results=results)
    executor.submit(jobs)
    return executor.wait(on_change=lambda runs: None)


def held_jobs(results):
    """Two runs that do not end before they are let go (`let_go`), however late on a busy machine the other begins."""
    rules: dict[str, Any] = {"steps": 30, "step_s": 0.02, "save_every": 10, "until": str(results / "go")}
    return [make_job(results, seed=seed, **rules) for seed in range(2)]


def let_go(results):
    (results / "go").touch()


def in_background(results):
    process = subprocess.Popen(
        [sys.executable, "-c", BACKGROUND, str(results)], cwd=REPOSITORY, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=as_in_a_terminal,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    keys = [job.run.key for job in held_jobs(results)]
    wait_until(lambda: all(step(results, key) >= 10 for key in keys))
    return process, keys


def step(results, key):
    try:
        return json.loads((state_folder(results, key) / "count.json").read_text())["step"]
    except (OSError, ValueError):
        return 0


def test_workers_share_the_queue_and_every_run_is_trained_once(tmp_path, standin):
    jobs = [make_job(tmp_path, seed=seed, step_s=0.02) for seed in range(8)]
    states = run_all(tmp_path, jobs, workers=3)
    assert {state.state for state in states.values()} == {"OK"}
    assert [len(starts(tmp_path, job.run.key)) for job in jobs] == [1] * 8
    assert len({attempts(state_folder(tmp_path, job.run.key))[0].holder.pid for job in jobs}) > 1
    record = record_of(tmp_path, jobs[0].run.key)
    assert record.attempts == 1
    (frozen,) = tmp_path.glob(f"sweeps/*/code/{record.environment['snapshot']}*")
    assert (frozen / "harness" / "experiment" / "experiment.py").read_bytes() == STANDIN.read_bytes()
    assert "start at step 0" in states[jobs[0].run.key].log.read_text()


def test_a_results_folder_may_have_any_name_and_the_path_none(tmp_path, standin, monkeypatch):
    monkeypatch.setenv("PATH", "")
    results = tmp_path / "50%train %j_%A tab\there right\u202eleft"
    states = run_all(results, [make_job(results)], workers=1)
    assert {state.state for state in states.values()} == {"OK"}


@pytest.mark.parametrize("other", ["file", "attempt.1000000.json"])
def test_what_prevents_a_workers_first_attempt_is_reported(tmp_path, standin, other):
    job = make_job(tmp_path)
    folder = state_folder(tmp_path, job.run.key)
    folder.parent.mkdir()
    if other == "file":
        folder.write_text("")
    else:
        Lease.acquire(folder, holder=Holder.here()).release("finished")
        for end in ("json", "end.json"):
            (folder / f"attempt.1.{end}").rename(folder / f"attempt.999999.{end}")
        (folder / other).write_text("{}")
    with pytest.raises(UsageError, match=f"1 run could not finish: .*{job.run.key}"):
        run_all(tmp_path, [job])


def test_a_worker_that_does_not_stop_in_time_is_killed_and_leaves_nothing(tmp_path, standin, monkeypatch):
    monkeypatch.setattr(module, "STOP_PATIENCE_S", 0.0)
    executor = make_executor(target_of("local", workers=1), results=tmp_path)
    assert isinstance(executor, LocalExecutor)
    job = make_job(tmp_path, steps=1000, step_s=0.1)
    executor.submit([job])
    wait_until(lambda: step(tmp_path, job.run.key) >= 1)
    (attempt,) = attempts(state_folder(tmp_path, job.run.key))
    os.kill(attempt.holder.pid, signal.SIGSTOP)
    executor.stop()
    wait_until(lambda: not attempt.live())
    reached = step(tmp_path, job.run.key)
    time.sleep(0.5)
    assert step(tmp_path, job.run.key) == reached


def test_a_killed_worker_process_loses_no_run(tmp_path, standin):
    jobs = held_jobs(tmp_path)
    executor = make_executor(target_of("local", workers=2), results=tmp_path)
    executor.submit(jobs)
    folder = state_folder(tmp_path, jobs[0].run.key)
    wait_until(lambda: step(tmp_path, jobs[0].run.key) >= 10)
    child = int((folder / "starts.log").read_text().split()[1])
    os.kill(attempts(folder)[0].holder.pid, signal.SIGKILL)
    wait_until(lambda: not _ticks(child), "the run's own process to die with its worker")
    let_go(tmp_path)
    states = executor.wait(on_change=lambda runs: None)
    assert {state.state for state in states.values()} == {"OK"}
    assert attempts(folder)[0].end == "lost"
    assert starts(tmp_path, jobs[0].run.key)[1] >= 10


def test_a_worker_that_fails_with_a_run_at_work_is_reported(tmp_path, standin):
    (job, *_) = held_jobs(tmp_path)
    executor = make_executor(target_of("local", workers=1), results=tmp_path)
    executor.submit([job])
    wait_until(lambda: step(tmp_path, job.run.key) >= 1)
    os.kill(attempts(state_folder(tmp_path, job.run.key))[0].holder.pid, signal.SIGKILL)
    with pytest.raises(UsageError, match=r"1 run could not finish: .* -9"):
        executor.wait(on_change=lambda runs: None)


def test_ctrl_c_leaves_checkpoints_and_the_same_command_continues(tmp_path, standin):
    process, keys = in_background(tmp_path)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert "repeat the command to continue" in error
    assert "2 runs left: lora on kvasir, seed 0; lora on kvasir, seed 1" in error.splitlines()[-1]
    for key in keys:
        (attempt,) = attempts(state_folder(tmp_path, key))
        assert (attempt.end, attempt.live()) == ("interrupted", False)
    reached = [step(tmp_path, key) for key in keys]
    let_go(tmp_path)
    assert {state.state for state in run_all(tmp_path, held_jobs(tmp_path)).values()} == {"OK"}
    assert [starts(tmp_path, key)[1] for key in keys] == reached


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGKILL])
def test_workers_end_with_a_terminal_that_closes_and_with_a_command_that_is_killed(tmp_path, standin, number):
    process, keys = in_background(tmp_path)
    process.kill() if number == signal.SIGKILL else os.killpg(process.pid, number)
    process.communicate(timeout=120)
    wait_until(lambda: all(attempts(state_folder(tmp_path, key))[-1].end == "interrupted" for key in keys))


@pytest.mark.parametrize(
    ("given", "devices"),
    [
        ("0,1", ["0", "1"]),
        ("MIG-1b2c, GPU-8932f937", ["MIG-1b2c", "GPU-8932f937"]),
        ("MIG-GPU-8932f937/1/0", ["MIG-GPU-8932f937/1/0"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("2,-1,3", ["2"]),
    ],
)
def test_gpus_are_what_the_variable_names(monkeypatch, given, devices):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert visible_gpus() == devices


@pytest.mark.slow
@on_linux
def test_every_worker_gets_its_own_gpu_by_the_name_that_was_given(tmp_path, standin, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1b2c,GPU-8932f937")
    executor = make_executor(target_of("local"), results=tmp_path)
    assert isinstance(executor, LocalExecutor)
    assert executor.target.workers == 2
    assert "GPU MIG-1b2c, GPU-8932f937" in executor.target.in_words
    jobs = held_jobs(tmp_path)
    executor.submit(jobs)
    folders = [state_folder(tmp_path, job.run.key) for job in jobs]
    wait_until(lambda: all(attempts(folder) for folder in folders))
    environments = [
        Path(f"/proc/{attempts(folder)[0].holder.pid}/environ").read_text().split("\0") for folder in folders
    ]
    let_go(tmp_path)
    threads = {word for words in environments for word in words if word.startswith("OMP_NUM_THREADS=")}
    assert threads == {f"OMP_NUM_THREADS={executor.target.threads}"}
    seen = {word for words in environments for word in words if word.startswith("CUDA_VISIBLE_DEVICES=")}
    assert seen == {"CUDA_VISIBLE_DEVICES=MIG-1b2c", "CUDA_VISIBLE_DEVICES=GPU-8932f937"}
    assert {state.state for state in executor.wait(on_change=lambda runs: None).values()} == {"OK"}


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, standin):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UsageError, match="file cannot be written: Not a directory"):
        make_executor(target_of("local"), results=blocked).submit([make_job(blocked)])
