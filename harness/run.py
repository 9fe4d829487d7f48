"""``python -m harness.run``: plan a grid of runs, run what is not finished, print the table.

Read downwards. `main` parses; `run` plans every step, beginning with trials that tune rates; then `show` prints the plans, or
`carry_out_steps` runs what is pending. The table is made from the records.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

from harness.cli.command import PROGRAM, Once, add_plugins, add_results, command, load_own_plugins, require_effect, verb
from harness.registry import METHODS
from harness.settings import Settings, load_settings
from harness.system.errors import UsageError
from harness.system.progress import spinner
from harness.system.streams import say, show_text, terminal_width
from harness.system.text import counted

if TYPE_CHECKING:  # what --help does without
    from harness.dispatch.target import Target
    from harness.planning.plan import Found
    from harness.planning.tuning import Step

ADVICE = "--protocol demo needs no files; sam-peft protocols list names the others"
OF_CANCEL = "--cancel finds a command's runs by these files; without them use scancel"


def parser() -> argparse.ArgumentParser:
    """The parser of the command line; building it imports neither torch nor mmengine."""
    p = command(
        "run",
        __doc__,
        epilog="Without data it runs the protocol demo (generated images, minutes on a laptop). sam-peft settings prints the folders of "
        "data, checkpoints and results.",
    )
    grid = p.add_argument_group("what to compare")
    grid.add_argument(
        "--methods",
        action=Once,
        metavar="A,B[opt=1],…",
        help="methods, with options in brackets; 'all' for every method that trains something",
    )
    grid.add_argument(
        "--datasets",
        "--dataset",
        action=Once,
        metavar="A,B=DIR,…",
        help="benchmarks; 'all' for all of them; NAME=DIR for your own data (docs/own-data.md)",
    )
    grid.add_argument(
        "--protocol",
        metavar="NAME",
        help="rules of training and evaluation: a name or a .yaml file (default: nas-lora with data, demo without)",
    )
    grid.add_argument(
        "--backbone",
        metavar="NAME",
        help="vit_b, vit_l, vit_h, mobile_sam, sam2_hiera_tiny, sam3, timm/NAME or tiny (default: the protocol's)",
    )
    grid.add_argument("--seeds", action=Once, metavar="N|A,B,…", help="number of seeds, or a list (default: 1)")
    grid.add_argument(
        "--study", action=Once, metavar="NAME", help="a named grid that fills one table; 'list' shows them"
    )
    grid.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override: lr=3e-4, lora.rank=6, cluster.time=2h",
    )
    add_plugins(grid, help="a file that defines more methods or benchmarks")
    data = p.add_argument_group("inputs and outputs")
    data.add_argument("--data", type=Path, metavar="DIR", help="folder that holds the benchmarks' folders")
    data.add_argument(
        "--checkpoint",
        action="append",
        default=[],
        metavar="FILE|BACKBONE=FILE",
        help="pretrained weights; 'none' for random ones, 'published' to download them",
    )
    add_results(data, help="records, tables, checkpoints (default: the setting, else runs)")
    data.add_argument("--skip-missing", action="store_true", help="leave out benchmarks that are not on disk")
    tuned = p.add_argument_group("tuning")
    tuned.add_argument(
        "--tune",
        action="append",
        default=[],
        metavar="FIELD=A,B,…",
        help="try these values, choose on validation, and run the seeds with the choice: lr=1e-4,3e-4,1e-3; naslora.alpha_lr=…; 'protocol' "
        "for the protocol's own grids. A rule (decoder_lr=…) is tuned on the decoder alone and holds for all rows",
    )
    tuned.add_argument("--tune-seeds", action=Once, metavar="N|A,B,…", help="seeds of the trials (default: 1)")
    tuned.add_argument(
        "--tune-on",
        action=Once,
        metavar="A,B,…",
        help="choose one value for all benchmarks, by validation on these (default: one value per benchmark)",
    )
    how = p.add_argument_group("how to run")
    how.add_argument(
        "--plan",
        action="store_true",
        help="print runs, parameters, prices and what is missing; start nothing (published weights are downloaded)",
    )
    how.add_argument("--json", action="store_true", help="print the plan or the table as JSON, one object per line")
    how.add_argument(
        "--cluster", metavar="NAME", help="submit to SLURM with this profile (slurm/profiles/NAME.yaml or a path)"
    )
    how.add_argument(
        "--executor",
        choices=("inline", "local"),
        default=None,
        help="without --cluster: run in this process (inline, for debugging) or in worker processes (local, the default)",
    )
    how.add_argument(
        "--workers",
        type=int,
        default=None,
        metavar="N",
        help="worker processes on this machine (default: one per GPU, else at most four)",
    )
    how.add_argument("--wait", action="store_true", help="with --cluster: stay and show progress until all runs end")
    how.add_argument(
        "--retry",
        action=Once,
        metavar="CODES",
        help="with --cluster: resubmit failed runs with these codes, such as oom,timeout, or all",
    )
    how.add_argument(
        "--yes",
        action="store_true",
        help="start even if it takes more than a month, or on a cluster with generated images or random weights",
    )
    how.add_argument("--cancel", action="store_true", help="with --cluster: cancel this sweep's jobs and no others")
    return p


@verb
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    typed = shlex.join([PROGRAM, "run", *(sys.argv[1:] if argv is None else argv)])
    arguments.command = typed.encode(errors="backslashreplace").decode()  # a sweep's file is text, a path need not be
    if arguments.study == "list":
        require_effect(arguments, "methods", "datasets", "set", "plan", without="with --study list")
        return _list_studies(as_json=arguments.json)
    settings = load_settings()
    arguments.cluster = _cluster(arguments, settings)
    arguments.plugin = load_own_plugins(arguments)
    return run(arguments, settings)


def _list_studies(*, as_json: bool) -> int:
    from harness.studies import load_study, study_names

    studies = [{"study": name, "title": load_study(name).title} for name in study_names()]
    lines = ["{study:14}  {title}".format(**study) for study in studies]
    print(json.dumps(studies, indent=1) if as_json else "\n".join(lines))
    return 0


def _cluster(arguments: argparse.Namespace, settings: Settings) -> str:
    """The profile to submit with, empty for this machine: the settings' where the command line names no target. Raises UsageError: an
    option would have no effect there."""
    here = arguments.executor is not None or arguments.workers is not None
    cluster: str = arguments.cluster or ("" if here else settings.cluster)
    if not cluster:
        for option, why in (
            ("wait", "on this machine the command waits for its runs anyway"),
            ("retry", "on this machine failed runs are restarted anyway"),
            ("cancel", "stop a run on this machine with Ctrl-C"),
        ):
            if getattr(arguments, option):
                raise UsageError(f"--{option} is for --cluster NAME: {why}")
    if arguments.plan and arguments.cancel:
        raise UsageError("--plan and --cancel contradict each other; give one of them")
    return cluster


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Plan and carry out one grid of runs: trials that tune rates, then the runs, then the table."""
    from harness.archive.store import require_writable
    from harness.dispatch.target import target_of
    from harness.planning.plan import find
    from harness.planning.tuning import plan_steps
    from harness.planning.understand import understand

    with spinner() as report:
        report("reading settings and protocols")
        request, tuning, overrides = understand(arguments, settings)
    target = target_of(
        arguments.executor, workers=arguments.workers, cluster=arguments.cluster, cluster_overrides=overrides
    )

    with TemporaryDirectory(prefix="harness-plan-") as folder:  # `--plan` leaves no generated images in the results
        if not arguments.plan:
            require_writable(request.results)
        samples = Path(folder) if arguments.plan else None
        found = find(request, also_on=tuning.on if tuning else (), samples=samples)
        steps = plan_steps(request, tuning.steps if tuning else (), found)
        problems = (line for step in steps for line in step.planned.problems)
        for line in dict.fromkeys((*_of_edited_plugins(steps[-1]), *problems)):
            say(line)
        if arguments.plan:
            return show(steps, arguments, target)
        missing = dict.fromkeys(line for step in steps for line in step.planned.missing)
        if missing:
            raise UsageError(_missing(list(missing), advice=OF_CANCEL if arguments.cancel else ADVICE))
        return carry_out_steps(steps, found, arguments, target)


