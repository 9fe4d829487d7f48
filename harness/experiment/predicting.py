"""Masks or labels of a user's images by a trained model. Read `predict` downwards.

An image is treated as a test image is: upright RGB, bicubic to the network's square input, scores resized bilinear to the image's own
size. So a mask's scores are those of the run's record, if that was scored at the images' own size.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from harness.datasets.base import Sample, require_plain
from harness.datasets.readers.decoding import read_image
from harness.datasets.readers.folder_benchmark import FolderBenchmark
from harness.datasets.readers.opening import stored_size
from harness.datasets.readers.pairing import image_files, name_key
from harness.evaluation.conventions import CLASSES, OVERLAP
from harness.evaluation.resize import resize_bilinear
from harness.evaluation.score_folders import score_folders
from harness.evaluation.scorer import SplitScorer
from harness.experiment.scoring import class_scores
from harness.experiment.trained import Trained
from harness.models.segmenter import Prompts
from harness.protocols.load import from_rules
from harness.registry import BENCHMARKS
from harness.system.errors import UsageError, os_reason, writing_to
from harness.system.files import read_regular, write_atomically
from harness.system.streams import say
from harness.training.device import autocast
from harness.training.feeding import normalise
from harness.training.images import to_input
from harness.training.prompts import together

NOTE = "predictions.json"
"""In the folder of predictions: which model and prompt made them, and from which folders of images."""
LARGEST_NOTE = 1 << 20
"""Bytes."""
IMAGE = "image"
"""Text field of a mask that holds the name of its image."""
OVERLAYS, PROBABILITIES, LABELS = "overlays", "probabilities", "labels.csv"

Array = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Predict:
    """What to predict and what to write.

    Args:
        checkpoint: the pretrained weights that the run started from, None for a run from random weights.
        images: files, as `find_images` gives them.
        out: folder of the masks.
        overlay: write the image with the contours of its mask.
        probabilities: write float32 arrays at the image's size.
        batch: images a forward pass.
        prompt: boxes (left, top, right, bottom), one an object, or points (x, y) on one object, in pixels of the one image.
    """

    trained: Trained
    checkpoint: Path | None
    images: Sequence[Path]
    out: Path
    overlay: bool = False
    probabilities: bool = False
    batch: int = 4
    prompt: Sequence[tuple[float, ...]] = ()


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


def predict(request: Predict, *, device: torch.device, progress: Callable[[int], None] = lambda done: None) -> int:
    """Write the mask of every image that has none, or that is younger than its mask, each file whole or not at all.

    A classifier gives `LABELS` instead: image, label, and the probability of every class.

    Args:
        progress: is given how many images are done.

    Returns:
        How many images had masks already.

    Raises:
        UsageError: the folder cannot be written or holds something else, or the prompt does not fit.
        DatasetError: an image cannot be read. The masks of those before it stay.
    """
    out, run = request.out, request.trained.run
    labels = request.trained.task == "classification"
    if labels and (request.overlay or request.probabilities):
        raise UsageError(f"--overlay and --probabilities are for masks; run {run.key} gives {LABELS}")
    _check_prompt(request)
    note = _note(request)
    if labels and (out / NOTE).exists():
        raise UsageError(f"--out {out} holds {LABELS}; choose another folder")
    waiting = [
        image
        for image in request.images
        if not all(_is_current(file, image, files[-1]) for files in [_outputs(request, image)] for file in files)
    ]
    skipped = done = len(request.images) - len(waiting)
    if not waiting:
        return skipped
    segmenter, _ = request.trained.segmenter(request.checkpoint)
    segmenter.to(device)
    with writing_to(f"--out {out}"):
        write_atomically(out / NOTE, note)
        for image in waiting:  # an earlier version of the image may have left files that are not written now
            files = _outputs(replace(request, overlay=True, probabilities=True), image)
            for file in files:  # the mask last, as it tells whose the others are
                if not _is_current(file, image, files[-1]):
                    file.unlink(missing_ok=True)
    progress(done)
    names = BENCHMARKS.get(run.benchmark).class_names
    rows: list[list[str]] = []
    with ThreadPoolExecutor(2, thread_name_prefix="writer") as writers:
        pending: list[Future[None]] = []
        for batch in _scored(request, segmenter, waiting, device=device):
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
    return skipped


def _finish(pending: list[Future[None]], out: Path) -> None:
    with writing_to(f"--out {out}", then="; finished masks stay, and the same command continues"):
        for each in pending:
            each.result()


def _check_prompt(request: Predict) -> None:
    """Warn where a model that was trained with prompts gets none. Raises UsageError: a prompt that is not for this model or not on
    the image."""
    run = request.trained.run
    trained_with = str(run.rules.get("prompt", "none"))
    if not request.prompt:
        if trained_with != "none":
            say(f"run {run.key} was trained with prompts ({trained_with}); without one it looks for objects by itself")
        return
    if len(request.images) != 1:
        raise UsageError(
            f"--box and --point are pixels of one image, and --images names {len(request.images)}; give one"
        )
    if request.trained.task != "binary" or str(run.rules.get("decoder", "sam")) != "sam":
        raise UsageError(f"--box and --point are for SAM's decoder and one foreground, and run {run.key} has another")
    height, width = read_image(request.images[0]).shape[:2]
    for prompt in request.prompt:
        x, y = prompt[::2], prompt[1::2]
        if min(*x, *y) < 0 or max(x) > width or max(y) > height or x[0] > x[-1] or y[0] > y[-1]:
            text = ",".join(f"{number:g}" for number in prompt)
            raise UsageError(
                f"{text} is no box or point on the image of {width} x {height} pixels (left,top,right,bottom or x,y)"
            )


def _note(request: Predict) -> str:
    """The content of `NOTE`. Raises UsageError: the folder holds the images themselves, or anything but predictions of this model
    and prompt for images of these folders."""
    out, trained = request.out, request.trained
    folders = sorted({os.path.realpath(image.parent) for image in request.images})
    note = {"run": trained.run.key, "state": trained.digest, "prompt": [list(p) for p in request.prompt]}
    note["folders"] = folders
    if os.path.realpath(out) in folders:
        raise UsageError(f"--out {out} holds the images themselves; choose another folder")
    try:
        noted = (out / NOTE).is_file()
        foreign = not noted and out.exists() and (not out.is_dir() or any(out.iterdir()))
        there = json.loads(read_regular(out / NOTE, largest=LARGEST_NOTE)) if noted else note
    except OSError as error:
        raise UsageError(f"--out {out} cannot be read: {os_reason(error)}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{out / NOTE} is damaged; choose another folder") from error
    if foreign:
        raise UsageError(f"--out {out} exists and holds no predictions; choose a folder that is empty or new")
    if there != note:
        raise UsageError(
            f"--out {out} holds predictions of another model or prompt, or of images of another folder; choose another folder"
        )
    return json.dumps(note, indent=1) + "\n"


def _is_current(file: Path, image: Path, mask: Path) -> bool:
    """Whether one of an image's files is there, not older than the image, and its ``mask`` not that of ``7.jpg`` where it is ``7.png``."""
    try:
        with Image.open(mask) as opened:
            named = opened.info.get(IMAGE, image.name)
        return named == image.name and file.stat().st_mtime_ns >= image.stat().st_mtime_ns
    except OSError:
        return False


