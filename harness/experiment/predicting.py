"""Masks or labels of anybody's images by a trained model. Read `predict` downwards.

What happens to an image is what happens to a test image: upright RGB, bicubic to the network's square input, scores
resized bilinear to the image's own size. So the scores of what is written are those of the run's record, of masks where that was
scored at the images' own size. A note in the folder says which model fills it, and which image each prediction is of.
"""

from __future__ import annotations

import csv
import io
import json
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
from torch import Tensor, nn

from harness.datasets.base import Sample, require_plain
from harness.datasets.readers.decoding import read_image
from harness.datasets.readers.folder_benchmark import FolderBenchmark
from harness.datasets.readers.opening import stored_size
from harness.datasets.readers.pairing import image_files, name_key
from harness.evaluation.conventions import CLASSES, OVERLAP
from harness.evaluation.resize import resize_bilinear
from harness.evaluation.score_folders import score_folders
from harness.evaluation.scorer import SplitScorer
from harness.experiment.trained import Trained
from harness.models.segmenter import Prompts, Segmenter, probabilities
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
"""In the folder of predictions: which model made them, and of which files."""
LARGEST_NOTE = 1 << 28
"""Bytes; an image takes about 100 of them."""
OVERLAYS, PROBABILITIES, LABELS = "overlays", "probabilities", "labels.csv"

Array = NDArray[np.uint8]
Floats = NDArray[np.float32]


def palette() -> Array:
    """(256, 3) RGB: the colours of PASCAL VOC's masks, bits of the index spread over the channels."""
    index = np.arange(256)
    colours = np.zeros((256, 3), dtype=np.uint8)
    for shift in range(8):
        for channel in range(3):
            colours[:, channel] |= (((index >> (3 * shift + channel)) & 1) << (7 - shift)).astype(np.uint8)
    return colours