def show(steps: Sequence[Step], arguments: argparse.Namespace, target: Target) -> int:
    """Print the plan and price of every step; a run is listed only in its first step. Returns 1 if something is missing, else
    0."""
    from harness.dispatch.run_jobs import not_restarted, to_start
    from harness.pricing import plan_data, plan_text, price

    priced, listed = dict[str, float](), set[str]()
    shown = [step for step in steps if step.left or step.tuning is None]
    for step in shown:
        planned, heading = step.planned.without(listed), step.heading if len(steps) > 1 else ""
        listed |= {job.run.key for job in planned.jobs}
        started = to_start(planned, target, retry=arguments.retry)
        if line := not_restarted(planned, started)[1]:
            say(line)
        prices = price(replace(planned, jobs=tuple(started)), step.request.results, target=target) if started else ()
        priced |= {each.run.key: each.hours for each in prices}
        if arguments.json:
            print(json.dumps({"step": heading, **plan_data(planned, prices)}))
        elif listed and not planned.jobs:
            show_text(f"{heading}: they are among the trials")
        else:
            text = plan_text(planned, prices, target=target)
            show_text(f"{heading}: {text}\n" if heading else text)
    if len(steps) > 1 and priced and not arguments.json:
        show_text(f"trials and runs: {counted(len(priced), 'run')}, {sum(priced.values()):,.1f} device-hours")
    return int(any(step.planned.missing for step in shown))


