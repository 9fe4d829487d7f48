"""How many runs of a results folder are where: counts of the settled ones, and the state of each of the others.

The counts come from the index of the records (`harness.archive.index`), which then also knows what sweeps planned, so that
the overview of a large archive reads what changed and holds what is under way. Without an index they come from `survey`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from harness.archive.index import RecordIndex, from_index
from harness.dispatch.queue import Task
from harness.dispatch.reading_sweeps import Problems, chunk_paths, read_chunk, read_readable, read_sweeps
from harness.dispatch.run_states import FINISHED, RunState, Survey, state_of, survey
from harness.dispatch.sweeps import Chunk, Sweep

_PLANNED = ("key", "method", "variant", "benchmark", "backbone", "protocol", "seed", "replaces")
_TABLES = (
    "CREATE TABLE IF NOT EXISTS chunk(number INTEGER PRIMARY KEY, path TEXT, stamp INTEGER, problem TEXT)",
    f"CREATE TABLE IF NOT EXISTS planned({', '.join(_PLANNED)}, chunk INTEGER, place INTEGER, first INTEGER,"
    " PRIMARY KEY(key)) WITHOUT ROWID",
)
_SETTLED = "file.problem = '' AND (file.code = 'OK' OR planned.replaces = '')"
"""As `harness.dispatch.settled.settles`; a failure that was to be replaced is looked at one by one."""
_GROUP = "protocol, backbone, variant, benchmark"
_SUMS = "file.code, COUNT(*), SUM(file.seconds), SUM(file.seconds > 0), file.whole"
_OF_PLANNED = ", ".join(f"planned.{name}" for name in _GROUP.split(", "))
_OF_OTHERS = ", ".join(f"file.{name}" for name in _GROUP.split(", "))


@dataclass(frozen=True, kw_only=True)
class CellCount:
    """Runs of one cell of the overview in one state.

    Args:
        count: how many.
        seconds, timed: what they took together, and how many of them say so.
        whole: whether that is all of the runs and not their training alone.
        done: sum of the shares of their epochs.
    """

    protocol: str
    backbone: str
    variant: str
    benchmark: str
    state: str
    count: int = 1
    seconds: float = 0.0
    timed: int = 0
    whole: bool = False
    done: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Tally:
    """All runs.

    Args:
        cells: in the order of their first submission, then of the keys of records that no sweep planned.
        open: the runs to which something is still to come, and those that are neither finished nor counted otherwise.
        problems: unreadable records, sweeps and attempts.
        note: what could not be seen.
    """

    cells: Sequence[CellCount]
    open: Sequence[RunState]
    problems: Mapping[Path, str]
    note: str = ""

    @property
    def unsettled(self) -> bool:
        """Whether something is still to come."""
        return any(run.unsettled for run in self.open)


def tally(results: Path, *, tasks: Mapping[str, Task] | None, cluster: str, note: str) -> Tally:
    """Count everything once; arguments as of `survey`."""

    def told(index: RecordIndex) -> Tally:
        problems: Problems = {}
        sweeps = {sweep.id: sweep for sweep in read_sweeps(results, problems)}
        _update(index, results)
        problems |= _chunk_problems(index) | index.problems()
        settled = [*_settled(index)]
        others = list(_others(index, results, sweeps, tasks, cluster, problems))
        cells = sorted([*settled, *((first, _of(run)) for first, run in others)], key=lambda one: one[0])
        return Tally(
            cells=[*(cell for _, cell in cells), *_unplanned(index)],
            open=[run for _, run in others],
            problems=problems,
            note=note,
        )

    return from_index(results, told) or tally_of(survey(results, tasks=tasks, cluster=cluster, note=note))


def tally_of(seen: Survey) -> Tally:
    """The same of runs that were looked at one by one."""
    return Tally(
        cells=[_of(run) for run in seen.runs.values()],
        open=[run for run in seen.runs.values() if run.unsettled],
        problems=seen.problems,
        note=seen.note,
    )


def _of(run: RunState) -> CellCount:
    return CellCount(
        protocol=run.protocol,
        backbone=run.backbone,
        variant=run.variant,
        benchmark=run.benchmark,
        state=run.state,
        seconds=run.seconds if run.state == FINISHED else 0.0,
        timed=int(run.state == FINISHED and run.seconds > 0),
        whole=run.whole,
        done=run.done,
    )


def _update(index: RecordIndex, results: Path) -> None:
    """What sweeps planned: chunks are written once, so that new ones are read and the others known."""
    here = [(str(path), _stamp(path)) for path in chunk_paths(results)]
    with index.writing() as database:
        for statement in _TABLES:
            database.execute(statement)
        known = database.execute("SELECT path, stamp FROM chunk ORDER BY number").fetchall()
        if here[: len(known)] != known:  # an earlier one came, went or changed: the order of all others with it
            database.execute("DELETE FROM chunk")
            database.execute("DELETE FROM planned")
            known = []
        for number, (path, stamp) in enumerate(here[len(known) :], start=len(known)):
            problems: Problems = {}
            chunk = read_readable(read_chunk, Path(path), Path(path), problems)
            reason = "".join(problems.values())  # of its answer too, which the stamp does not cover
            database.execute("INSERT INTO chunk VALUES (?, ?, ?, ?)", (number, path, 0 if reason else stamp, reason))
            columns = (*_PLANNED, "chunk", "place", "first")
            changes = ", ".join(f"{name} = excluded.{name}" for name in columns if name not in ("key", "first"))
            database.executemany(
                f"INSERT INTO planned({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
                f" ON CONFLICT(key) DO UPDATE SET {changes}",
                (
                    (*(getattr(run, name) for name in _PLANNED), number, place, (number << 24) + place)
                    for place, run in enumerate(chunk.runs if chunk else ())
                ),
            )


def _stamp(path: Path) -> int:
    status = path.stat()
    return hash((status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))


def _chunk_problems(index: RecordIndex) -> Problems:
    rows = index.database.execute("SELECT path, problem FROM chunk WHERE problem != ''")
    return {Path(path): problem for path, problem in rows}


def _settled(index: RecordIndex) -> Iterator[tuple[int, CellCount]]:
    rows = index.database.execute(
        f"SELECT MIN(first), {_OF_PLANNED}, {_SUMS} FROM planned JOIN file USING(key) WHERE {_SETTLED}"
        f" GROUP BY {_OF_PLANNED}, file.code, file.whole"
    )
    for first, *values in rows:
        yield first, _cell(values)


def _unplanned(index: RecordIndex) -> Iterator[CellCount]:
    rows = index.database.execute(
        f"SELECT MIN(file.key), {_OF_OTHERS}, {_SUMS} FROM file LEFT JOIN planned USING(key)"
        f" WHERE file.problem = '' AND planned.key IS NULL GROUP BY {_OF_OTHERS}, file.code, file.whole ORDER BY 1"
    )
    for _, *values in rows:
        yield _cell(values)


def _cell(values: Sequence[object]) -> CellCount:
    names = ("protocol", "backbone", "variant", "benchmark", "state", "count", "seconds", "timed", "whole")
    told = dict(zip(names, values, strict=True))
    finished = told["state"] == FINISHED
    done = told["count"] if finished else 0.0
    return CellCount(**{**told, **({} if finished else {"seconds": 0.0, "timed": 0}), "done": done})  # type: ignore[arg-type]


def _others(
    index: RecordIndex,
    results: Path,
    sweeps: Mapping[str, Sweep],
    tasks: Mapping[str, Task] | None,
    cluster: str,
    problems: Problems,
) -> Iterator[tuple[int, RunState]]:
    """Every planned run that no record settles, with its place in the order."""
    rows = index.database.execute(
        "SELECT planned.key, chunk, place, first FROM planned LEFT JOIN file USING(key)"
        f" WHERE NOT ifnull({_SETTLED}, 0) ORDER BY first"
    ).fetchall()
    paths = dict(index.database.execute("SELECT number, path FROM chunk"))

    @lru_cache(maxsize=16)
    def chunk_of(number: int) -> Chunk | None:
        return read_readable(read_chunk, Path(paths[number]), Path(paths[number]), problems)

    for key, number, place, first in rows:
        chunk = chunk_of(number)
        if chunk is None:  # its answer or its closing was damaged since
            continue
        ended = next((ending for ending in index.endings([key]) if not ending.problem), None)
        yield first, state_of(results, chunk, place, ended, sweeps, tasks, cluster, problems)
