"""``sam-peft status``: show where every run of a results folder is; reads files and asks the cluster's queue."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cli.command import PROGRAM, CommandParser, add_results, add_run, command, require_effect, results_of, verb
from harness.dispatch.run_states import (
    FINISHED,
    INTERRUPTED,
    LOST,
    QUEUED,
    RUNNING,
    WAITING,
    RunState,
    Survey,
    survey,
    time_left,
)
from harness.dispatch.slurm.client import Queue, Slurm
from harness.system.errors import UsageError
from harness.system.files import open_regular
from harness.system.streams import folded, say_skipped, terminal_width
from harness.system.text import counted, printable, printable_line

if TYPE_CHECKING:  # what --help does without
    from harness.report.formats import Table

WATCH_SECONDS = 5.0
MOST_AT_WORK = 8
MOST_KEYS = 6
NOT_BEGUN = "not begun"
"""The state of a run that waits for its command to be repeated and was never begun."""
REASON_WORDS = {
    "OOM": "out of memory",
    "DIVERGED": "diverged",
    "BLANK": "drew no object",
    "NO_DATA": "without its data",
    "TIMEOUT": "out of time",
    "PREEMPTED": "preempted",
    "ERROR": "failed",
}
WORDS = {
    FINISHED: "finished",
    WAITING: "waiting for a worker",
    QUEUED: "queued on the cluster",
    LOST: "lost before they began",
    **{code: f"{words} ({code})" for code, words in REASON_WORDS.items()},
}


def parser() -> CommandParser:
    p = command("status", __doc__)
    add_results(p)
    p.add_argument("--sweep", metavar="ID", help="only the runs of this sweep ('last' for the newest)")
    p.add_argument("--failed", action="store_true", help="list runs that failed or were interrupted, and why")
    add_run(p, option="--logs", help="print the log of the last start of a run")
    p.add_argument(
        "--watch", action="store_true", help=f"refresh every {WATCH_SECONDS:.0f} seconds until all runs ended"
    )
    p.add_argument("--json", action="store_true", help="print JSON, one object a run and line")
    return p


@verb
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if arguments.watch:
        require_effect(arguments, "json", "logs", without="with --watch, which refreshes the overview")
    if arguments.json or arguments.logs:
        option = "--json" if arguments.json else "--logs"
        require_effect(arguments, *{"failed", "logs"} - {option[2:]}, without=f"with {option}")
    results = results_of(arguments).absolute()
    if not results.is_dir():
        raise UsageError(f"results folder {results} does not exist; give the one of your runs with --results DIR")
    if arguments.logs or arguments.json:
        seen = look(results, sweep=arguments.sweep)
        if arguments.logs:
            print_log(seen, arguments.logs)
        else:
            say_skipped(seen.problems)
            print("".join(json.dumps(run_as_data(run)) + "\n" for run in seen.runs.values()), end="")
        return 0
    look_again = partial(look, results, sweep=arguments.sweep)
    in_words = failures if arguments.failed else overview
    if arguments.watch and sys.stdout.isatty():
        return watch_screen(look_again, in_words)
    while True:
        now = look_again()
        if arguments.failed:
            say_skipped(now.problems)
        print(printable(in_words(now, width=terminal_width(sys.stdout))), flush=True)
        if not arguments.watch or not now.unsettled:
            return 0
        time.sleep(WATCH_SECONDS)


def watch_screen(look_again: Callable[[], Survey], in_words: Callable[..., str]) -> int:
    """Show the whole on a screen of its own, at the size that it has just now, until nothing is to come; then print it."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    seen, console = look_again(), Console(highlight=False)

    def screen() -> Text:
        lines = printable(in_words(seen, width=console.width)).splitlines()
        return Text("\n".join(lines[-console.height :]), no_wrap=True, overflow="ellipsis")

    with Live(get_renderable=screen, console=console, screen=True, refresh_per_second=2):
        while seen.unsettled:
            time.sleep(WATCH_SECONDS)
            seen = look_again()
    print(printable(in_words(seen, width=console.width)))
    return 0


def look(results: Path, *, sweep: str | None = None) -> Survey:
    """Survey the folder, run by run. Raises UsageError: no such sweep."""
    seen = survey(results)
    if any(run.unsettled and seen.sweeps[run.sweep].executor == "slurm" for run in seen.runs.values() if run.sweep):
        queue, notes = ask_cluster(results, seen)
        seen = replace(survey(results, queue=queue), notes=notes)
    if sweep is None:
        return seen
    known = list(seen.sweeps)
    sweep = known[-1] if sweep == "last" and known else sweep
    if sweep not in known:
        raise UsageError(f"no sweep {sweep!r} below {results}; there are: {', '.join(known[-5:]) or 'none'}")
    keys = {run.key for run in seen.sweeps[sweep].runs}
    runs = {key: run for key, run in seen.runs.items() if key in keys}
    return replace(seen, runs=runs, sweeps={sweep: seen.sweeps[sweep]})


