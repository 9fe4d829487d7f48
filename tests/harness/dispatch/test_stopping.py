"""A request to stop is heard whenever it comes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import types
from pathlib import Path

from harness.dispatch.attempts import Holder, attempts, state_folder
from harness.dispatch.supervise import Start, StopSignals, supervise
from harness.training.outcome import Interrupted
from tests.harness.dispatch.helpers import make_job


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
