"""The files of a record: their names, sizes and digests, the seal of a record, and its sidecar tables.

The seal is a hash of the content, so that an edited number does not pass for a measured one. It detects slips and careless edits, not
forgeries. ``<key>.architecture.csv`` is the α history: columns epoch, site, then a share of softmax(α) for each operation.
``<key>.images.csv`` has scores by image: columns model, split, stem, then one for each metric. Where images are not independent
(frames of one video), a column ``group`` comes before the metrics. Both may be packed (``<key>.images.csv.gz``); the digest is that of
the unpacked content.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import zlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.archive.older import with_model
from harness.archive.schema import largest
from harness.system.files import read_regular

SIDECARS = ("images.csv", "architecture.csv", "masks.png")
"""Endings of a record's sidecar files, whose names begin with its key."""

LARGEST_RECORD = 64 << 20
LARGEST_TABLE = 256 << 20
"""Bounds on the bytes of a record, and of a CSV sidecar file (20,000 images under six scored models take a tenth of it)."""


PACKED = ".gz"


def sidecar(path: Path, name: str) -> Path:
    """The path of the sidecar file that ends in ``name``, packed or not, existing or not; ``path`` is that of the record."""
    plain = path.with_suffix(f".{name}")
    packed = plain.with_name(plain.name + PACKED)
    return packed if os.path.lexists(packed) and not os.path.lexists(plain) else plain


def sidecars_of(path: Path) -> dict[str, Path]:
    """Ending -> path of that sidecar file (`sidecar`)."""
    return {name: sidecar(path, name) for name in SIDECARS}


def is_of_record(name: str, named: Collection[str]) -> bool:
    """Whether the sidecar file that ends in ``name`` belongs to the record, and not to another of the same key. ``named``:
    `Record.sidecars`. Older records name no file, and some name their α history alone."""
    return not named or name in named or name == "images.csv"


def digest(content: bytes) -> str:
    """First 16 hex digits of the SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]


def read_sidecar(path: Path, *, expected: str, largest: int = LARGEST_TABLE) -> bytes:
    """The content of a sidecar file, unpacked.

    Args:
        expected: digest of the file by its record (`Record.sidecars`), empty where the record has none.

    Raises:
        ValueError: it is not a regular file, is too large, or is not the one that was written.
    """
    data = read_regular(path, largest=largest)
    if path.suffix == PACKED:
        data = _unpacked(data, largest=largest)
    if expected and digest(data) != expected:
        raise ValueError("it was edited after its record was written")
    return data


def _unpacked(data: bytes, *, largest: int) -> bytes:
    """The unpacked content. Raises ValueError: not gzip, cut off, or larger than a sidecar file may be."""
    unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        content = unpacker.decompress(data, largest + 1)
    except zlib.error as error:
        raise ValueError(f"it cannot be unpacked ({error})") from error
    if len(content) > largest or not unpacker.eof or unpacker.unused_data:
        raise ValueError(f"it is cut off, or unpacks to more than {largest} bytes")
    return content


_SEAL = b'\n "seal": "'
"""How `sealed` writes the seal; the indentation is that of a field of the record itself."""


def sealed(content: dict[str, Any]) -> bytes:
    """The content of a record's file, with its seal; ends in a newline. Halves of surrogate pairs become question marks."""
    data = _text({**content, "seal": ""})
    return data.replace(_SEAL + b'"', _SEAL + digest(data).encode() + b'"', 1)


def seal_holds(data: bytes) -> bool | None:
    """Whether a file's content is what was sealed; None for an older file without a seal."""
    if (position := data.find(_SEAL)) < 0:
        return None if b'"seal"' not in data else False
    start = position + len(_SEAL)
    return digest(data[:start] + data[start + 16 :]).encode() == data[start : start + 16]


