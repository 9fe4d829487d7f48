"""``python -m harness.run``: plan a grid of runs, run what is not finished, print the table.

Read downwards: the command line becomes a `Request`, `plan` turns it into jobs, an executor runs those that are pending, and the table is
rendered from the records.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from harness.cli import verb
from harness.errors import UsageError
from harness.registry import BENCHMARKS, METHODS, Registry, load_plugins
from harness.validation import parse_assignments


def parser() -> argparse.ArgumentParser:
    """The command line; building it imports neither torch nor mmengine."""
    p = argparse.ArgumentParser(
        prog="python -m harness.run",
        description="Compare ways to fine-tune SAM: plan a grid of runs, run what is not finished, print the table.",
        epilog="Start with --protocol demo (generated images, minutes on a laptop); --plan shows what would run and starts nothing.",
    )
    grid = p.add_argument_group("what to compare")
    grid.add_argument(
        "--methods", metavar="A,B[opt=1],…", help="methods, with options in brackets; 'all' for every one"
    )
    grid.add_argument("--datasets", metavar="A,B,…", help="benchmarks; 'all' for every one")
    grid.add_argument(
        "--protocol", metavar="CARD", help="rules of training and evaluation: a card's name or a .yaml file"
    )
    grid.add_argument(
        "--backbone", metavar="NAME", help="vit_t, vit_b, vit_l, vit_h or timm/NAME (default: the card's)"
    )
    grid.add_argument("--seeds", default=None, metavar="N|A,B,…", help="number of seeds, or a list (default: 1)")
    grid.add_argument(
        "--study", metavar="NAME", help="a named grid that fills one table of the paper; 'list' shows them"
    )
    grid.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override: lr=3e-4, lora.rank=6, cluster.time=2h",
    )
    grid.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="FILE.py",
        help="a file that defines more methods or benchmarks",
    )
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
        help="pretrained weights; 'none' for random",
    )
    data.add_argument(
        "--results", type=Path, default=Path("runs"), metavar="DIR", help="records, tables, checkpoints (default: runs)"
    )
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
        help="try these values (lr=1e-4,3e-4,1e-3; naslora.alpha_lr=…), choose on validation, run the seeds with the choice",
    )
    tuned.add_argument("--tune-seeds", metavar="N|A,B,…", help="seeds of the trials (default: 1)")
    tuned.add_argument(
        "--tune-on", metavar="A,B,…", help="choose once for all benchmarks, on these (default: each chooses its own)"
    )
    how = p.add_argument_group("how to run")
    how.add_argument(
        "--plan", action="store_true", help="print runs, parameters, memory, what is missing; start nothing"
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
        metavar="CODES",
        help="with --cluster: submit failed runs of these classes again, e.g. oom,node_fail,timeout",
    )
    how.add_argument("--cancel", action="store_true", help="with --cluster: cancel this sweep's jobs and no others")
    return p


@verb
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if arguments.study == "list":
        return list_studies()
    arguments.plugin, left_out = load_plugins(arguments.plugin)
    for line in left_out:
        print(line, file=sys.stderr)
    arguments.priced = {}
    phases = phases_of(arguments)
    return programme(arguments, phases) if phases else run(arguments)


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


def programme(arguments: argparse.Namespace, phases: Any) -> int:
    """Plan, price or run the phases one after another: a run that two of them ask for is made and priced once, and a
    budget is spent from the first to the last."""
    status, hours = 0, arguments.priced
    for number, phase in enumerate(phases, start=1):
        print(f"{number}. {phase.title} ({phase.study})\n", file=sys.stdout if arguments.plan else sys.stderr)
        own = argparse.Namespace(**vars(arguments))
        own.study = phase.study
        asked = {item.partition("=")[0] for item in arguments.set}
        own.set = [*(f"{key}={value}" for key, value in phase.set.items() if key not in asked), *arguments.set]
        own.datasets = arguments.datasets or ",".join(phase.benchmarks) or None
        own.seeds = arguments.seeds or (",".join(map(str, phase.seeds)) if len(phase.seeds) > 1 else None)
        try:
            status = max(status, run(own))
        except UsageError as error:
            if arguments.budget is None or not arguments.priced:
                raise
            print(f"the budget ends here: {error}", file=sys.stderr)
            break
        if arguments.budget is not None and budget_left(arguments) < arguments.budget / 100:
            print("the budget ends here", file=sys.stderr)
            break
    if arguments.plan:
        print(f"\nall phases: {len(hours)} runs to make, {sum(hours.values()):.1f} device-hours")
    return status


def run(arguments: argparse.Namespace) -> int:
    """One grid: its trials where rates are tuned, its runs, its table."""
    request, cluster_overrides = build_request(arguments)
    tuning = build_tuning(arguments)

    from harness.dispatch.place import place
    from harness.planning.plan import plan
    from harness.planning.samples import sample_writer
    from harness.records.store import require_writable

    where = place(
        arguments.executor, workers=arguments.workers, cluster=arguments.cluster, cluster_overrides=cluster_overrides
    )
    if not arguments.plan:
        require_writable(request.results)
    samples = sample_writer(request.results)
    if tuning is not None:
        tuned = tune(request, tuning, arguments, where, samples=samples)
        if isinstance(tuned, int):
            return tuned
        request = tuned
    planned = plan(request, prepare_samples=samples)
    if arguments.plan:
        show_plan(planned, request, arguments, where)
        return 0
    outcome = carry_out(planned, request, arguments, where)
    if outcome.submitted:
        return 0

    from harness.reporting.finished import finished_table

    runs = [job.run for job in planned.jobs]
    print(finished_table(runs, request.results, study=arguments.study), end="")
    return 1 if outcome.failed else 0


def tune(request: Any, tuning: Any, arguments: argparse.Namespace, where: Any, *, samples: Any) -> Any:
    """Run the trials that have no result yet; the request with what was chosen, or the exit status where there is no
    choice yet (runs go on without this process, some failed, or only a plan was asked for)."""
    from harness.planning.plan import plan
    from harness.planning.tuning import choose, plan_trials, unfinished, with_first_values
    from harness.records.store import RecordStore

    planned, trials = plan_trials(request, tuning, prepare_samples=samples)
    left = unfinished(planned)
    if not left:
        return choose(request, tuning, trials, RecordStore(request.results))
    if arguments.plan:
        show_plan(planned, request, arguments, where, heading="first phase, the trials")
        planned = plan(with_first_values(request, tuning), prepare_samples=samples)
        heading = "second phase, each first value standing for the one to be chosen"
        show_plan(planned, request, arguments, where, heading=heading)
        return 0
    print(f"tuning: {len(left)} of {len(planned.jobs)} trials have no result yet; they run first", file=sys.stderr)
    outcome = carry_out(planned, request, arguments, where)
    planned, trials = plan_trials(request, tuning, prepare_samples=samples)
    left = unfinished(planned)
    if not left:
        return choose(request, tuning, trials, RecordStore(request.results))
    what = "are on their way" if outcome.submitted else "have no result"
    print(f"tuning: {len(left)} trials {what}; start the same command again to go on", file=sys.stderr)
    return 0 if outcome.submitted or arguments.cancel else 1


def show_plan(planned: Any, request: Any, arguments: argparse.Namespace, where: Any, *, heading: str = "") -> None:
    """Print a plan with its price, without what an earlier phase has in its own."""
    from harness.pricing.plan_text import plan_text
    from harness.pricing.price import bought

    for line in planned.problems:
        print(line, file=sys.stderr)
    left = None if arguments.budget is None else budget_left(arguments)
    planned, hours = bought(planned, request.results, where=where, before=arguments.priced, budget=left)
    arguments.priced |= hours
    text = plan_text(planned, request.results, where=where, budget=left)
    print(f"{heading}: {text}" if heading else text, end="\n" if heading else "")


def budget_left(arguments: argparse.Namespace) -> float:
    """Of ``--budget``, after the trials and phases before."""
    budget: float = arguments.budget
    return max(budget - sum(arguments.priced.values()), 1e-9) if arguments.priced else budget


def carry_out(planned: Any, request: Any, arguments: argparse.Namespace, where: Any) -> Any:
    """Run what is pending, as far as a budget goes; returns a `harness.dispatch.run_jobs.Outcome`.

    Raises:
        UsageError: something is missing, or see `harness.dispatch.run_jobs.run_jobs`.
    """
    for line in planned.problems:
        print(line, file=sys.stderr)
    if planned.missing:
        raise UsageError(planned.missing[0])
    if arguments.budget is not None:
        from harness.pricing.price import affordable, price

        if arguments.cancel:
            raise UsageError("--budget chooses what to start and --cancel starts nothing; give one of them")
        prices = price(planned, request.results, where=where)
        planned, choice = affordable(planned, prices, hours=budget_left(arguments))
        print(choice, file=sys.stderr)
        kept = {job.run.key for job in planned.pending}
        arguments.priced |= {one.run.key: one.hours for one in prices.runs if one.run.key in kept}

    from harness.dispatch.run_jobs import run_jobs

    return run_jobs(
        planned,
        where,
        results=request.results,
        wait=arguments.wait,
        retry=arguments.retry,
        cancel=arguments.cancel,
    )


def build_tuning(arguments: argparse.Namespace) -> Any:
    """A `harness.planning.tuning.Tuning`, None where nothing is tuned.

    Raises:
        UsageError: malformed grids.
    """
    from harness.planning.tuning import Tuning, parse_tune

    found: dict[str, Any] = {"grids": {}}
    if arguments.study:
        from harness.studies import load_study

        study = load_study(arguments.study)
        found = {"grids": study.tune, "seeds": study.tune_seeds, "on": study.tune_on}
    if arguments.tune:
        found["grids"] = parse_tune(arguments.tune)
    if not found["grids"]:
        if arguments.tune_seeds or arguments.tune_on:
            raise UsageError("--tune-seeds and --tune-on say how to tune; say what with --tune lr=1e-4,3e-4,1e-3")
        return None
    if arguments.tune_seeds:
        found["seeds"] = parse_seeds(arguments.tune_seeds)
    if arguments.tune_on:
        found["on"] = tuple(expand(arguments.tune_on, usable(BENCHMARKS)))
    return Tuning(**found)


def build_request(arguments: argparse.Namespace) -> tuple[Any, dict[str, str]]:
    """A `Request` and the ``cluster.*`` overrides.

    Raises:
        UsageError: an argument is missing or malformed.
    """
    from harness.models.checkpoint import checkpoint_paths
    from harness.planning.request import Entry, Request

    overrides = parse_assignments(arguments.set)
    cluster = {
        key.removeprefix("cluster."): overrides.pop(key) for key in list(overrides) if key.startswith("cluster.")
    }
    if arguments.no_cache:
        overrides["cache_images"] = "false"
    values: dict[str, Any] = {}
    if arguments.study:
        from harness.studies import load_study

        study = load_study(arguments.study)
        if not study.entries:
            raise UsageError(f"study {study.name} has no runs of its own; measure it with python -m harness.cost")
        values |= {
            "entries": tuple(Entry(method=e.method, options=e.options, label=e.label) for e in study.entries),
            "benchmarks": study.benchmarks,
            "protocol": study.protocol,
            "seeds": study.seeds,
            "backbones": study.backbones,
        }
        overrides = {**study.set, **({"budget": study.budget} if study.budget else {}), **overrides}
    if arguments.methods:
        values["entries"] = tuple(parse_entry(word) for word in expand(arguments.methods, usable(METHODS)))
    if arguments.datasets:
        values["benchmarks"] = tuple(expand(arguments.datasets, usable(BENCHMARKS)))
    if arguments.protocol:
        values["protocol"] = arguments.protocol
    if arguments.seeds is not None:
        values["seeds"] = parse_seeds(arguments.seeds)
    if arguments.backbone:
        values["backbones"] = (arguments.backbone,)
    for needed, example in (
        ("entries", "--methods lora,naslora"),
        ("benchmarks", "--datasets all"),
        ("protocol", "--protocol demo"),
    ):
        if not values.get(needed):
            raise UsageError(f"say {example} (or --study NAME for a whole table; --help lists everything)")
    roots = {}
    for item in arguments.dataset_root:
        name, equals, folder = item.partition("=")
        if not equals:
            raise UsageError(f"--dataset-root {item!r} is not NAME=DIR, such as --dataset-root kvasir=/data/Kvasir-SEG")
        roots[BENCHMARKS.resolve(name)] = Path(folder)
    request = Request(
        **values,
        overrides=overrides,
        data_root=arguments.data,
        dataset_roots=roots,
        checkpoints=checkpoint_paths(arguments.checkpoint),
        results=arguments.results,
        plugins=tuple(str(Path(path).absolute()) for path in arguments.plugin),
        skip_missing=arguments.skip_missing,
    )
    return request, cluster


def usable(registry: Registry) -> list[str]:
    """What ``all`` stands for; installed plug-ins that are broken are named on stderr and left out."""
    names = registry.usable_names()
    for line in registry.broken.values():
        print(line, file=sys.stderr)
    return names


def expand(text: str, everything: list[str]) -> list[str]:
    """Comma-separated words, commas inside brackets kept; ``all`` stands for ``everything``."""
    words, depth, current = [], 0, ""
    for letter in text + ",":
        depth += (letter == "[") - (letter == "]")
        if letter == "," and depth == 0:
            if current.strip():
                words.append(current.strip())
            current = ""
        else:
            current += letter
    if depth:
        raise UsageError(f"{text!r}: a bracket is not closed")
    return [name for word in words for name in (everything if word == "all" else [word])]


def parse_entry(word: str) -> Any:
    """``lora[rank=6,alpha=12]`` as an entry; a value with a comma is put in quotes: ``lora[sites='q,v']``."""
    import re

    from harness.planning.request import Entry

    match = re.fullmatch(r"([^\[\]]+)(?:\[(.*)\])?", word)
    if not match:
        raise UsageError(f"--methods: {word!r} is not NAME or NAME[option=value,…]")
    items = re.findall(r"""((?:[^,'"]|'[^']*'|"[^"]*")+)""", match[2] or "")
    options = {key: value.strip("'\"") for key, value in parse_assignments([item.strip() for item in items]).items()}
    return Entry(method=METHODS.resolve(match[1]), options=options)


def parse_seeds(text: str) -> tuple[int, ...]:
    """``5`` is seeds 0 to 4; ``0,3,7`` is those.

    Raises:
        UsageError: not whole numbers, none, one twice, or beyond all use.
    """
    from harness.studies import MOST_SEEDS

    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise UsageError(f"--seeds {text!r} is neither a number of seeds (5) nor a list of seeds (0,3,7)")
    if any(len(part) > 9 for part in parts) or (len(parts) == 1 and int(parts[0]) > MOST_SEEDS):
        raise UsageError(f"--seeds {text!r}: at most {MOST_SEEDS} seeds, each of at most 9 digits")
    seeds = tuple(range(int(parts[0]))) if len(parts) == 1 else tuple(int(part) for part in parts)
    if not seeds or len(set(seeds)) < len(seeds):
        raise UsageError(f"--seeds {text!r} names no seed, or one twice")
    return seeds


def list_studies() -> int:
    from harness.studies import load_study, study_names

    for name in study_names():
        print(f"{name:16} {load_study(name).title}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
