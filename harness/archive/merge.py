"""Bring the records of several results folders together: nothing is overwritten, conflicts are kept apart.

Two files of one key hold the same result (equal scores, histories and data; when, where and how fast they were made does
not matter), or a conflict: a failure and a success, or two clusters that do not agree bit for bit. A record that does not
agree with what lies beside it is skipped. Of a conflict one record takes the place under its key, and every other goes to
``records/conflicts/<key>.<hash of its content>.json``, which tables do not read. So does a file of the destination that
this code cannot read (a later schema, half a file) when a record comes that belongs in its place. What was measured on
trained models comes with their records: two folders may have trained a run each, so that the same key means two models.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from harness.archive.agreement import disagreement
from harness.archive.checkpoints import FILE, noted
from harness.archive.files import BESIDE, RESULTS_BESIDE, digest, files_beside, is_of_record
from harness.archive.measured import CostStore, EvidenceStore, ForgettingStore, RecordFolder
from harness.archive.reading import load, refuse_unread
from harness.archive.schema import Record, content_hash
from harness.archive.store import RecordStore
from harness.system.errors import UsageError, did_you_mean
from harness.system.files import write_atomically

CONFLICTS = "conflicts"
CIRCUMSTANCES = ("cost", "environment", "attempts", "finished", "message", "beside", "schema_version")
"""Fields of a record that are no result; of its history, the seconds."""


@dataclass(frozen=True, kw_only=True)
class Conflict:
    """One key with several contents.

    Args:
        key: of the run.
        kept: the file that stands under the key, as it was found.
        apart: the files put into the conflicts folder, as they were found.
        differs: fields of the record in which they differ.
    """

    key: str
    kept: Path
    apart: tuple[Path, ...]
    differs: tuple[str, ...]


@dataclass(kw_only=True)
class ArchiveMerge:
    """What `merge` did."""

    added: int = 0
    same: int = 0
    conflicts: list[Conflict] = field(default_factory=list)
    skipped: dict[Path, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """A record that may stand under its key; ``here``: in the destination already."""

    path: Path
    content: bytes
    record: Record
    here: bool

    @property
    def result(self) -> str:
        """Equal where two files say the same of a run."""
        record = self.record
        if record.code != "OK":
            return record.code
        told = {name: value for name, value in _comparable(record).items() if name not in CIRCUMSTANCES}
        beside = self.beside
        files = [digest(beside[name].read_bytes()) if name in beside else "" for name in RESULTS_BESIDE]
        return content_hash([told, files])

    @property
    def beside(self) -> dict[str, Path]:
        """Ending -> file of what lies beside it and is its own."""
        own = {name: file for name, file in files_beside(self.path).items() if is_of_record(name, self.record.beside)}
        return {name: file for name, file in own.items() if file.is_file()}

    @property
    def rank(self) -> tuple[bool, tuple[int, int], int, str, str]:
        """Successes first, then those that know how they were tuned and from the most runs, then what the destination has (under
        its key before kept apart), then the earliest, then by content: no matter in which order the folders were named."""
        run = self.record.run
        told = (-len(run.tuning), -run.trial_runs)
        place = 2 if not self.here else int(self.path.parent.name == CONFLICTS)
        return (self.record.code != "OK", told, place, self.record.finished, _hash(self.content))


def merge(sources: Sequence[Path], destination: Path, *, protocols: Sequence[str] = ()) -> ArchiveMerge:
    """Copy the records of ``sources`` (results folders) into ``destination``; it may be new or hold records already.

    Args:
        protocols: only records of these cards; all if empty.

    Raises:
        UsageError: a source has no records folder, no record is of one of ``protocols``, or the destination cannot be written or read.
    """
    report = ArchiveMerge()
    candidates: dict[str, list[_Candidate]] = {}
    seen: set[str] = set()
    for root in sources:
        if not RecordStore(root).folder.is_dir():
            raise UsageError(f"{root} holds no records (there is no folder {RecordStore(root).folder})")
    for root in dict.fromkeys(path.resolve() for path in (destination, *sources)):
        for candidate in _candidates(root, report, here=root == destination.resolve()):
            seen.add(candidate.record.run.protocol)
            if candidate.here or not protocols or candidate.record.run.protocol in protocols:
                candidates.setdefault(candidate.record.key, []).append(candidate)
    if absent := sorted({*protocols} - seen):
        raise UsageError(f"no record is of the card {absent[0]!r}{did_you_mean(absent[0], seen)}")
    try:
        for key in sorted(candidates):
            _settle(key, candidates[key], RecordStore(destination), report)
        _merge_costs(sources, destination, report)
        _merge_measured(sources, destination, report)
        _merge_notes(sources, destination, report)
    except OSError as error:
        raise UsageError(
            f"cannot write below {destination}: {error.strerror or error}; what is there is whole"
        ) from error
    return report


def conflicts(root: Path) -> list[Path]:
    """The files kept apart below a results folder."""
    return sorted((RecordStore(root).folder / CONFLICTS).glob("*.json"))


def _candidates(root: Path, report: ArchiveMerge, *, here: bool) -> list[_Candidate]:
    candidates = []
    for path in sorted(RecordStore(root).folder.glob("*.json")) + conflicts(root):
        try:
            record = load(path)
            content = path.read_bytes()
            if reason := disagreement(record, path):
                raise ValueError(reason)
        except (ValueError, OSError) as error:
            if here:  # what is skipped is put aside where another record comes
                refuse_unread(path, error)
            report.skipped[path] = str(error)
            continue
        candidates.append(_Candidate(path=path, content=content, record=record, here=here))
    return candidates


def _settle(key: str, candidates: list[_Candidate], store: RecordStore, report: ArchiveMerge) -> None:
    unique: dict[str, _Candidate] = {}
    for candidate in sorted(candidates, key=lambda candidate: candidate.rank):
        unique.setdefault(candidate.result, candidate)
    kept, *others = unique.values()
    others = [other for other in others if not _is_earlier_label(kept.record, other.record)]
    report.same += len(candidates) - len(others) - 1
    for other in others:
        _copy(other, store.folder / CONFLICTS, f"{key}.{_content_hash(other.path, other.beside)}")
    apart = [other.path for other in others]
    differs = set().union(*(_differences(kept.record, other.record) for other in others))
    target = store.path(key)
    standing = next((candidate for candidate in candidates if candidate.path.resolve() == target.resolve()), None)
    if os.path.lexists(target) and kept is not standing and not (standing and _are_one(kept, standing)):
        _set_measured_aside(store.root, key, report)
    if os.path.lexists(target) and standing is None:
        _set_aside(target, store.folder / CONFLICTS)
        apart.append(target)
        differs.add("a file that cannot be read")
    if kept is not standing:
        report.added += not target.is_file()
        _copy(kept, store.folder, key)
    if apart:
        report.conflicts.append(Conflict(key=key, kept=kept.path, apart=tuple(apart), differs=tuple(sorted(differs))))


def _set_aside(path: Path, folder: Path) -> None:
    """Move an unreadable record and what lies beside it."""
    beside = files_beside(path)
    stem = f"{path.stem}.{_content_hash(path, beside)}"
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, source in {"json": path, **beside}.items():
        if os.path.lexists(source):
            os.replace(source, folder / f"{stem}.{suffix}")


def _copy(candidate: _Candidate, folder: Path, stem: str) -> None:
    """What lies beside it first, the record last, as when it was first written; a file that is there already stays.

    What a record whose place a success takes left beside it goes, as in `harness.archive.store.RecordStore.write`.
    """
    target, beside = folder / f"{stem}.json", candidate.beside
    if candidate.path.resolve() == target.resolve():
        return
    there = files_beside(target)
    for suffix, source in beside.items():
        if source.resolve() != there[suffix].resolve():
            write_atomically(there[suffix], source.read_bytes())
    if not target.is_file() or target.read_bytes() != candidate.content:
        write_atomically(target, candidate.content)
    for suffix in set(BESIDE) - beside.keys() if candidate.record.code == "OK" else ():
        there[suffix].unlink(missing_ok=True)


def _content_hash(path: Path, beside: Mapping[str, Path]) -> str:
    """Of a record's file and of what lies beside it."""
    files = [path, *(beside.get(suffix) for suffix in BESIDE)]
    return _hash(b"\0".join(file.read_bytes() if file and file.is_file() else b"" for file in files))


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:8]