def carry_out_steps(steps: list[Step], found: Found, arguments: argparse.Namespace, target: Target) -> int:
    """Run the trials that have no result yet, then the runs with what was chosen; print their table. Raises UsageError: as `start`."""
    from harness.planning.tuning import plan_step, record_choices

    step, *following = steps
    while step.tuning is not None:
        if step.left:
            if not arguments.cancel:
                say(f"tuning: {len(step.left)} of {len(step.planned.jobs)} trials have no result yet; they run first")
            after = {job.run.key for each in following for job in each.planned.pending}
            more = len(after - {job.run.key for job in step.planned.jobs})
            failed = start(step, arguments, target, later=more)
            if arguments.cancel:
                return 0
            step = step.with_results()
            if step.left:
                what = "are on their way" if failed is None else "have no result"
                say(f"tuning: {len(step.left)} trials {what}; repeat the command to continue")
                return 0 if failed is None else 1
        record_choices(step)
        request, (step, *following) = step.chosen(), following
        if request != step.request:  # other values than those that stood in for them
            step = plan_step(request, step.tuning, found)
    record_choices(step)
    failed = start(step, arguments, target)
    return 0 if failed is None else _print_table(step, as_json=arguments.json, failed=bool(failed))


def _print_table(step: Step, *, as_json: bool, failed: bool) -> int:
    from harness.report.pages import finished_table

    runs, width = [job.run for job in step.planned.jobs], terminal_width(sys.stdout)
    style: Literal["json", "text", "markdown"] = "json" if as_json else "text" if width else "markdown"
    with spinner() as report:
        report("writing the tables")
        table, page = finished_table(runs, step.request.results, study=step.request.study, style=style, width=width)
    print(table, end="", flush=True)
    if page is not None:
        say(f"as markdown: {page}")
    return int(failed)


def _of_edited_plugins(step: Step) -> list[str]:
    """A line for every plug-in's method whose code has changed since runs of it finished; their numbers are shown as they are."""
    from harness.archive.store import RecordStore

    planned, store = step.planned, RecordStore(step.request.results)
    of_plugins = [job.run for job in planned.jobs if not METHODS.is_fixed(job.run.method)]
    finished = [
        record for run in of_plugins if run.key in planned.finished and (record := store.find(run.key)) is not None
    ]
    if not finished:
        return []
    from harness.experiment.number_code import has_changed

    changed = Counter(record.run.method for record in finished if has_changed(record))
    return [
        f"{method}: {counted(count, 'finished run')} of an earlier version of its plug-in or of harness.methods; to train anew, "
        f"give another --results folder or delete the records in {store.root / 'records'}"
        for method, count in changed.items()
    ]


def start(step: Step, arguments: argparse.Namespace, target: Target, *, later: int = 0) -> dict[str, str] | None:
    """Run what is pending in a step, and return what `harness.dispatch.run_jobs.run_jobs` returns.

    Args:
        later: runs that follow in later steps.

    Raises:
        UsageError: it would take more than a month, or what `run_jobs` says.
    """
    from harness.dispatch.run_jobs import run_jobs, to_start
    from harness.pricing import hesitation

    planned, results = step.planned, step.request.results
    if not arguments.cancel and not arguments.yes:
        started = replace(planned, jobs=tuple(to_start(planned, target, retry=arguments.retry)))
        if doubt := hesitation(started, results, target=target):
            raise UsageError(f"{doubt}; --plan shows the prices, and --yes starts it anyway")
    return run_jobs(
        planned,
        target,
        results=results,
        later=later,
        command=arguments.command,
        wait=arguments.wait,
        retry=arguments.retry,
        cancel=arguments.cancel,
    )


def _missing(lines: Sequence[str], *, advice: str) -> str:
    """One line about what is missing; several things are printed first, each on a line of its own."""
    if len(lines) == 1:
        return f"{lines[0]}; {advice}"
    for line in lines:
        say(f"missing: {line}")
    return f"{len(lines)} things are missing, so nothing was done; {advice}"


if __name__ == "__main__":
    raise SystemExit(main())
