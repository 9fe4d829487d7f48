"""Match planned runs with earlier records: which are finished, failed or damaged, or were made from other data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.archive.schema import same_data
from harness.archive.store import RecordStore
from harness.planning.job import Job
from harness.system.errors import UsageError


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
            if not same_data(then, now):
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
