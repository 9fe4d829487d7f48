"""Masks or labels of a user's images by a trained model, or by a published SAM with boxes and points. Read
`Prediction.run` downwards.

A run's model gets an image as it got its test images: upright RGB, bicubic to the network's square input, scores resized bilinear to the
image's own size. So a mask's scores are those of the run's record, if that was scored at the images' own size. A published SAM sees it
as its authors' predictor does (`harness.experiment.framing`).
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import binary_erosion
from torch import Tensor

from harness.datasets.base import require_plain
from harness.datasets.readers.decoding import read_image
from harness.datasets.readers.opening import stored_size
from harness.datasets.readers.pairing import image_files, name_key
from harness.experiment.framing import Array, AsPublished, Float32s, Framing
from harness.experiment.pointed import Pointed, require_on_images
from harness.experiment.scoring import EVALUATION_BATCH
from harness.experiment.trained import Trained
from harness.models.device import autocast
from harness.models.sam_encoder import SAMEncoder
from harness.models.segmenter import Prompts, SegmenterOutput
from harness.models.tiny_vit import TinyViTEncoder
from harness.protocols.load import from_rules
from harness.registry import BENCHMARKS
from harness.system.errors import UsageError, writing_to
from harness.system.files import read_regular, write_atomically
from harness.system.streams import say
from harness.training.cache import state_fingerprint

OVERLAYS, PROBABILITIES, OBJECTS, LABELS = "overlays", "probabilities", "objects", "labels.csv"
NOTE = "predictions.json"
"""File in the folder that names the model, images and options, so that the same command continues and no other does."""
ANOTHER = "choose a folder that is empty or new"
_LARGEST = 1 << 28
"""Most bytes of the note."""


def find_images(given: Sequence[Path]) -> list[Path]:
    """The given files, and those directly in given folders, each once; their headers are read.

    Raises:
        UsageError: no image, or two of one name.
        DatasetError: a file is not an image.
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


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Masks or labels of images, and the folder that they are written to.

    Args:
        checkpoint: the pretrained weights that the run started from, None for a run from random weights.
        images: files, as `find_images` gives them.
        out: folder of the masks: empty, new, or begun by an equal prediction.
        overlay: write the image with the contours of its mask.
        probabilities: write float32 arrays at the image's size.
        prompts: the objects of every image; empty without prompts.
    """

    trained: Trained
    checkpoint: Path | None
    images: Sequence[Path]
    out: Path
    overlay: bool = False
    probabilities: bool = False
    prompts: Mapping[Path, Sequence[Pointed]] = field(default_factory=dict)

    def run(self, *, device: torch.device, progress: Callable[[int], None] = lambda done: None) -> int:
        """Write the mask of every image that has none, each file whole or not at all.

        A classifier gives `LABELS` instead, when all images are done: image, label, and the probability of every class.

        Args:
            progress: called with the number of images done.

        Returns:
            The number of images that were done before.

        Raises:
            UsageError: the folder holds something else, or cannot be written, or prompts do not fit the model or their images.
            DatasetError: an image cannot be read. The masks of those before it stay.
        """
        self._check_prompts()
        begun = self._is_begun(note := self._note())
        waiting = [each for each in self.images if not (begun and self._is_done(each))]
        before = done = len(self.images) - len(waiting)
        if not waiting:
            return before
        segmenter, _ = self.trained.segmenter(self.checkpoint)
        segmenter.to(device)
        framing, names = self._framing(segmenter), BENCHMARKS.get(self.trained.run.benchmark).class_names
        with writing_to(f"--out {self.out}"):
            write_atomically(self.out / NOTE, note)
        progress(done)
        rows = [["image", "label", *names]]
        with ThreadPoolExecutor(EVALUATION_BATCH) as threads:
            for start in range(0, len(waiting), EVALUATION_BATCH):
                paths = waiting[start : start + EVALUATION_BATCH]
                pixels = list(threads.map(read_image, paths))
                inputs = torch.stack(list(threads.map(framing.tensor, pixels))).to(device)
                scores = self._scores(segmenter, inputs, paths, pixels, framing=framing)
                if self._labels:
                    rows += [
                        [path.name, *_labelled(score, names)] for path, (score,) in zip(paths, scores, strict=True)
                    ]
                else:
                    with writing_to(f"--out {self.out}", then="; finished masks stay, and the same command continues"):
                        list(threads.map(self._write, repeat(framing), paths, pixels, scores))
                done += len(paths)
                progress(done)
        if self._labels:
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows(rows)
            with writing_to(f"--out {self.out}"):
                write_atomically(self.out / LABELS, text.getvalue())
        return before

    @property
    def _labels(self) -> bool:
        return self.trained.task == "classification"

    def _check_prompts(self) -> None:
        """Say where prompts and training differ. Raises UsageError: prompts for a model that takes none, or outside their image;
        or masks asked of a classifier."""
        run = self.trained.run
        if self._labels and (self.overlay or self.probabilities):
            raise UsageError(f"--overlay and --probabilities are for masks; run {run.key} gives {LABELS}")
        trained_with = str(run.rule("prompt"))
        if not self.prompts:
            if trained_with != "none":
                say(
                    f"run {run.key} was trained with prompts ({trained_with}); without one it looks for objects by itself"
                )
            return
        if self.trained.task != "binary" or str(run.rule("decoder")) != "sam":
            raise UsageError(
                f"boxes and points are for SAM's decoder and one foreground, which run {run.key} does not have"
            )
        if trained_with == "none" and not self.trained.published:
            say(f"run {run.key} was trained without prompts; it may follow them less than the SAM that it started from")
        require_on_images(self.prompts)

    def _note(self) -> str:
        """The content of `NOTE`."""

        def digest(what: object) -> str:
            return hashlib.blake2b(repr(what).encode(errors="surrogateescape"), digest_size=16).hexdigest()

        files = [(image, image.stat()) for image in self.images]
        images = [(os.path.realpath(image), found.st_size, found.st_mtime_ns) for image, found in files]
        given = [[tuple(each) for each in self.prompts.get(image, ())] for image in self.images]
        note = {
            "model": {"run": self.trained.run.key, "state": state_fingerprint(self.trained.state)},
            "images": {"count": len(images), "digest": digest(images)},
            "options": {"overlay": self.overlay, "probabilities": self.probabilities},
            "prompts": digest(given) if self.prompts else "",
        }
        return json.dumps(note, indent=1) + "\n"

    def _is_begun(self, note: str) -> bool:
        """Whether an equal prediction began the folder; otherwise it is empty or new, so that no file of the user's is replaced.

        Raises:
            UsageError: it holds anything else, perhaps the images themselves.
        """
        out, wanted = self.out, json.loads(note)
        try:
            found = list(out.iterdir()) if out.is_dir() else [out] * out.exists()
            there = json.loads(read_regular(out / NOTE, largest=_LARGEST)) if out / NOTE in found else None
        except (ValueError, RecursionError) as error:
            raise UsageError(f"--out {out}: {NOTE} cannot be read ({error}); {ANOTHER}") from error
        if not found:
            return False
        if there is None:
            raise UsageError(f"--out {out} is not empty; {ANOTHER}")
        if linked := [name for name in (OVERLAYS, PROBABILITIES, OBJECTS) if (out / name).is_symlink()]:
            raise UsageError(f"--out {out}: {linked[0]} is a link, which is not followed; {ANOTHER}")
        if other := [name for name in wanted if not isinstance(there, dict) or there.get(name) != wanted[name]]:
            raise UsageError(
                f"--out {out} was begun with other {' and '.join(other)}; repeat that command, or {ANOTHER}"
            )
        return True

    def _is_done(self, image: Path) -> bool:
        files = [self.out / LABELS] if self._labels else self._outputs(image)
        return all(file.is_file() and not file.is_symlink() for file in files)

    def _outputs(self, image: Path) -> list[Path]:
        """The files of one image, the mask last."""
        count = len(self.prompts.get(image, ()))
        objects = [self.out / OBJECTS / f"{image.stem}_{number}.png" for number in range(1, count + 1)]
        overlay = [self.out / OVERLAYS / f"{image.stem}.png"] if self.overlay else []
        arrays = [self.out / PROBABILITIES / f"{image.stem}.npy"] if self.probabilities else []
        return [*objects, *arrays, *overlay, self.out / f"{image.stem}.png"]

    def _framing(self, segmenter: Any) -> Framing:
        rules, benchmark = from_rules(self.trained.run.rules), BENCHMARKS.get(self.trained.run.benchmark)
        if self.trained.published:
            return AsPublished(rules, padded=isinstance(segmenter.encoder, SAMEncoder | TinyViTEncoder))
        return Framing(rules, num_classes=benchmark.num_classes, labels=self._labels)

    @torch.no_grad()
    def _scores(
        self, segmenter: Any, inputs: Tensor, paths: Sequence[Path], pixels: Sequence[Array], *, framing: Framing
    ) -> list[list[Float32s]]:
        """Scores of each image: for all its objects together, then for each of them (`Framing.scores`).

        Raises:
            UsageError: scores that are not finite; as a mask they would be background.
        """
        with autocast(self.trained.run.rule("precision"), inputs.device):
            if self.prompts:
                outputs = [
                    _of_objects(segmenter, embedding, self.prompts[path], image=image, framing=framing)
                    for embedding, path, image in zip(segmenter.encode(inputs).split(1), paths, pixels, strict=True)
                ]
                scores = [list(framing.scores(output).float().cpu().numpy()) for output in outputs]
            else:
                scores = [[score] for score in framing.scores(segmenter(inputs)).float().cpu().numpy()]
        for path, each in zip(paths, scores, strict=True):
            if not all(np.isfinite(score).all() for score in each):
                raise UsageError(f"{path}: the model's scores are not finite, so it has no mask; use another run")
        return scores

    def _write(self, framing: Framing, path: Path, pixels: Array, scores: Sequence[Float32s]) -> None:
        """All files of one image, the mask last, from its pixels (H, W, 3) and its scores: for all objects together, then for each."""
        size, (whole, *objects) = pixels.shape[:2], scores
        *others, file = self._outputs(path)
        for target, score in zip(others, objects, strict=False):  # files of objects come first
            _write_png(target, framing.restored(score, size)[1] * np.uint8(255))
        probabilities, mask = framing.restored(whole, size)
        for target in others[len(objects) :]:
            if target.suffix == ".npy":
                content = io.BytesIO()
                np.save(content, probabilities)
                write_atomically(target, content.getvalue())
            else:
                _write_png(target, overlay(pixels, mask))
        if probabilities.ndim == 3:
            _write_png(file, mask, colours=palette())
        else:
            _write_png(file, mask * np.uint8(255))


def _labelled(score: Float32s, names: Sequence[str]) -> list[str]:
    """A label, and the probabilities (C, 1, 1) that it follows from."""
    return [names[int(score.argmax())], *(f"{p:.6g}" for p in score.reshape(-1))]


def _of_objects(
    segmenter: Any, embedding: Tensor, objects: Sequence[Pointed], *, image: Array, framing: Framing
) -> SegmenterOutput:
    """Masks (1 + n, 1, h, w) of an image with the ``embedding`` (1, ...): of all its objects, the largest logit of each position, and then
    of every object."""
    size = image.shape[:2]
    scale = np.divide(framing.inside(size), size)[::-1]  # for x and y

    def scaled(places: Sequence[Sequence[float]]) -> Tensor:
        return torch.from_numpy((np.array(places, dtype=np.float64) * scale).astype(np.float32)).to(embedding.device)

    masks = []
    for each in objects:
        prompts = Prompts(image=torch.zeros(1, dtype=torch.long))
        if each.box is not None:
            prompts = prompts._replace(boxes=scaled([each.box[:2], each.box[2:]]).reshape(1, 4))
        if each.points:
            labels = torch.tensor([[point[2] for point in each.points]], device=embedding.device)
            prompts = prompts._replace(points=scaled([point[:2] for point in each.points])[None], labels=labels)
        masks.append(segmenter.prompted(embedding, prompts).masks)
    return SegmenterOutput(torch.cat([torch.cat(masks).amax(dim=0, keepdim=True), *masks]), None)


def _write_png(path: Path, pixels: Array, *, colours: Array | None = None) -> None:
    """``colours``: those of class indices, (256, 3)."""
    picture, content = Image.fromarray(pixels), io.BytesIO()
    if colours is not None:
        picture.putpalette(colours.reshape(-1).tolist())
    picture.save(content, format="PNG")
    write_atomically(path, content.getvalue())


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
    out = pixels.copy()
    width = max(2, round(min(mask.shape) / 150))
    colours = palette()
    for index in np.unique(mask[mask > 0]):
        region = mask == index
        line = binary_erosion(region, iterations=width)
        out[line & ~binary_erosion(line, iterations=max(1, width // 2))] = 0
        out[region & ~line] = (colours[index].astype(float) * 255 / colours[index].max()).astype(np.uint8)
    return out
