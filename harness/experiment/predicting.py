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
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from harness.datasets.base import Sample, require_plain
from harness.datasets.reading.decoding import read_image
from harness.datasets.reading.opening import stored_size
from harness.datasets.reading.pairing import image_files, name_key
from harness.evaluation.conventions import CLASSES, OVERLAP
from harness.evaluation.resize import resize_bilinear
from harness.experiment.trained import Trained
from harness.methods.base import MergeMode
from harness.models.segmenter import Prompts, Segmenter, probabilities
from harness.protocols.load import from_rules
from harness.registry import BENCHMARKS, is_own
from harness.system.errors import UsageError, os_reason, writing_to
from harness.system.files import read_regular, write_atomically
from harness.system.streams import say
from harness.training.feeding import normalise
from harness.training.images import to_input
from harness.training.precision import autocast
from harness.training.prompts import together

NOTE = "predictions.json"
"""Beside the predictions: which model made them, and of which files."""

LARGEST_NOTE = 1 << 28
"""Bytes; an image takes about 150 of them."""

Origin = tuple[str, int, int]
"""Path without links, bytes, and the time of the last change in nanoseconds: another file or content has another."""


@dataclass(frozen=True, kw_only=True)
class PredictionFolder:
    """What a folder's note says.

    Args:
        model: what tells models apart.
        images: name of a prediction -> the file that it is of; without those of notes older than this.
        claimed: whether this model has begun to fill it; otherwise it is empty or new.
    """

    out: Path
    model: Mapping[str, str | None]
    images: Mapping[str, Origin]
    claimed: bool

    @classmethod
    def open(cls, out: Path, model: Mapping[str, str | None]) -> PredictionFolder:
        """Read the note there is. Raises UsageError: the folder holds anything else, or cannot be read."""
        note = out / NOTE
        try:
            if note.is_file():
                recorded, images = _parsed(read_regular(note, largest=LARGEST_NOTE))
                if recorded != model:
                    raise UsageError(
                        f"--out {out} holds the predictions of another model or merge; choose another folder"
                    )
                return cls(out=out, model=model, images=images, claimed=True)
            if out.exists() and (not out.is_dir() or any(out.iterdir())):
                raise UsageError(f"--out {out} exists and holds no predictions; choose a folder that is empty or new")
        except UsageError:
            raise
        except OSError as error:
            raise UsageError(f"--out {out} cannot be read: {os_reason(error)}") from error
        except (TypeError, KeyError, ValueError, RecursionError) as error:
            raise UsageError(f"{note} is damaged; choose another folder") from error
        return cls(out=out, model=model, images={}, claimed=False)

    def is_of(self, name: str, image: Path) -> bool:
        """Whether the prediction of that name is of this file as it is now. Of an older note nobody knows."""
        return self.images.get(name) == origin(image)

    def require_same_file(self, name: str, image: Path) -> None:
        """Refuse to put the prediction of one file in the place of another's. Raises UsageError: the prediction there is of another
        file."""
        known = self.images.get(name)
        if known is not None and known[0] != os.path.realpath(image):
            raise UsageError(
                f"--out {self.out} holds the prediction of {known[0]}, not of {image}, under one name; "
                "choose another folder"
            )

    def note(self, images: Mapping[str, Path]) -> None:
        """Write down which model fills the folder, and which files further predictions are of. Raises UsageError: it cannot be
        written."""
        known = {**self.images, **{name: origin(image) for name, image in images.items()}}
        with writing_to(f"--out {self.out}"):
            write_atomically(self.out / NOTE, json.dumps({**self.model, "images": known}, indent=1) + "\n")


def origin(image: Path) -> Origin:
    """A file's identity and version: its real path, size and time of change. Raises UsageError: it is gone."""
    try:
        status = os.stat(image)
    except OSError as error:
        raise UsageError(f"--images: {image} cannot be read: {os_reason(error)}") from error
    return os.path.realpath(image), status.st_size, status.st_mtime_ns


def _parsed(text: bytes) -> tuple[dict[str, Any], dict[str, Origin]]:
    """The model, and the files by name. Raises KeyError, TypeError, ValueError, RecursionError: it is no note."""
    content = json.loads(text)
    if not isinstance(content, dict) or not isinstance(images := content.pop("images", {}), dict):
        raise TypeError("no note")
    if not all(isinstance(entry, list) and list(map(type, entry)) == [str, int, int] for entry in images.values()):
        raise TypeError("no files")
    return content, {name: (path, size, changed) for name, (path, size, changed) in images.items()}


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


