"""``python -m harness.run``: plan a grid of runs, run what is not finished, print the table.

Read downwards: the command line becomes a `Request`, `plan` turns it into jobs, an executor runs those that are pending, and the table is
rendered from the records.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from harness.cli.command import CommandParser, Once, command, copy_in_use, require_effect, verb
from harness.phases import MissingError, carry_out, phases_of, programme, show_plan, tune
from harness.plugins import load_plugins
from harness.settings.options import add_plugins, add_results, plugins_of
from harness.settings.read import Settings, load_settings, trusted_cluster
from harness.system.errors import UsageError
from harness.system.progress import stages
from harness.system.streams import say, terminal_width


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
        help="vit_b, vit_l, vit_h, mobile_sam, sam3, timm/NAME or tiny (default: the card's)",
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
        help="pretrained weights; 'none' for random",
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
    tuned.add_argument("--tune-seeds", metavar="N|A,B,…", help="seeds of the trials (default: 1)")
    tuned.add_argument(
        "--tune-on", metavar="A,B,…", help="choose once for all benchmarks, on these (default: each chooses its own)"
    )
    how = p.add_argument_group("how to run")
    how.add_argument(
        "--plan", action="store_true", help="print runs, parameters, memory, what is missing; start nothing"
    )
    how.add_argument(
        "--json",
        action="store_true",
        help="print plan or table as JSON, one object a line (the phases of a study: several)",
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
        help="with --cluster: submit (or with --plan price) failed runs of these classes again, e.g. oom,node_fail",
    )
    how.add_argument("--cancel", action="store_true", help="with --cluster: cancel this sweep's jobs and no others")
    return p


@verb
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
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
    arguments.priced = {}
    phases = phases_of(arguments)
    return programme(arguments, phases, lambda own: run(own, settings)) if phases else run(arguments, settings)


def _check(arguments: argparse.Namespace, settings: Settings) -> None:
    """Options that would have no effect are refused."""
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
    for chosen, others in (("plan", ("wait", "cancel")), ("cancel", ("wait", "retry"))):
        for option in others:
            if getattr(arguments, chosen) and getattr(arguments, option):
                raise UsageError(f"--{chosen} starts nothing, so --{option} has no effect; give one of them")


def _cluster(arguments: argparse.Namespace, settings: Settings) -> str:
    """The cluster that runs go to, empty for this machine, which --executor and --workers mean."""
    here = arguments.executor is not None or arguments.workers is not None
    return arguments.cluster or ("" if here else trusted_cluster(settings, trust=arguments.trust_settings))


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """One grid; where something is missing for it, nothing that was written stays."""
    undo = ExitStack()
    try:
        return _grid(arguments, settings, undo)
    except MissingError:
        undo.close()
        raise


def _grid(arguments: argparse.Namespace, settings: Settings, undo: ExitStack) -> int:
    """Its trials where rates are tuned, its runs, its table."""
    from harness.archive.store import RecordStore, require_writable
    from harness.dispatch.place import place
    from harness.planning.asked import understand
    from harness.planning.plan import plan
    from harness.planning.samples import sample_writer
    from harness.planning.tuning import tell_finished

    with stages() as tell:
        tell("reading settings and cards")
        asked = understand(arguments, settings)
    request = asked.request
    if asked.note:
        say(asked.note)
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
        for step in asked.tuning.steps if asked.tuning is not None else ():
            tuned = tune(request, step, arguments, where, samples=samples)
            if isinstance(tuned, int):
                return tuned
            request = tuned
        planned = plan(request, prepare_samples=samples)
        if asked.tuning is not None and not arguments.plan:
            tell_finished(planned, RecordStore(request.results))
    if arguments.plan:
        heading = "the runs, with the first value of a grid where its trials have not all ended" if asked.tuning else ""
        return show_plan(planned, request, arguments, where, heading=heading)
    outcome = carry_out(planned, request, arguments, where)
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
