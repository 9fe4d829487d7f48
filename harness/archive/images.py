"""Per-image scores beside a record: columns variant, split, stem, then one a metric; before these the group of images that
are not independent (frames of one video), where a benchmark has such."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from harness.archive.files import LARGEST_TABLE, digest
from harness.archive.ranges import largest
from harness.files import read_regular

ImageScores = dict[tuple[str, str], dict[str, dict[str, float]]]
"""(scored model, split) -> metric -> stem -> score."""

GROUP = "group"
_FIRST = ["variant", "split", "stem"]


def images_csv(
    images: dict[str, dict[str, dict[str, dict[str, float]]]], groups: Mapping[str, Mapping[str, str]]
) -> str:
    """variant -> split -> stem -> metric -> value, as CSV; ``groups`` (split -> stem -> group) is a column where there is one."""
    import pandas as pd  # which reading records need not wait for

    grouped = any(groups.values())
    rows = [
        {
            "variant": variant,
            "split": split,
            "stem": stem,
            **({GROUP: groups[split].get(stem, stem)} if grouped else {}),
            **values,
        }
        for variant, splits in images.items()
        for split, stems in splits.items()
        for stem, values in sorted(stems.items())
    ]
    text = io.StringIO()
    pd.DataFrame(rows).to_csv(text, index=False, float_format="%.6g")
    return text.getvalue()


def image_scores(path: Path, *, variant: str, split: str, metric: str, expected: str = "") -> dict[str, float] | None:
    """stem -> score of one model on one split; None without file or metric, or where the file is not what was written.

    Args:
        expected: digest of the file by its record (`Record.beside`), empty where the record has none.
    """
    try:
        lines = _lines(path, expected=expected)
        header = next(csv.reader(lines), [])
        if metric not in header or metric == GROUP:
            return None
        place, mine = header.index(metric), f"{variant},{split},"
        rows = list(csv.reader(line for line in lines if line.startswith(mine)))
        scores = {row[2]: float(row[place]) for row in rows}
    except (ValueError, IndexError, csv.Error):
        return None
    if not scores or len(scores) < len(rows) or not all(0 <= score <= largest(metric) for score in scores.values()):
        return None
    return scores


def image_groups(path: Path, *, variant: str, split: str, expected: str = "") -> dict[str, str]:
    """stem -> group of one model's images of one split; empty where the file has no groups, or is not what was written."""
    try:
        lines = _lines(path, expected=expected)
        header = next(csv.reader(lines), [])
        if header[3:4] != [GROUP]:
            return {}
        return {row[2]: row[3] for row in csv.reader(line for line in lines if line.startswith(f"{variant},{split},"))}
    except (ValueError, IndexError, csv.Error):
        return {}


def all_image_scores(path: Path, *, expected: str = "") -> ImageScores:
    """Every score in the file.

    Raises:
        ValueError: it is no file of per-image scores, or not the one that was written with the record.
    """
    lines = _lines(path, expected=expected)
    found: ImageScores = {}
    try:
        reader = csv.reader(lines)
        header = next(reader, [])
        if header[:3] != _FIRST or len(set(header)) < len(header):
            raise ValueError(f"its columns are not {', '.join(_FIRST)}, then metrics")
        first = len(_FIRST) + (header[3:4] == [GROUP])
        for row in reader:
            if len(row) != len(header):
                raise ValueError(f"line {reader.line_num} has {len(row)} columns, not {len(header)}")
            scores = found.setdefault((row[0], row[1]), {metric: {} for metric in header[first:]})
            for metric, text in zip(header[first:], row[first:], strict=True):
                if row[2] in scores[metric]:
                    raise ValueError(f"image {row[2]!r} is there twice")
                if not 0 <= (value := float(text)) <= largest(metric):
                    raise ValueError(f"line {reader.line_num}: {metric} is {text}")
                scores[metric][row[2]] = value
    except csv.Error as error:
        raise ValueError(str(error)) from error
    return found


def _lines(path: Path, *, expected: str) -> io.StringIO:
    data = read_regular(path, largest=LARGEST_TABLE)
    if expected and digest(data) != expected:
        raise ValueError("it was edited after its record was written")
    return io.StringIO(data.decode(), newline="")
