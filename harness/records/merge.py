"""Bring the records of several results folders together: nothing is overwritten, conflicts are kept apart.

Two files of one key are the same (equal bytes), or a conflict: a failure and a success, or two clusters that do not
agree bit for bit. Of a conflict one record takes the place under its key, and every other goes to
``records/conflicts/<key>.<hash of its content>.json``, which tables do not read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from harness.errors import UsageError
from harness.records.schema import Record
from harness.records.store import RecordStore, load, write_atomically

CONFLICTS = "conflicts"
BESIDE = (".images.csv", ".architecture.csv")


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
class MergeReport:
    """What `merge` did."""

    added: int = 0
    same: int = 0
    conflicts: list[Conflict] = field(default_factory=list)
    skipped: dict[Path, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    path: Path
    text: str
    record: Record
    here: bool

    @property
    def rank(self) -> tuple[bool, bool, str, str]:
        """Successes first, then what the destination has, then the earliest, then by content: no matter in which order
        the folders were named."""
        return (self.record.code != "OK", not self.here, self.record.finished, _hash(self.text))


def merge(sources: Sequence[Path], destination: Path, *, protocols: Sequence[str] = ()) -> MergeReport:
    """Copy the records of ``sources`` (results folders) into ``destination``; it may be new or hold records already.

    Args:
        protocols: only records of these cards; all if empty.

    Raises:
        UsageError: a source has no records folder, or the destination cannot be written.
    """
    report = MergeReport()
    found: dict[str, list[_Candidate]] = {}
    for root in sources:
        if not RecordStore(root).folder.is_dir():
            raise UsageError(f"{root} holds no records (there is no folder {RecordStore(root).folder})")
    for root in dict.fromkeys(path.resolve() for path in (destination, *sources)):
        for candidate in _candidates(root, report, here=root == destination.resolve()):
            if candidate.here or not protocols or candidate.record.run.protocol in protocols:
                found.setdefault(candidate.record.key, []).append(candidate)
    try:
        for key in sorted(found):
            _settle(key, found[key], RecordStore(destination), report)
        _merge_costs(sources, destination, report)
    except OSError as error:
        raise UsageError(
            f"cannot write below {destination}: {error.strerror or error}; what is there is whole"
        ) from error
    return report


def conflicts(root: Path) -> list[Path]:
    """The files kept apart below a results folder."""
    return sorted((RecordStore(root).folder / CONFLICTS).glob("*.json"))


def _candidates(root: Path, report: MergeReport, *, here: bool) -> list[_Candidate]:
    found = []
    for path in sorted(RecordStore(root).folder.glob("*.json")) + conflicts(root):
        try:
            record = load(path)
            text = path.read_text(encoding="utf-8")
        except (ValueError, OSError) as error:
            report.skipped[path] = str(error)
            continue
        found.append(_Candidate(path=path, text=text, record=record, here=here))
    return found


def _settle(key: str, candidates: list[_Candidate], store: RecordStore, report: MergeReport) -> None:
    unique: dict[str, _Candidate] = {}
    for candidate in sorted(candidates, key=lambda one: one.rank):
        unique.setdefault(_content(candidate), candidate)
    kept, *others = unique.values()
    report.same += len(candidates) - len(unique)
    for other in others:
        stem = f"{key}.{_content(other)}"
        _copy(other, store.folder / CONFLICTS, stem)
    if kept.path.resolve() != store.path(key).resolve():
        report.added += not store.path(key).is_file()
        _copy(kept, store.folder, key)
    if others:
        differs = tuple(sorted(set().union(*(_differences(kept.record, other.record) for other in others))))
        report.conflicts.append(
            Conflict(key=key, kept=kept.path, apart=tuple(other.path for other in others), differs=differs)
        )


def _copy(candidate: _Candidate, folder: Path, stem: str) -> None:
    """What lies beside it first, the record last, as when it was first written; a file that is there already stays."""
    beside = candidate.path.name.removesuffix(".json")
    for suffix in BESIDE:
        source = candidate.path.with_name(beside + suffix)
        target = folder / f"{stem}{suffix}"
        if source.is_file() and source.resolve() != target.resolve():
            write_atomically(target, source.read_text(encoding="utf-8"))
    target = folder / f"{stem}.json"
    if not target.is_file() or target.read_text(encoding="utf-8") != candidate.text:
        write_atomically(target, candidate.text)


def _content(candidate: _Candidate) -> str:
    """Of the record and of what lies beside it."""
    beside = candidate.path.name.removesuffix(".json")
    files = [candidate.path.with_name(beside + suffix) for suffix in BESIDE]
    texts = [path.read_text(encoding="utf-8") if path.is_file() else "" for path in files]
    return _hash("\0".join([candidate.text, *texts]))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _differences(first: Record, second: Record) -> set[str]:
    one, other = asdict(first), asdict(second)
    return {name for name in one if one[name] != other[name]} or {"per-image scores or history"}


def _merge_costs(sources: Sequence[Path], destination: Path, report: MergeReport) -> None:
    """Cost records have no key: equal content is one record, an equal name with other content gets its hash added."""
    folder = destination / "cost"
    there = {_hash(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")}
    for root in sources:
        for path in sorted((root / "cost").glob("*.json")):
            text = path.read_text(encoding="utf-8")
            try:
                json.loads(text)
            except ValueError as error:
                report.skipped[path] = f"truncated or not JSON ({error})"
                continue
            if _hash(text) in there:
                continue
            there.add(_hash(text))
            target = folder / path.name
            write_atomically(target if not target.exists() else folder / f"{path.stem}.{_hash(text)}.json", text)
            report.added += 1