def _is_earlier_label(kept: Record, other: Record) -> bool:
    """Whether ``other`` is ``kept`` before its run was told what tuning chose."""
    named = replace(other, run=replace(other.run, tuning=kept.run.tuning, variant=kept.run.variant))
    return kept.run.tuning != other.run.tuning and named == kept


def _comparable(record: Record) -> dict[str, Any]:
    """A record without the seconds of its history and without the labels of its run, which follow the command that asked for it."""
    content = asdict(record)
    content["history"] = [{name: entry[name] for name in entry if name != "seconds"} for entry in record.history]
    content["run"] = {part.name: content["run"][part.name] for part in fields(record.run) if part.compare}
    return content


def _differences(first: Record, second: Record) -> set[str]:
    ours, theirs = ({**_comparable(record), "beside": {}} for record in (first, second))
    return {name for name in ours if ours[name] != theirs[name]} or {"per-image scores or history"}


def _merge_costs(sources: Sequence[Path], destination: Path, report: ArchiveMerge) -> None:
    """Cost records have no key: equal content is one record, an equal name with other content gets its hash added."""
    folder = destination / "cost"
    there = {_hash(path.read_bytes()) for path in folder.glob("*.json") if path.is_file()}
    for root in sources:
        for path in sorted((root / "cost").glob("*.json")):
            try:
                CostStore.load(path)
                content = path.read_bytes()
            except ValueError as error:
                report.skipped[path] = str(error)
                continue
            if _hash(content) in there:
                continue
            there.add(_hash(content))
            target = folder / path.name
            write_atomically(target if not target.exists() else folder / f"{path.stem}.{_hash(content)}.json", content)
            report.added += 1