def _text(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode(errors="replace")


def read_architecture(path: Path, *, expected: str = "") -> list[dict[str, list[float]]]:
    """The α history in a file: one entry per epoch, site -> softmax(α); ``expected`` as in `read_sidecar`. Raises ValueError: it is not
    such a file, or not the one that was written."""
    history: list[dict[str, list[float]]] = []
    widths: dict[str, int] = {}
    try:
        header, _, text = read_sidecar(path, expected=expected).decode().partition("\n")
        if header.strip().split(",")[:2] != ["epoch", "site"]:
            raise ValueError("its columns are not epoch, site, …")
        rows = csv.reader(text.splitlines())
        for row in rows:
            epoch = int(row[0])
            if epoch == len(history) + 1:
                history.append({})
            elif epoch != len(history):
                raise ValueError(f"epoch {epoch} follows {len(history)}")
            if row[1]:
                history[-1][row[1]] = [float(value) for value in row[2:]]
                if len(row) - 2 != widths.setdefault(row[1], len(row) - 2):
                    raise ValueError(f"line {rows.line_num + 1} has {len(row)} columns")
    except (ValueError, IndexError, csv.Error) as error:
        raise ValueError(f"{path.name} holds no α history ({error})") from error
    return history


def architecture_csv(history: list[dict[str, list[float]]]) -> str:
    """The α history as CSV, whose floats read back bit for bit; empty without a history."""
    if not history:
        return ""
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


def rounding(values: NDArray[np.float64]) -> float:
    """How far the mean of image scores may differ from the score of the run, since they are written with six significant digits.

    That is 1e-6, or 5e-6 of the largest score where that is above 1 (an NLL).
    """
    return 5e-6 * float(values.max()) if values.max() > 1 else 1e-6


GROUP = "group"
_FIRST = ["model", "split", "stem"]


def images_csv(
    images: dict[str, dict[str, dict[str, dict[str, float]]]], groups: Mapping[str, Mapping[str, str]]
) -> str:
    """Scores (model -> split -> stem -> metric -> value) as CSV; ``groups`` (split -> stem -> group) is a column where there are any."""
    import pandas as pd  # slow to import, and reading records does not need it

    grouped = any(groups.values())
    rows = [
        {
            "model": model,
            "split": split,
            "stem": stem,
            **({GROUP: groups[split].get(stem, stem)} if grouped else {}),
            **values,
        }
        for model, splits in images.items()
        for split, stems in splits.items()
        for stem, values in sorted(stems.items())
    ]
    text = io.StringIO()
    pd.DataFrame(rows).to_csv(text, index=False, float_format="%.6g")
    return text.getvalue()


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageTable:
    """Scores of one model of one run on one split, image by image, in the order of the stems.

    Args:
        scores: metric -> (images,).
        clusters: stem -> its cluster, where images are not independent (frames of one video).
    """

    stems: tuple[str, ...]
    scores: Mapping[str, NDArray[np.float64]]
    clusters: Mapping[str, str] = field(default_factory=dict)


ImageTables = dict[tuple[str, str], ImageTable]
"""(scored model, split) -> its scores."""


def image_tables(path: Path, *, expected: str = "") -> ImageTables:
    """Every score in the file. Raises ValueError: it holds no scores by image, or is not what was written with the record."""
    lines = io.StringIO(read_sidecar(path, expected=expected).decode(), newline="")
    parts: dict[tuple[str, str], list[list[str]]] = {}
    try:
        reader = csv.reader(lines)
        header = with_model(next(reader, []))
        if header[:3] != _FIRST or len(set(header)) < len(header):
            raise ValueError(f"its columns are not {', '.join(_FIRST)}, then metrics")
        for row in reader:
            if len(row) != len(header):
                raise ValueError(f"line {reader.line_num} has {len(row)} columns, not {len(header)}")
            parts.setdefault((row[0], row[1]), []).append(row)
    except csv.Error as error:
        raise ValueError(str(error)) from error
    return {which: _table(header, rows) for which, rows in parts.items()}


def _table(header: Sequence[str], rows: list[list[str]]) -> ImageTable:
    columns = dict(zip(header, zip(*sorted(rows, key=lambda row: row[2]), strict=True), strict=True))
    stems = columns["stem"]
    clusters = dict(zip(stems, columns[GROUP], strict=True)) if GROUP in columns else {}
    scores = {
        metric: np.array([float(text) for text in columns[metric]])
        for metric in header
        if metric not in (*_FIRST, GROUP)
    }
    if len(set(stems)) < len(stems):
        raise ValueError(f"image {Counter(stems).most_common(1)[0][0]!r} occurs twice")
    for metric, values in scores.items():
        if not ((values >= 0) & (values <= largest(metric))).all():
            raise ValueError(f"{metric} is not between 0 and {largest(metric):g}")
    return ImageTable(stems=stems, scores=scores, clusters=clusters)


def of_split(found: ImageTables, model: str, split: str) -> ImageTable | None:
    """The scores of a model on a split, or on ``all`` as one; None without any, or where two splits have an image of one name."""
    tables = [table for which, table in found.items() if which[0] == model and split in ("all", which[1])]
    stems = [stem for table in tables for stem in table.stems]
    if not stems or len(set(stems)) < len(stems):
        return None
    order = sorted(range(len(stems)), key=stems.__getitem__)
    return ImageTable(
        stems=tuple(stems[index] for index in order),
        scores={name: np.concatenate([table.scores[name] for table in tables])[order] for name in tables[0].scores},
        clusters={stem: cluster for table in tables for stem, cluster in table.clusters.items()},
    )
