"""Records from other results folders: read whole with their sidecar files, and copied where they are missing."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

from harness.archive.files import (
    LARGEST_RECORD,
    LARGEST_TABLE,
    ImageTables,
    image_tables,
    is_of_record,
    of_split,
    read_architecture,
    rounding,
    seal_holds,
    sidecar,
    sidecars_of,
)
from harness.archive.masks import MASKS_FILE, read_masks
from harness.archive.measured import CostStore
from harness.archive.parser import load_record
from harness.archive.schema import Record
from harness.archive.store import RecordStore
from harness.system.errors import UsageError, writing_to
from harness.system.files import read_regular, write_atomically
from harness.system.text import printable_line

_READERS: Mapping[str, Callable[..., object]] = {
    "images.csv": image_tables,
    "architecture.csv": read_architecture,
    "masks.png": read_masks,
}


def checked(path: Path) -> Record:
    """The record in a file, after its sidecar files were checked too.

    Raises:
        ValueError, with one line: the record or a sidecar file cannot be read, was edited, is gone, or belongs to another record.
    """
    record = load_record(path)
    if seal_holds(read_regular(path, largest=LARGEST_RECORD)) is None:
        raise ValueError("it has no seal, so edits could not be detected; run it again")
    for name, file in sidecars_of(path).items():
        if not os.path.lexists(file):
            if name in record.sidecars and name != MASKS_FILE and not record.run.is_trial:
                raise ValueError(f"{file.name} is gone")
        elif not is_of_record(name, record.sidecars):
            if record.code == "OK":  # files of a failure may be of a start that is about to succeed
                raise ValueError(f"it does not name {file.name}, left by another record under its key; delete it")
        elif record.code == "OK" or name in record.sidecars:
            try:
                content = _READERS[name](file, expected=record.sidecars.get(name, ""))
                if name == "images.csv":
                    _require_means(record, cast(ImageTables, content))
            except ValueError as error:
                raise ValueError(f"{file.name}: {printable_line(str(error))}") from error
    return record


POOLED = ("e_max", "miou", "ece")
"""Metrics of a split that are not means over its images (docs/metrics.md)."""


def _require_means(record: Record, images: ImageTables) -> None:
    """Refuse a score that is not the mean of its images'. Raises ValueError."""
    pooled = {*POOLED, *(["accuracy"] if record.run.rule("task") != "classification" else [])}
    if record.run.rule("evaluation").get("overlap") == "accumulated":
        pooled |= {"iou", "jaccard", "dice", "ber"}
    for model, split, metric, score in record.each_score():
        table = of_split(images, model, split)
        scores = table.scores.get(metric) if table else None
        if scores is not None and metric not in pooled and abs(scores.mean() - score) > rounding(scores):
            raise ValueError(
                f"the mean {metric} of {model} on {split} is {scores.mean():.6g} by its images, but {score:.6g} in the record"
            )


FileOutcome = str
"""The outcome for one file: ``copied``, ``same``, or a line on why it was left out."""


def merge(source: Path, destination: Path) -> tuple[int, int, list[str]]:
    """Copy the records and cost records below ``source`` that are absent below ``destination``. A success also replaces a failure, and
    a record replaces one of the same result that holds less about its tuning; a result never becomes a trial. Nothing else is changed.

    Returns:
        How many were copied; how many were there already with the same result; and a line for each that was left out. Left out are
        conflicts (one key, other scores or other data) and files that cannot be read.

    Raises:
        UsageError: the source holds no records, or the destination cannot be written.
    """
    ours, theirs = RecordStore(destination), RecordStore(source)
    if not theirs.folder.is_dir():
        raise UsageError(f"{source} holds no records (there is no folder {theirs.folder})")
    with writing_to(f"the folder {destination}", then="; what is there is whole"):
        outcomes = [_merge_record(path, ours) for path in theirs.files()]
        for path in sorted(CostStore(source).folder.glob("*.json")):
            outcomes.append(_merge_cost(path, CostStore(destination).folder / path.name))
    left_out = [outcome for outcome in outcomes if outcome not in ("copied", "same")]
    return outcomes.count("copied"), outcomes.count("same"), left_out


def _merge_record(path: Path, ours: RecordStore) -> FileOutcome:
    try:
        record, standing = checked(path), ours.summary(path.stem)
    except (ValueError, UsageError) as error:
        return f"not copied: {printable_line(str(path))}: {error}"
    if standing is not None:
        data = (record.run.data_fingerprint, standing.run.data_fingerprint)
        same_result = record.scores == standing.scores and data[0] == data[1]
        knows_more = same_result and _tuning(record) > _tuning(standing)  # how its options were chosen
        if not knows_more and (record.code != "OK" or standing.code == "OK"):
            if same_result or record.code != "OK":
                return "same"
            return f"conflict: {record.key} has other scores or other data in {path} and below {ours.root}"
    _copy(path, ours.path(record.key), record)
    return "copied"


def _merge_cost(path: Path, target: Path) -> FileOutcome:
    try:
        CostStore.load(path)
    except ValueError as error:
        return f"not copied: {printable_line(str(path))}: {error}"
    if os.path.lexists(target):
        if target.read_bytes() == path.read_bytes():
            return "same"
        return f"conflict: {printable_line(path.name)} is another cost record below {target.parent.parent}"
    write_atomically(target, path.read_bytes())
    return "copied"


def _tuning(record: Record) -> tuple[bool, int, int]:
    return not record.run.is_trial, len(record.run.tuning), record.run.trial_runs


def _copy(path: Path, target: Path, record: Record) -> None:
    """The sidecar files first, the record last: a record that is there is whole."""
    for name, file in sidecars_of(path).items():
        if is_of_record(name, record.sidecars) and file.is_file():
            earlier = sidecar(target, name)
            write_atomically(target.with_name(file.name), read_regular(file, largest=LARGEST_TABLE))
            if earlier.name != file.name:  # one is packed and the other is not
                earlier.unlink(missing_ok=True)
        elif record.code == "OK":
            sidecar(target, name).unlink(missing_ok=True)
    write_atomically(target, path.read_bytes())
