"""Match planned runs with earlier records: which are finished, failed or damaged, or were made from other data or under the older,
short fingerprint of their checkpoint."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from harness.archive.checkpoints import noted
from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.planning.job import Job
from harness.system.errors import UsageError
from harness.system.text import counted


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """What there is below a results folder.

    Args:
        finished: keys with an ``OK`` record.
        failed: key -> reason code.
        problems: a line for every record that cannot be read; its run counts as not started.
    """

    finished: frozenset[str]
    failed: Mapping[str, str]
    problems: tuple[str, ...]


def earlier(results: Path, jobs: Mapping[str, Job]) -> Earlier:
    """Look up the records of ``jobs`` (by key). Raises UsageError: a finished record was made from other files than the benchmark
    has now, or a record that may be a finished one cannot be read for now."""
    store = RecordStore(results)
    finished: set[str] = set()
    failed: dict[str, str] = {}
    problems: list[str] = []
    outdated: dict[str, list[Path]] = {}
    for key, record in store.surely_ended(jobs.keys()).items():
        job = jobs[key]
        if isinstance(record, str):
            path = store.path(key)
            problems.append(
                f"{path} is not a readable record ({record}): its run counts as not started, and the file stays as "
                f"{path.name}.unreadable once the run has a new record"
            )
        elif record.code != "OK":
            failed[key] = record.code
        else:
            finished.add(key)
            then, now = record.run.data_fingerprint, job.run.data_fingerprint
            if then and now and then != now:
                outdated.setdefault(job.run.benchmark, []).append(store.path(key))
    if outdated:
        name, paths = next(iter(outdated.items()))
        several = f"{len(paths)} finished records, such as" if len(paths) > 1 else "the finished record"
        more = f" (so do {', '.join(list(outdated)[1:])})" if len(outdated) > 1 else ""
        raise UsageError(
            f"{name}: its files below {jobs[paths[0].stem].dataset_root} differ from those behind {several} {paths[0]}{more}; "
            "take another --results folder for the new files, or move those records away to run them again"
        )
    return Earlier(finished=frozenset(finished), failed=failed, problems=tuple(problems))


def under_short_fingerprints(
    results: Path, jobs: Mapping[str, Job], shorts: Mapping[str, str]
) -> tuple[dict[str, Job], list[str]]:
    """``jobs`` with the runs that older records finished under a checkpoint's short fingerprint named as there, where
    `harness.archive.checkpoints` says that the file is theirs; and a line for each checkpoint where it does not.

    Args:
        shorts: fingerprint of every byte -> short fingerprint of the same file.

    Raises:
        UsageError: the notes are damaged, or a record that may be a finished one cannot be read for now.
    """
    notes = noted(results)
    olders = {
        key: replace(job.run, checkpoint=shorts[whole])
        for key, job in jobs.items()
        if (whole := job.run.checkpoint) in shorts
    }
    asked = [*olders, *(older.key for older in olders.values())]
    ended = RecordStore(results).surely_ended(asked)
    finished = {key for key, record in ended.items() if isinstance(record, Record) and record.code == "OK"}
    named: dict[str, Job] = {}
    unverified: dict[tuple[str, str], int] = {}
    for key, job in jobs.items():
        older = olders.get(key, job.run)
        if older.key in finished and key not in finished and older.key != key:
            if notes.get(older.checkpoint) == job.run.checkpoint:
                job = replace(job, run=older)
            else:
                place = (job.checkpoint, older.checkpoint)
                unverified[place] = unverified.get(place, 0) + 1
        named[job.run.key] = job
    return named, [_unverified(count, *place, results, notes) for place, count in unverified.items()]


def _unverified(count: int, path: str, short: str, results: Path, notes: Mapping[str, str]) -> str:
    whose = counted(count, "finished record")
    if short in notes:
        return (
            f"{whose} of these runs below {results} came from another checkpoint than {path} ({notes[short]}, which shares"
            f" the short fingerprint {short} with it) and count as not started"
        )
    return (
        f"{whose} of these runs below {results} know their checkpoint by size, beginning and end alone ({short}) and count"
        f" as not started; if {path} is the file they came from, note it: sam-peft records verify-checkpoint "
        f"{shlex.quote(path)} {shlex.quote(str(results))}"
    )
