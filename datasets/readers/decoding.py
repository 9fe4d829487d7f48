"""Files to arrays: images to RGB, masks to class indices, exactly, whatever the encoding.

A mask is data, not a picture: a palette mask read as a picture turns dark and vanishes at a threshold, and a JPEG mask
compared with 255 erodes. So decoding goes by what is stored, and a value that a benchmark does not have is an error,
never a silent class.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageFilter
from scipy import ndimage

from harness.datasets.base import DatasetError, Pair, Sample
from harness.datasets.readers.opening import LEAST_OF_SIXTEEN, SCALE, open_image, orientation, upright

Array = NDArray[np.uint8]
Rule = Literal["half", "two levels", "nonzero"]
Colour = tuple[int, int, int]

LOSSY_FORMATS = frozenset({"JPEG", "MPO", "WEBP"})
_FULL = 65535
_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_TRANSPOSING = frozenset({5, 6, 7, 8})
# A picture taken for a mask is mid-grey in large parts; a third class is one grey level with an area of its own.
_MID_GREY = (64, 192)
_MOST_MID_GREY = 0.2
_THIRD_VALUE = (32, 224)
_MOST_THIRD_VALUE = 0.01
_FEW_LEVELS, _MOST_OFF_EDGES, _MOST_OFF_EDGES_OF_FEW = 8, 0.25, 0.05
"""Most pixels between a mask's darkest and brightest level lie at edges: nearly all where such levels are few. Compression
leaves 0.12 elsewhere, scaling up to 0.17."""
_LEAST_OBJECT = 4
"""Least pixels of an object; fewer may be remains of soft edges after a mask was scaled."""
_COLOUR = re.compile(r"\S.*?\s+(\d{1,3})\s*,\s*(\d{1,3})\s*,\s*(\d{1,3})")
"""A class with its colour, such as ``crop 0,255,0``."""
_COLOUR_NOISE = 32
"""Levels by which a colour may differ from a blend of paint and black."""
_MOST_LEFT_BY_COMPRESSION = 40
"""Levels in an empty mask: a JPEG's tile next to an object, saved twice, reaches 4 at quality 95, 20 at 75 and 37 at 50."""
_MOST_CHROMA, _MOST_CHROMATIC = 64, 0.001
"""Channels of a lossy grey mask differ by more in fewer than this share of the pixels that are brighter than that."""


def _sixteen_bits(image: Image.Image, path: Path) -> NDArray[np.int64]:
    """Samples of an integer file wider than 8 bits. Raises DatasetError: some are not within 16 bits, and would come out white or
    black."""
    wide = np.asarray(image).astype(np.int64)
    least, most = int(wide.min(initial=0)), int(wide.max(initial=0))
    if least < 0 or most > _FULL:
        raise DatasetError(f"{path} holds samples from {least} to {most}, which exceeds 16 bits; {SCALE}")
    return wide


