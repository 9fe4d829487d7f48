"""Masks of anybody's images by a trained model. Read `predict` downwards.

What happens to an image is what happens to a test image: upright RGB, bicubic to the network's square input, scores
resized bilinear to the image's own size. So the scores of what is written are those of the run's record.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from datasets.base import Sample
from datasets.reading.decoding import read_image
from datasets.reading.opening import stored_size
from datasets.reading.pairing import image_files
from harness.errors import UsageError, os_reason
from harness.evaluation.resize import resize_bilinear
from harness.experiment.mask_files import Array, Floats, as_image, overlay, save_array, save_image
from harness.experiment.trained import Trained
from harness.files import write_atomically
from harness.models.segmenter import Segmenter, probabilities
from harness.protocols.load import from_rules
from harness.training.feeding import normalise
from harness.training.images import to_input
from harness.training.precision import autocast
from methods.base import MergeMode

NOTE = "predictions.json"
"""Beside the masks: which model made them."""
OVERLAYS = "overlays"
PROBABILITIES = {"own": "probabilities", "input": "probabilities-input"}


@dataclass(frozen=True, kw_only=True)
class Predict:
    """What to predict and what to write.

    Args:
        trained: the model.
        checkpoint: the pretrained weights that the run started from, None for a run from random weights.
        images: files, as `find_images` gives them.
        out: folder of the masks.
        merge: how the method is folded into the backbone first, None to predict unmerged.
        calibration: batches (B, 3, S, S) of training images for ``calibrated``; called after the checks.
        overlay: write the image with the contours of its mask.
        probabilities: write float32 arrays: at the image's ``own`` size, at the network's ``input`` size, or not at all.
        batch: images a forward pass.
    """

    trained: Trained
    checkpoint: Path | None
    images: Sequence[Path]
    out: Path
    merge: MergeMode | None = None
    calibration: Callable[[], Sequence[Tensor]] = tuple
    overlay: bool = False
    probabilities: Literal["own", "input", ""] = ""
    batch: int = 4


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """How many images were predicted, and how many were there already."""

    done: int
    skipped: int


def predict(
    request: Predict, *, device: torch.device, progress: Callable[[int], None] = lambda done: None
) -> Predicted:
    """Predict every image that has no complete output yet; each file is there whole or not at all.

    Args:
        request: what.
        device: where to compute.
        progress: is told how many images are done.

    Raises:
        UsageError: the folder holds something else, or cannot be written.
        DatasetError: an image cannot be read; those before it are done and stay.
        MethodError: the method has no such merge mode.
    """
    images = request.images
    claimed = is_claimed(request)
    waiting = [image for image in images if not all(path.is_file() for path in outputs(request, image))]
    if not waiting:
        return Predicted(done=0, skipped=len(images))
    model = Model(request, device=device)
    if not claimed:
        claim_folder(request)
    done = len(images) - len(waiting)
    progress(done)
    with ThreadPoolExecutor(2, thread_name_prefix="writer") as writers:
        pending: list[Future[None]] = []
        for batch, scores in model.batches(waiting):
            _finish(pending, request.out)  # bounds what waits in memory
            done += len(batch)
            pending = [writers.submit(write_masks, request, model, *one) for one in zip(batch, scores, strict=True)]
            progress(done)
        _finish(pending, request.out)
    return Predicted(done=len(waiting), skipped=len(images) - len(waiting))


def _finish(pending: list[Future[None]], out: Path) -> None:
    try:
        for each in pending:
            each.result()
    except OSError as error:
        raise UsageError(
            f"--out {out} cannot be written: {os_reason(error)}; the masks before stay, the same command goes on"
        ) from error


def find_images(given: Sequence[Path]) -> list[Path]:
    """Files as they are given, and those right below folders by name, each once; their headers are read.

    Raises:
        UsageError: none, or two of one name.
        DatasetError: a file is no image.
    """
    all_given = (file for path in given for file in (image_files(path) if path.is_dir() else [path]))
    found = list({os.path.abspath(file): file for file in all_given}.values())
    if not found:
        raise UsageError(f"--images {', '.join(map(str, given))}: no image there (jpg, png, tif, bmp)")
    stems: dict[str, Path] = {}
    for path in found:
        other = stems.setdefault(path.stem.casefold(), path)
        if other is not path:
            raise UsageError(f"--images: {other} and {path} would have one mask; rename one, or predict them apart")
        stored_size(path)
    return found


def _note(request: Predict) -> dict[str, str | None]:
    return {"run": request.trained.run.key, "state": request.trained.digest, "merge": request.merge}


def is_claimed(request: Predict) -> bool:
    """Whether this model has begun to fill the folder; otherwise it is empty or new.

    Raises:
        UsageError: it holds anything else.
    """
    out, note = request.out, request.out / NOTE
    try:
        if any(image.parent.resolve() == out.resolve() for image in request.images):
            raise UsageError(f"--out {out} holds the images themselves; choose another folder")
        if note.is_file():
            if json.loads(note.read_text(encoding="utf-8")) != _note(request):
                raise UsageError(f"--out {out} holds the predictions of another model or merge; choose another folder")
            return True
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UsageError(f"--out {out} exists and holds no predictions; choose a folder that is empty or new")
    except OSError as error:
        raise UsageError(f"--out {out} cannot be read: {os_reason(error)}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{note} is damaged; choose another folder") from error
    return False


def claim_folder(request: Predict) -> None:
    """Note in the folder which model fills it."""
    try:
        write_atomically(request.out / NOTE, json.dumps(_note(request), indent=1) + "\n")
    except OSError as error:
        raise UsageError(f"--out {request.out} cannot be written: {os_reason(error)}") from error


def outputs(request: Predict, image: Path) -> list[Path]:
    """The files of one image, the mask last."""
    found = [request.out / f"{image.stem}.png"]
    if request.overlay:
        found.insert(0, request.out / OVERLAYS / f"{image.stem}.png")
    if request.probabilities:
        found.insert(0, request.out / PROBABILITIES[request.probabilities] / f"{image.stem}.npy")
    return found


class Model:
    """A trained segmenter, merged where that is asked for, from image files to scores.

    Args:
        request: which.
        device: where to compute.
    """

    def __init__(self, request: Predict, *, device: torch.device) -> None:
        self.rules = from_rules(request.trained.run.rules)
        self.device, self.batch, self.num_classes = device, request.batch, request.trained.num_classes
        self.labels = request.trained.task == "classification"
        segmenter, method = request.trained.segmenter(request.checkpoint)
        self.segmenter: Segmenter = segmenter.to(device)
        if request.merge:
            method.merge(request.merge, calibration=[batch.to(device) for batch in request.calibration()])

    def batches(self, images: Sequence[Path]) -> Iterator[tuple[list[tuple[Path, Array]], list[Floats]]]:
        """Path and pixels (H, W, 3) of images, and their scores (S, S), (C, S, S) or of labels (C, 1, 1); the next are read meanwhile."""
        chunks = [images[start : start + self.batch] for start in range(0, len(images), self.batch)]
        with ThreadPoolExecutor(1, thread_name_prefix="reader") as reader:
            coming = reader.submit(self._read, chunks[0])
            for chunk, following in zip(chunks, [*chunks[1:], []], strict=True):
                pixels, inputs = coming.result()
                if following:
                    coming = reader.submit(self._read, following)
                yield list(zip(chunk, pixels, strict=True)), list(self._scores(inputs))

    def _read(self, paths: Sequence[Path]) -> tuple[list[Array], Tensor]:
        pixels = [read_image(path) for path in paths]
        side = self.rules.image_size
        inputs = [to_input(Sample(image=image, mask=image[..., 0]), side)[:3] for image in pixels]
        return pixels, torch.from_numpy(np.stack(inputs))

    @torch.no_grad()
    def _scores(self, images: Tensor) -> Floats:
        side = 1 if self.labels else self.rules.image_size
        inputs = normalise(images, mean=self.rules.pixel_mean, std=self.rules.pixel_std)
        with autocast(self.rules, self.device):
            output = self.segmenter(inputs.to(self.device))
        scores = probabilities(output, (side, side))
        if scores.ndim == 4 and scores.shape[1] < self.num_classes:
            scores = nn.functional.pad(scores, (0, 0, 0, 0, 0, self.num_classes - scores.shape[1]))
        return scores.float().cpu().numpy()

    def mask(self, scores: Floats) -> Array:
        """(H, W) class indices from scores at the image's size."""
        if scores.ndim == 3:
            return scores.argmax(axis=0).astype(np.uint8)
        return (scores > self.rules.evaluation.threshold).astype(np.uint8)


