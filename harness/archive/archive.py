"""A results folder as a whole: its records and sidecar files, each read at most once.

Its numbers are also pandas frames, one number per row, for questions that no page answers (docs/tables.md).
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.archive.files import LARGEST_TABLE, ImageTable, ImageTables, image_tables, of_split
from harness.archive.measured import CostRecord, CostStore
from harness.archive.older import groups_of, same_data, with_plans
from harness.archive.schema import Record, Run
from harness.archive.store import RecordStore
from harness.models.known import SAME_WEIGHTS
from harness.protocols.keys import content_hash, hashed_options
from harness.system.errors import UsageError
from harness.system.files import read_regular

if TYPE_CHECKING:
    import pandas as pd


Shares = Mapping[str, Sequence[float]]
"""site -> softmax(α) over its operations, of one epoch."""

MISSING = "MISSING"
"""The code of a planned run that has no record."""


STATES = ("submitted", "rerun by CI", "rerun by maintainers")
"""Who ran a record of a folder that takes submissions, the least confirmed first."""


class Archive:
    """The content of a results folder.

    Args:
        root: the results folder; one that does not exist is empty.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = RecordStore(root)
        self._images_of = cache(self._read_images)

    @cached_property
    def _summaries(self) -> tuple[list[Record], dict[Path, str]]:
        records, problems = self.store.summaries()
        return with_plans(records), problems

    @property
    def records(self) -> list[Record]:
        """Records without their histories, in the order of their keys; each says what its sweep planned."""
        return self._summaries[0]

    @property
    def problems(self) -> dict[Path, str]:
        """Files that are not readable records, with the reason."""
        return self._summaries[1]

    @cached_property
    def _sessions(self) -> tuple[list[CostRecord], dict[Path, str]]:
        return CostStore(self.root).sessions()

    @property
    def costs(self) -> list[CostRecord]:
        """Every cost session, by key and session."""
        return sorted(self._sessions[0], key=lambda session: (session.key, session.session))

    @property
    def cost_problems(self) -> dict[Path, str]:
        """Files that are not readable cost records, with the reason."""
        return self._sessions[1]

    def whole(self, key: str) -> Record:
        """A listed record with its history; `RecordStore.architecture` reads that of α."""
        record = self.store.summary(key)
        assert record is not None
        return record

    @cached_property
    def _submitted(self) -> dict[str, str] | None:
        """Key -> state of every record that was submitted; None for a folder that takes no submissions, which has no such file."""
        path = self.root / "submitted.csv"
        if not path.exists():
            return None
        try:
            rows = list(csv.reader(read_regular(path, largest=LARGEST_TABLE).decode().splitlines()))
        except (ValueError, csv.Error) as error:
            raise UsageError(f"{path} cannot be read: {error}") from error
        if rows[:1] != [["key", "state"]] or not all(len(row) == 2 and row[1] in STATES for row in rows[1:]):
            raise UsageError(f"{path}: the columns must be key and state, and each state one of {', '.join(STATES)}")
        return dict(rows[1:])

    def state_of(self, record: Record) -> str:
        """One of `STATES`; empty for a folder that takes no submissions."""
        return "" if self._submitted is None else self._submitted.get(record.key, STATES[-1])

    def image_table(self, record: Record, model: str, split: str) -> ImageTable | None:
        """Scores by image of one of a run's models on a split, or on ``all``; None if there are none, or the file is damaged."""
        if model == "last" and record.scores.get("last") == record.scores.get("best"):  # one state, stored once
            model = "best"
        try:
            tables = self._images_of(record.key, record.run.benchmark, record.sidecars.get("images.csv", ""))
        except ValueError:
            return None
        return of_split(tables, model, split)

    def _read_images(self, key: str, benchmark: str, expected: str) -> ImageTables:
        """The scores by image of a run, empty without a file. Where the file names no groups, `groups_of` does."""
        path = self.store.images_path(key)
        tables = image_tables(path, expected=expected) if os.path.lexists(path) else {}
        return {
            which: table if table.clusters else replace(table, clusters=groups_of(benchmark, table.stems))
            for which, table in tables.items()
        }

    def mixture(self, record: Record) -> Shares | None:
        """softmax(α) at the end of a run; None for a method without a choice of operations, and for a run without a history."""
        history: Sequence[Shares] = ()
        if record.code == "OK" and len(record.run.operations or ()) > 1:
            with suppress(ValueError):
                history = self.store.architecture(record)
        return history[-1] if history else None

    def frame(self, kind: Kind = "scores", *, trials: bool = False) -> pd.DataFrame:
        """All numbers of one kind, one number per line.

        Every frame but ``costs`` has the columns `RUN`, and further ones:
        ``runs``: ``run`` and ``record`` (a `Record` without its histories); one line per run, also of failed ones.
        ``scores``: model (``best``, ``last``, ``merged-exact``, …), split, metric, value in [0, 1] (nats for ``nll``).
        ``images``: the same with stem and group. ``history``: epoch, quantity (`epoch_numbers`) and value.
        ``alphas``: epoch, site, operation (its index) and its share of softmax(α).
        ``costs``: session, setup, method, label, quantity, part, round and value in SI units. Rounds of one session pair.

        Args:
            trials: also the runs that only tuned something, which are not results (`trials_among`).

        Raises:
            ValueError: a sidecar file is not what was written with its record.
        """
        return frame(self, kind, self.records if trials else self._results)

    @cached_property
    def _results(self) -> list[Record]:
        left_out = trials_among(self.records)
        return [record for record in self.records if record.key not in left_out]


