"""``python -m harness.status``: show where every run of a results folder is; reads files and asks the cluster's queue."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from harness.cli import verb
from harness.command_line import CommandParser, command, require_effect
from harness.dispatch.display import clock, eta
from harness.dispatch.queue import Task
from harness.dispatch.run_states import (
    CANCELLED,
    FINISHED,
    INTERRUPTED,
    LOST,
    QUEUED,
    RUNNING,
    WAITING,
    RunState,
    Survey,
    survey,
)
from harness.dispatch.slurm.client import Slurm
from harness.dispatch.sweeps import read_chunks
from harness.errors import UsageError
from harness.settings.options import add_results, results_of
from harness.streams import say_skipped
from harness.text import printable, printable_line

WATCH_SECONDS = 5.0
SHORT = {RUNNING: "run", QUEUED: "queue", WAITING: "wait", INTERRUPTED: "stop", CANCELLED: "cancel", LOST: "lost"}


def parser() -> CommandParser:
    p = command("status", __doc__)
    add_results(p)
    p.add_argument("--sweep", metavar="ID", help="only the runs of this sweep ('last' for the newest)")
    p.add_argument("--failed", action="store_true", help="list runs that failed or were interrupted, and why")
    p.add_argument(
        "--logs", metavar="KEY", help="print the log of a run's last start; the beginning of a key is enough"
    )
    p.add_argument(
        "--watch", action="store_true", help=f"show again every {WATCH_SECONDS:.0f} seconds until nothing is to come"
    )
    p.add_argument("--json", action="store_true", help="one JSON object a run")
    return p


@verb
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if arguments.watch:
        require_effect(arguments, "json", "logs", without="with --watch, which shows the overview again and again")
    if arguments.json or arguments.logs:
        other = "--json" if arguments.json else "--logs"
        require_effect(arguments, *{"failed", "logs"} - {other[2:]}, without=f"with {other}")
    results = results_of(arguments).absolute()
    if not results.is_dir():
        raise UsageError(f"results folder {results} does not exist; give the one of your runs with --results DIR")
    while True:
        seen = look(results, sweep=arguments.sweep)
        if arguments.logs:
            print_log(seen, arguments.logs)
            return 0
        if arguments.json or arguments.failed:
            say_skipped(seen.problems)
        if arguments.json:
            print(json.dumps([as_data(run) for run in seen.runs.values()], indent=1))
            return 0
        text = failures(seen) if arguments.failed else overview(seen)
        if arguments.watch and sys.stdout.isatty():
            print("\033[H\033[2J", end="")
        print(printable(text), flush=True)
        if not arguments.watch or not any(run.unsettled for run in seen.runs.values()):
            return 0
        time.sleep(WATCH_SECONDS)


def look(results: Path, *, sweep: str | None = None) -> Survey:
    """Survey the folder; the cluster is asked only where something was submitted to one and may still run.

    Raises:
        UsageError: no such sweep.
    """
    tasks: Mapping[str, Task] | None = None
    note = cluster = ""
    open_chunks = list(read_chunks(results, open_only=True, problems={}))
    if any(chunk.job for chunk in open_chunks):
        if shutil.which("squeue") is None:
            note = "squeue is not on this machine's PATH: states of queued runs are as last seen on disk"
        else:
            try:
                slurm = Slurm(patience_s=0.0, say=lambda line: None)
                cluster = slurm.cluster()
                tasks = slurm.tasks(chunk.name for chunk in open_chunks)
            except UsageError as error:
                note = f"{error}; states of queued runs are as last seen on disk"
    seen = survey(results, tasks=tasks, cluster=cluster, note=note)
    if sweep is None:
        return seen
    known = list(seen.sweeps)
    if sweep == "last" and known:
        sweep = known[-1]
    if sweep not in known:
        raise UsageError(f"no sweep {sweep!r} below {results}; there are: {', '.join(known[-5:]) or 'none'}")
    keys = {run.key for chunk in read_chunks(results, sweep=sweep, problems={}) for run in chunk.runs}
    return Survey(
        runs={key: run for key, run in seen.runs.items() if key in keys},
        sweeps={sweep: seen.sweeps[sweep]},
        problems=seen.problems,
        note=seen.note,
    )


def overview(seen: Survey) -> str:
    """Method × benchmark: seeds done of seeds asked for, and what the others are at."""
    runs = list(seen.runs.values())
    if not runs:
        return "no runs yet; start with python -m harness.run --protocol demo --methods lora,naslora --datasets all"
    lines = []
    for protocol, backbone in dict.fromkeys((run.protocol, run.backbone) for run in runs):
        group = [run for run in runs if (run.protocol, run.backbone) == (protocol, backbone)]
        lines += [f"{protocol}, {backbone}", *_table(group), ""]
    counts = Counter(run.state for run in runs)
    words = ", ".join(f"{count} {state}" for state, count in counts.most_common())
    left = eta(seen.runs, now=time.time())
    still = any(run.unsettled for run in runs)
    lines.append(f"{len(runs)} runs: {words}" + (f"; {clock(left)} left" if still else ""))
    reasons = Counter(run.message for run in runs if run.state == QUEUED and run.message)
    lines += [f"{count} queued: {reason}" for reason, count in reasons.most_common(3)]
    stopped = sum(run.state in (INTERRUPTED, LOST) for run in runs)
    if stopped:
        lines.append(f"{stopped} interrupted: the command that started them continues them")
    lines += [f"unreadable: {printable_line(str(path))}: {reason}" for path, reason in seen.problems.items()]
    if seen.note:
        lines.append(f"note: {seen.note}")
    return "\n".join(lines)


def _table(runs: Sequence[RunState]) -> list[str]:
    methods = list(dict.fromkeys(run.variant for run in runs))
    benchmarks = list(dict.fromkeys(run.benchmark for run in runs))
    cells: dict[tuple[str, str], list[RunState]] = {}
    for run in runs:
        cells.setdefault((run.variant, run.benchmark), []).append(run)
    rows = [["", *benchmarks]]
    rows += [[method, *(_cell(cells.get((method, benchmark), [])) for benchmark in benchmarks)] for method in methods]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _cell(runs: Sequence[RunState]) -> str:
    """``2/3 run 40%``: two of three seeds done, one at 40 %."""
    if not runs:
        return "-"
    done = sum(run.state == FINISHED for run in runs)
    others = Counter(SHORT.get(run.state, run.state) for run in runs if run.state != FINISHED)
    words = [f"{word}×{count}" if count > 1 else word for word, count in others.items()]
    running = [run.done for run in runs if run.state == RUNNING]
    if running:
        words[[word.split("×")[0] for word in words].index("run")] += f" {100 * sum(running) / len(running):.0f}%"
    return " ".join([f"{done}/{len(runs)}", *words])


def failures(seen: Survey) -> str:
    """One line a run that is neither finished nor on its way."""
    wrong = [run for run in seen.runs.values() if run.state != FINISHED and not run.unsettled]
    if not wrong:
        return "no failed run"
    return "\n".join(
        f"{run.key}  {run.state:11} {run.variant} on {run.benchmark}, seed {run.seed}"
        f" (started {run.attempts} times): {run.message or 'no message'}"
        for run in wrong
    )


def print_log(seen: Survey, key: str) -> None:
    """Print a run's log.

    Raises:
        UsageError: no run, or several, begin with ``key``; or it has no log.
    """
    found = [run for run in seen.runs.values() if run.key.startswith(key)]
    if len(found) != 1:
        some = ", ".join(run.key for run in found[:3])
        raise UsageError(
            f"{len(found)} runs begin with {key!r}" + (f" ({some} …)" if found else "; see --json for keys")
        )
    run = found[0]
    print(printable(f"{run.key} {run.variant} on {run.benchmark}, seed {run.seed}: {run.state} {run.message}".rstrip()))
    if run.log is None or not run.log.is_file():
        raise UsageError(f"run {run.key} has no log yet" + (f"; its job is {run.task}" if run.task else ""))
    with run.log.open(encoding="utf-8", errors="replace") as lines:
        sys.stdout.writelines(map(printable, lines))


def as_data(run: RunState) -> dict[str, object]:
    return {**asdict(run), "log": str(run.log) if run.log else None}


if __name__ == "__main__":
    raise SystemExit(main())
