"""``python -m harness.run``: plan a grid of runs, run what is not finished, print the table.

Read downwards: the command line becomes a `Request`, rates are tuned by trials, `plan` turns the rest into jobs, an executor
runs those that are pending, and the table is rendered from the records.
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
from typing import TYPE_CHECKING

from harness.cli.command import (
    CommandParser,
    Once,
    add_plugins,
    add_results,
    command,
    copy_in_use,
    plugins_of,
    program,
    require_effect,
    verb,
)
from harness.registry import METHODS, load_plugins
from harness.settings import Settings, load_settings, trusted
from harness.system.errors import UsageError
from harness.system.streams import say, show_text, stages, terminal_width
from harness.system.text import counted

if TYPE_CHECKING:  # what --help does without
    from harness.archive.store import RecordStore
    from harness.dispatch.place import Place
    from harness.dispatch.run_jobs import Outcome
    from harness.planning.asked import Asked
    from harness.planning.plan import Plan
    from harness.planning.request import Request
    from harness.planning.tuning import Tuning


class MissingError(UsageError):
    """Data or a checkpoint is missing, and nothing was started."""


@dataclass(kw_only=True)
class Budget:
    """The device-hours of one command.

    Args:
        limit: ``--budget``, None without one.
        priced: key of a run -> its hours, of what the trials before have priced, so that nothing counts twice.
    """

    limit: float | None
    priced: dict[str, float] = field(default_factory=dict)

    @property
    def left(self) -> float | None:
        """Device-hours that are not spent, just above zero where none are left; None without a limit."""
        if self.limit is None or not self.priced:
            return self.limit
        return max(self.limit - sum(self.priced.values()), 1e-9)


def parser() -> CommandParser:
    """The command line; building it imports neither torch nor mmengine."""
    p = command(
        "run",
        __doc__,
        epilog="Without data it runs the card demo (generated images, minutes on a laptop); --plan shows what would run and "
        "starts nothing. sam-peft settings says where data, checkpoints and results lie.",
    )
    grid = p.add_argument_group("what to compare")
    grid.add_argument(
        "--methods", action=Once, metavar="A,B[opt=1],…", help="methods, with options in brackets; 'all' for every one"
    )
    grid.add_argument(
        "--datasets",
        action=Once,
        metavar="A,B=DIR,…",
        help="benchmarks; 'all' for every one; NAME=DIR for a folder of your own (docs/own-data.md)",
    )
    grid.add_argument(
        "--protocol",
        metavar="CARD",
        help="rules of training and evaluation: a card's name or a .yaml file (default: nas-lora on your data, demo without)",
    )
    grid.add_argument(
        "--backbone",
        metavar="NAME",
        help="vit_b, vit_l, vit_h, mobile_sam, sam2_hiera_tiny, sam3, timm/NAME or tiny (default: the card's)",
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
        "--dataset-root", action="append", default=[], metavar="NAME=DIR", help="one benchmark's own folder"
    )
    data.add_argument(
        "--checkpoint",
        action="append",
        default=[],
        metavar="FILE|BACKBONE=FILE",
        help="pretrained weights; 'none' for random, 'published' (of a timm model also 'timm') to download them",
    )
    add_results(data, help="records, tables, checkpoints (default: as set, else runs)")
    data.add_argument("--skip-missing", action="store_true", help="leave out benchmarks that are not on disk")
    data.add_argument(
        "--no-cache", action="store_true", help="decode images anew instead of keeping them memory-mapped"
    )
    tuned = p.add_argument_group("tuning")
    tuned.add_argument(
        "--tune",
        action="append",
        default=[],
        metavar="FIELD=A,B,…",
        help="try these values (lr=1e-4,3e-4,1e-3; naslora.alpha_lr=…; or 'card' for the card's own grids), choose on "
        "validation, run the seeds with the choice; a rule (decoder_lr=…) is tried by the decoder alone and holds for all rows",
    )
    tuned.add_argument("--tune-seeds", action=Once, metavar="N|A,B,…", help="seeds of the trials (default: 1)")
    tuned.add_argument(
        "--tune-on",
        action=Once,
        metavar="A,B,…",
        help="choose once for all benchmarks, on these (default: each chooses its own)",
    )
    how = p.add_argument_group("how to run")
    how.add_argument(
        "--plan", action="store_true", help="print runs, parameters, memory, what is missing; start nothing"
    )
    how.add_argument(
        "--json",
        action="store_true",
        help="print plan or table as JSON, one object a line",
    )
    how.add_argument(
        "--budget",
        type=float,
        metavar="HOURS",
        help="run only what fits into so many device-hours; with --plan, show which runs those are",
    )
    how.add_argument(
        "--cluster", metavar="NAME", help="submit to SLURM with this profile (slurm/profiles/NAME.yaml or a path)"
    )
    how.add_argument(
        "--executor",
        choices=("inline", "local"),
        default=None,
        help="without --cluster: this process, or worker processes",
    )
    how.add_argument(
        "--workers",
        type=int,
        default=None,
        metavar="N",
        help="worker processes of the local executor (default: one a device)",
    )
    how.add_argument("--wait", action="store_true", help="with --cluster: stay and show progress until all runs end")
    how.add_argument(
        "--retry",
        action=Once,
        metavar="CODES",
        help="with --cluster: submit (or with --plan price) failed runs of these classes again, e.g. oom,node_fail",
    )
    how.add_argument(
        "--yes", action="store_true", help="start although it takes months, or although its numbers rank nothing"
    )
    how.add_argument("--cancel", action="store_true", help="with --cluster: cancel this sweep's jobs and no others")
    return p


@verb
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    arguments.command = shlex.join([*program("run").split(), *(sys.argv[1:] if argv is None else argv)])
    if arguments.study == "list":
        require_effect(arguments, "methods", "datasets", "set", "plan", without="with --study list")
        return list_studies(as_json=arguments.json)
    settings = load_settings()
    _check(arguments, settings)
    if line := copy_in_use():
        say(line)
    arguments.plugin, left_out = load_plugins(plugins_of(arguments))
    for line in left_out:
        say(line)
    undo = ExitStack()
    try:
        return run(arguments, settings, Budget(limit=arguments.budget), undo)
    except MissingError:  # nothing that was written stays
        undo.close()
        raise


def _check(arguments: argparse.Namespace, settings: Settings) -> None:
    """Refuse options that would have no effect."""
    if arguments.budget is not None and not arguments.budget > 0:
        raise UsageError(f"--budget {arguments.budget:g}: give device-hours above zero")
    if arguments.cancel and arguments.budget is not None:
        raise UsageError("--budget chooses what to start and --cancel starts nothing; give one of them")
    if not _cluster(arguments, settings):
        for option, why in (
            ("wait", "here a command stays until its runs end"),
            ("retry", "here runs that failed start again"),
            ("cancel", "a run here is stopped with Ctrl-C"),
        ):
            if getattr(arguments, option):
                raise UsageError(f"--{option} is for --cluster NAME: {why}")
    for chosen, excluded in (("plan", ("wait", "cancel")), ("cancel", ("wait", "retry"))):
        for option in excluded:
            if getattr(arguments, chosen) and getattr(arguments, option):
                raise UsageError(f"--{chosen} starts nothing, so --{option} has no effect; give one of them")


def _cluster(arguments: argparse.Namespace, settings: Settings) -> str:
    """The cluster that runs go to, empty for this machine, which --executor and --workers mean."""
    here = arguments.executor is not None or arguments.workers is not None
    return arguments.cluster or ("" if here else trusted(settings, "cluster", trust=arguments.trust_settings))


def _foresee(asked: Asked) -> None:
    """Plan all of a grid, its trials and what comes after them, before anything runs. Raises MissingError: something is missing for
    any of it; UsageError: any of it cannot be planned."""
    from harness.archive.store import RecordStore
    from harness.planning.data import sample_writer
    from harness.planning.plan import plan
    from harness.planning.tuning import as_expected, plan_trials, unfinished

    request, missing = asked.request, dict[str, None]()
    with ExitStack() as stack:
        instead = Path(stack.enter_context(TemporaryDirectory(prefix="harness-plan-")))
        samples = sample_writer(request.results, instead=instead, undo=stack)
        for step in asked.tuning.steps if asked.tuning is not None else ():
            planned, trials = plan_trials(request, step, prepare_samples=samples)
            missing |= dict.fromkeys(planned.missing)
            request = as_expected(request, step, trials, RecordStore(request.results), left=unfinished(planned))
        missing |= dict.fromkeys(plan(request, prepare_samples=samples).missing)
    if missing:
        raise MissingError(_missing(list(missing)))


def run(arguments: argparse.Namespace, settings: Settings, budget: Budget, undo: ExitStack) -> int:
    """One grid of runs: its trials where rates are tuned, its runs, its table."""
    from harness.archive.store import RecordStore, require_writable
    from harness.dispatch.place import place
    from harness.planning.asked import understand
    from harness.planning.data import sample_writer
    from harness.planning.plan import plan
    from harness.planning.tuning import tell_finished

    with stages() as tell:
        tell("reading settings and cards")
        asked = understand(arguments, settings)
    request = asked.request
    if asked.note:
        say(asked.note)
    if asked.tuning is not None and not arguments.plan and not arguments.cancel:
        _foresee(asked)
    where = place(
        arguments.executor,
        workers=arguments.workers,
        cluster=_cluster(arguments, settings),
        cluster_overrides=asked.cluster_overrides,
    )
    with ExitStack() as stack:
        if arguments.plan:  # which writes nothing below the results folder
            instead = Path(stack.enter_context(TemporaryDirectory(prefix="harness-plan-")))
        else:
            require_writable(request.results)
            instead = None
        samples = sample_writer(request.results, instead=instead, undo=undo)
        status = 0
        for step in asked.tuning.steps if asked.tuning is not None else ():
            if arguments.plan:
                request, missing = show_trials(request, step, arguments, where, budget, samples=samples)
                status = max(status, missing)
                continue
            tuned = tune(request, step, arguments, where, budget, samples=samples)
            if isinstance(tuned, int):
                return tuned
            request = tuned
        planned = plan(request, prepare_samples=samples)
        if asked.tuning is not None and not arguments.plan:
            tell_finished(planned, RecordStore(request.results))
        for line in _of_edited_plugins(planned, RecordStore(request.results)):
            say(line)
    if arguments.plan:
        heading = "the runs, with the first value of a grid where its trials have not all ended" if asked.tuning else ""
        return max(status, show_plan(planned, request, arguments, where, budget, heading=heading))
    outcome = carry_out(planned, request, arguments, where, budget)
    if outcome.submitted:
        return 0

    from harness.report.pages import finished_table

    runs, width = [job.run for job in planned.jobs], terminal_width(sys.stdout)
    with stages() as tell:
        tell("writing the tables")
        table, page = finished_table(
            runs,
            request.results,
            study=arguments.study,
            style="json" if arguments.json else "text" if width else "markdown",
            width=width,
        )
    print(table, end="", flush=True)
    if page is not None:
        say(f"as markdown: {page}")
    return 1 if outcome.failed else 0


def _of_edited_plugins(planned: Plan, store: RecordStore) -> list[str]:
    """A line for every method of a plug-in that has other code now than finished runs of it: their numbers are shown as they are."""
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
        f"trains anew, or deleting the records in {store.root / 'records'}"
        for method, count in changed.items()
    ]


def tune(
    request: Request,
    tuning: Tuning,
    arguments: argparse.Namespace,
    where: Place,
    budget: Budget,
    *,
    samples: Callable[[str], Path],
) -> Request | int:
    """Run the trials that have no result yet; the request with what was chosen, or the exit status where there is no
    choice yet (runs go on without this process, or some failed)."""
    from harness.archive.store import RecordStore
    from harness.planning.tuning import choose, plan_trials, unfinished, without_lost

    store = RecordStore(request.results)
    planned, trials = plan_trials(request, tuning, prepare_samples=samples)
    left = unfinished(planned)
    if not left:
        return choose(request, tuning, trials, store)
    if not arguments.cancel:
        say(f"tuning: {len(left)} of {len(planned.jobs)} trials have no result yet; they run first")
    outcome = carry_out(without_lost(planned), request, arguments, where, budget)
    if arguments.cancel:
        return 0
    planned, trials = plan_trials(request, tuning, prepare_samples=samples)
    left = unfinished(planned)
    if not left:
        return choose(request, tuning, trials, store)
    what = "are on their way" if outcome.submitted else "have no result"
    say(f"tuning: {len(left)} trials {what}; start the same command again to go on")
    return 0 if outcome.submitted else 1


def show_trials(
    request: Request,
    tuning: Tuning,
    arguments: argparse.Namespace,
    where: Place,
    budget: Budget,
    *,
    samples: Callable[[str], Path],
) -> tuple[Request, int]:
    """Print the plan of the trials that have no result yet; the request with the first value of a grid in place of a choice that is
    not known, and 1 where something is missing."""
    from harness.archive.store import RecordStore
    from harness.planning.tuning import as_expected, plan_trials, unfinished

    planned, trials = plan_trials(request, tuning, prepare_samples=samples)
    left, status = unfinished(planned), 0
    if left:
        heading = f"trials of {', '.join(tuning.grids)}"
        status = show_plan(planned, request, arguments, where, budget, heading=heading)
    return as_expected(request, tuning, trials, RecordStore(request.results), left=left), status


def show_plan(
    planned: Plan, request: Request, arguments: argparse.Namespace, where: Place, budget: Budget, *, heading: str = ""
) -> int:
    """Print a plan with its price, but for what the trials have priced; 1 where something is missing."""
    from harness.dispatch.run_jobs import not_again, to_start
    from harness.pricing.price import plan_data, plan_text, price, within_budget

    for line in planned.problems:
        say(line)
    left = budget.left
    started = to_start(planned, where, results=request.results, retry=arguments.retry)
    not_again(planned, started)
    planned = replace(planned, jobs=tuple(job for job in planned.jobs if job.run.key not in budget.priced))
    begun = tuple(job for job in started if job.run.key not in budget.priced)
    prices = price(replace(planned, jobs=begun), request.results, where=where) if begun else None
    if prices is not None:
        chosen = prices.runs if left is None else within_budget(prices, left)
        budget.priced |= {priced.run.key: priced.hours for priced in chosen}
    if arguments.json:
        print(json.dumps({"step": heading, **plan_data(planned, prices, where=where, budget=left)}))
    else:
        text = plan_text(planned, prices, where=where, budget=left)
        show_text(f"{heading}: {text}\n" if heading else text)
    return 1 if planned.missing else 0


def carry_out(planned: Plan, request: Request, arguments: argparse.Namespace, where: Place, budget: Budget) -> Outcome:
    """Run what is pending, as far as a budget goes.

    Raises:
        MissingError: something is missing.
        UsageError: see `harness.dispatch.run_jobs.run_jobs`.
    """
    for line in planned.problems:
        say(line)
    if planned.missing and not arguments.cancel:
        raise MissingError(_missing(planned.missing))
    if not arguments.yes and not arguments.cancel:
        from harness.pricing.price import hesitation

        if doubt := hesitation(planned, request.results, where=where, hours=budget.left):
            raise UsageError(f"{doubt}; --plan shows the prices, and --yes starts it all the same")
    if budget.left is not None:
        planned = _within_budget(planned, request, arguments, where, budget, hours=budget.left)

    from harness.dispatch.run_jobs import run_jobs

    return run_jobs(
        planned,
        where,
        results=request.results,
        command=arguments.command,
        wait=arguments.wait,
        retry=arguments.retry,
        cancel=arguments.cancel,
    )


def _within_budget(
    planned: Plan, request: Request, arguments: argparse.Namespace, where: Place, budget: Budget, *, hours: float
) -> Plan:
    """The plan without what the budget does not reach. Failed runs that are not started again must not use it up."""
    from harness.dispatch.run_jobs import to_start
    from harness.pricing.price import affordable, price

    started = to_start(planned, where, results=request.results, retry=arguments.retry)
    begun = tuple(job for job in started if job.run.key not in budget.priced)
    if not begun:
        return planned
    prices = price(replace(planned, jobs=begun), request.results, where=where)
    planned, choice = affordable(planned, prices, hours=hours)
    say(choice)
    kept = {job.run.key for job in planned.pending}
    budget.priced |= {priced.run.key: priced.hours for priced in prices.runs if priced.run.key in kept}
    return planned


def _missing(lines: Sequence[str]) -> str:
    """One line for all that is missing; where it is more than one thing, each is said on a line of its own before."""
    from harness.planning.needs import card_needs

    needs = f"cards by what they need (--protocol): {card_needs()}"
    if len(lines) == 1:
        return f"{lines[0]}; {needs}"
    for line in lines:
        say(f"missing: {line}")
    return f"{len(lines)} things are missing, so nothing was started; {needs}"


def list_studies(*, as_json: bool) -> int:
    from harness.studies import load_study, study_names

    titles = {name: load_study(name).title for name in study_names()}
    if as_json:
        print(json.dumps([{"study": name, "title": title} for name, title in titles.items()], indent=1))
        return 0
    width = max(map(len, titles))
    for name, title in titles.items():
        print(f"{name:{width}}  {title}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