class Joined(Archive):
    """A results folder read with another one. Where both have a run on equal files, the other folder's record counts if it finished."""

    def __init__(self, root: Path, other: Path) -> None:
        super().__init__(root)
        self.own, self.other = Archive(root), Archive(other)

    @cached_property
    def _others(self) -> dict[str, Record]:
        finished = {record.key for record in self.own.records if record.code == "OK"}
        return {r.key: r for r in self.other.records if r.code == "OK" or r.key not in finished}

    @cached_property
    def _summaries(self) -> tuple[list[Record], dict[Path, str]]:
        added = [
            record
            for record in self.own.records
            if (standing := self._others.get(record.key)) is None
            or not same_data(record.run.data_fingerprint, standing.run.data_fingerprint)
        ]
        return [*self._others.values(), *added], {**self.own.problems, **self.other.problems}

    def is_own(self, record: Record) -> bool:
        """Whether a listed record comes from the first folder."""
        return self._others.get(record.key) is not record

    def state_of(self, record: Record) -> str:
        state = self.other.state_of(record)
        return STATES[0] if state and self.is_own(record) else state

    @property
    def costs(self) -> list[CostRecord]:
        return [*self.own.costs, *self.other.costs]

    def image_table(self, record: Record, model: str, split: str) -> ImageTable | None:
        return (self.own if self.is_own(record) else self.other).image_table(record, model, split)

    def mixture(self, record: Record) -> Shares | None:
        return (self.own if self.is_own(record) else self.other).mixture(record)


Kind = Literal["runs", "scores", "images", "history", "alphas", "costs"]

RUN = (
    *("key", "code", "method", "options", "label", "benchmark", "backbone", "checkpoint"),
    *("protocol", "protocol_hash", "manifest", "seed"),
)
"""Columns of every frame but ``costs``. ``options`` are the changes to the protocol's configuration of the method. ``code`` is OK or why
a run has no scores. ``manifest`` is the hash of its split."""
MADE_FROM = ("origin", "split", "split_rule", "data_note", "data_fingerprint", "checkpoint")
"""Labels of a run that say from what its record was made."""


def weights_of(checkpoint: str) -> str:
    """The fingerprint under which tables put the runs of a checkpoint: one for all files of the same weights."""
    return SAME_WEIGHTS.get(checkpoint, checkpoint)


def row_identity(run: Run) -> str:
    """A hash that the runs of one row of a table share: of method and options. Tuned options count by name, not by the chosen value."""
    tuned = run.tuning.get("grid", {})
    options = {
        name: value for name, value in hashed_options(run.method, run.method_config).items() if name not in tuned
    }
    return content_hash([run.method, options, sorted(tuned)])


def trials_among(records: Iterable[Record]) -> set[str]:
    """Keys of runs that only tuned something.

    A trial that was not chosen is one. So is a chosen trial whose seed no tested run has, where there are tested runs: the best of
    several trials was partly lucky.
    """
    trials = set()
    tuned: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        run = record.run
        if run.is_trial:
            trials.add(record.key)
        elif run.tuning.get("seeds"):
            group = (run.protocol_hash, run.backbone, run.checkpoint, run.benchmark, row_identity(run))
            tuned.setdefault(group, []).append(record)
    for alike in tuned.values():
        planned = [
            run.planned_seeds
            for run in (record.run for record in alike)
            if not set(run.planned_seeds) <= set(run.tuning["seeds"])
        ]
        tested = {seed for seeds in planned for seed in seeds}
        if tested:
            trials |= {
                record.key
                for record in alike
                if record.run.seed in record.run.tuning["seeds"] and record.run.seed not in tested
            }
    return trials


