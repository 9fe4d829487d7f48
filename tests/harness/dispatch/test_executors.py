"""Executors as a command line requests them: contradictions, retries, the debugging executor, the display."""

from __future__ import annotations

import io
import os
import re
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any, get_args

import pytest

from harness.archive.schema import Code, Record
from harness.archive.store import RecordStore
from harness.dispatch.attempts import Holder, Lease, attempts, state_folder
from harness.dispatch.run_jobs import RETRY_CLASSES, display, make_executor, run_jobs, to_start
from harness.dispatch.run_states import RunState
from harness.dispatch.slurm import SlurmExecutor
from harness.dispatch.target import target_of
from harness.planning.request import Job
from harness.system.errors import UsageError
from tests.harness.dispatch import standin
from tests.harness.dispatch.helpers import make_job, starts


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class Plan:
    jobs: tuple
    finished: frozenset = frozenset()
    failed: dict = field(default_factory=dict)
    grid: str = ""

    @property
    def pending(self) -> tuple:
        return tuple(job for job in self.jobs if job.run.key not in self.finished)


@pytest.fixture
def inline(monkeypatch):
    """The stand-in in this process."""
    monkeypatch.setitem(sys.modules, "harness.experiment.experiment", standin)


def run(plan, results, *, executor="inline", workers=None, cluster=None, cluster_overrides=None, **options):
    where = target_of(executor, workers=workers, cluster=cluster, cluster_overrides=cluster_overrides)
    return run_jobs(plan, where, results=results, **options)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cluster": "gpu", "executor": "local"}, "--cluster gpu and --executor local contradict each other"),
        ({"cluster_overrides": {"time": "1h"}}, "--set cluster.time needs --cluster NAME"),
        ({"workers": 2}, "--workers is for worker processes here"),
        ({"cancel": True}, "--cancel needs --cluster NAME"),
        ({"retry": "oon"}, "unknown class 'oon' (did you mean 'oom'?)"),
        ({"executor": "local", "workers": 0}, "--workers 0 must be at least 1"),
    ],
)
def test_contradictions_are_one_line(tmp_path, changes, said):
    with pytest.raises(UsageError) as caught:
        run(Plan(jobs=(make_job(tmp_path),)), tmp_path, **changes)
    assert said in str(caught.value)


def test_failed_runs_are_restarted_by_class(tmp_path, inline):
    codes: dict[Code, str] = {"OOM": "", "TIMEOUT": "", "ERROR": "a bug"}
    jobs: dict[str, Job] = {code: make_job(tmp_path, seed=seed) for seed, code in enumerate(codes)}
    for code, message in codes.items():
        RecordStore(tmp_path).write(Record(run=jobs[code].run, key=jobs[code].run.key, code=code, message=message))
    failed = {job.run.key: name for name, job in jobs.items()}
    failed_again = run(Plan(jobs=tuple(jobs.values()), failed=failed), tmp_path, retry="oom")
    assert {name for name, job in jobs.items() if starts(tmp_path, job.run.key)} == {"OOM"}
    assert set(failed_again.values()) == {"TIMEOUT", "ERROR"}


def test_a_cluster_restarts_what_failed_only_on_request(tmp_path):
    jobs = tuple(make_job(tmp_path, seed=seed) for seed in range(3))
    done, failed, new = (job.run.key for job in jobs)
    planned: Any = Plan(jobs=jobs, finished=frozenset({done}), failed={failed: "OOM"})
    for where, retry, started in (
        (target_of(cluster="testcluster"), None, [new]),
        (target_of(cluster="testcluster"), "oom", [failed, new]),
        (target_of(cluster="testcluster"), "timeout", [new]),
        (target_of("inline"), None, [failed, new]),  # no queue is involved
    ):
        assert [job.run.key for job in to_start(planned, where, retry=retry)] == started


def test_a_cluster_restarts_no_failed_run_unasked_and_says_so(tmp_path, idle_cluster, capsys):
    idle_cluster("sbatch", "exit 1")
    job = make_job(tmp_path)
    plan = Plan(jobs=(job,), failed={job.run.key: "OOM"})
    assert run(plan, tmp_path, executor=None, cluster="testcluster") == {job.run.key: "OOM"}
    assert "1 run failed before and is not restarted; --retry oom does that" in capsys.readouterr().err


def test_ctrl_c_leaves_the_runs_of_a_cluster_alone(tmp_path, idle_cluster, monkeypatch):
    idle_cluster("sbatch", "echo 1")

    def wait(executor, *, on_change):
        raise KeyboardInterrupt

    monkeypatch.setattr(SlurmExecutor, "wait", wait)
    with pytest.raises(KeyboardInterrupt, match="continue on the cluster"):
        run(Plan(jobs=(make_job(tmp_path),)), tmp_path, executor=None, cluster="testcluster", wait=True)