OVERLAYS = "overlays"
PROBABILITIES = {"own": "probabilities", "input": "probabilities-input"}


@dataclass(frozen=True, kw_only=True)
class Predict:
    """What to predict and what to write.

    Args:
        checkpoint: the pretrained weights that the run started from, None for a run from random weights.
        images: files, as `find_images` gives them.
        out: folder of the masks.
        merge: how the method is folded into the backbone first, None to predict unmerged.
        calibration: batches (B, 3, S, S) of training images for ``calibrated``; called after the checks.
        overlay: write the image with the contours of its mask.
        probabilities: write float32 arrays: at the image's ``own`` size, at the network's ``input`` size, or not at all.
        batch: images a forward pass.
        prompt: boxes (left, top, right, bottom), one an object, or points (x, y) on one object, in pixels of the one image.
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
    prompt: Sequence[tuple[float, ...]] = ()


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """How many images were predicted, and how many were there already."""

    done: int
    skipped: int


def predict(
    request: Predict, *, device: torch.device, progress: Callable[[int], None] = lambda done: None
) -> Predicted:
    """Predict every image that has no complete output yet, or changed since; each file is there whole or not at all.

    Args:
        progress: is told how many images are done.

    Raises:
        UsageError: the folder holds something else, also of another file of an image's name, or cannot be written.
        DatasetError: an image cannot be read; those before it are done and stay.
        MethodError: the method has no such merge mode.
    """
    images = request.images
    folder = opened_folder(request)
    stale = set(_stale(folder, images))
    waiting = [image for image in images if any(p in stale or not p.is_file() for p in outputs(request, image))]
    if not waiting:
        return Predicted(done=0, skipped=len(images))
    model = Model(request, device=device)
    with writing_to(f"--out {request.out}"):
        for path in stale:  # before the note, which would otherwise call them the new images'
            path.unlink()
    folder.note({image.stem: image for image in waiting})
    done = len(images) - len(waiting)
    progress(done)
    with ThreadPoolExecutor(2, thread_name_prefix="writer") as writers:
        pending: list[Future[None]] = []
        for batch, scores in model.batches(waiting):
            _finish(pending, request.out)  # bounds what waits in memory
            done += len(batch)
            pending = [writers.submit(write_masks, request, model, *item) for item in zip(batch, scores, strict=True)]
            progress(done)
        _finish(pending, request.out)
    return Predicted(done=len(waiting), skipped=len(images) - len(waiting))


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


def opened_folder(request: Predict) -> PredictionFolder:
    """The folder to fill, and what its note says. Raises UsageError: it holds the images, or anything but this model's predictions,
    or its prompt does not fit."""
    out, trained = request.out, request.trained
    if any(os.path.realpath(image.parent) == os.path.realpath(out) for image in request.images):
        raise UsageError(f"--out {out} holds the images themselves; choose another folder")
    _check_prompt(request)
    model = {"run": trained.run.key, "state": trained.digest, "merge": request.merge}
    if request.prompt:
        model["prompt"] = " ".join(",".join(f"{number:g}" for number in prompt) for prompt in request.prompt)
    return PredictionFolder.open(out, model=model)


def _stale(folder: PredictionFolder, images: Sequence[Path]) -> list[Path]:
    """Outputs that were made of an earlier version of an image, or of an unknown one. Raises UsageError: it is of another file that
    is called the same."""
    stale = []
    for image in images:
        arrays = [Path(name, f"{image.stem}.npy") for name in PROBABILITIES.values()]
        outputs_of_all = (*arrays, Path(OVERLAYS, f"{image.stem}.png"), Path(f"{image.stem}.png"))
        there = [path for name in outputs_of_all if (path := folder.out / name).is_file()]
        if there and not folder.is_of(image.stem, image):
            folder.require_same_file(image.stem, image)
            stale += there
    return stale


def outputs(request: Predict, image: Path) -> list[Path]:
    """The files of one image, the mask last."""
    files = [request.out / f"{image.stem}.png"]
    if request.overlay:
        files.insert(0, request.out / OVERLAYS / f"{image.stem}.png")
    if request.probabilities:
        files.insert(0, request.out / PROBABILITIES[request.probabilities] / f"{image.stem}.npy")
    return files


class Model:
    """A trained segmenter, merged where that is asked for, from image files to scores."""

    def __init__(self, request: Predict, *, device: torch.device) -> None:
        self.rules = from_rules(request.trained.run.rules)
        self.device, self.batch, self.num_classes = device, request.batch, request.trained.num_classes
        self.labels = request.trained.task == "classification"
        self.prompt = request.prompt
        segmenter, method = request.trained.segmenter(request.checkpoint)
        self.segmenter: Segmenter = segmenter.to(device)
        if request.merge:
            method.merge(request.merge, calibration=[batch.to(device) for batch in request.calibration()])

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
            np.save(content, resized if request.probabilities == "own" else scores)
        elif file.parent == request.out / OVERLAYS:
            Image.fromarray(overlay(pixels, mask)).save(content, format="PNG")
        else:
            drawn = Image.fromarray(mask * np.uint8(255) if scores.ndim == 2 else mask)
            if scores.ndim == 3:  # class indices, in colours
                drawn.putpalette(palette().reshape(-1).tolist())
            drawn.save(content, format="PNG")
        write_atomically(file, content.getvalue())


def scoring_command(request: Predict, masks: str) -> str:
    """The command that scores what was written as the run's record does."""
    rules, trained = from_rules(request.trained.run.rules), request.trained
    benchmark = BENCHMARKS.get(trained.run.benchmark)
    folder = request.out / PROBABILITIES[request.probabilities] if request.probabilities else request.out
    words = ["sam-peft", "data", "score", str(folder), masks]
    if not is_own(benchmark.name):
        words += ["--benchmark", benchmark.name]
    elif trained.task == "multiclass":
        words += ["--num-classes", str(trained.num_classes)]
    # Masks have the threshold of these metrics alone.
    if names := [name for name in benchmark.metrics if request.probabilities or name in (*OVERLAP, *CLASSES)]:
        words += ["--metrics", ",".join(names)]
    if request.probabilities == "input":
        words.append("--stretched")
    conventions = asdict(rules.evaluation)
    plain = asdict(type(rules.evaluation)())
    for name, value in conventions.items():
        if value != plain[name]:
            words += ["--set", f"{name}={str(value).lower() if isinstance(value, bool) else value}"]
    return shlex.join(words)


