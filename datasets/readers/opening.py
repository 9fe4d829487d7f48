"""From a file to a decoded Pillow image. Files are not trusted.

Only the formats that benchmarks come in are opened, whatever the file is called: Pillow would hand PostScript to
Ghostscript. TIFFs that Pillow refuses go to `tifffile`: the original CVC-ClinicDB frames say "grey" and hold three
samples per pixel.
"""

from __future__ import annotations

import logging
import stat
import warnings
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError

from harness.datasets.base import AWAY, DatasetError

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")
"""Pillow's names; JPEG includes MPO, several JPEGs in one file."""

_OF_PREVIEWS = ("JPEG", "MPO")
"""Whose further images are views and previews of the first."""

MOST_PIXELS = 150_000_000
"""The largest image of a benchmark has 30 million; a small machine holds three arrays of this size."""

LEAST_OF_SIXTEEN = 1 << 14
"""The least level of the brightest 16-bit sample: cameras and scanners put 10, 12 or 14 bits into such files."""
SCALE = "scale them to 8 bits, such as with ImageMagick's -normalize, or numpy's >> 4 for 12 bits and >> 6 for 14"

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # it would print what is raised here

_ORIENTATION = 274
_TURNS = ["FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90"]
"""Pillow's names of what undoes the orientations 2 to 8."""
_TIFF = (b"II*\0", b"MM\0*")


def open_image(path: Path) -> Image.Image:
    """Open and decode one file. Raises DatasetError: missing, not a file, empty, truncated, not in one of `FORMATS`, or larger than
    `MOST_PIXELS`."""
    image = _opened(path)
    sixteen_bits = _has_sixteen_bit_colours(image)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata; what cannot be read is raised
            image.load()
    except Exception as error:  # Pillow may raise anything on a file that is damaged
        raise _unreadable(path, error) from error
    if sixteen_bits and image.mode in ("RGB", "RGBA") and np.asarray(image)[..., :3].max() < LEAST_OF_SIXTEEN >> 8:
        # Pillow keeps the upper byte of 16-bit colours.
        raise DatasetError(f"{path} holds 16-bit samples of 14 bits or less, or dark ones; {SCALE}")
    return image


def _has_sixteen_bit_colours(image: Image.Image) -> bool:
    """Whether an image that is not decoded yet stores colours of 16 bits, by the raw modes of its tiles.
    Their other arguments, such as widths and offsets, may have any digits and are not read."""
    arguments = [tile[3] for tile in getattr(image, "tile", ())]
    modes = [str(of_tile[0] if isinstance(of_tile, tuple) and of_tile else of_tile) for of_tile in arguments]
    return any(mode.startswith("RGB") and ";16" in mode for mode in modes)


def stored_size(path: Path) -> tuple[int, int]:
    """(width, height) as stored, from the header alone. Raises DatasetError: as `open_image`, as far as the header says."""
    image = _opened(path)
    image.close()
    return image.size


def upright_size(path: Path) -> tuple[int, int]:
    """As `stored_size`, with the EXIF orientation applied."""
    with _opened(path) as image:
        return image.size[::-1] if orientation(image) >= 5 else image.size


def _opened(path: Path) -> Image.Image:
    """The image, not decoded yet."""
    require_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(path, formats=(*FORMATS, "GIF") if path.suffix.lower() == ".gif" else FORMATS)
    except UnidentifiedImageError as error:
        with path.open("rb") as file:
            start = file.read(4)
        if start in _TIFF:
            return _tiff(path)
        reason = "it is empty" if not start else f"not {', '.join(FORMATS)}"
        raise DatasetError(f"{path} is unreadable ({reason}); restore it from the archive") from error
    except Image.DecompressionBombError as error:
        raise DatasetError(f"{path} is refused ({error}); scale it down") from error
    except Exception as error:
        raise _unreadable(path, error) from error
    _bound(path, *image.size)
    if image.format not in _OF_PREVIEWS:
        _refuse_stack(path, image)
    return image


def _refuse_stack(path: Path, image: Image.Image) -> None:
    """Refuse slices or an animation in one file, of which only the first would be read; a TIFF's pages of other sizes are previews."""
    try:
        pages, first = getattr(image, "n_frames", 1), image.size
        if pages == 1:
            return
        image.seek(1)
        second = image.size
        image.seek(0)
    except Exception as error:
        raise _unreadable(path, error) from error
    if first == second or image.format != "TIFF":
        raise DatasetError(f"{path} has {pages} pages of {first[0]}x{first[1]}; save each as a file of its own")


def _tiff(path: Path) -> Image.Image:
    """The first page of a TIFF that Pillow does not know, three samples per pixel taken for RGB."""
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            _bound(path, page.imagewidth, page.imagelength)
            axes, array = page.axes, page.asarray()
    except DatasetError:
        raise
    except Exception as error:  # a foreign reader on a damaged file may raise anything
        raise _unreadable(path, error) from error
    known = (axes, array.ndim) == ("YX", 2) or ((axes, array.ndim) == ("YXS", 3) and array.shape[2] == 3)
    if array.dtype != np.uint8 or not array.size or not known:
        raise DatasetError(
            f"{path} is a TIFF of {array.dtype} with axes {axes} and shape {array.shape}, which is not an image of a "
            "benchmark; convert it to PNG"
        )
    image = Image.fromarray(array)
    image.format = "TIFF"
    return image


def require_file(path: Path) -> None:
    """Refuse what would hang or fail when it is opened. Raises DatasetError: missing, a folder, a pipe or a device."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise DatasetError(f"{path} is missing; restore it from the archive") from error
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise DatasetError(f"{path} is {kind}, where a file is needed; give a file, or check what names it")


def _bound(path: Path, width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise DatasetError(
            f"{path} has {width}x{height} pixels; over {MOST_PIXELS // 1_000_000} million are refused, scale it down"
        )


def _unreadable(path: Path, error: Exception) -> DatasetError:
    """The error to raise for a damaged file. Raises OSError: the file is not to blame (`AWAY`)."""
    if isinstance(error, OSError) and error.errno in AWAY:
        raise OSError(error.errno, error.strerror, str(path)) from error
    reason = " ".join(str(error).split()) or type(error).__name__
    return DatasetError(f"{path} is unreadable ({reason}); restore it from the archive")


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 where there is none or where the EXIF block is broken."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; the file format, which decides between lossy and lossless, is kept."""
    if (stored := orientation(image)) == 1:
        return image
    # Pillow's own `exif_transpose` writes the other fields anew, and may raise on any of them.
    turned = image.transpose(Image.Transpose[_TURNS[stored - 2]])
    turned.format = image.format
    return turned
