"""Masks or labels of a user's images by a trained model. Read `predict` downwards.

An image is treated as a test image is: upright RGB, bicubic to the network's square input, scores resized bilinear to the image's own
size. So a mask's scores are those of the run's record, if that was scored at the images' own size.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from harness.datasets.base import Sample, require_plain
from harness.datasets.readers.decoding import read_image
from harness.datasets.readers.opening import stored_size
from harness.datasets.readers.pairing import image_files, name_key
from harness.evaluation.resize import resize_bilinear
from harness.experiment.scoring import class_scores
from harness.experiment.trained import Trained
from harness.protocols.load import from_rules
from harness.registry import BENCHMARKS
from harness.system.errors import UsageError, os_reason, writing_to
from harness.system.files import write_atomically
from harness.system.streams import say
from harness.training.device import autocast
from harness.training.feeding import normalise
from harness.training.images import to_input

OVERLAYS, PROBABILITIES, LABELS = "overlays", "probabilities", "labels.csv"

Array = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Predict:
    """What to predict and what to write.

    Args:
        checkpoint: the pretrained weights that the run started from, None for a run from random weights.
        images: files, as `find_images` gives them.
        out: folder of the masks, empty or new.
        overlay: write the image with the contours of its mask.
        probabilities: write float32 arrays at the image's size.
        batch: images a forward pass.
    """

    trained: Trained
    checkpoint: Path | None
    images: Sequence[Path]
    out: Path
    overlay: bool = False
    probabilities: bool = False
    batch: int = 4


def find_images(given: Sequence[Path]) -> list[Path]:
    """The given files, and those directly in given folders, each once; their headers are read.

    Raises:
        UsageError: none, or two of one name.
        DatasetError: a file is no image.
    """
    all_given = (file for path in given for file in (image_files(path) if path.is_dir() else [path]))
    files = list({os.path.abspath(file): file for file in all_given}.values())
    if not files:
        raise UsageError(f"--images {', '.join(map(str, given))}: no image there (jpg, png, tif, bmp)")
    stems: dict[str, Path] = {}
    for path in files:
        first = stems.setdefault(name_key(path.stem), path)
        if first is not path:
            raise UsageError(f"--images: {first} and {path} would have one mask; rename one, or predict them apart")
        require_plain(path.name, path)
        stored_size(path)
    return files


def predict(request: Predict, *, device: torch.device, progress: Callable[[int], None] = lambda done: None) -> None:
    """Write the mask of every image, each file whole or not at all, into a folder that is empty or new, so that no file is replaced.

    A classifier gives `LABELS` instead: image, label, and the probability of every class.

    Args:
        progress: is given how many images are done.

    Raises:
        UsageError: the folder holds something, or cannot be written.
        DatasetError: an image cannot be read. The masks of those before it stay.
    """
    out, run = request.out, request.trained.run
    labels = request.trained.task == "classification"
    if labels and (request.overlay or request.probabilities):
        raise UsageError(f"--overlay and --probabilities are for masks; run {run.key} gives {LABELS}")
    _require_empty(out)
    if (prompt := run.rules.get("prompt", "none")) != "none":
        say(f"run {run.key} was trained with prompts ({prompt}); without one it looks for objects by itself")
    segmenter, _ = request.trained.segmenter(request.checkpoint)
    segmenter.to(device)
    done = 0
    names = BENCHMARKS.get(run.benchmark).class_names
    rows: list[list[str]] = []
    with ThreadPoolExecutor(2, thread_name_prefix="writer") as writers:
        pending: list[Future[None]] = []
        for batch in _scored(request, segmenter, device=device):
            _finish(pending, out)  # bounds what waits in memory
            done += len(batch)
            if labels:
                rows += [
                    [path.name, names[int(score.argmax())], *(f"{p:.6g}" for p in score.reshape(-1))]
                    for path, _, score in batch
                ]
            else:
                pending = [writers.submit(write_masks, request, *each) for each in batch]
            progress(done)
        _finish(pending, out)
    if labels:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([["image", "label", *names], *rows])
        with writing_to(f"--out {out}"):
            write_atomically(out / LABELS, text.getvalue())


def _finish(pending: list[Future[None]], out: Path) -> None:
    with writing_to(f"--out {out}", then="; finished masks stay"):
        for each in pending:
            each.result()


def _require_empty(out: Path) -> None:
    """Raises UsageError: anything is there already, perhaps the images themselves."""
    try:
        full = out.exists() and (not out.is_dir() or any(out.iterdir()))
    except OSError as error:
        raise UsageError(f"--out {out} cannot be read: {os_reason(error)}") from error
    if full:
        raise UsageError(f"--out {out} is not empty; choose a folder that is empty or new")


def _outputs(request: Predict, image: Path) -> list[Path]:
    """The files of one image."""
    overlay = [request.out / OVERLAYS / f"{image.stem}.png"] if request.overlay else []
    arrays = [request.out / PROBABILITIES / f"{image.stem}.npy"] if request.probabilities else []
    return [*arrays, *overlay, request.out / f"{image.stem}.png"]


@torch.no_grad()
def _scored(request: Predict, segmenter: Any, *, device: torch.device) -> Iterator[list[tuple[Path, Array, Floats]]]:
    """Batches of path, pixels (H, W, 3) and scores (S, S), (C, S, S) or of labels (C, 1, 1); the next batch is read meanwhile.

    Raises:
        UsageError: scores that are not finite; as a mask they would be background.
    """
    run = request.trained.run
    rules, num_classes = from_rules(run.rules), BENCHMARKS.get(run.benchmark).num_classes
    side = 1 if request.trained.task == "classification" else rules.image_size

    def read(paths: Sequence[Path]) -> tuple[list[Array], Tensor]:
        pixels = [read_image(path) for path in paths]
        inputs = [to_input(Sample(image=image, mask=image[..., 0]), rules.image_size)[:3] for image in pixels]
        return pixels, torch.from_numpy(np.stack(inputs))

    images, size = request.images, request.batch
    chunks = [images[start : start + size] for start in range(0, len(images), size)]
    with ThreadPoolExecutor(1, thread_name_prefix="reader") as reader:
        coming = reader.submit(read, chunks[0])
        for chunk, following in zip(chunks, [*chunks[1:], []], strict=True):
            pixels, inputs = coming.result()
            if following:
                coming = reader.submit(read, following)
            with autocast(rules, device):
                output = segmenter(normalise(inputs.to(device), rules.pixels))
            scores = class_scores(output, side=side, num_classes=num_classes).float().cpu().numpy()
            for path, score in zip(chunk, scores, strict=True):
                if not np.isfinite(score).all():
                    raise UsageError(f"{path}: the model's scores are not finite, so it has no mask; use another run")
            yield list(zip(chunk, pixels, scores, strict=True))


def write_masks(request: Predict, path: Path, pixels: Array, scores: Floats) -> None:
    """All files of one image, from its pixels (H, W, 3) and scores (S, S) or (C, S, S)."""
    resized = resize_bilinear(scores, pixels.shape[:2])
    if scores.ndim == 3:
        mask = resized.argmax(axis=0).astype(np.uint8)
    else:
        mask = (resized > from_rules(request.trained.run.rules).evaluation.threshold).astype(np.uint8)
    for file in _outputs(request, path):
        content = io.BytesIO()
        if file.suffix == ".npy":
            np.save(content, resized)
        elif file.parent == request.out / OVERLAYS:
            Image.fromarray(overlay(pixels, mask)).save(content, format="PNG")
        else:
            picture = Image.fromarray(mask * np.uint8(255) if scores.ndim == 2 else mask)
            if scores.ndim == 3:  # class indices, in colours
                picture.putpalette(palette().reshape(-1).tolist())
            picture.save(content, format="PNG")
        write_atomically(file, content.getvalue())


def palette() -> Array:
    """(256, 3) RGB: the colours of PASCAL VOC's masks, bits of the index spread over the channels."""
    index = np.arange(256)
    colours = np.zeros((256, 3), dtype=np.uint8)
    for shift in range(8):
        for channel in range(3):
            colours[:, channel] |= (((index >> (3 * shift + channel)) & 1) << (7 - shift)).astype(np.uint8)
    return colours


def overlay(pixels: Array, mask: Array) -> Array:
    """The image (H, W, 3) with the contour of every class but the background.

    Lines are bright and at least two pixels wide, with a dark edge inside, so that they show on any photograph.
    """
    from scipy.ndimage import binary_erosion

    out = pixels.copy()
    width = max(2, round(min(mask.shape) / 150))
    colours = palette()
    for index in np.unique(mask[mask > 0]):
        region = mask == index
        line = binary_erosion(region, iterations=width)
        out[line & ~binary_erosion(line, iterations=max(1, width // 2))] = 0
        out[region & ~line] = (colours[index].astype(float) * 255 / colours[index].max()).astype(np.uint8)
    return out
