"""Records on disk: one JSON file a run, written to a temporary file and renamed, with CSV files beside it.

``ROOT/records/<key>.json``, ``<key>.images.csv`` (per-image scores: columns variant, split, stem, then one a metric)
and ``<key>.architecture.csv`` (α history: columns epoch, site, then one an operation). A record that is there is whole.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.file_names import checked_name
from harness.files import write_atomically
from harness.records.budget import counted_updates
from harness.records.checkpoints import noted
from harness.records.schema import SCHEMA_VERSION, Record, Run

_SHAPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("scores", "parameters", "cost", "budget", "merge", "counts", "environment"), dict),
    **dict.fromkeys(("history", "architecture"), list),
    **dict.fromkeys(("key", "code", "message", "finished"), str),
    "selected_epoch": (int, type(None)),
    "attempts": int,
}


def require_writable(root: Path) -> None:
    """Create the results folder and try a file in it, before hours of work depend on it.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        raise UsageError(
            f"results folder {root} cannot be written ({error.strerror}); choose another with --results DIR"
        ) from error


def record_from_json(data: Any) -> Record:
    """Raises ValueError where ``data`` is not a record of a schema this code reads (1 to `SCHEMA_VERSION`)."""
    if not isinstance(data, dict) or "run" not in data:
        raise ValueError("JSON, but no record of a run")
    version = data.get("schema_version")
    if not isinstance(version, int) or not 1 <= version <= SCHEMA_VERSION:
        raise ValueError(f"schema_version {version!r}; this code reads 1 to {SCHEMA_VERSION}")
    known = {f.name for f in fields(Record)}
    content = {name: value for name, value in data.items() if name in known}
    for name, shape in _SHAPES.items():
        if name in content and not isinstance(content[name], shape):
            raise ValueError(f"{name} is a {type(content[name]).__name__}")
    _check_scores(content.get("scores", {}))
    if not content.get("budget") and all(isinstance(entry, dict) for entry in content.get("history", ())):
        content["budget"] = counted_updates(content.get("history", ()))  # older records tell by their histories
    try:
        run = Run(**content.pop("run"))
        checked_name(str(run.protocol), what="its protocol")
        return Record(run=run, **content)
    except TypeError as error:
        raise ValueError(str(error)) from error


def _check_scores(scores: dict[str, Any]) -> None:
    for variant, splits in scores.items():
        for metrics in splits.values() if isinstance(splits, dict) else [splits]:
            if not isinstance(metrics, dict) or not all(isinstance(value, int | float) for value in metrics.values()):
                raise ValueError(f"scores: {variant} is no mapping of splits to metrics to numbers")


