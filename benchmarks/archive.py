"""What a large archive costs: ``status``, ``tables`` and a plan over many generated records, in processor time.

``python -m benchmarks.archive [--records 100000] [--json FILE]`` writes an archive into a temporary folder, measures
fresh processes (user and system time of each, and its peak memory), and removes the archive. The records are the
committed ones under other seeds, each with its file of per-image scores, in sweeps of 1,000 runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tabulate import tabulate

from datasets import BUILTIN
from harness.dispatch.attempts import Holder
from harness.dispatch.sweeps import PlannedRun, Sweep, create_sweep
from harness.machine import processor
from harness.planning.samples import sample_writer
from harness.records.files import digest
from harness.records.schema import Run
from harness.records.seal import sealed

COMMITTED = Path(__file__).parents[1] / "results" / "records"
IMAGES = b"variant,split,stem,iou\nbest,test,a,0.5\n"
CHUNK = 1000
PLAN = ["--protocol", "demo", "--methods", "all", "--datasets", "all", "--no-cache", "--plan"]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--planned", type=int, default=22_400, help="runs of the plan")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="archive-") as folder:
        rows = measured(Path(folder) / "results", records=options.records, planned=options.planned)
    print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".2f"))
    if options.json:
        content = {"records": options.records, "machine": processor(), "rows": rows}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


def measured(root: Path, *, records: int, planned: int) -> list[dict[str, Any]]:
    """One row a command: what was done before it, seconds of processor time, peak memory."""
    write_archive(root, count=records)
    status, tables = ["-m", "harness.status", "--results", str(root)], ["-m", "harness.tables", "--results", str(root)]
    plain = {"SAM_PEFT_INDEX": "off"}
    rows = [
        _run("status, without an index", status, plain),
        _run("status, which builds the index", status),
        _run("status, nothing touched", status),
        _run("tables, built for the first time", tables),
        _run("tables, nothing touched", tables),
    ]
    write_archive(root, count=1, first=records)
    rows += [_run("status, one new record", status), _run("tables, one new record", tables)]
    for name in BUILTIN:  # a plan writes none
        sample_writer(root.parent / "plan")(name)
    from harness.registry import METHODS

    seeds = -(-planned // (len(METHODS.names()) * len(BUILTIN)))
    count = seeds * len(METHODS.names()) * len(BUILTIN)
    plan = ["-m", "harness.run", *PLAN, "--seeds", str(seeds), "--results", str(root.parent / "plan")]
    rows.append(_run(f"plan of {count} runs", plan))
    return rows


def write_archive(root: Path, *, count: int, first: int = 0) -> None:
    """Records number ``first`` to ``first + count`` and, of whole thousands, their sweeps."""
    folder = root / "records"
    folder.mkdir(parents=True, exist_ok=True)
    runs = []
    for content in _contents(first, count):
        key = content["key"]
        (folder / f"{key}.images.csv").write_bytes(IMAGES)
        (folder / f"{key}.json").write_bytes(sealed(content))
        runs.append(Run(**content["run"]))
        if len(runs) == CHUNK:
            _write_sweep(root, runs, number=(first + len(runs)) // CHUNK)
            runs = []


def _contents(first: int, count: int) -> Iterator[dict[str, Any]]:
    templates = [json.loads(path.read_bytes()) for path in sorted(COMMITTED.glob("*.json"))]
    templates = [one for one in templates if one["code"] == "OK"]
    for content in templates:
        content.pop("seal", None)
        content["beside"] = {"images.csv": digest(IMAGES)}
    for number in range(first, first + count):
        content = templates[number % len(templates)]
        content["run"]["seed"] = 1000 + number
        yield {**content, "key": Run(**content["run"]).key}


def _write_sweep(root: Path, runs: list[Run], *, number: int) -> None:
    gone = dataclasses.replace(Holder.here(), ticks=1)
    sweep = Sweep(
        id=f"20260101-{len(list(root.glob('sweeps/*'))):06d}-abcd",
        executor="local",
        command="run",
        created=0.0,
        submitter=gone,
    )
    folder = create_sweep(root, sweep)
    asked = [dataclasses.asdict(PlannedRun(**_named(run), limit=10)) for run in runs]
    content = {"name": f"harness-{sweep.id}-000", "created": 0.0, "shape": {}, "runs": asked}
    (folder / "chunk.000.json").write_text(json.dumps(content), encoding="utf-8")
    (folder / "chunk.000.closed.json").write_text(json.dumps({"reason": "done", "at": 0.0}), encoding="utf-8")


def _named(run: Run) -> dict[str, Any]:
    names = ("key", "method", "variant", "benchmark", "backbone", "protocol", "seed")
    return {name: getattr(run, name) for name in names}


def _run(what: str, command: list[str], environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    child = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.DEVNULL, env={**os.environ, **(environment or {})}
    )
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{what}: exit code {child.returncode}")
    return {"what": what, "processor time (s)": _seconds(used), "peak memory (MiB)": round(used.ru_maxrss / 1024)}


def _seconds(used: resource.struct_rusage) -> float:
    return round(used.ru_utime + used.ru_stime, 2)


if __name__ == "__main__":
    raise SystemExit(main())
