"""Per-image scores beside a record."""

from __future__ import annotations

import csv
import math
from pathlib import Path


def image_scores(path: Path, *, variant: str, split: str, metric: str) -> dict[str, float] | None:
    """stem -> score of one model on one split; None without file or metric, or with a score that is no number."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header = next(csv.reader(file), [])
            if metric not in header:
                return None
            place = header.index(metric)
            mine = f"{variant},{split},"
            rows = csv.reader(line for line in file if line.startswith(mine))
            scores = {row[2]: float(row[place] or "nan") for row in rows}
    except (OSError, UnicodeDecodeError, ValueError, IndexError):
        return None
    if not scores or not all(math.isfinite(score) for score in scores.values()):
        return None
    return scores