def _same_model(destination: Path, root: Path, key: str) -> bool | None:
    """Whether the records of two folders under one key are of one training; None where none stands in the destination."""
    standing, other = (RecordStore(folder).path(key) for folder in (destination, root))
    if not standing.is_file():
        return None
    try:
        records = [_Candidate(path=path, content=b"", record=load(path), here=False) for path in (standing, other)]
    except ValueError:
        return False
    return _are_one(*records)


def _are_one(kept: _Candidate, other: _Candidate) -> bool:
    """Whether both are records of one training, whatever its run was called then."""
    return kept.result == other.result or _is_earlier_label(kept.record, other.record)


def _merge_notes(sources: Sequence[Path], destination: Path, report: ArchiveMerge) -> None:
    """Which file stands behind short fingerprints; where two folders disagree, the destination's word stays."""
    there = noted(destination)
    merged = dict(there)
    for root in sources:
        for short, whole in noted(root).items():
            if merged.setdefault(short, whole) != whole:
                report.skipped[root / FILE] = f"{short} is {whole} here and {merged[short]} elsewhere"
    if merged != there:
        write_atomically(destination / FILE, json.dumps(merged, indent=1, sort_keys=True) + "\n")


MEASURED: tuple[type[RecordFolder[Any]], ...] = (EvidenceStore, ForgettingStore)


def _merge_measured(sources: Sequence[Path], destination: Path, report: ArchiveMerge) -> None:
    """Copy what was measured on trained models to where their records are; of two files that differ the destination's stays."""
    for store, root in itertools.product(MEASURED, sources):
        for path in sorted((root / store.name).glob("*.json")):
            target = destination / store.name / path.name
            try:
                measured, content = store.load(path), path.read_bytes()
            except ValueError as error:
                report.skipped[path] = str(error)
                continue
            same = _same_model(destination, root, path.stem)
            if same is None:
                continue
            if not same:
                report.skipped[path] = f"the record of this run that stands below {destination} is not that of {root}"
            elif not target.is_file():
                write_atomically(target, content)
                report.added += 1
            elif (
                target.read_bytes() != content and store(destination).find(path.stem) != measured
            ):  # layouts may differ
                report.skipped[path] = f"{target} is other {store.name} of this run; delete one of the two"


def _set_measured_aside(destination: Path, key: str, report: ArchiveMerge) -> None:
    """Move what was measured on the model of a record that another one displaces, as a conflict of its kind."""
    for store in MEASURED:
        path = store(destination).path(key)
        if not path.is_file():
            continue
        aside = path.parent / CONFLICTS / f"{key}.{_hash(path.read_bytes())}.json"
        aside.parent.mkdir(exist_ok=True)
        os.replace(path, aside)
        report.skipped[path] = f"another record stands under its key now; it is kept apart as {aside}"