def _eight_bits(values: NDArray[np.generic], path: Path) -> Array:
    """16-bit samples to 8: full range is scaled, samples that never leave 0..255 are 8-bit values in a wider file. Raises
    DatasetError: samples of 10 to 14 bits, which would come out dark."""
    wide = np.asarray(values)
    most = int(wide.max(initial=0))
    if most <= 255:
        return wide.astype(np.uint8)
    if most < LEAST_OF_SIXTEEN:
        raise DatasetError(f"{path} holds 16-bit samples that end at {most}, so 14 bits or less, or dark ones; {SCALE}")
    return ((wide * 255 + _FULL // 2) // _FULL).astype(np.uint8)


def to_rgb(image: Image.Image, path: Path) -> Array:
    """(H, W, 3) uint8 from any mode: grey is repeated, alpha dropped, palettes looked up, 16 bits scaled down.

    Args:
        path: its file, for messages.

    Raises:
        DatasetError: floats, whose range is unknown, or samples wider than 8 bits that would come out dark or white.
    """
    if image.mode == "F":
        raise DatasetError(f"{path} holds floats; convert it to 8 bits")
    if image.mode in _SIXTEEN_BIT:
        return np.repeat(_eight_bits(_sixteen_bits(image, path), path)[..., None], 3, axis=2)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"), dtype=np.uint8)


def read_labelled(pair: Pair) -> Sample:
    """The image of a pair with a label, and the label as a mask (1, 1). Raises DatasetError: unreadable file."""
    return Sample(image=read_image(pair.image), mask=np.array([[pair.label]], dtype=np.uint8))


def read_image(path: Path, *, stored_size: tuple[int, int] | None = None) -> Array:
    """One image as (H, W, 3) uint8 RGB, EXIF rotation applied. ``stored_size``: (width, height) of the mask. Where it fits the
    stored pixels and not the rotated ones, the mask was drawn on the stored pixels, and these are returned."""
    image = open_image(path)
    return to_rgb(image if is_drawn_as_stored(image, stored_size) else upright(image), path)


def is_drawn_as_stored(image: Image.Image, mask_size: tuple[int, int] | None) -> bool:
    """Whether a mask of this (width, height) fits an image that is stored rotated as it is stored, and not upright."""
    return orientation(image) in _TRANSPOSING and mask_size == image.size and image.width != image.height


def turn_is_open(image: Image.Image, mask_size: tuple[int, int]) -> bool:
    """Whether EXIF turns or mirrors an image, and a mask of this (width, height) fits it as well when it is left as it is stored."""
    if (turn := orientation(image)) not in _TRANSPOSING:
        return turn != 1
    if abs(np.log(image.width / image.height)) > 0.1:  # else `fit` takes either
        return False
    return image.width == image.height or mask_size not in (image.size, image.size[::-1])


def mask_values(image: Image.Image, path: Path) -> NDArray[np.integer]:
    """Stored values of a one-channel mask, (H, W): palette indices, grey levels, 0/1 of a 1-bit file. Raises DatasetError: a colour
    image, whose channels differ, or values beyond 16 bits."""
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8)
    if image.mode in ("P", "L"):
        return np.asarray(image)
    if image.mode in _SIXTEEN_BIT:
        return _sixteen_bits(image, path)
    if image.mode not in ("RGB", "RGBA", "LA"):
        raise DatasetError(f"{path} has mode {image.mode}, which is not a mask encoding")
    if _is_coloured(image):
        raise DatasetError(f"{path} is a colour image, not a one-channel mask; it has the colours {_colours(image)}")
    if image.format in LOSSY_FORMATS:
        return np.asarray(image.convert("L"))
    channels = np.asarray(image)
    if image.mode != "RGB" and channels[..., -1].min(initial=255) < 255:
        raise DatasetError(f"{path} is partly transparent: is it drawn in its alpha channel? save it as grey levels")
    return channels[..., 0]


def object_values(path: Path, *, num_classes: int) -> frozenset[int]:
    """What a mask holds besides 0; nothing for a coloured one, or for a palette of two classes, whose colours count. Raises DatasetError:
    unreadable."""
    image = open_image(path)
    if _is_coloured(image) or (num_classes == 2 and image.mode == "P" and not is_grey_palette(image)):
        return frozenset()
    return frozenset(np.unique(mask_values(image, path)).tolist()) - {0}


def mixed_encodings(held: Iterable[frozenset[int]], *, num_classes: int, named: bool) -> str:
    """What is wrong where 255 is the object in some masks, and to be ignored in others; empty where nothing is.

    Args:
        held: the `object_values` of each mask.
        named: classes are named, so that 255 is always to be ignored; at least as many masks that hold it with an index show that this
            is meant.
    """
    values = [each for each in held if each]
    full, both = sum(each == {255} for each in values), sum(255 in each and min(each) < num_classes for each in values)
    indices = sum(max(each) < num_classes for each in values)
    if not full or not indices + both or (named and both >= full):
        return ""
    return (
        f"{indices + both} masks hold class indices, and {full} hold 0 and 255 alone; write the index of the object in all, or 255 in all "
        "masks of two classes"
    )


def listed(values: ArrayLike) -> str:
    """The distinct values, the first eight of many; for messages."""
    distinct = [str(value) for value in np.unique(values)]
    return ", ".join(distinct[:8]) + (f", … ({len(distinct)} values)" if len(distinct) > 8 else "")


def read_binary(
    path: Path, *, rule: Rule = "half", only_255: bool = False, colour: Colour | Literal["any"] | None = None
) -> Array:
    """A binary mask as {0, 1}, (H, W) uint8.

    A coloured palette: every colour but black is foreground. A lossless file that holds only 0 and 1 holds indices.
    All others are grey levels.

    Args:
        rule: ``half`` takes grey levels above 127 (JPEG noise, anti-aliased edges); ``two levels`` likewise, and refuses a lossless
            file that holds a third level, except for soft edges of many levels; ``nonzero`` takes all above 0.
        only_255: quirk 11: the grey view is divided by 255 and truncated, so only 255 is foreground.
        colour: of masks painted in one colour on black, that colour (``any``: each file's own); None refuses
            colours.

    Raises:
        DatasetError: unreadable, a picture, or values that a binary mask does not have.
    """
    image = upright(open_image(path))
    if colour is not None and _is_coloured(image):
        if only_255:
            return (np.asarray(image.convert("L")) == 255).astype(np.uint8)
        return on_black(image, path, colour, two_levels=rule == "two levels")
    if only_255:
        return (_grey_view(image, path) == 255).astype(np.uint8)
    lossless = not _is_lossy(image, path)
    if image.mode == "P" and not is_grey_palette(image):
        return two_colours(image, path)
    values = _grey_view(image, path)
    if image.mode == "1" or (lossless and values.max(initial=0) <= 1):
        return (values > 0).astype(np.uint8)
    if lossless and rule != "nonzero" and {1, 255} <= set(levels := np.unique(values).tolist()) <= {0, 1, 255}:
        raise DatasetError(
            f"{path} has the mask values {levels}, so 255 may be an area to ignore; a binary mask has 0 and 255, or 0 and 1"
        )
    if lossless and rule == "two levels":
        _refuse_levels(values.astype(np.uint8), path)
        if image.mode in _SIXTEEN_BIT:  # scaled to 8 bits, low levels would be 0
            _refuse_levels(_ranks(np.asarray(image)), path, shown=listed(np.asarray(image)))
    if rule == "two levels":
        _refuse_dark_objects(values, path)
    _refuse_pictures(values, path, third_class=lossless and rule == "half")
    if lossless and rule == "nonzero":
        return (values > 0).astype(np.uint8)
    if (0 if lossless else _MOST_LEFT_BY_COMPRESSION) < values.max(initial=0) <= 127:
        png = "" if lossless else f" in {image.format} files; save masks as PNG"
        raise DatasetError(f"{path} has the unexpected mask values {listed(values)}: foreground is above 127{png}")
    return (values > 127).astype(np.uint8)


def _is_lossy(image: Image.Image, path: Path) -> bool:
    """Whether compression may have changed the values: WebP has a lossless kind too."""
    if image.format != "WEBP":
        return image.format in LOSSY_FORMATS
    with path.open("rb") as file:
        return b"VP8L" not in file.read(64)


def _ranks(values: NDArray[np.generic]) -> Array:
    """Levels of any range as 0 to 255 in the same order, evenly spaced; as many as there are distinct ones."""
    levels, ranks = np.unique(values, return_inverse=True)
    return (ranks.reshape(values.shape) * 255 // max(1, len(levels) - 1)).astype(np.uint8)


def two_colours(image: Image.Image, path: Path) -> Array:
    """A coloured palette as {0, 1}, (H, W) uint8: every colour but black is foreground. Raises DatasetError: more than two colours
    in use, or two of which none is black."""
    indices = np.asarray(image)
    used = len(np.unique(indices))
    if used > 2:
        raise DatasetError(f"{path} has the unexpected mask values {listed(indices)}: a binary palette has two")
    mask = (np.asarray(image.convert("RGB")).max(axis=2) > 0).astype(np.uint8)
    if used == 2 and mask.all():
        raise DatasetError(f"{path} has two colours and neither is black, the background of a binary palette")
    return mask


def _is_coloured(image: Image.Image) -> bool:
    """Whether channels differ: at all, or in a lossy file by more than its noise."""
    if image.mode not in ("RGB", "RGBA"):
        return False
    colours = np.asarray(image)[..., :3]
    if image.format in LOSSY_FORMATS:
        bright = np.count_nonzero(colours.max(axis=2) > _MOST_CHROMA)  # objects may be small
        return bool(np.count_nonzero(np.ptp(colours, axis=2) > _MOST_CHROMA) > _MOST_CHROMATIC * bright)
    return bool((colours != colours[..., :1]).any())


def on_black(
    image: Image.Image, path: Path, colour: Colour | Literal["any"] = "any", *, two_levels: bool = False
) -> Array:
    """One colour painted on black as {0, 1}, (H, W) uint8: foreground is what has at least half of it, since edges are
    blended.

    Args:
        image: mode RGB or RGBA.
        path: its file, for messages.
        colour: the paint, or ``any`` for the brightest colour of this file.
        two_levels: refuse areas of a darker shade.

    Raises:
        DatasetError: other colours are in it.
    """
    if image.format in LOSSY_FORMATS:
        raise DatasetError(
            f"{path} is a {image.format} file in colour, and compression smears colours; save masks as PNG"
        )
    stored = np.asarray(image).astype(np.int32)
    if image.mode == "RGBA":
        stored = stored[..., :3] * stored[..., 3:] // 255
    paint = np.array(colour, np.int32) if colour != "any" else stored.reshape(-1, 3)[stored.sum(axis=2).argmax()]
    share = stored @ paint / max(1, int(paint @ paint))  # of the paint in each colour, (H, W)
    if (np.abs(stored - share[..., None] * paint) > _COLOUR_NOISE).any():
        raise DatasetError(f"{path} has the colours {_colours(image)}: a binary mask is one colour on black")
    if two_levels:
        shades = (share.clip(0, 1) * 255).round().astype(np.uint8)
        if len(_flat_levels(shades, side=3)) or (len(np.unique(shades)) == 3 and _off_edges(shades).any()):
            raise DatasetError(f"{path} has the colours {_colours(image)}, areas of two shades: a binary mask has one")
        _refuse_dark_objects(shades, path)
    return (share >= 0.5).astype(np.uint8)


def _colours(image: Image.Image) -> str:
    """The colours that cover most of an image, as ``classes.txt`` takes them."""
    colours, counts = np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0, return_counts=True)
    most = colours[np.argsort(-counts, kind="stable")]
    named = "; ".join(",".join(map(str, colour)) for colour in most[:8].tolist())
    return named + (f"; … ({len(most)} colours)" if len(most) > 8 else "")


def colours_of(classes: Sequence[str]) -> list[Colour]:
    """The colours in names of classes such as ``crop 0,255,0``; empty where no name has one. Raises DatasetError: only some have, a
    channel is above 255, or a colour occurs twice."""
    found = [match for name in classes if (match := _COLOUR.fullmatch(name))]
    colours = [(int(match[1]), int(match[2]), int(match[3])) for match in found]
    if colours and (len(colours) < len(classes) or max(map(max, colours)) > 255 or len(set(colours)) < len(colours)):
        raise DatasetError(
            f"the classes {'; '.join(classes)} need a colour each, all different, such as crop 0,255,0, the background too; or none has one"
        )
    return colours


def read_colours(path: Path, colours: Sequence[Colour]) -> Array:
    """A mask that paints each class in a colour of its own (palettes looked up), as class indices (H, W) uint8 in the order of
    ``colours``. Raises DatasetError: unreadable, lossy, transparent in part, or another colour."""
    image = upright(open_image(path))
    require_lossless(image, path)
    if image.mode in ("RGBA", "LA") and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        raise DatasetError(f"{path} is partly transparent: is it drawn in its alpha channel? save it in colours alone")
    stored = to_rgb(image, path).astype(np.int32) @ np.array([1 << 16, 1 << 8, 1])
    known = np.array(colours, np.int64) @ np.array([1 << 16, 1 << 8, 1])
    order = np.argsort(known)
    at = order[np.searchsorted(known, stored, sorter=order).clip(max=len(known) - 1)]
    if (wrong := known[at] != stored).any():
        others = Image.fromarray(to_rgb(image, path)[wrong][None])
        raise DatasetError(f"{path} has the colours {_colours(others)}, which have no class; add them to classes.txt")
    return at.astype(np.uint8)


def _grey_view(image: Image.Image, path: Path) -> NDArray[np.integer]:
    """Grey levels 0 to 255, (H, W): palettes looked up, 1 bit as 0/255, 16 bits scaled."""
    if image.mode in ("P", "1"):
        return np.asarray(image.convert("L"))
    values = mask_values(image, path)
    return _eight_bits(values, path) if image.mode in _SIXTEEN_BIT else values


def is_grey_palette(image: Image.Image) -> bool:
    """Whether the colours in use are greys of which one is above 127: levels rather than labels."""
    colours = np.asarray(image.convert("RGB"))
    return bool((colours == colours[..., :1]).all() and colours.max(initial=0) > 127)


def _refuse_pictures(values: NDArray[np.integer], path: Path, *, third_class: bool) -> None:
    """A binary mask is nearly all black and white; edges may be grey, but each grey of an edge covers little."""
    counts = np.bincount(values.ravel(), minlength=256)
    mid = counts[_MID_GREY[0] + 1 : _MID_GREY[1]].sum() / values.size
    third = counts[_THIRD_VALUE[0] : _THIRD_VALUE[1]].max() / values.size
    has_third = np.count_nonzero(counts) > 2 and third > _MOST_THIRD_VALUE
    if mid > _MOST_MID_GREY or (third_class and has_third):
        raise DatasetError(f"{path} has the unexpected mask values {listed(values)}: a binary mask is black and white")


def _refuse_levels(values: Array, path: Path, *, shown: str = "") -> None:
    """Objects of another class, or ids of objects, at levels between background and foreground. A soft edge has many levels, flat
    nowhere and with darker and brighter ones next to them. ``shown``: the levels as the file has them."""
    levels = np.unique(values)
    if 127 < levels[0] < _THIRD_VALUE[1]:
        levels = np.append(np.uint8(0), levels)  # all would be foreground
    shown = shown or listed(levels)
    if len(levels) < 3:
        return
    if len(levels) == 3:
        raise DatasetError(f"{path} has the unexpected mask values {shown}: a binary mask has two")
    flat, ids = _flat_levels(values, side=3), _flat_levels(values, side=2)
    off = np.count_nonzero(_off_edges(values)) / np.count_nonzero((values > levels[0]) & (values < levels[-1]))
    most_off = _MOST_OFF_EDGES_OF_FEW if len(levels) - 2 <= _FEW_LEVELS else _MOST_OFF_EDGES
    if len(flat) or off > most_off or 2 * np.isin(values, ids).sum() > np.count_nonzero(values):
        raise DatasetError(
            f"{path} has the unexpected mask values {shown}, not at edges alone: a binary mask is black and white; where these "
            "are ids of objects, save their union, such as numpy's (mask > 0) * 255"
        )


def _off_edges(values: Array) -> NDArray[np.bool_]:
    """Which pixels between the darkest and the brightest level have none near them that is darker, or none that is brighter."""
    darker, brighter = (
        np.asarray(Image.fromarray(values).filter(kind(5))) for kind in (ImageFilter.MinFilter, ImageFilter.MaxFilter)
    )
    return (values > values.min()) & (values < values.max()) & ((darker == values) | (brighter == values))


def _refuse_dark_objects(values: NDArray[np.integer], path: Path) -> None:
    """Objects that would be lost: brighter than what compression leaves, and background in every pixel."""
    if not ((values > _MOST_LEFT_BY_COMPRESSION) & (values <= 127)).any():  # most masks; the rest takes a while
        return
    regions, _ = ndimage.label(values > _MOST_LEFT_BY_COMPRESSION, structure=np.ones((3, 3)))
    brightest = np.zeros(regions.max() + 1, values.dtype)
    np.maximum.at(brightest, regions.ravel(), values.ravel())
    lost = (
        (np.bincount(regions.ravel()) >= _LEAST_OBJECT) & (brightest > _MOST_LEFT_BY_COMPRESSION) & (brightest <= 127)
    )
    if lost.any() and values.max() > 127:
        raise DatasetError(
            f"{path} has objects at levels up to {brightest[lost].max()} alone, and foreground is above 127: save (mask > 127) * 255 to "
            "leave them out, or numpy's (mask > 0) * 255 to keep them"
        )


def _flat_levels(values: Array, *, side: int) -> NDArray[np.uint8]:
    """Levels that fill a square of this side somewhere, except the two darkest and the two brightest, of which compression leaves
    some."""
    height, width = (max(0, length - side + 1) for length in values.shape)
    corner, flat = values[:height, :width], np.ones((height, width), bool)
    for row, column in np.ndindex(side, side):
        flat &= values[row : row + height, column : column + width] == corner
    levels = np.unique(corner[flat])
    return levels[(levels > int(values.min()) + 1) & (levels < int(values.max()) - 1)]


def require_lossless(image: Image.Image, path: Path) -> None:
    """Raises DatasetError where class indices are in a lossy format."""
    if image.format in LOSSY_FORMATS:
        raise DatasetError(
            f"{path} is a {image.format} file: class indices do not survive lossy compression; get the original masks"
        )


def read_indices(path: Path, *, num_classes: int) -> Array:
    """A mask that stores class indices (palette or grey), (H, W) uint8. Raises DatasetError: unreadable, lossy, or an index outside
    ``0 .. num_classes - 1``."""
    image = upright(open_image(path))
    require_lossless(image, path)
    values = mask_values(image, path)
    if values.min(initial=0) < 0 or values.max(initial=0) >= num_classes:
        wrong = values[(values < 0) | (values >= num_classes)]
        raise DatasetError(
            f"{path} has the unexpected mask values {listed(wrong)}: class indices are 0 to {num_classes - 1}"
        )
    return values.astype(np.uint8)


def read_channel_means(path: Path, *, means: dict[int, int]) -> Array:
    """A mask whose classes are given by the mean of its colour channels, as in Trans10K; (H, W) uint8.

    Args:
        means: channel mean -> class index.

    Raises:
        DatasetError: unreadable, or a mean that stands for no class.
    """
    sums = to_rgb(upright(open_image(path)), path).astype(np.uint16).sum(axis=2)
    table = np.full(766, 255, dtype=np.uint8)
    for mean, index in means.items():
        table[3 * mean] = index
    classes = table[sums]
    if (classes == 255).any():
        wrong = sums[classes == 255] / 3
        known = ", ".join(str(mean) for mean in sorted(means))
        raise DatasetError(f"{path} has the unexpected channel means {listed(wrong.round(1))}: classes are {known}")
    return classes


def fit(image: Array, mask: Array, *, path: Path, stretched: bool = False) -> Array:
    """The image at the size of its mask: scores are taken at the mask's own size, so the mask stays as it was drawn.

    Args:
        image: (H, W, 3).
        mask: (H', W').
        path: the image's file, for messages.
        stretched: a square image may have been stretched from any shape.

    Raises:
        DatasetError: the shapes differ by more than a rescaling could explain; the pair is probably wrong.
    """
    if image.shape[:2] == mask.shape:
        return image
    (height, width), (mask_height, mask_width) = image.shape[:2], mask.shape
    square_copy = stretched and width == height
    if not square_copy and abs(np.log(width * mask_height / (height * mask_width))) > 0.1:
        raise DatasetError(
            f"{path}: the image is {width}x{height}, its mask {mask_width}x{mask_height}; they do not belong together"
        )
    resized = Image.fromarray(image).resize((mask_width, mask_height), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.uint8)
