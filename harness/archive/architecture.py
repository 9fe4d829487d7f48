"""α history beside a record: columns epoch, site, then one share of softmax(α) an operation."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from harness.archive.files import LARGEST_TABLE, digest
from harness.files import read_regular


def read_architecture(path: Path, *, expected: str = "") -> list[dict[str, list[float]]]:
    """The α history in a file: one entry an epoch, site -> softmax(α).

    Args:
        expected: digest of the file by its record (`Record.beside`), empty where the record has none.

    Raises:
        ValueError: it is no such file, or not the one that was written.
    """
    history: list[dict[str, list[float]]] = []
    widths: dict[str, int] = {}
    try:
        data = read_regular(path, largest=LARGEST_TABLE)
        if expected and digest(data) != expected:
            raise ValueError("it was edited after its record was written")
        rows = csv.reader(io.StringIO(data.decode()))
        if next(rows, [])[:2] != ["epoch", "site"]:
            raise ValueError("its columns are not epoch, site, …")
        for row in rows:
            epoch = int(row[0])
            if epoch == len(history) + 1:
                history.append({})
            elif epoch != len(history):
                raise ValueError(f"epoch {epoch} follows {len(history)}")
            if row[1]:
                history[-1][row[1]] = [float(value) for value in row[2:]]
                if len(row) - 2 != widths.setdefault(row[1], len(row) - 2):
                    raise ValueError(f"line {rows.line_num} has {len(row)} columns")
    except (ValueError, IndexError, csv.Error) as error:
        raise ValueError(f"{path.name} holds no α history ({error})") from error
    return history


def architecture_csv(history: list[dict[str, list[float]]]) -> str:
    """Floats are written so that they read back bit for bit; empty without a history."""
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
