"""A run by its key, by the beginning of it, or by the words of a table's cell."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from harness.archive.schema import Record, Run
from harness.archive.store import RecordStore
from harness.errors import UsageError

HINT = "python -m harness.status and harness.why print keys, and --results DIR chooses the folder"
_SAYS_NOTHING = frozenset({"seed", "on", "↑", "↓"})
_SHOWN = 5


def find_record(
    store: RecordStore, asked: str, *, title: Callable[[str], str] = str, metrics: Collection[str] = ()
) -> Record:
    """The whole record whose key is ``asked`` or the only one that begins so, or that fits all its words.

    Args:
        asked: a key, or words such as ``lora kvasir 0`` or ``lora Kvasir-SEG Sα``: a row, a benchmark, a seed, a protocol, a
            backbone, as far as it takes to mean one run.
        title: what tables call a benchmark.
        metrics: what they call metrics; such words tell no run from another.

    Raises:
        UsageError: there is none, or several, or it cannot be read.
    """
    keys = [path.stem for path in store.files() if asked and path.stem.startswith(asked)]
    if len(keys) > 1 and asked not in keys:
        raise UsageError(f"{asked!r} is the beginning of {_some(keys)}; give more of it")
    if not keys:
        started = sorted(path.name for path in store.root.glob("state/*") if asked and path.name.startswith(asked))
        if started:
            raise UsageError(
                f"run {started[0]} has no record yet; python -m harness.status --results {store.root} says where it is"
            )
        keys = [_by_words(store, asked, title=title, metrics=metrics)]
    record = store.read(asked if asked in keys else keys[0])
    assert record is not None
    return record


def find_run(results: Path, asked: str) -> Run:
    """The finished run that `find_record` finds.

    Raises:
        UsageError: none, several, or a run that failed.
    """
    try:
        record = find_record(RecordStore(results), asked)
    except UsageError as error:
        raise UsageError(f"--run {asked}: {error}") from None
    if record.code != "OK":
        raise UsageError(
            f"run {record.key} ended with {record.code} ({record.message}); only finished runs have a trained model"
        )
    return record.run


def _by_words(store: RecordStore, asked: str, *, title: Callable[[str], str], metrics: Collection[str]) -> str:
    told = {word for word in asked.casefold().replace(",", " ").split() if word not in _SAYS_NOTHING}
    told -= {word for metric in metrics for word in metric.casefold().split()}
    records = store.summaries()[0] if told else []
    found = [record for record in records if told <= _names(record.run, title)]
    found = [record for record in found if record.run.variant.casefold() in told] or found
    if len(found) == 1:
        return found[0].key
    if found:
        runs = [
            f"{one.key} ({one.run.variant} on {one.run.benchmark}, seed {one.run.seed}, {one.run.protocol}, "
            f"{one.run.backbone})"
            for one in found
        ]
        raise UsageError(f"{asked!r} fits {len(found)} runs: {_some(runs)}; give more words, or a key")
    raise UsageError(f"no record below {store.root} has the key {asked!r}, or fits these words; {HINT}")


def _names(run: Run, title: Callable[[str], str]) -> set[str]:
    words = (run.variant, run.method, run.benchmark, str(run.seed), run.protocol, run.backbone)
    return {word.casefold() for word in (*words, *title(run.benchmark).split())}


def _some(names: Collection[str]) -> str:
    return ", ".join(list(names)[:_SHOWN]) + (" …" if len(names) > _SHOWN else "")