def load(path: Path) -> Record:
    """The record in one file, α history of schema 2 left beside.

    Raises:
        ValueError: no readable record, or a copy under a name that is not its key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    try:
        record = record_from_json(json.loads(text))
    except json.JSONDecodeError as error:
        raise ValueError(f"truncated or not JSON ({error})") from error
    if path.name.partition(".")[0] != record.key:
        raise ValueError(f"a copy: the record in it belongs to {record.key}.json")
    return record


class RecordStore:
    """The records below a results folder.

    Args:
        root: the results folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "records"

    def path(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def images_path(self, key: str) -> Path:
        return self.folder / f"{key}.images.csv"

    def architecture_path(self, key: str) -> Path:
        return self.folder / f"{key}.architecture.csv"

    def write(self, record: Record, images_csv: str = "") -> Path:
        """What lies beside it first, the record last; a file under its name that is no record is set aside.

        Raises:
            UsageError: the disk is full or the folder cannot be written; older records stay as they were.
        """
        content = asdict(record)
        architecture = content.pop("architecture")
        content["schema_version"] = SCHEMA_VERSION
        path = self.path(record.key)
        try:
            self._set_aside_unreadable(path)
            if images_csv:
                write_atomically(self.images_path(record.key), images_csv)
            if architecture:
                write_atomically(self.architecture_path(record.key), _architecture_csv(architecture))
            write_atomically(path, json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
        except OSError as error:
            raise UsageError(
                f"cannot write the record {path}: {error.strerror or error}; free space or mend the folder, then start"
                " the same command again (older records are whole, the run continues from its checkpoint)"
            ) from error
        return path

    def read(self, key: str) -> Record | None:
        """The whole record, α history included; None where there is none.

        Raises:
            UsageError: the file is there but no readable record.
        """
        record = self.summary(key)
        return None if record is None else self._whole(record)

    def summary(self, key: str) -> Record | None:
        """As `read`, without the α history that lies beside."""
        path = self.path(key)
        if not path.is_file():
            return None
        try:
            return load(path)
        except ValueError as error:
            raise UsageError(f"{path} is not a readable record ({error}); move it away to run {key} again") from error

    def find(self, key: str) -> Record | None:
        """As `summary`, and None also where the file is no readable record: whoever reports that goes through
        `summaries` or `problem`."""
        try:
            return self.summary(key)
        except UsageError:
            return None

    def problem(self, key: str) -> str:
        """Why the file of a record cannot be read; empty where it can, or where there is none."""
        path = self.path(key)
        try:
            if path.is_file():
                load(path)
        except ValueError as error:
            return str(error)
        return ""

    def __iter__(self) -> Iterator[Record]:
        """Whole records in the order of their keys; unreadable files are left to `problems`."""
        for path in self._files():
            try:
                yield self._whole(load(path))
            except ValueError:
                continue

    def summaries(self) -> tuple[list[Record], dict[Path, str]]:
        """Records without their histories, in the order of their keys, and the unreadable files with the reason.

        What tables need: 10,000 of them fit in memory and read in seconds. So that these put runs of one checkpoint
        together, ``run.checkpoint`` is the hash of the whole file also where the record has a short one that is noted
        (`harness.records.checkpoints`); ``key`` stays the record's.

        Raises:
            UsageError: the notes are damaged.
        """
        whole = noted(self.root)
        records, problems = [], {}
        for path in self._files():
            try:
                record = load(path)
            except ValueError as error:
                problems[path] = str(error)
                continue
            record.history.clear()
            record.architecture.clear()
            if record.run.checkpoint in whole:
                record = replace(record, run=replace(record.run, checkpoint=whole[record.run.checkpoint]))
            records.append(record)
        return records, problems

    def _files(self) -> list[Path]:
        names = os.listdir(self.folder) if self.folder.is_dir() else []
        return [self.folder / name for name in sorted(names) if name.endswith(".json") and not name.startswith(".")]

    def problems(self) -> dict[Path, str]:
        """Files in the folder that are no readable record, with the reason."""
        return self.summaries()[1]

    def _set_aside_unreadable(self, path: Path) -> None:
        """Keep it as ``<key>.json.unreadable`` (``.unreadable.2`` …), so that a new record overwrites nothing."""
        if not self.problem(path.stem):
            return
        names = itertools.chain([".unreadable"], (f".unreadable.{number}" for number in itertools.count(2)))
        os.replace(path, next(aside for name in names if not (aside := path.with_name(path.name + name)).exists()))

    def _whole(self, record: Record) -> Record:
        path = self.architecture_path(record.key)
        if not record.architecture and path.is_file():
            record.architecture.extend(_architecture_from_csv(path.read_text(encoding="utf-8")))
        return record


def _architecture_csv(history: list[dict[str, list[float]]]) -> str:
    """Floats are written so that they read back bit for bit."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    width = max((len(weights) for sites in history for weights in sites.values()), default=0)
    writer.writerow(["epoch", "site", *(f"w{index}" for index in range(width))])
    for epoch, sites in enumerate(history, start=1):
        if not sites:
            writer.writerow([epoch, ""])
        for site in sorted(sites):
            writer.writerow([epoch, site, *map(repr, sites[site])])
    return out.getvalue()


def _architecture_from_csv(text: str) -> list[dict[str, list[float]]]:
    history: list[dict[str, list[float]]] = []
    for row in list(csv.reader(io.StringIO(text)))[1:]:
        while len(history) < int(row[0]):
            history.append({})
        if row[1]:
            history[-1][row[1]] = [float(value) for value in row[2:]]
    return history
