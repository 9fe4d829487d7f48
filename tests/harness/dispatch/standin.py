"""A stand-in for `harness.experiment.experiment`: a run of seconds that counts, checkpoints, stops on request, or fails by its rules.

Its rules: ``steps`` of ``step_s`` seconds; a checkpoint each ``save_every`` steps; ``until``: a file that it waits for at step 20.
``failure`` is what happens at step ``fail_at``, once, or each time if ``always``.
"""

from __future__ import annotations

import json
import os
import stat
import time
from pathlib import Path
from typing import Any

from harness.archive.schema import Code, Record
from harness.archive.store import RecordStore
from harness.dispatch.attempts import state_folder
from harness.system.files import write_atomically
from harness.training.outcome import Interrupted


def run_experiment(job, *, progress=None, stop=None, complete=lambda record: record):
    rules: dict[str, Any] = {"steps": 5, "step_s": 0.0, "save_every": 1, "failure": "", "fail_at": 2}
    rules |= {"always": False, "until": "", **job.run.rules}
    results = Path(job.results)
    folder = state_folder(results, job.run.key)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "count.json"
    state = json.loads(checkpoint.read_text()) if checkpoint.exists() else {"step": 0, "value": float(job.run.seed)}
    mode = f"{stat.S_IMODE(os.stat(Path(__file__).parents[2]).st_mode):o}"
    print(
        f"start at step {state['step']} in process {os.getpid()} with the code in {__file__} (mode {mode})", flush=True
    )
    with (folder / "starts.log").open("a") as log:
        log.write(f"{state['step']} {os.getpid()}\n")
    while state["step"] < rules["steps"]:
        if stop is not None and stop.requested:
            write_atomically(checkpoint, json.dumps(state))
            raise Interrupted(f"stopped at step {state['step']}")
        time.sleep(rules["step_s"])
        if rules["until"] and state["step"] == 20 and not Path(rules["until"]).exists():
            continue
        state = {"step": state["step"] + 1, "value": (state["value"] * 1.000001 + 0.1) % 1.0}
        first = not (folder / "failed").exists()
        if rules["failure"] and state["step"] == rules["fail_at"] and (first or rules["always"]):
            (folder / "failed").touch()
            _fail(rules["failure"])
        if state["step"] % rules["save_every"] == 0:
            write_atomically(checkpoint, json.dumps(state))
        if progress is not None:
            position = {"epoch": 1, "epochs": 1, "step": state["step"], "steps": rules["steps"]}
            progress({"stage": "training", **position, "loss": 0.0})
    with (folder / "finishes.log").open("a") as log:
        log.write("finished\n")
    code: Code = "OOM" if rules["failure"] == "torch-oom" else "OK"
    scores = {"best": {"test": {"iou": state["value"]}}} if code == "OK" else {}
    record = complete(Record(run=job.run, key=job.run.key, code=code, scores=scores, cost={"wall_time_s": 1.0}))
    RecordStore(results).write(record)
    return record


def _fail(kind: str) -> None:
    if kind == "raise":
        raise RuntimeError("a bug in the experiment")
    if kind == "memory":
        hog = []
        while True:
            hog.append(bytearray(os.urandom(1 << 20) * 50))
            time.sleep(0.2)