def overlay(pixels: Array, mask: Array) -> Array:
    """The image with the contours of every class but the background, (H, W, 3): bright lines, two pixels wide on 300 and
    more, each with a dark edge inside, so that they show on any photograph."""
    from scipy.ndimage import binary_erosion

    drawn = pixels.copy()
    width = max(2, round(min(mask.shape) / 150))
    colours = palette()
    for index in np.unique(mask[mask > 0]):
        region = mask == index
        line = binary_erosion(region, iterations=width)
        drawn[line & ~binary_erosion(line, iterations=max(1, width // 2))] = 0
        drawn[region & ~line] = (colours[index].astype(float) * 255 / colours[index].max()).astype(np.uint8)
    return drawn


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


def predict(request: Predict, *, device: torch.device, progress: Callable[[int], None] = lambda done: None) -> int:
    """Write the mask of every image that has none yet or is younger than its mask, each file whole or not at all; of a
    classifier `LABELS`: image, label, and the probability of every class.

    Args:
        progress: is given how many images are done.

    Returns:
        How many images had masks already.

    Raises:
        UsageError: the folder holds something else, also the mask of another file of an image's name, or cannot be written.
        DatasetError: an image cannot be read; those before it are done and stay.
    """
    labels = request.trained.task == "classification"
    if labels and (request.overlay or request.probabilities):
        raise UsageError(f"--overlay and --probabilities are for masks; run {request.trained.run.key} gives {LABELS}")
    note = opened_note(request)
    if labels and note["images"]:
        raise UsageError(f"--out {request.out} holds {LABELS}; choose another folder")
    waiting = [image for image in request.images if labels or _is_stale(request, image)]
    if not waiting:
        return len(request.images)
    model = Model(request, device=device)
    note["images"].update({image.stem: os.path.realpath(image) for image in waiting})
    with writing_to(f"--out {request.out}"):
        for image in waiting:  # what an earlier version of the image left
            for folder, suffix in (("", ".png"), (OVERLAYS, ".png"), (PROBABILITIES, ".npy")):
                (request.out / folder / f"{image.stem}{suffix}").unlink(missing_ok=True)
        write_atomically(request.out / NOTE, json.dumps(note, indent=1) + "\n")
    skipped = done = len(request.images) - len(waiting)
    progress(done)
    rows: list[list[str]] = []
    with ThreadPoolExecutor(2, thread_name_prefix="writer") as writers:
        pending: list[Future[None]] = []
        for batch, scores in model.batches(waiting):
            _finish(pending, request.out)  # bounds what waits in memory
            done += len(batch)
            if labels:
                rows += [_labelled(request, path, score) for (path, _), score in zip(batch, scores, strict=True)]
            else:
                pairs = zip(batch, scores, strict=True)
                pending = [writers.submit(write_masks, request, model, *pair) for pair in pairs]
            progress(done)
        _finish(pending, request.out)
    if labels:
        text = io.StringIO()
        names = BENCHMARKS.get(request.trained.run.benchmark).class_names
        csv.writer(text, lineterminator="\n").writerows([["image", "label", *names], *rows])
        with writing_to(f"--out {request.out}"):
            write_atomically(request.out / LABELS, text.getvalue())
    return skipped


def _labelled(request: Predict, path: Path, score: Floats) -> list[str]:
    names = BENCHMARKS.get(request.trained.run.benchmark).class_names
    return [path.name, names[int(score.argmax())], *(f"{p:.6g}" for p in score.reshape(-1))]


def _check_prompt(request: Predict) -> None:
    """Say where a model that was trained with prompts gets none. Raises UsageError: a prompt that is not for this model or not on
    the image."""
    run = request.trained.run
    trained_with = str(run.rules.get("prompt", "none"))
    if not request.prompt:
        if trained_with != "none":
            say(
                f"run {run.key} was trained with prompts ({trained_with}), and none is given: it looks for objects by itself"
            )
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


def _finish(pending: list[Future[None]], out: Path) -> None:
    with writing_to(f"--out {out}", then="; the masks before stay, the same command goes on"):
        for each in pending:
            each.result()


def find_images(given: Sequence[Path]) -> list[Path]:
    """Files as they are given, and those right below folders by name, each once; their headers are read.

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


def opened_note(request: Predict) -> dict[str, Any]:
    """What the folder's note says: the model, and under ``images`` the file of each prediction by its name. Raises UsageError: the
    folder holds the images, anything but this model's predictions, or the prediction of another file of one name; or the prompt
    does not fit."""
    out, trained = request.out, request.trained
    if any(os.path.realpath(image.parent) == os.path.realpath(out) for image in request.images):
        raise UsageError(f"--out {out} holds the images themselves; choose another folder")
    _check_prompt(request)
    model = {"run": trained.run.key, "state": trained.digest}
    if request.prompt:
        model["prompt"] = " ".join(",".join(f"{number:g}" for number in prompt) for prompt in request.prompt)
    recorded: dict[str, Any] = {**model, "images": {}}
    try:
        noted = (out / NOTE).is_file()
        holds_else = not noted and out.exists() and (not out.is_dir() or any(out.iterdir()))
        if noted:
            recorded = dict(json.loads(read_regular(out / NOTE, largest=LARGEST_NOTE)))
        images = dict(recorded.pop("images"))
    except OSError as error:
        raise UsageError(f"--out {out} cannot be read: {os_reason(error)}") from error
    except (TypeError, KeyError, ValueError, RecursionError) as error:
        raise UsageError(f"{out / NOTE} is damaged; choose another folder") from error
    if holds_else:
        raise UsageError(f"--out {out} exists and holds no predictions; choose a folder that is empty or new")
    if recorded != model:
        raise UsageError(f"--out {out} holds the predictions of another model or prompt; choose another folder")
    for image in request.images:
        known = images.get(image.stem)
        if known not in (None, os.path.realpath(image)):
            raise UsageError(f"--out {out} holds the prediction of {known}, not of {image}; choose another folder")
    return {**model, "images": images}


def _is_stale(request: Predict, image: Path) -> bool:
    """Whether one of its files is not there, or older than the image."""
    changed = image.stat().st_mtime_ns
    return any(not path.is_file() or path.stat().st_mtime_ns < changed for path in outputs(request, image))


def outputs(request: Predict, image: Path) -> list[Path]:
    """The files of one image, the mask last."""
    overlay = [request.out / OVERLAYS / f"{image.stem}.png"] if request.overlay else []
    arrays = [request.out / PROBABILITIES / f"{image.stem}.npy"] if request.probabilities else []
    return [*arrays, *overlay, request.out / f"{image.stem}.png"]


class Model:
    """A trained segmenter, from image files to scores."""

    def __init__(self, request: Predict, *, device: torch.device) -> None:
        self.rules = from_rules(request.trained.run.rules)
        self.device, self.batch, self.num_classes = device, request.batch, request.trained.num_classes
        self.labels = request.trained.task == "classification"
        self.prompt = request.prompt
        segmenter, _ = request.trained.segmenter(request.checkpoint)
        self.segmenter: Segmenter = segmenter.to(device)

    def batches(self, images: Sequence[Path]) -> Iterator[tuple[list[tuple[Path, Array]], list[Floats]]]:
        """Path and pixels (H, W, 3) of images, and their scores (S, S), (C, S, S) or of labels (C, 1, 1); the next are read
        meanwhile. Raises UsageError: scores that are no numbers; as a mask they would be background."""
        chunks = [images[start : start + self.batch] for start in range(0, len(images), self.batch)]
        with ThreadPoolExecutor(1, thread_name_prefix="reader") as reader:
            coming = reader.submit(self._read, chunks[0])
            for chunk, following in zip(chunks, [*chunks[1:], []], strict=True):
                pixels, inputs = coming.result()
                if following:
                    coming = reader.submit(self._read, following)
                scores = list(self._scores(inputs, self._prompts(pixels)))
                for path, score in zip(chunk, scores, strict=True):
                    if not np.isfinite(score).all():
                        raise UsageError(
                            f"{path}: the model's scores are not finite, so it has no mask; use another run"
                        )
                yield list(zip(chunk, pixels, strict=True)), scores

    def _read(self, paths: Sequence[Path]) -> tuple[list[Array], Tensor]:
        pixels = [read_image(path) for path in paths]
        side = self.rules.image_size
        inputs = [to_input(Sample(image=image, mask=image[..., 0]), side)[:3] for image in pixels]
        return pixels, torch.from_numpy(np.stack(inputs))

    def _prompts(self, pixels: Sequence[Array]) -> Prompts | None:
        """The prompts of the one image, in pixels of the network's input as segment_anything scales them."""
        if not self.prompt:
            return None
        height, width = pixels[0].shape[:2]
        where = np.array(self.prompt, dtype=np.float64).reshape(len(self.prompt), -1, 2)
        where *= self.rules.image_size / np.array([width, height])
        boxes = where.shape[1] == 2
        given = where.reshape(-1, 4) if boxes else where.reshape(1, -1, 2)  # all points are on one object
        return together([given.astype(np.float32)], device=self.device)

    @torch.no_grad()
    def _scores(self, images: Tensor, prompts: Prompts | None) -> Floats:
        side = 1 if self.labels else self.rules.image_size
        inputs = normalise(images, self.rules.pixels)
        with autocast(self.rules, self.device):
            output = self.segmenter(inputs.to(self.device), prompts)
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
    resized = resize_bilinear(scores, pixels.shape[:2])
    mask = model.mask(resized)
    for file in outputs(request, path):
        content = io.BytesIO()
        if file.suffix == ".npy":
            np.save(content, resized)
        elif file.parent == request.out / OVERLAYS:
            Image.fromarray(overlay(pixels, mask)).save(content, format="PNG")
        else:
            drawn = Image.fromarray(mask * np.uint8(255) if scores.ndim == 2 else mask)
            if scores.ndim == 3:  # class indices, in colours
                drawn.putpalette(palette().reshape(-1).tolist())
            drawn.save(content, format="PNG")
        write_atomically(file, content.getvalue())


def scores(request: Predict, masks: Path) -> dict[str, float]:
    """What was written against a folder of true masks of the same names, by the run's conventions and at the masks' own size:
    probabilities where they were written, else masks by the metrics that have a threshold.

    Raises:
        UsageError, DatasetError: as `harness.evaluation.score_folders.score_folders`.
    """
    rules, trained = from_rules(request.trained.run.rules), request.trained
    benchmark, task = BENCHMARKS.get(trained.run.benchmark)(), trained.task
    names = [name for name in benchmark.metrics if request.probabilities or name in (*OVERLAP, *CLASSES)]
    assert task != "classification"
    scorer = SplitScorer(names, task=task, num_classes=trained.num_classes, conventions=rules.evaluation)
    read = benchmark.decode_mask if isinstance(benchmark, FolderBenchmark) else None
    folder = request.out / PROBABILITIES if request.probabilities else request.out
    return score_folders(folder, masks, scorer, read_mask=read).summary()
