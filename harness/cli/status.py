"""``sam-peft status``: show the state of every run of a results folder.

It reads files and queries the cluster.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from harness.cli.command import PROGRAM, CommandParser, add_results, add_run, command, results_of, verb
from harness.cli.find import find_key
from harness.dispatch.run_states import (
    FINISHED,
    INTERRUPTED,
    QUEUED,
    RUNNING,
    SUSPENDED,
    WAITING,
    Queue,
    RunState,
    Survey,
    survey,
    time_left,
)
from harness.dispatch.slurm import Slurm
from harness.report.formats import Table, fitted, heads
from harness.system.errors import UsageError
from harness.system.files import open_regular
from harness.system.streams import folded, say_skipped, terminal_width
from harness.system.text import counted, printable

_MOST = 6
"""How many running and finished runs are listed."""
NOT_BEGUN = "not begun"
"""The state that is shown for an interrupted run that was never started."""
_REASONS = {
    "OOM": "out of memory (OOM)",
    "DIVERGED": "diverged (DIVERGED)",
    "BLANK": "with empty masks (BLANK)",
    "NO_DATA": "without data (NO_DATA)",
    "TIMEOUT": "out of time (TIMEOUT)",
    "ERROR": "failed (ERROR)",
}
WORDS = {
    FINISHED: "finished",
    WAITING: "waiting for a worker",
    QUEUED: "queued on the cluster",
    SUSPENDED: "suspended by the cluster",
    **_REASONS,
}


def parser() -> CommandParser:
    p = command("status", __doc__)
    add_results(p)
    shown = p.add_mutually_exclusive_group()
    shown.add_argument("--failed", action="store_true", help="list runs that failed or were interrupted, and why")
    add_run(shown, option="--logs", help="print the log of the last attempt at a run")
    shown.add_argument("--json", action="store_true", help="print JSON, one object per run and line")
    return p


@verb
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    results = results_of(arguments).absolute()
    if not results.is_dir():
        raise UsageError(f"results folder {results} does not exist; give the one of your runs with --results DIR")
    seen = survey(results)
    if any(run.unsettled and seen.sweeps[run.sweep].executor == "slurm" for run in seen.runs.values() if run.sweep):
        queue, note = ask_cluster(seen)
        seen = survey(results, queue=queue)._replace(note=note)
    if arguments.logs:
        print_log(seen, arguments.logs)
        return 0
    if arguments.json:
        print(
            "".join(
                json.dumps({**asdict(run), "log": str(run.log) if run.log else None}) + "\n"
                for run in seen.runs.values()
            ),
            end="",
        )
    else:
        in_words = failures if arguments.failed else overview
        print(printable(in_words(seen, width=terminal_width(sys.stdout))), flush=True)
    say_skipped(seen.problems)
    return 0


def ask_cluster(seen: Survey) -> tuple[Queue | None, str]:
    """The queue of all sweeps here, or None and why it cannot be queried."""
    slurm = Slurm(patience_s=0.0)
    try:
        slurm.require()
        return slurm.queue(name for sweep in seen.sweeps.values() for name in sweep.names), ""
    except UsageError as error:
        return None, f"{error}; states of queued runs are those on disk"


def overview(seen: Survey, *, width: int = 0) -> str:
    """Method × benchmark: finished and planned seeds, and the states of the others; then the same in sentences. A table that is
    wider than ``width``, that of a terminal, is split between its columns."""
    if not seen.runs:
        return "no runs yet; start with sam-peft run --methods lora,naslora --datasets all"
    lines = ["seeds finished / planned, and the state of the others"]
    groups: dict[tuple[str, str], list[RunState]] = {}
    for run in seen.runs.values():
        groups.setdefault((run.protocol, run.backbone), []).append(run)
    for (protocol, backbone), runs in groups.items():
        lines += ["", f"{protocol}, {backbone}", *fitted(_table(runs), width=width or 1000)]
    lines += ["", *(folded(line, width=width) if width else line for line in _in_words(seen))]
    return "\n".join(lines)


def _in_words(seen: Survey) -> list[str]:
    runs = seen.runs.values()
    counts = Counter(map(_state, runs))
    words = ", ".join(f"{count} {WORDS.get(state, state)}" for state, count in counts.most_common())
    left = time_left(runs)
    lines = [f"{counted(len(runs), 'run')}: {words}{left and f'; {left}'}"]
    newest = {sweep.command: sweep for sweep in seen.sweeps.values()}
    if later := sum(sweep.later for sweep in newest.values()):
        lines.append(f"{counted(later, 'run')} more follow once these trials have ended")
    running = [run for run in runs if run.state == RUNNING]
    lines += [f"at work: {run.words}: {run.stage} ({run.message})" for run in running[:_MOST]]
    lines += [f"and {len(running) - _MOST} more"] if len(running) > _MOST else []
    reasons = Counter(run.message for run in runs if run.state == QUEUED and run.message)
    lines += [f"{count} queued: {reason}" for reason, count in reasons.most_common(3)]
    if counts[INTERRUPTED] + counts[NOT_BEGUN]:
        lines.append("the command that started them continues what was interrupted or not begun")
    if failed := sum(counts[code] for code in _REASONS):
        lines.append(
            f"{failed} failed: sam-peft status --failed says why; the same command restarts them, on a cluster with --retry"
        )
    done = sorted((run for run in runs if run.state == FINISHED), key=lambda run: run.finished)
    if done:
        lines.append("finished last (sam-peft show KEY, or words: show lora kvasir 0):")
        lines += [f"  {run.key}  {run.words}" for run in done[: -_MOST - 1 : -1]]
    return [*lines, *([f"note: {seen.note}"] if seen.note else [])]


def _state(run: RunState) -> str:
    return NOT_BEGUN if run.state == INTERRUPTED and not run.attempts else run.state


def _table(runs: Sequence[RunState]) -> Table:
    benchmarks = list(dict.fromkeys(run.benchmark for run in runs))
    cells: dict[str, dict[str, list[RunState]]] = {}
    for run in runs:
        cells.setdefault(run.label, {}).setdefault(run.benchmark, []).append(run)
    rows = [[method, *(_cell(row.get(benchmark, [])) for benchmark in benchmarks)] for method, row in cells.items()]
    return Table(heading="", columns=heads("", *benchmarks), rows=rows)


def _cell(runs: Sequence[RunState]) -> str:
    """``2/3, one at 40 %``: two of three seeds done, one at 40 % of its epochs."""
    if not runs:
        return "-"
    counts = Counter(map(_state, runs))
    rest = {state: count for state, count in counts.items() if state not in (FINISHED, RUNNING)}
    words = [f"{count} {state}" if len(runs) > 1 else state for state, count in rest.items()]
    if counts[RUNNING]:
        share = sum(run.done for run in runs if run.state == RUNNING) / counts[RUNNING]
        words.insert(0, f"{100 * share:.0f} %")
    return ", ".join([f"{counts[FINISHED]}/{len(runs)}", *words])


def failures(seen: Survey, *, width: int = 0) -> str:
    """A line for each run that is neither finished nor waiting to run."""
    wrong = [run for run in seen.runs.values() if run.state != FINISHED and not run.unsettled]
    if not wrong:
        return "no failed run"
    lines = [
        f"{run.key}  {_state(run):11} {run.words} (started {counted(run.attempts, 'time')}): {run.message or 'no message'}"
        for run in wrong
    ]
    return "\n".join(folded(line, width=width) if width else line for line in lines)


def print_log(seen: Survey, wanted: str) -> None:
    """Print the log of the run that ``wanted`` names, by key or words (`harness.cli.find`). Raises UsageError: it names no run
    or several, or the run has no log."""
    run = seen.runs[find_key(wanted, seen.runs, lambda: seen.runs)]
    print(printable(f"{run.key} {run.words}: {run.state} {run.message}".rstrip()))
    if run.log is None or not run.log.is_file():
        if not run.unsettled:
            raise UsageError(
                f"no log of run {run.key} was kept here; {PROGRAM} show {run.key} has what its record says"
            )
        raise UsageError(f"run {run.key} has no log yet" + (f"; its job is {run.task}" if run.task else ""))
    with open(open_regular(run.log), encoding="utf-8", errors="replace") as lines:
        sys.stdout.writelines(map(printable, lines))
