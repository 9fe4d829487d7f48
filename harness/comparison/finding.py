"""Which run a user means: its key, the beginning of it, or words of a table's cell such as ``lora kvasir 0``.

Every verb that takes a run takes it through here; below the command line a run is its key.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from harness.archive.schema import Record, Run
from harness.archive.store import RecordStore, require_finished
from harness.comparison.names import METRICS, benchmark_title, method_title
from harness.system.errors import UsageError

HINT = "sam-peft status prints keys, and --results DIR chooses the folder"
_SAYS_NOTHING = frozenset({"seed", "on", "↑", "↓"})
_OF_METRICS = frozenset(word for metric in METRICS.values() for word in metric.title.casefold().split())
"""Words of a column's heading that tell no run from another."""
_SHOWN = 5


def find_key(asked: str, keys: Collection[str], described: Callable[[], Mapping[str, Any]]) -> str:
    """The key that is ``asked``, the only one that begins so, or that of the only run that fits all its words.

    Args:
        asked: a key, or words such as ``lora kvasir 0`` or ``lora Kvasir-SEG Sα``: a row, a benchmark, a seed, a
            protocol, a backbone, as far as it takes to mean one run.
        keys: of all runs.
        described: reads what words are compared with, by key: a `Run`, or the state of one that is on its way, which
            has a run's variant, method, benchmark, seed, protocol and backbone too; called where no key fits.

    Raises:
        UsageError: there is none, or several.
    """
    if asked in keys:
        return asked
    begun = [key for key in keys if asked and key.startswith(asked)]
    if len(begun) == 1:
        return begun[0]
    if begun:
        raise UsageError(f"{asked!r} is the beginning of {_some(begun)}; give more of it")
    words = {word for word in asked.casefold().replace(",", " ").split() if word not in _SAYS_NOTHING | _OF_METRICS}
    runs = described() if words else {}
    fitting = {key: run for key, run in runs.items() if words <= _words_of(run)}
    fitting = {key: run for key, run in fitting.items() if run.variant.casefold() in words} or fitting
    if not fitting:
        raise UsageError(f"no run has the key {asked!r}, or fits these words; {HINT}")
    if len(fitting) > 1:
        runs_in_words = [
            f"{key} ({run.variant} on {run.benchmark}, seed {run.seed}, {run.protocol}, {run.backbone})"
            for key, run in fitting.items()
        ]
        raise UsageError(f"{asked!r} fits {len(fitting)} runs: {_some(runs_in_words)}; give more words, or a key")
    return next(iter(fitting))


def find_record(store: RecordStore, asked: str) -> Record:
    """The whole record of the run that is meant, see `find_key`. Raises UsageError: there is none, or several, or it
    cannot be read."""
    keys = [path.stem for path in store.files()]
    if not any(key.startswith(asked) for key in keys):
        started = sorted(path.name for path in store.root.glob("state/*") if asked and path.name.startswith(asked))
        if started:
            raise UsageError(
                f"run {started[0]} has no record yet; sam-peft status --results {store.root} says where it is"
            )
    record = store.read(find_key(asked, keys, lambda: {record.key: record.run for record in store.summaries()[0]}))
    assert record is not None
    return record


def find_run(results: Path, asked: str) -> Run:
    """The finished run that is meant, see `find_key`. Raises UsageError: none, several, or a run that failed."""
    try:
        record = find_record(RecordStore(results), asked)
    except UsageError as error:
        raise UsageError(f"--run {asked}: {error}") from None
    require_finished(record)
    return record.run


def _words_of(run: Any) -> set[str]:
    words = (
        run.variant,
        run.method,
        method_title(run.method),
        run.benchmark,
        str(run.seed),
        run.protocol,
        run.backbone,
    )
    return {word.casefold() for word in (*words, *benchmark_title(run.benchmark).split())}


def _some(names: Collection[str]) -> str:
    return ", ".join(list(names)[:_SHOWN]) + (" …" if len(names) > _SHOWN else "")
