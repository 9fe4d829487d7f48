"""``python -m harness.run``: plan a grid of runs, run what is not finished, print the table.

Read downwards: the command line becomes a `Request`, and trials tune rates. `plan` turns the request into jobs, an executor runs the
pending ones, and the table is made from the records.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

from harness.cli.command import Once, add_plugins, add_results, command, plugins_of, program, require_effect, verb
from harness.registry import METHODS, load_plugins
from harness.settings import Settings, load_settings, trusted
from harness.system.errors import UsageError
from harness.system.streams import say, show_text, stages, terminal_width
from harness.system.text import counted

if TYPE_CHECKING:  # what --help does without
    from harness.archive.store import RecordStore
    from harness.dispatch.run_jobs import Outcome
    from harness.dispatch.target import Target
    from harness.planning.plan import Plan
    from harness.planning.request import Job, Request
    from harness.planning.tuning import Tuning
    from harness.planning.understand import Understood


@dataclass(kw_only=True)
class Command:
    """One command line.

    Args:
        where: its runs go.
        samples: writes the generated images of a benchmark and returns their folder.
        priced: key of a run -> its hours, of runs that are priced already, so that nothing counts twice.
    """

    arguments: argparse.Namespace
    where: Target
    samples: Callable[[str], Path]
    priced: dict[str, float] = field(default_factory=dict)

    @property
    def hours(self) -> float | None:
        """Device-hours of ``--budget`` that are left, just above zero where none are; None without a limit."""
        limit = self.arguments.budget
        return max(limit - sum(self.priced.values()), 1e-9) if limit is not None and self.priced else limit

    def starts(self, planned: Plan, request: Request) -> tuple[Job, ...]:
        """The jobs of a plan that would be started and are not priced yet; failed runs that are not restarted use no budget."""
        from harness.dispatch.run_jobs import say_not_restarted, to_start

        started = to_start(planned, self.where, retry=self.arguments.retry)
        if self.arguments.plan:
            say_not_restarted(planned, started)
        return tuple(job for job in started if job.run.key not in self.priced)


def parser() -> argparse.ArgumentParser:
    """The command line; building it imports neither torch nor mmengine."""
    p = command(
        "run",
        __doc__,
        epilog="Without data it runs the protocol demo (generated images, minutes on a laptop). sam-peft settings prints the folders of "
        "data, checkpoints and results.",
    )
    grid = p.add_argument_group("what to compare")
    grid.add_argument(
        "--methods", action=Once, metavar="A,B[opt=1],…", help="methods, with options in brackets; 'all' for every one"
    )
    grid.add_argument(
        "--datasets",
        "--dataset",
        action=Once,
        metavar="A,B=DIR,…",
        help="benchmarks; 'all' for every one; NAME=DIR for a folder of your own (docs/own-data.md)",
    )
    grid.add_argument(
        "--protocol",
        metavar="NAME",
        help="rules of training and evaluation: a name or a .yaml file (default: nas-lora with data, demo without)",
    )
    grid.add_argument(
        "--backbone",
        metavar="NAME",
        help="vit_b, vit_l, vit_h, mobile_sam, sam2_hiera_tiny, timm/NAME or tiny (default: the protocol's)",
    )
    grid.add_argument("--seeds", action=Once, metavar="N|A,B,…", help="number of seeds, or a list (default: 1)")
    grid.add_argument(
        "--study", action=Once, metavar="NAME", help="a named grid that fills one table of the paper; 'list' shows them"
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
        help="pretrained weights; 'none' for random ones, 'published' (for timm models also 'timm') to download them",
    )
    add_results(data, help="records, tables, checkpoints (default: the setting, else runs)")
    data.add_argument("--skip-missing", action="store_true", help="leave out benchmarks that are not on disk")
    tuned = p.add_argument_group("tuning")
    tuned.add_argument(
        "--tune",
        action="append",
        default=[],
        metavar="FIELD=A,B,…",
        help="try these values, choose on validation, and run the seeds with the choice: lr=1e-4,3e-4,1e-3; naslora.alpha_lr=…; 'card' "
        "for the protocol's own grids. A rule (decoder_lr=…) is tuned on the decoder alone and holds for all rows",
    )
    tuned.add_argument("--tune-seeds", action=Once, metavar="N|A,B,…", help="seeds of the trials (default: 1)")
    tuned.add_argument(
        "--tune-on",
        action=Once,
        metavar="A,B,…",
        help="choose one value for all benchmarks, on these (default: one for each benchmark)",
    )
    how = p.add_argument_group("how to run")
    how.add_argument(
        "--plan",
        action="store_true",
        help="print runs, parameters, prices and what is missing; start nothing (published weights are downloaded)",
    )
    how.add_argument("--json", action="store_true", help="print the plan or the table as JSON, one object a line")
    how.add_argument(
        "--budget",
        type=float,
        metavar="HOURS",
        help="run only what fits into so many device-hours; --plan shows which runs fit",
    )
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
        help="worker processes here (default: one a GPU, else at most four)",
    )
    how.add_argument("--wait", action="store_true", help="with --cluster: stay and show progress until all runs end")
    how.add_argument(
        "--retry",
        action=Once,
        metavar="CODES",
        help="with --cluster: resubmit failed runs of these classes, such as oom,timeout, or all",
    )
    how.add_argument(
        "--yes",
        action="store_true",
        help="start even if it takes months, or if its images are generated and rank nothing",
    )
    how.add_argument("--cancel", action="store_true", help="with --cluster: cancel this sweep's jobs and no others")
    return p


@verb
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    command = shlex.join([*program("run").split(), *(sys.argv[1:] if argv is None else argv)])
    arguments.command = command.encode(errors="backslashreplace").decode()  # a sweep's file is text, a path need not be
    if arguments.study == "list":
        from harness.studies import load_study, study_names

        require_effect(arguments, "methods", "datasets", "set", "plan", without="with --study list")
        studies = [{"study": name, "title": load_study(name).title} for name in study_names()]
        lines = ["{study:14}  {title}".format(**study) for study in studies]
        print(json.dumps(studies, indent=1) if arguments.json else "\n".join(lines))
        return 0
    settings = load_settings()
    _check(arguments, settings)
    arguments.plugin, left_out = load_plugins(plugins_of(arguments))
    for line in left_out:
        say(line)
    return run(arguments, settings)


def _check(arguments: argparse.Namespace, settings: Settings) -> None:
    """Refuse options that would have no effect."""
    if arguments.budget is not None and not arguments.budget > 0:
        raise UsageError(f"--budget {arguments.budget:g}: give device-hours above zero")
    if arguments.cancel and arguments.budget is not None:
        raise UsageError("--budget chooses what to start and --cancel starts nothing; give one of them")
    if not _cluster(arguments, settings):
        for option, why in (
            ("wait", "here a command stays until its runs end"),
            ("retry", "here runs that failed restart"),
            ("cancel", "a run here is stopped with Ctrl-C"),
        ):
            if getattr(arguments, option):
                raise UsageError(f"--{option} is for --cluster NAME: {why}")
    if arguments.plan and arguments.cancel:
        raise UsageError("--plan shows and --cancel cancels; give one of them")


def _cluster(arguments: argparse.Namespace, settings: Settings) -> str:
    """The cluster that runs go to; empty for this machine, which ``--executor`` and ``--workers`` choose."""
    here = arguments.executor is not None or arguments.workers is not None
    return arguments.cluster or ("" if here else trusted(settings, "cluster", trust=arguments.trust_settings))


def _foresee(understood: Understood) -> None:
    """Plan the trials of a grid and the runs after them before anything runs. Raises UsageError: something is missing for any of
    them, or they cannot be planned."""
    from harness.archive.store import RecordStore
    from harness.planning.data import sample_writer
    from harness.planning.plan import plan
    from harness.planning.tuning import as_expected, plan_trials, unfinished

    request, missing = understood.request, dict[str, None]()
    with ExitStack() as stack:
        instead = Path(stack.enter_context(TemporaryDirectory(prefix="harness-plan-")))
        samples = sample_writer(request.results, instead=instead)
        for step in understood.tuning.steps if understood.tuning is not None else ():
            planned, trials = plan_trials(request, step, prepare_samples=samples)
            missing |= dict.fromkeys(planned.missing)
            request = as_expected(request, step, trials, RecordStore(request.results), left=unfinished(planned))
        missing |= dict.fromkeys(plan(request, prepare_samples=samples).missing)
    if missing:
        raise UsageError(_missing(list(missing)))


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """One grid of runs: its trials where rates are tuned, its runs, its table."""
    from harness.archive.store import RecordStore, require_writable
    from harness.dispatch.target import target_of
    from harness.planning.data import sample_writer
    from harness.planning.plan import plan
    from harness.planning.tuning import label_finished
    from harness.planning.understand import understand

    with stages() as report:
        report("reading settings and protocols")
        understood = understand(arguments, settings)
    request, tuning = understood.request, understood.tuning
    if understood.note:
        say(understood.note)
    if tuning is not None and not arguments.plan and not arguments.cancel:
        _foresee(understood)
    cluster, workers = _cluster(arguments, settings), arguments.workers
    where = target_of(
        arguments.executor, workers=workers, cluster=cluster, cluster_overrides=understood.cluster_overrides
    )
    with ExitStack() as stack:
        instead = None
        if arguments.plan:  # which writes nothing below the results folder
            instead = Path(stack.enter_context(TemporaryDirectory(prefix="harness-plan-")))
        else:
            require_writable(request.results)
        samples = sample_writer(request.results, instead=instead)
        how = Command(arguments=arguments, where=where, samples=samples)
        missing = 0
        for step in tuning.steps if tuning is not None else ():
            tuned, missing_here = tune(request, step, how)
            missing = max(missing, missing_here)
            if tuned is None:
                return missing
            request = tuned
        planned = plan(request, prepare_samples=samples)
        if tuning is not None and not arguments.plan:
            label_finished(planned, RecordStore(request.results))
        for line in _of_edited_plugins(planned, RecordStore(request.results)):
            say(line)
    if arguments.plan:
        heading = "the runs, with the first value of a grid where its trials have not all ended" if tuning else ""
        missing = max(missing, show_plan(planned, request, how, heading=heading))
        if tuning is not None and how.priced and not arguments.json:
            show_text(
                f"trials and runs: {counted(len(how.priced), 'run')}, {sum(how.priced.values()):,.1f} device-hours"
            )
        return missing
    outcome = carry_out(planned, request, how)
    if outcome.submitted:
        return 0

    from harness.report.pages import finished_table

    runs, width = [job.run for job in planned.jobs], terminal_width(sys.stdout)
    style: Literal["json", "text", "markdown"] = "json" if arguments.json else "text" if width else "markdown"
    with stages() as report:
        report("writing the tables")
        table, page = finished_table(runs, request.results, study=arguments.study, style=style, width=width)
    print(table, end="", flush=True)
    if page is not None:
        say(f"as markdown: {page}")
    return 1 if outcome.failed else 0


def _of_edited_plugins(planned: Plan, store: RecordStore) -> list[str]:
    """A line for every plug-in's method whose code has changed since runs of it finished; their numbers are shown as they are."""
    of_plugins = [job.run for job in planned.jobs if not METHODS.is_fixed(job.run.method)]
    finished = [
        record for run in of_plugins if run.key in planned.finished and (record := store.find(run.key)) is not None
    ]
    if not finished:
        return []
    from harness.experiment.number_code import has_changed

    changed = Counter(record.run.method for record in finished if has_changed(record))
    return [
        f"{method}: {counted(count, 'finished run')} of other code than its plug-in and harness.methods have now; another --results "
        f"trains from the start, or deleting the records in {store.root / 'records'}"
        for method, count in changed.items()
    ]