def ask_cluster(results: Path, seen: Survey) -> tuple[Queue | None, tuple[str, ...]]:
    """The queue of all sweeps here; and what could not be seen, or is queued for a sweep that was deleted."""
    slurm = Slurm(patience_s=0.0)
    try:
        slurm.require()
        queue, own = slurm.queue(name for sweep in seen.sweeps.values() for name in sweep.names), slurm.own()
    except UsageError as error:
        return None, (f"{error}; states of queued runs are as last seen on disk",)
    here = {name for sweep in seen.sweeps.values() for name in sweep.names}
    strays = [
        task.job for (name, _), task in own.items() if task.active and task.comment == str(results) and name not in here
    ]
    note = f"{counted(len(strays), 'task')} of a sweep that was deleted: scancel {' '.join(strays)}"
    return queue, (note,) if strays else ()


def overview(seen: Survey, *, width: int = 0) -> str:
    """Method × benchmark: seeds finished of those planned, and the state of the others; then all of it in words. ``width``: of a
    terminal; a table that is wider is split between its columns."""
    if not seen.runs:
        return "no runs yet; start with python -m harness.run --methods lora,naslora --datasets all"
    from harness.report.formats import fitted

    lines = ["seeds finished / planned, and the state of the others"]
    groups: dict[tuple[str, str], list[RunState]] = {}
    for run in seen.runs.values():
        groups.setdefault((run.protocol, run.backbone), []).append(run)
    for (protocol, backbone), runs in groups.items():
        lines += ["", f"{protocol}, {backbone}", *fitted(_table(runs), width=width or 1000)]
    lines += ["", *(folded(line, width=width) if width else line for line in _in_words(seen))]
    return "\n".join(lines)


def _in_words(seen: Survey) -> list[str]:
    counts = Counter(map(_state, seen.runs.values()))
    words = ", ".join(f"{count} {WORDS.get(state, state)}" for state, count in counts.most_common())
    still = [run for run in seen.runs.values() if run.unsettled]
    left = f"; {time_left(seen.runs.values(), now=time.time())}" if still else ""
    lines = [f"{counted(len(seen.runs), 'run')}: {words}{left}"]
    running = [run for run in still if run.state == RUNNING]
    lines += [f"at work: {run.words}: {run.stage} ({run.message})" for run in running[:MOST_AT_WORK]]
    lines += [f"and {len(running) - MOST_AT_WORK} more"] if len(running) > MOST_AT_WORK else []
    reasons = Counter(run.message for run in still if run.state == QUEUED and run.message)
    lines += [f"{count} queued: {reason}" for reason, count in reasons.most_common(3)]
    stopped, never = counts[INTERRUPTED], counts[NOT_BEGUN] + counts[LOST]
    again = [f"{stopped} interrupted"] * bool(stopped) + [f"{never} never begun"] * bool(never)
    if again:
        lines.append(f"{', '.join(again)}: the command that started them continues them")
    failed = sum(counts[code] for code in REASON_WORDS)
    if failed:
        lines.append(
            f"{failed} failed: sam-peft status --failed says why; the same command restarts them, on a cluster with --retry"
        )
    done = sorted((run for run in seen.runs.values() if run.state == FINISHED), key=lambda run: run.finished)
    if done:
        lines.append("finished last (sam-peft show KEY, or words: show lora kvasir 0):")
        lines += [f"  {run.key}  {run.words}" for run in done[: -MOST_KEYS - 1 : -1]]
    lines += [f"unreadable: {printable_line(str(path))}: {reason}" for path, reason in seen.problems.items()]
    return [*lines, *(f"note: {note}" for note in seen.notes)]


def _state(run: RunState) -> str:
    return NOT_BEGUN if run.state == INTERRUPTED and not run.attempts else run.state


def _table(runs: Sequence[RunState]) -> Table:
    from harness.report.formats import Table, heads

    benchmarks = list(dict.fromkeys(run.benchmark for run in runs))
    cells: dict[str, dict[str, list[RunState]]] = {}
    for run in runs:
        cells.setdefault(run.variant, {}).setdefault(run.benchmark, []).append(run)
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
    """One line a run that is neither finished nor on its way."""
    wrong = [run for run in seen.runs.values() if run.state != FINISHED and not run.unsettled]
    if not wrong:
        return "no failed run"
    lines = [
        f"{run.key}  {_state(run):11} {run.words} (started {counted(run.attempts, 'time')}): {run.message or 'no message'}"
        for run in wrong
    ]
    return "\n".join(folded(line, width=width) if width else line for line in lines)


def print_log(seen: Survey, wanted: str) -> None:
    """Print a run's log.

    Args:
        wanted: a key or words, see `harness.comparison.names`.

    Raises:
        UsageError: it means no run, or several; or the run has no log.
    """
    from harness.comparison.names import find_key

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


def run_as_data(run: RunState) -> dict[str, object]:
    return {**asdict(run), "log": str(run.log) if run.log else None}
