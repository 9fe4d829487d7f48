"""Labels of anybody's images by a trained classifier: one CSV, a row an image, a column a class."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import torch

from harness.experiment.predicting import Model, Predict, Predicted, opened_folder
from harness.registry import BENCHMARKS
from harness.system.errors import UsageError, os_reason
from harness.system.files import write_atomically

LABELS = "labels.csv"


def predict_labels(
    request: Predict, *, device: torch.device, progress: Callable[[int], None] = lambda done: None
) -> Predicted:
    """Write ``labels.csv``: image, label, and the probability of every class; images that it has as they are now keep their rows.

    Args:
        progress: is told how many images are done.

    Raises:
        UsageError: the folder holds something else, also of another file of an image's name, or cannot be written, or masks were asked for.
        DatasetError: an image cannot be read; nothing is written then.
        MethodError: the method has no such merge mode.
    """
    if request.overlay or request.probabilities:
        raise UsageError(
            f"--overlay and --probabilities are for masks; run {request.trained.run.key} gives labels, and {LABELS} "
            "has their probabilities anyway"
        )
    folder, path = opened_folder(request), request.out / LABELS
    names = tuple(BENCHMARKS.get(request.trained.run.benchmark).class_names)
    rows = _read_rows(path) if path.is_file() else {}
    waiting = [image for image in request.images if image.name not in rows or not folder.is_of(image.name, image)]
    for image in waiting:
        if image.name in rows:
            folder.require_same_file(image.name, image)
    if waiting:
        model = Model(request, device=device)
        if not folder.claimed:
            folder.note({})
        for batch, scores in model.batches(waiting):
            for (image, _), score in zip(batch, scores, strict=True):
                rows[image.name] = [
                    names[int(score.argmax())],
                    *(f"{p:.6g}" for p in score.reshape(-1)),
                ]
            progress(len(rows))
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(
            [["image", "label", *names], *([name, *rows[name]] for name in sorted(rows))]
        )
        try:
            write_atomically(path, text.getvalue())
        except OSError as error:
            raise UsageError(f"--out {request.out} cannot be written: {os_reason(error)}") from error
        folder.note({image.name: image for image in waiting})  # after the rows, which are all written at once
    return Predicted(done=len(waiting), skipped=len(request.images) - len(waiting))


def _read_rows(path: Path) -> dict[str, list[str]]:
    """Image -> its label and probabilities."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return {row[0]: row[1:] for row in list(csv.reader(file))[1:]}
    except (OSError, UnicodeDecodeError, csv.Error, IndexError) as error:
        raise UsageError(f"{path} is damaged; choose another folder") from error