def test_the_debugging_executor_runs_here_and_lets_exceptions_through(tmp_path, inline):
    good, bad = make_job(tmp_path), make_job(tmp_path, seed=1, failure="raise", always=True)
    assert run(Plan(jobs=(good,)), tmp_path) == {}
    (attempt,) = attempts(state_folder(tmp_path, good.run.key))
    assert (attempt.holder.pid, attempt.end) == (os.getpid(), "finished")
    with pytest.raises(RuntimeError, match="a bug in the experiment"):
        run(Plan(jobs=(bad,)), tmp_path)
    assert attempts(state_folder(tmp_path, bad.run.key))[0].end == "killed"


@pytest.mark.parametrize(("devices", "gpus"), [("0", 1), ("", 0)])
def test_the_debugging_executor_counts_the_hours_of_its_gpu(devices, gpus, tmp_path, inline, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
    job = make_job(tmp_path)
    run(Plan(jobs=(job,)), tmp_path)
    assert [attempt.gpus for attempt in attempts(state_folder(tmp_path, job.run.key))] == [gpus]


def test_ctrl_c_too_late_to_stop_a_run_starts_no_other(tmp_path, inline):
    first, second = (make_job(tmp_path, steps=1, step_s=1.0, seed=seed) for seed in (0, 1))
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt, match="1 run left: "):
        run(Plan(jobs=(first, second)), tmp_path)
    assert attempts(state_folder(tmp_path, first.run.key))[0].end == "finished"
    assert not state_folder(tmp_path, second.run.key).exists()


def test_ctrl_c_in_the_debugging_executor_leaves_a_checkpoint(tmp_path, inline, capsys):
    job = make_job(tmp_path, steps=60, step_s=0.02)

    def interrupt():
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt, match="1 run left: lora on kvasir, seed 0"):
        run(Plan(jobs=(job,)), tmp_path)
    assert "stopping" not in capsys.readouterr().err  # there are no workers
    assert attempts(state_folder(tmp_path, job.run.key))[0].end == "interrupted"
    assert run(Plan(jobs=(job,)), tmp_path) == {}
    assert starts(tmp_path, job.run.key)[1] > 0


def test_the_debugging_executor_leaves_alone_what_another_process_runs_or_finished(tmp_path, inline):
    finished, held = (make_job(tmp_path, seed=seed) for seed in range(2))
    executor = make_executor(target_of("inline"), results=tmp_path)
    executor.submit([finished, held])
    RecordStore(tmp_path).write(Record(run=finished.run, key=finished.run.key, code="OK"))
    Lease.acquire(state_folder(tmp_path, held.run.key), holder=Holder.here())
    states = executor.wait(on_change=lambda runs: None)
    assert [states[job.run.key].state for job in (finished, held)] == ["OK", "running"]
    assert [starts(tmp_path, job.run.key) for job in (finished, held)] == [[], []]


def state(key, word, **changes):
    named = {"method": "lora", "label": "lora", "benchmark": "leaf", "backbone": "b", "protocol": "p", "seed": 0}
    return RunState(key=key, state=word, **{**named, **changes})


def test_away_from_a_terminal_each_ending_is_one_line(capsys):
    with display(total=2) as show:
        show({"a": state("a", "running"), "b": state("b", "queued")})
        show({"a": state("a", "OK", seconds=61.0), "b": state("b", "running")})
        show({"a": state("a", "OK", seconds=61.0), "b": state("b", "OOM", message="killed for memory")})
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["[1/2] lora on leaf, seed 0: OK (1:01)", "[2/2] lora on leaf, seed 0: OOM: killed for memory"]


def test_on_a_terminal_each_run_at_work_has_a_line_that_fits_and_failures_are_red(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    long = {"label": "naslora[rank=3,blocks=last-half,sites=q,v]", "done": 0.5}
    working = state("b", "running", stage="training epoch 3/6, loss 0.412", **long)
    runs = {"a": state("a", "OOM", message="killed"), "b": working, "c": state("c", "running", stage="starting")}
    with display(total=3) as show:
        show(runs)
        drawn = terminal.getvalue()
        show({"a": runs["a"]})
    lines = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line).rstrip() for line in re.split(r"[\r\n]", terminal.getvalue())]
    assert "\x1b[31m[1/3] lora on leaf, seed 0: OOM: killed\x1b[0m" in drawn
    assert max(map(len, lines)) <= 80
    assert any("training epoch 3/6, loss 0.412  naslora" in line and line.endswith("…") for line in lines)
    assert any(line.endswith("starting  lora on leaf, seed 0") for line in lines)
    assert any(line == f"1/3 runs {8 * '━'}{8 * '─'} 2 at work" for line in lines)
    assert "starting" not in terminal.getvalue().removeprefix(drawn), "a run that ended has no line"


def test_every_failure_can_be_retried() -> None:
    """A command that advises --retry with a class must take it."""
    assert {code.lower() for code in get_args(Code)} - {"ok"} <= set(RETRY_CLASSES)