LABELS = "labels.csv"


def predict_labels(
    request: Predict, *, device: torch.device, progress: Callable[[int], None] = lambda done: None
) -> Predicted:
    """Write ``labels.csv``: image, label, and the probability of every class; images that it has as they are now keep their rows.

    Args:
        progress: is told how many images are done.

    Raises:
        UsageError: the folder holds something else, also of another file of an image's name, or cannot be written, or masks were asked for.
        DatasetError: an image cannot be read; those before it are done and stay.
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
    done = skipped = len(request.images) - len(waiting)
    if waiting:
        model = Model(request, device=device)
        if not folder.claimed:
            folder.note({})
        for image in waiting:
            rows.pop(image.name, None)
        _write_rows(path, names, rows)  # before the note, which would otherwise call rows of other images the new ones'
        folder.note({image.name: image for image in waiting})
        for batch, scores in model.batches(waiting):
            new = {
                image.name: [names[int(score.argmax())], *(f"{p:.6g}" for p in score.reshape(-1))]
                for (image, _), score in zip(batch, scores, strict=True)
            }
            with writing_to(f"--out {request.out}"), path.open("a", newline="", encoding="utf-8") as file:
                file.write(_as_csv([name, *row] for name, row in new.items()))
            rows |= new
            done += len(batch)
            progress(done)
        _write_rows(path, names, rows)
    return Predicted(done=len(waiting), skipped=skipped)


def _write_rows(path: Path, names: Sequence[str], rows: Mapping[str, Sequence[str]]) -> None:
    """The whole table, by image. Raises UsageError: it cannot be written."""
    with writing_to(f"--out {path.parent}"):
        write_atomically(path, _as_csv([["image", "label", *names], *([name, *rows[name]] for name in sorted(rows))]))


def _as_csv(rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _read_rows(path: Path) -> dict[str, list[str]]:
    """Image -> its label and probabilities; without a last row that was not written to its end."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return {row[0]: row[1:] for row in list(csv.reader(line for line in file if line.endswith("\n")))[1:]}
    except (OSError, UnicodeDecodeError, csv.Error, IndexError) as error:
        raise UsageError(f"{path} is damaged; choose another folder") from error
