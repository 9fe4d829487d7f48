"""Predicted masks of a few test images as a sidecar file of a record: one lossless PNG, the images below each other, with the prediction
on the left and the truth on the right.

Values are class indices, 255 is ignore. The file's text field ``images`` names the images as JSON. A palette shows masks in any viewer.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.archive.files import read_sidecar

MASKS_FILE = "masks.png"
LARGEST_MASKS = 64 << 20
_MOST_PIXELS = 2**28
"""Bounds on what is read: 128 masks of 1024 px with their truths."""

_IMAGES = "images"
_COLOURS = ((0, 0, 0), (255, 255, 255), (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178))
_PALETTE = [_COLOURS[index] if index < len(_COLOURS) else (index, 40, 255 - index) for index in range(255)]
_PALETTE.append((128, 128, 128))


@dataclass(frozen=True, kw_only=True)
class KeptMask:
    """One test image at the network's input size.

    Args:
        split, stem: which image.
        predicted: (S, S) class index of the run's model.
        truth: (S, S) class index, 255 = ignore.
    """

    split: str
    stem: str
    predicted: NDArray[np.uint8]
    truth: NDArray[np.uint8]

    def coloured(self) -> NDArray[np.uint8]:
        """(S, 2 S, 3) RGB: the prediction on the left, the truth on the right, in the colours of the file."""
        return np.array(_PALETTE, dtype=np.uint8)[np.concatenate([self.predicted, self.truth], axis=1)]


def chosen_images(images: Iterable[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    """``count`` of these test images (split, stem) by a hash of their names: the same for every method and seed. A smaller count gives a
    subset of a larger one's."""
    return sorted(images, key=lambda image: hashlib.sha256("/".join(image).encode()).digest())[:count]


def extremes(scores: Mapping[tuple[str, str], float], *, sign: int) -> dict[str, tuple[str, str]]:
    """``best``, ``median`` and ``worst`` -> (split, stem), of scores by image; without a median for fewer than three images.

    Args:
        sign: 1 where a higher score is better, -1 where a lower one is.
    """
    ranked = sorted(scores, key=lambda image: (-sign * scores[image], image))
    if len(ranked) < 3:
        return dict(zip(("best", "worst"), ranked, strict=False))
    return {"best": ranked[0], "median": ranked[(len(ranked) - 1) // 2], "worst": ranked[-1]}


def encoded_masks(masks: Sequence[KeptMask]) -> bytes:
    """The content of the file, equal for equal masks; empty without masks."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    if not masks:
        return b""
    table = np.concatenate([np.concatenate([mask.predicted, mask.truth], axis=1) for mask in masks])
    image = Image.fromarray(table)
    image.putpalette([value for colour in _PALETTE for value in colour])
    info = PngInfo()
    info.add_text(_IMAGES, json.dumps([[mask.split, mask.stem] for mask in masks]))
    out = io.BytesIO()
    image.save(out, format="PNG", optimize=True, pnginfo=info)
    return out.getvalue()


def read_masks(path: Path, *, expected: str = "") -> list[KeptMask]:
    """The masks in a file; ``expected`` as in `read_sidecar`. Raises ValueError: it is not such a file, or not the one that was written."""
    from PIL import Image

    data = read_sidecar(path, expected=expected, largest=LARGEST_MASKS)
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            width, height = image.size
            if width * height > _MOST_PIXELS or image.mode != "P":
                raise ValueError(f"{width}×{height} pixels of mode {image.mode}")
            images = json.loads(image.info[_IMAGES])
            table = np.asarray(image)
    except (OSError, ValueError, KeyError, SyntaxError, RecursionError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path.name} holds no masks ({error})") from error
    named = isinstance(images, list) and all(
        isinstance(image, list) and len(image) == 2 and all(isinstance(word, str) for word in image) for image in images
    )
    side = width // 2
    if not named or width != 2 * side or height != side * len(images):
        raise ValueError(f"{path.name} holds no masks (its size does not fit the images it names)")
    parts = table.reshape(len(images), side, width)
    return [
        KeptMask(split=split, stem=stem, predicted=part[:, :side], truth=part[:, side:])
        for (split, stem), part in zip(images, parts, strict=True)
    ]
