"""Encodings of the published archives: images and class indices to the files that people really download."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from harness.datasets.samples.scenes import Array

VOC_RED = (128, 0, 0)


def mislabelled_tiff(path: Path, image: Array) -> None:
    """RGB in a TIFF that calls itself grey, which Pillow refuses (the original CVC-ClinicDB frames)."""
    tifffile.imwrite(path, image, photometric="rgb", metadata=None)
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages.first.tags["PhotometricInterpretation"].overwrite(tifffile.PHOTOMETRIC.MINISBLACK)


def jpeg_noise(path: Path, classes: Array) -> None:
    """0/255 through JPEG: values near 0 and near 255, edges in between (Kvasir-SEG)."""
    Image.fromarray(classes * np.uint8(255)).save(path, format="JPEG", quality=75)


def grey(path: Path, classes: Array) -> None:
    """0/255, one channel."""
    Image.fromarray(classes * np.uint8(255)).save(path)


def grey_low_peak(path: Path, classes: Array) -> None:
    """White that only reaches 237."""
    Image.fromarray(classes * np.uint8(237)).save(path)


def three_channels(path: Path, classes: Array) -> None:
    """0/255 three times."""
    Image.fromarray(np.repeat((classes * np.uint8(255))[..., None], 3, axis=2)).save(path)


def one_bit(path: Path, classes: Array) -> None:
    """1-bit file."""
    Image.fromarray(classes.astype(bool)).save(path)


def palette_png(path: Path, classes: Array) -> None:
    """Palette indices 0 and 1, coloured black and dark red: the grey view is 0 and 38 (Leaf)."""
    image = Image.fromarray(classes)
    image.putpalette([0, 0, 0, *VOC_RED])
    image.save(path)


def index(path: Path, classes: Array) -> None:
    """Grey levels that are class indices (Trans10K-v2)."""
    Image.fromarray(classes).save(path)


def channel_means(path: Path, classes: Array) -> None:
    """Background black, things red (mean 85), stuff white (Trans10K-v1)."""
    colours = np.array([(0, 0, 0), (255, 0, 0), (255, 255, 255)], dtype=np.uint8)
    Image.fromarray(colours[classes]).save(path)
