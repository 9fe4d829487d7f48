"""One real run on generated images, of one worker or of several that share this device: how long its updates wait for images.

``python -m benchmarks.real_run --backbone vit_b --image-size 1024 --precision bf16 [--workers 2]``; what the workers of
several runs lost from epoch to epoch must agree.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.saving import add_json, save
from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.experiment.experiment import run_experiment
from harness.planning.data import sample_writer
from harness.planning.job import Job
from harness.planning.plan import plan
from harness.planning.request import Request, Variant


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", default="lora")
    parser.add_argument("--backbone", default="vit_b")
    parser.add_argument("--image-size", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="bf16")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=24, help="of the training split")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--results", type=Path, help=argparse.SUPPRESS)
    add_json(parser)
    options = parser.parse_args(argv)
    if options.results:  # one of the workers
        return 0 if run_experiment(_job(options)).code == "OK" else 1
    with tempfile.TemporaryDirectory(prefix="real-run-") as folder:
        options.results = Path(folder)
        job = _job(options)
        codes = _finished(argv if argv is not None else sys.argv[1:], options)
        record = RecordStore(options.results).read(job.run.key)
    options.results = None
    if record is None or record.code != "OK":
        print(f"the run failed: {record.message if record else f'its workers ended with {codes}'}", file=sys.stderr)
        return 1
    measured = _measured(record)
    save(options.json, options=options, measured=measured)
    cost = record.cost
    print(f"{cost['steps']:.0f} updates on {record.environment['device']}, workers: {options.workers}")
    print(f"median step {cost['step_time_s']:.3f} s; before it {cost['data_wait_s']:.3f} s waiting for images")
    print("losses by epoch: " + ", ".join(f"{loss:.5f}" for loss in measured["losses"]))
    return 0


def _job(options: argparse.Namespace) -> Job:
    rules = {
        "image_size": options.image_size, "batch_size": options.batch, "precision": options.precision,
        "epochs": options.epochs, "train_limit": options.images, "val_limit": 4, "test_limit": 4, "merge": [],
    }  # fmt: skip
    request = Request(
        entries=(Variant(method=options.method),), benchmarks=("kvasir",), protocol="demo",
        backbones=(options.backbone,), overrides=rules, results=options.results,
    )  # fmt: skip
    (job,) = plan(request, prepare_samples=sample_writer(options.results)).jobs
    return job


def _finished(arguments: list[str], options: argparse.Namespace) -> list[int]:
    """The exit codes of the workers, each a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    count = str(options.workers)
    shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-m", "benchmarks.real_run", *arguments, "--results", str(options.results)]
    workers = [
        subprocess.Popen(command, env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(options.workers)
    ]
    return [worker.wait() for worker in workers]


def _measured(record: Record) -> dict[str, Any]:
    return {
        "device": record.environment["device"],
        "losses": [entry["loss"] for entry in record.history],
        "scores": record.scores["best"]["test"],
        "cost": record.cost,
    }  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
