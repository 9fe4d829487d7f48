"""``sam-peft forgetting``: score finished runs' best models on the benchmarks that they were not trained on."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.archive.measured import ForgettingRecord, ForgettingStore
from harness.archive.schema import Run
from harness.archive.store import RecordStore, require_writable
from harness.cli.command import (
    CommandParser,
    add_plugins,
    add_results,
    add_run,
    command,
    load_own_plugins,
    results_of,
    verb,
    write_file,
)
from harness.comparison.finding import find_run
from harness.models.published import require_file_or_word
from harness.report.forgetting import TITLE, forgetting_page
from harness.report.formats import write
from harness.settings import load_settings
from harness.system.errors import UsageError
from harness.system.streams import say, stages, terminal_width


def parser() -> CommandParser:
    p = command(
        "forgetting",
        __doc__,
        epilog="Nothing is trained: kept states are loaded, and the data are those of finished runs with the same rules and"
        " backbone. Writes RESULTS/forgetting/KEY.json and RESULTS/tables/forgetting.md, the difference to the frozen encoder.",
    )
    add_run(p, several="; may be repeated (default: all whose state was kept)")
    add_results(p)
    p.add_argument("--data", type=Path, metavar="DIR", help="the benchmarks' folder (default: as set)")
    p.add_argument("--checkpoint", type=Path, metavar="FILE", help="the pretrained weights that the runs started from")
    add_plugins(p, help="as the runs had it")
    p.add_argument("--json", action="store_true", help="print the table as JSON, on one line")
    return p


@verb
def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    require_file_or_word(arguments.checkpoint)
    load_own_plugins(arguments)
    results = results_of(arguments)
    records, _ = RecordStore(results).summaries()
    finished = [record.run for record in records if record.code == "OK"]
    store = ForgettingStore(results)
    runs = [find_run(results, key) for key in arguments.run] or _with_state(results, finished)
    if not runs:
        raise UsageError(f"no finished run below {results} has kept its trained state; run something first")
    require_writable(store.folder)

    from harness.experiment.trained import fits

    places = {run.key: _others(run, [other for other in finished if fits(run, other)]) for run in runs}
    if not any(places.values()):
        raise UsageError(
            f"no run below {results} was finished on another benchmark with the same rules, backbone and classes as one of"
            " these; run one there, which also says which images are meant"
        )
    images_of = {run.key: _images(run) for run in finished}
    for run in runs:
        with stages() as tell:
            record = _measured(arguments, run, places[run.key], images_of, store=store, tell=tell)
        if record is not None:
            say(
                f"{store.write(record)}: {run.variant} of {run.benchmark}, seed {run.seed}, on {', '.join(record.elsewhere)}"
            )
    page = forgetting_page(records, store)
    path = results / "tables" / f"{TITLE}.md"
    write_file(path, write(page, style="markdown"), what="table")
    width = terminal_width(sys.stdout)
    print(write(page, style="json" if arguments.json else "text", width=width or 100), end="", flush=True)
    say(f"as markdown: {path}")
    return 0


def _with_state(results: Path, runs: Iterable[Run]) -> list[Run]:
    from harness.training.checkpoint import BEST

    return [run for run in runs if (results / "state" / run.key / BEST).is_file()]


def _others(run: Run, fitting: Iterable[Run]) -> dict[str, Run]:
    """One run of each benchmark, that of the lowest seed and key."""
    runs: dict[str, Run] = {}
    for other in sorted(fitting, key=lambda candidate: (candidate.benchmark, candidate.seed, candidate.key)):
        runs.setdefault(other.benchmark, other)
    return runs


def _images(run: Run) -> tuple[object, ...]:
    """What tells the images that a run was tested on."""
    return run.manifest, run.data_fingerprint, run.rules.get("split_seed"), run.rules.get("test_limit")


def _measured(
    arguments: Any, run: Run, others: dict[str, Run], images_of: dict[str, tuple[object, ...]], *,
    store: ForgettingStore, tell: Any,
) -> ForgettingRecord | None:  # fmt: skip
    """The run's record with what was missing, or was scored on images of a run that is gone; None where nothing was."""
    from harness.experiment.environment import environment, now, own_device
    from harness.experiment.trained import of_results, scored_elsewhere
    from harness.planning.asked import checkpoint_of, tested_folder

    results, settings, device = results_of(arguments), load_settings(), own_device()
    trained = of_results(results, run.key)
    known = store.find(run.key)
    if known is None or known.state != trained.digest:
        known = ForgettingRecord(key=run.key, state=trained.digest, elsewhere={})
    missing = {
        name: other
        for name, other in others.items()
        if name not in known.elsewhere or images_of.get(known.elsewhere[name].like) != images_of[other.key]
    }
    if not missing:
        return None
    segmenter, _ = trained.segmenter(checkpoint_of(run, settings, given=arguments.checkpoint))
    scored = dict(known.elsewhere)
    for name, other in missing.items():
        tell(f"{run.variant} of {run.benchmark} on {name}")
        data = tested_folder(other, settings, given=arguments.data, results=results)
        scored[name] = scored_elsewhere(segmenter, other, data=data, results=results, device=device)
    return replace(known, elsewhere=dict(sorted(scored.items())), environment=environment(device), finished=now())