def tune(request: Request, tuning: Tuning, how: Command) -> tuple[Request | None, int]:
    """Run the trials that have no result yet, or print their plan.

    Returns:
        The request with what was chosen; under ``--plan`` the first value of a grid stands in for an open choice. None where there is
        no choice yet (runs go on without this process, or some failed). And the exit status so far.
    """
    from harness.archive.store import RecordStore
    from harness.planning.tuning import as_expected, choose, plan_trials, unfinished, without_lost

    store = RecordStore(request.results)
    planned, trials = plan_trials(request, tuning, prepare_samples=how.samples)
    left = unfinished(planned)
    if how.arguments.plan:
        status = show_plan(planned, request, how, heading=f"trials of {', '.join(tuning.grids)}") if left else 0
        return as_expected(request, tuning, trials, store, left=left), status
    if left:
        if not how.arguments.cancel:
            say(f"tuning: {len(left)} of {len(planned.jobs)} trials have no result yet; they run first")
        outcome = carry_out(without_lost(planned), request, how)
        if how.arguments.cancel:
            return None, 0
        planned, trials = plan_trials(request, tuning, prepare_samples=how.samples)
        if left := unfinished(planned):
            what = "are on their way" if outcome.submitted else "have no result"
            say(f"tuning: {len(left)} trials {what}; repeat the command to continue")
            return None, 0 if outcome.submitted else 1
    return choose(request, tuning, trials, store), 0


