"""What a large archive costs: ``status``, ``tables`` and a plan over many generated records, in processor time.

``python -m benchmarks.archive [--records 25000] [--json FILE]`` writes an archive into a temporary folder, measures
fresh processes (user and system time of each, and its peak memory), and removes the archive. The records are the
committed ones under other seeds, each with its file of per-image scores, in sweeps of 1,000 runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks.child import used
from benchmarks.saving import add_json, save
from harness.archive.files import digest, sealed
from harness.archive.schema import Run
from harness.dispatch.attempts import Holder
from harness.dispatch.sweeps import PlannedRun, Sweep, create_sweep, named
from harness.planning.data import sample_writer
from harness.registry import SEGMENTED

COMMITTED = Path(__file__).parents[1] / "results" / "records"
IMAGES = b"variant,split,stem,iou\nbest,test,a,0.5\n"
CHUNK = 1000
ROUNDS = 3
"""Of commands that change nothing; the median counts."""
PLAN = ["--protocol", "demo", "--methods", "all", "--datasets", "all", "--no-cache", "--plan"]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=25_000)
    parser.add_argument("--planned", type=int, default=22_400, help="runs of the plan")
    add_json(parser)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="archive-") as folder:
        rows = measured(Path(folder) / "results", records=options.records, planned=options.planned)
    shown = [{name: value for name, value in row.items() if name != "rounds (s)"} for row in rows]
    print(tabulate(shown, headers="keys", tablefmt="github", floatfmt=".2f"))
    save(options.json, options=options, measured={"rows": rows})
    return 0


def measured(root: Path, *, records: int, planned: int) -> list[dict[str, Any]]:
    """One row a command: what was done before it, seconds of processor time, peak memory."""
    write_archive(root, count=records)
    status, tables = (
        ["-m", "harness", "status", "--results", str(root)],
        ["-m", "harness", "tables", "--results", str(root)],
    )
    plain = {"SAM_PEFT_RECORD_CACHE": "off"}
    rows = [
        used("status, without a cache", status, environment=plain),
        used("status, which reads every record", status),
        used("status, nothing touched", status, rounds=ROUNDS),
        used("tables, built for the first time", tables),
        used("tables, nothing touched", tables, rounds=ROUNDS),
    ]
    write_archive(root, count=1, first=records)
    rows += [used("status, one new record", status), used("tables, one new record", tables)]
    for name in SEGMENTED:  # a plan writes none
        sample_writer(root.parent / "plan")(name)
    from harness.registry import METHODS

    seeds = -(-planned // (len(METHODS.names()) * len(SEGMENTED)))
    count = seeds * len(METHODS.names()) * len(SEGMENTED)
    plan = ["-m", "harness.run", *PLAN, "--seeds", str(seeds), "--results", str(root.parent / "plan")]
    rows.append(used(f"plan of {count} runs", plan, rounds=ROUNDS))
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
    templates = [template for template in templates if template["code"] == "OK"]
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
    asked = [dataclasses.asdict(PlannedRun(**named(run), limit=10)) for run in runs]
    content = {"name": f"harness-{sweep.id}-000", "created": 0.0, "shape": {}, "runs": asked}
    (folder / "chunk.000.json").write_text(json.dumps(content), encoding="utf-8")
    (folder / "chunk.000.closed.json").write_text(json.dumps({"reason": "done", "at": 0.0}), encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
