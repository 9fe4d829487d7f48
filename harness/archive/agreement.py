"""Whether a record agrees with itself and with what lies beside it: per-image scores, history, α history.

This reads every file of a run, so ``records check``, ``records merge`` and ``records seal`` do it, and tables do not.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.archive.files import ImageScores, all_image_scores, files_beside, is_of_record, read_architecture
from harness.archive.masks import read_masks
from harness.archive.reading import refuse_unread
from harness.archive.schema import OVERLAP, Record
from harness.system.text import printable_line


def rounding(values: Sequence[float]) -> float:
    """How far the mean of these image scores, written with six significant digits, may lie from the score of the run: 1e-6 up to 1, and
    beyond it (an NLL) 5e-6 of the largest."""
    largest = max(map(abs, values), default=0.0)
    return max(1e-6, 5e-6 * largest if largest > 1 else 0.0)


def disagreement(record: Record, path: Path) -> str:
    """What does not fit, in one line; empty where all fits.

    Args:
        record: as `harness.archive.reading.load` gives it.
        path: its file, which need not lie under its key.

    Raises:
        Unread: the system did not let us read a file beside it (`harness.archive.reading`).
    """
    return next(_disagreements(record, path), "")


def strays(record: Record, path: Path) -> str:
    """Which file beside a record is not its own, in one line; empty where there is none.

    No reason to doubt the record, whose readers leave such a file alone.
    """
    others = [file for name, file in files_beside(path).items() if not is_of_record(name, record.beside)]
    left = [file.name for file in others if os.path.lexists(file)]
    return f"it does not name {' and '.join(left)}, left by another record under its key; delete them" if left else ""


def _disagreements(record: Record, record_path: Path) -> Iterator[str]:
    yield from _of_history(record)
    for name, path in files_beside(record_path).items():
        there = os.path.lexists(path)
        if not there and name in record.beside:
            yield f"{path.name} is gone"
        if not there or record.code != "OK" or not is_of_record(name, record.beside):
            continue
        try:
            if name == "images.csv":
                yield from _of_images(record, all_image_scores(path, expected=record.beside.get(name, "")))
            elif name == "architecture.csv":
                yield from _of_architecture(record, path)
            else:
                read_masks(path, expected=record.beside.get(name, ""))
        except ValueError as error:
            refuse_unread(path, error)
            yield f"{path.name}: {printable_line(str(error))}"


def _of_history(record: Record) -> Iterator[str]:
    for number, entry in enumerate(record.history, start=1):
        if entry.get("epoch") != number or not isinstance(entry.get("val"), dict):
            yield f"entry {number} of its history is not that of epoch {number}"
            return
    if record.history and record.selected_epoch is not None:
        if record.selected_epoch > len(record.history):
            yield f"epoch {record.selected_epoch} was selected out of {len(record.history)}"
            return
        validated, stated = record.history[record.selected_epoch - 1]["val"], record.scores.get("best", {}).get("val")
        if stated is not None and stated != validated:
            yield f"its validation scores are {stated}, and {validated} in its history"


def _of_architecture(record: Record, path: Path) -> Iterator[str]:
    history = read_architecture(path, expected=record.beside.get("architecture.csv", ""))
    for epoch, sites in enumerate(history, start=1):
        for site, shares in sites.items():
            if not math.isclose(math.fsum(shares), 1.0, abs_tol=1e-4) or min(shares) < 0:
                yield f"{path.name}: the shares of {printable_line(site)} in epoch {epoch} do not sum to 1"
                return


def _of_images(record: Record, images: ImageScores) -> Iterator[str]:
    accumulated = record.run.rules.get("evaluation", {}).get("overlap") == "accumulated"
    for variant, splits in record.scores.items():
        for split, scores in splits.items():
            if split == "val":
                continue
            tables = _tables(images, variant, split)
            if not tables:
                yield f"its images file has no scores of {variant} on {split}"
                continue
            where = f"{variant} {split}"
            count = record.tested.get(split)
            number = sum(len(next(iter(table.values()), ())) for table in tables)
            if count is not None and number != count:
                yield f"{where}: its images file has {number} images, not {count}"
            for metric, score in scores.items():
                values = [value for table in tables for value in table.get(metric, {}).values()]
                if values and not _may_sum_up(metric, score, values, accumulated=accumulated):
                    yield f"{where}: {metric} is {score:.6f}, and {math.fsum(values) / len(values):.6f} over its images"
    for variant, split in images:
        if split not in record.scores.get(variant, {}):
            yield f"its images file has scores of {variant} on {split}, which it does not know"


def _tables(images: ImageScores, variant: str, split: str) -> list[dict[str, dict[str, float]]]:
    """The split itself, or the parts of a split that joins all others; ``last`` is ``best`` where one epoch is both."""
    for name in (variant, "best") if variant == "last" else (variant,):
        of_model = {part: table for (owner, part), table in images.items() if owner == name}
        if of_model:
            return [of_model[split]] if split in of_model else list(of_model.values()) if split == "all" else []
    return []


def _may_sum_up(metric: str, score: float, values: list[float], *, accumulated: bool) -> bool:
    """Whether ``score`` can be that of a split whose images have ``values``: their mean where it is one, else the bounds
    that hold for its formula (`harness.evaluation.scorer.SplitScorer.summary`)."""
    mean, slack = math.fsum(values) / len(values), rounding(values)
    if metric == "e_max":  # one threshold for the split is no better than one an image
        return score <= mean + slack
    if metric == "miou" or (accumulated and metric == "ber"):
        return True
    if metric == "ece":  # |Σ gaps| of each bin is no more than Σ |gap|
        return score <= mean + slack
    if metric == "accuracy" or (accumulated and metric in OVERLAP):
        return min(values) - slack <= score <= max(values) + slack
    return abs(score - mean) <= slack
