"""A request to stop is heard whenever it comes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import types
from pathlib import Path

import pytest

from harness.dispatch.attempts import Holder, attempts, state_folder
from harness.dispatch.run_jobs import LocalExecutor, make_executor
from harness.dispatch.supervise import Start, StopSignals, supervise
from harness.dispatch.target import target
from harness.training.outcome import Interrupted
from tests.harness.dispatch.helpers import make_job, use_standin


def stopped_while_importing(results: Path) -> None:
    """Supervise a run that is asked to stop before its experiment is imported."""
    stop = StopSignals()
    stop.install()

    class Experiment(types.ModuleType):
        def __getattr__(self, name: str):
            if name != "run_experiment":  # the import machinery's own questions
                raise AttributeError(name)
            os.kill(os.getppid(), signal.SIGTERM)
            while not stop:  # the supervisor passes it on
                time.sleep(0.01)
            return until_stopped

    def until_stopped(job, *, progress, stop, complete):
        while not stop.requested:
            time.sleep(0.01)
        raise Interrupted("stopped")

    sys.modules["harness.experiment.experiment"] = Experiment("harness.experiment.experiment")
    start = Start(job=make_job(results), holder=Holder.here(), limit=1, patience_s=10)
    assert supervise(start, stop=stop) == "interrupted"


def test_a_run_that_is_asked_to_stop_before_it_is_imported_stops(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=stopped_while_importing, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 0
    (start,) = attempts(state_folder(tmp_path, make_job(tmp_path).run.key))
    assert (start.end, start.detail) == ("interrupted", "requested to stop")


@pytest.mark.parametrize("threads", [0, 1])
def test_ctrl_c_while_workers_are_started_is_not_lost(tmp_path, monkeypatch, threads: int) -> None:
    use_standin(monkeypatch)
    begun = []

    worker = types.SimpleNamespace(pid=7)

    def begin(*arguments: object) -> types.SimpleNamespace:
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(10):  # a thread whose mask lets it through has it by now
            time.sleep(0.01)
        assert signal.SIGINT in signal.pthread_sigmask(
            signal.SIG_BLOCK, ()
        )  # nor does the worker get it: this is inherited
        begun.append(True)
        return worker

    monkeypatch.setattr(LocalExecutor, "_start", begin)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores it
    executor, over = make_executor(target("local", workers=2), results=tmp_path), threading.Event()
    others = [threading.Thread(target=over.wait) for _ in range(threads)]
    assert isinstance(executor, LocalExecutor)
    for other in others:
        other.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            executor.submit([make_job(tmp_path)])
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
        over.set()
        for other in others:
            other.join()
    assert begun == [True]
    assert executor._processes == [worker]  # known, so that it can be stopped
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