def _outputs(request: Predict, image: Path) -> list[Path]:
    """The files of one image, the mask last."""
    overlay = [request.out / OVERLAYS / f"{image.stem}.png"] if request.overlay else []
    arrays = [request.out / PROBABILITIES / f"{image.stem}.npy"] if request.probabilities else []
    return [*arrays, *overlay, request.out / f"{image.stem}.png"]


@torch.no_grad()
def _scored(
    request: Predict, segmenter: Any, images: Sequence[Path], *, device: torch.device
) -> Iterator[list[tuple[Path, Array, Floats]]]:
    """Batches of path, pixels (H, W, 3) and scores (S, S), (C, S, S) or of labels (C, 1, 1); the next batch is read meanwhile.

    Raises:
        UsageError: scores that are not finite; as a mask they would be background.
    """
    rules, num_classes = from_rules(request.trained.run.rules), request.trained.num_classes
    side = 1 if request.trained.task == "classification" else rules.image_size

    def read(paths: Sequence[Path]) -> tuple[list[Array], Tensor]:
        pixels = [read_image(path) for path in paths]
        inputs = [to_input(Sample(image=image, mask=image[..., 0]), rules.image_size)[:3] for image in pixels]
        return pixels, torch.from_numpy(np.stack(inputs))

    chunks = [images[start : start + request.batch] for start in range(0, len(images), request.batch)]
    with ThreadPoolExecutor(1, thread_name_prefix="reader") as reader:
        coming = reader.submit(read, chunks[0])
        for chunk, following in zip(chunks, [*chunks[1:], []], strict=True):
            pixels, inputs = coming.result()
            if following:
                coming = reader.submit(read, following)
            with autocast(rules, device):
                prompts = _prompts(request, pixels[0], rules.image_size, device) if request.prompt else None
                output = segmenter(normalise(inputs.to(device), rules.pixels), prompts)
            scores = class_scores(output, side=side, num_classes=num_classes).float().cpu().numpy()
            for path, score in zip(chunk, scores, strict=True):
                if not np.isfinite(score).all():
                    raise UsageError(f"{path}: the model's scores are not finite, so it has no mask; use another run")
            yield list(zip(chunk, pixels, scores, strict=True))


def _prompts(request: Predict, pixels: Array, side: int, device: torch.device) -> Prompts:
    """The prompts of the one image, in pixels of the network's input as segment_anything scales them."""
    height, width = pixels.shape[:2]
    where = np.array(request.prompt, dtype=np.float64).reshape(len(request.prompt), -1, 2)
    where *= side / np.array([width, height])
    boxes = where.shape[1] == 2
    given = where.reshape(-1, 4) if boxes else where.reshape(1, -1, 2)  # all points are on one object
    return together([given.astype(np.float32)], device=device)


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
            about = PngInfo()
            about.add_itxt(IMAGE, path.name)
            picture.save(content, format="PNG", pnginfo=about)
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


def scores(request: Predict, masks: Path) -> dict[str, float]:
    """What was written against a folder of true masks of the same names, by the run's conventions and at the masks' own size.

    Probabilities are scored where they were written, else masks by the metrics that have a threshold.

    Raises:
        UsageError, DatasetError: as `harness.evaluation.score_folders.score_folders`.
    """
    trained = request.trained
    benchmark = BENCHMARKS.get(trained.run.benchmark)()
    names = [name for name in benchmark.metrics if request.probabilities or name in (*OVERLAP, *CLASSES)]
    rules = from_rules(trained.run.rules).evaluation
    scorer = SplitScorer(names, task=trained.task, num_classes=trained.num_classes, conventions=rules)
    read = benchmark.decode_mask if isinstance(benchmark, FolderBenchmark) else None
    folder = request.out / PROBABILITIES if request.probabilities else request.out
    return score_folders(folder, masks, scorer, read_mask=read).summary()
