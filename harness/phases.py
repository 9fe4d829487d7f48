"""What a command does in phases: the studies of a programme, the trials before the runs, and one budget for all of it.

``arguments.priced`` holds what the phases before have priced, by key, so that nothing is counted twice.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from harness.system.errors import BudgetError, UsageError
from harness.system.streams import say


class MissingError(UsageError):
    """Data or a checkpoint is missing, and nothing was started."""


def phases_of(arguments: argparse.Namespace) -> Any:
    """The phases of a study that is a programme, as `harness.studies.Phase`."""
    if not arguments.study:
        return ()
    from harness.studies import load_study

    phases = load_study(arguments.study).phases
    if phases and arguments.methods:
        raise UsageError(
            f"--study {arguments.study} is a programme of several studies; --methods cannot replace their rows"
        )
    return phases


def programme(arguments: argparse.Namespace, phases: Any, run: Callable[[argparse.Namespace], int]) -> int:
    """Plan, price or run the phases one after another: a run that two of them ask for is made and priced once, and a
    budget is spent from the first to the last."""
    status, hours = 0, arguments.priced
    for number, phase in enumerate(phases, start=1):
        text = arguments.plan and not arguments.json
        print(f"{number}. {phase.title} ({phase.study})\n", file=sys.stdout if text else sys.stderr)
        own = argparse.Namespace(**vars(arguments))
        own.study = phase.study
        asked = {item.partition("=")[0] for item in arguments.set}
        own.set = [*(_typed(key, value) for key, value in phase.set.items() if key not in asked), *arguments.set]
        own.datasets = arguments.datasets or ",".join(phase.benchmarks) or None
        own.seeds = arguments.seeds or (f"{','.join(map(str, phase.seeds))}," if phase.seeds else None)  # 7, is seed 7
        try:
            status = max(status, run(own))
        except BudgetError as error:
            if not arguments.priced:
                raise
            say(f"the budget ends here: {error}")
            break
        if arguments.budget is not None and budget_left(arguments) < arguments.budget / 100:
            say("the budget ends here")
            break
    if arguments.plan and not arguments.json:
        print(f"\nall phases: {len(hours)} runs to make, {sum(hours.values()):.1f} device-hours")
    return status


def _typed(key: str, value: Any) -> str:
    """As ``--set`` takes it."""
    return f"{key}=[{','.join(map(str, value))}]" if isinstance(value, list | tuple) else f"{key}={value}"


def tune(request: Any, tuning: Any, arguments: argparse.Namespace, where: Any, *, samples: Any) -> Any:
    """Run the trials that have no result yet; the request with what was chosen, or the exit status where there is no
    choice yet (runs go on without this process, or some failed). Where only a plan was asked for, the first value of a
    grid stands in place of a choice that is not known."""
    from harness.archive.store import RecordStore
    from harness.planning.tuning import as_expected, choose, plan_trials, unfinished, without_lost

    store = RecordStore(request.results)
    planned, trials = plan_trials(request, tuning, prepare_samples=samples)
    left = unfinished(planned)
    if not left:
        return choose(request, tuning, trials, store, write=not arguments.plan)
    if arguments.plan:
        show_plan(planned, request, arguments, where, heading=f"trials of {', '.join(tuning.grids)}")
        return as_expected(request, tuning, trials, store, left=left)
    say(f"tuning: {len(left)} of {len(planned.jobs)} trials have no result yet; they run first")
    outcome = carry_out(without_lost(planned), request, arguments, where)
    planned, trials = plan_trials(request, tuning, prepare_samples=samples)
    left = unfinished(planned)
    if not left:
        return choose(request, tuning, trials, store)
    what = "are on their way" if outcome.submitted else "have no result"
    say(f"tuning: {len(left)} trials {what}; start the same command again to go on")
    return 0 if outcome.submitted or arguments.cancel else 1


def show_plan(planned: Any, request: Any, arguments: argparse.Namespace, where: Any, *, heading: str = "") -> int:
    """Print a plan with its price, without what an earlier phase has in its own; 1 where something is missing."""
    from harness.dispatch.run_jobs import not_again, to_start
    from harness.pricing.plan_text import plan_data, plan_text
    from harness.pricing.price import bought

    for line in planned.problems:
        say(line)
    left = None if arguments.budget is None else budget_left(arguments)
    begun = to_start(planned, where, results=request.results, retry=arguments.retry)
    not_again(planned, begun)
    planned, prices, hours = bought(
        planned, request.results, begun=begun, where=where, before=arguments.priced, budget=left
    )
    arguments.priced |= hours
    if arguments.json:
        print(json.dumps({"phase": heading, **plan_data(planned, prices, where=where)}))
        return 1 if planned.missing else 0
    text = plan_text(planned, prices, where=where, budget=left)
    print(f"{heading}: {text}" if heading else text, end="\n" if heading else "")
    return 1 if planned.missing else 0


def budget_left(arguments: argparse.Namespace) -> float:
    """Of ``--budget``, after the trials and phases before."""
    budget: float = arguments.budget
    return max(budget - sum(arguments.priced.values()), 1e-9) if arguments.priced else budget


def carry_out(planned: Any, request: Any, arguments: argparse.Namespace, where: Any) -> Any:
    """Run what is pending, as far as a budget goes; returns a `harness.dispatch.run_jobs.Outcome`.

    Raises:
        MissingError: something is missing.
        UsageError: see `harness.dispatch.run_jobs.run_jobs`.
    """
    for line in planned.problems:
        say(line)
    if planned.missing:
        raise MissingError(_missing(planned.missing))
    if arguments.budget is not None:
        planned = _within_budget(planned, request, arguments, where)

    from harness.dispatch.run_jobs import run_jobs

    return run_jobs(
        planned,
        where,
        results=request.results,
        wait=arguments.wait,
        retry=arguments.retry,
        cancel=arguments.cancel,
    )


def _within_budget(planned: Any, request: Any, arguments: argparse.Namespace, where: Any) -> Any:
    """The plan without what the budget does not reach. Failed runs that are not started again must not use it up."""
    from harness.dispatch.run_jobs import to_start
    from harness.pricing.price import affordable, price

    begun = tuple(to_start(planned, where, results=request.results, retry=arguments.retry))
    if not begun:
        return planned
    prices = price(replace(planned, jobs=begun), request.results, where=where)
    planned, choice = affordable(planned, prices, hours=budget_left(arguments))
    say(choice)
    kept = {job.run.key for job in planned.pending}
    arguments.priced |= {one.run.key: one.hours for one in prices.runs if one.run.key in kept}
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