def write_masks(request: Predict, model: Model, image: tuple[Path, Array], scores: Floats) -> None:
    """All files of one image.

    Args:
        image: path and pixels (H, W, 3).
        scores: (S, S) or (C, S, S).
    """
    path, pixels = image
    own = resize_bilinear(scores, pixels.shape[:2])
    mask = model.mask(own)
    for file in outputs(request, path):
        if file.suffix == ".npy":
            save_array(file, own if request.probabilities == "own" else scores)
        elif file.parent == request.out / OVERLAYS:
            save_image(file, Image.fromarray(overlay(pixels, mask)))
        else:
            save_image(file, as_image(mask, binary=scores.ndim == 2))


def scoring_command(request: Predict, masks: str) -> str:
    """The command that scores what was written as the run's record does."""
    rules, trained = from_rules(request.trained.run.rules), request.trained
    folder = request.out / PROBABILITIES[request.probabilities] if request.probabilities else request.out
    words = ["python -m harness.metrics", f"--pred {folder}", f"--gt {masks}"]
    if trained.task == "multiclass":
        words.append(f"--num-classes {trained.num_classes}")
    if request.probabilities == "input":
        words.append(f"--stretched --input-size {rules.image_size}")
    conventions = asdict(rules.evaluation)
    plain = asdict(type(rules.evaluation)())
    for name, value in conventions.items():
        if value != plain[name]:
            words.append(f"--set {name}={str(value).lower() if isinstance(value, bool) else value}")
    return " ".join(words)