def frame(archive: Archive, kind: Kind, records: Iterable[Record] | None = None) -> pd.DataFrame:
    """As `Archive.frame`, of these records; of all if None."""
    import pandas as pd

    if kind == "costs":
        return pd.DataFrame(_costs(archive))
    rows = {"runs": _runs, "scores": _scores, "images": _images, "history": _history, "alphas": _alphas}[kind]
    chosen = archive.records if records is None else records
    return pd.DataFrame(
        {**_about(record.run, record), **row}
        for record in chosen
        if record.code == "OK" or kind == "runs"
        for row in rows(archive, record)
    )


def frame_of_plan(archive: Archive, runs: Iterable[Run]) -> pd.DataFrame:
    """A frame of ``runs`` for the plan of one command: a run without a record has the code `MISSING` and the record None.

    A record that serves several sweeps has the labels of this one, except those of the data and checkpoint from which it was made.
    """
    import pandas as pd

    known, lines = {record.key: record for record in archive.records}, []
    for run in runs:
        record, own = known.get(run.key), run
        if record is not None:
            own = replace(run, **{name: getattr(record.run, name) for name in MADE_FROM})
            record = replace(record, run=own)
        lines.append({**_about(own, record), "run": own, "record": record})
    return pd.DataFrame(lines)


def _about(run: Run, record: Record | None) -> dict[str, Any]:
    options = ", ".join(f"{name}={value}" for name, value in sorted(run.changed.items()))
    key, code = (record.key, record.code) if record else (run.key, MISSING)
    own = {"key": key, "code": code, "options": options}
    return {name: own[name] if name in own else getattr(run, name) for name in RUN}


def _runs(archive: Archive, record: Record) -> Iterator[dict[str, Any]]:
    yield {"run": record.run, "record": record}


def _scores(archive: Archive, record: Record) -> Iterator[dict[str, Any]]:
    for model, split, metric, value in record.each_score():
        yield {"model": model, "split": split, "metric": metric, "value": value}


def _images(archive: Archive, record: Record) -> Iterator[dict[str, Any]]:
    tables = archive._images_of(record.key, record.run.benchmark, record.sidecars.get("images.csv", ""))
    for (model, split), table in tables.items():
        for metric, scores in table.scores.items():
            for stem, value in zip(table.stems, scores.tolist(), strict=True):
                where = {"model": model, "split": split, "stem": stem, "group": table.clusters.get(stem, stem)}
                yield {**where, "metric": metric, "value": value}


def epoch_numbers(entry: Mapping[str, Any]) -> dict[str, float]:
    """Quantity -> number of an entry of a record's history: ``train/loss``, ``train/lr``, ``train/seconds``, ``val/iou`` and the
    like."""
    names = {"loss": "train/loss", "lr": "train/lr", "seconds": "train/seconds"}
    numbers = {name: entry[key] for key, name in names.items() if entry.get(key) is not None}
    return numbers | {f"val/{name}": value for name, value in entry.get("val", {}).items()}


def _history(archive: Archive, record: Record) -> Iterator[dict[str, Any]]:
    for entry in archive.whole(record.key).history:
        for quantity, value in epoch_numbers(entry).items():
            yield {"epoch": entry["epoch"], "quantity": quantity, "value": value}


def _alphas(archive: Archive, record: Record) -> Iterator[dict[str, Any]]:
    for epoch, sites in enumerate(archive.store.architecture(record), start=1):
        for site, shares in sites.items():
            for operation, share in enumerate(shares):
                yield {"epoch": epoch, "site": site, "operation": operation, "share": share}


def _costs(archive: Archive) -> Iterator[dict[str, Any]]:
    for session in archive.costs:
        for cost in session.methods:
            where = {"session": session.session, "setup": session.setup, "method": cost.method, "label": cost.label}
            for quantity in ("step_seconds", "inference_seconds"):
                for part, rounds in getattr(cost, quantity).items():
                    for number, value in enumerate(rounds):
                        yield {**where, "quantity": quantity, "part": part, "round": number, "value": value}
            for quantity in ("memory_bytes", "inference_memory_bytes", "flops", "parameters", "inference_parameters"):
                for part, value in getattr(cost, quantity).items():
                    yield {**where, "quantity": quantity, "part": part, "round": 0, "value": value}