def show_plan(planned: Plan, request: Request, how: Command, *, heading: str = "") -> int:
    """Print a plan with its price, without runs that are priced already; returns 1 where something is missing, else 0."""
    from harness.pricing import plan_data, plan_text, price, within_budget

    for line in planned.problems:
        say(line)
    hours, begun, where = how.hours, how.starts(planned, request), how.where
    planned = replace(planned, jobs=tuple(job for job in planned.jobs if job.run.key not in how.priced))
    prices = price(replace(planned, jobs=begun), request.results, where=where) if begun else None
    if prices is not None:
        chosen = prices if hours is None else within_budget(prices, hours)
        how.priced |= {priced.run.key: priced.hours for priced in chosen}
    if how.arguments.json:
        print(json.dumps({"step": heading, **plan_data(planned, prices, budget=hours)}))
    elif how.priced and not planned.jobs:
        show_text(f"{heading}: they are among the trials")
    else:
        text = plan_text(planned, prices, where=where, budget=hours)
        show_text(f"{heading}: {text}\n" if heading else text)
    return 1 if planned.missing else 0


def carry_out(planned: Plan, request: Request, how: Command) -> Outcome:
    """Run what is pending, as far as a budget goes.

    Raises:
        UsageError: something is missing, it would take months, not one run fits the budget, or what
            `harness.dispatch.run_jobs.run_jobs` says.
    """
    from harness.dispatch.run_jobs import run_jobs
    from harness.pricing import affordable, hesitation, price

    arguments, where, results = how.arguments, how.where, request.results
    for line in planned.problems:
        say(line)
    if not arguments.cancel:
        if planned.missing:
            raise UsageError(_missing(planned.missing))
        if not arguments.yes and (doubt := hesitation(planned, results, where=where, hours=how.hours)):
            raise UsageError(f"{doubt}; --plan shows the prices, and --yes starts it anyway")
    if how.hours is not None and (begun := how.starts(planned, request)):
        prices = price(replace(planned, jobs=begun), results, where=where)
        planned, choice = affordable(planned, prices, hours=how.hours)
        say(choice)
        kept = {job.run.key for job in planned.pending}
        how.priced |= {priced.run.key: priced.hours for priced in prices if priced.run.key in kept}
    options = {name: getattr(arguments, name) for name in ("command", "wait", "retry", "cancel")}
    return run_jobs(planned, where, results=results, **options)


def _missing(lines: Sequence[str]) -> str:
    """One line about what is missing; several things are printed first, each on a line of its own."""
    from harness.protocols.load import card_needs

    needs = f"protocols by what they need (--protocol): {card_needs()}"
    if len(lines) == 1:
        return f"{lines[0]}; {needs}"
    for line in lines:
        say(f"missing: {line}")
    return f"{len(lines)} things are missing, so nothing was started; {needs}"


if __name__ == "__main__":
    raise SystemExit(main())
