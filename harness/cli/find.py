"""Find the run that a user's words name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from harness.archive.schema import Record, Run
from harness.archive.store import RecordStore, require_finished
from harness.comparison.names import benchmark_title, method_title
from harness.system.errors import UsageError

HINT = "sam-peft status prints keys and states, and --results DIR chooses the folder"


def find_key(
    wanted: str, keys: Collection[str], described: Callable[[], Mapping[str, Any]], *, what: str = "run"
) -> str:
    """The key that is ``wanted``, the only one that begins so, or that of the only run that fits all its words.

    Args:
        wanted: a key, or words such as ``lora kvasir 0``: a row, a benchmark, a seed, a protocol, a backbone, as many as identify one
            run.
        keys: the keys of all runs.
        described: gives key -> `Run`, or another object with a run's label, method, benchmark, seed, protocol and backbone; called
            where no key fits.
        what: what the keys belong to, for messages.

    Raises:
        UsageError: no run fits, or several.
    """
    if wanted in keys:
        return wanted
    begun = [key for key in keys if wanted and key.startswith(wanted)]
    if len(begun) == 1:
        return begun[0]
    if begun:
        raise UsageError(f"{wanted!r} is the beginning of {_some(begun)}; give more of it")
    words = set(wanted.casefold().replace(",", " ").split()) - {"seed", "on"}
    runs = described() if words else {}
    fitting = {key: run for key, run in runs.items() if words <= _words_of(run)}
    fitting = {key: run for key, run in fitting.items() if run.label.casefold() in words} or fitting
    if not fitting:
        raise UsageError(f"no {what} has the key {wanted!r}, or fits these words; {HINT}")
    if len(fitting) > 1:
        runs_in_words = [
            f"{key} ({run.label} on {run.benchmark}, seed {run.seed}, {run.protocol}, {run.backbone})"
            for key, run in fitting.items()
        ]
        raise UsageError(f"{wanted!r} fits {len(fitting)} runs: {_some(runs_in_words)}; give more words, or a key")
    return next(iter(fitting))


def find_record(store: RecordStore, wanted: str) -> Record:
    """The whole record of the run that ``wanted`` names (`find_key`). Raises UsageError: none, several, or it cannot be read."""
    keys = [path.stem for path in store.files()]

    def runs() -> dict[str, Run]:
        return {record.key: record.run for record in store.summaries()[0]}

    record = store.read(find_key(wanted, keys, runs, what="finished run"))
    assert record is not None
    return record


def find_run(results: Path, wanted: str) -> Run:
    """The finished run that ``wanted`` names (`find_key`). Raises UsageError: none, several, or a run that failed."""
    try:
        record = find_record(RecordStore(results), wanted)
    except UsageError as error:
        raise UsageError(f"--run {wanted}: {error}") from None
    require_finished(record)
    return record.run


def _words_of(run: Any) -> set[str]:
    words = (
        run.label,
        run.method,
        method_title(run.method),
        run.benchmark,
        str(run.seed),
        run.protocol,
        run.backbone,
    )
    return {word.casefold() for word in (*words, *benchmark_title(run.benchmark).split())}


def _some(names: Collection[str]) -> str:
    return ", ".join(list(names)[:5]) + (" …" if len(names) > 5 else "")
