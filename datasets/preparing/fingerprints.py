"""What a check remembers of each pair, and how it finds the same picture twice.

Exact copies share the hash of their decoded pixels, so a copy under another name or in another lossless format is
found. Near copies (re-encoded, scaled, mirrored) have nearly the same difference hash, and the candidates are
confirmed on their thumbnails.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from harness.datasets.base import IGNORE, Benchmark, DatasetError, Pair
from harness.datasets.readers.decoding import read_image, turn_is_open
from harness.datasets.readers.opening import open_image, orientation, upright

THUMBNAIL, HASH_SIDE = 24, 8
MOST_BITS = 6
"""Difference hashes of copies differ in at most this many of 64 bits; those of unrelated natural images in about 32."""
MOST_DIFFERENCE = 3.0
"""Thumbnails of copies differ by at most this many grey levels on average. Kvasir-SEG images that were halved, encoded with
JPEG quality 20 to 70, or mirrored reach 1.3; neighbouring video frames 0.2 to 4."""
LEAST_CONTRAST = 6.0
"""Below this standard deviation of the thumbnail a picture is too flat to find copies by."""
_ROWS = 1024


class Fingerprint(NamedTuple):
    """One pair, decoded once. ``error``: why it cannot be read; nothing else is known of it then."""

    split: str
    pair: Pair
    error: str = ""
    image_size: tuple[int, int] = (0, 0)  # (width, height), upright
    mask_size: tuple[int, int] = (0, 0)
    values: tuple[int, ...] = ()  # distinct ones of the mask file, channel means of a coloured one
    shares: tuple[float, ...] = ()  # of each class among the pixels that are not ignored
    turn_is_open: bool = False  # of the image, by EXIF, see `harness.datasets.readers.decoding.turn_is_open`
    border_share: float = 0.0  # the foreground's of the outermost pixels
    digest: str = ""  # of the image's pixels
    thumbnail: NDArray[np.float32] = np.zeros((THUMBNAIL, THUMBNAIL), np.float32)
    bits: NDArray[np.bool_] = np.zeros(HASH_SIDE * HASH_SIDE, bool)  # difference hash


def fingerprint_pair(benchmark: Benchmark, split: str, pair: Pair) -> Fingerprint:
    """Decode a pair and describe it; errors are part of the description."""
    try:
        image_file = open_image(pair.image)
        sample = benchmark.read(pair)
        image = read_image(pair.image, stored_size=(sample.mask.shape[1], sample.mask.shape[0]))
        mask_file = Image.fromarray(sample.mask) if pair.entry else open_image(pair.mask)  # one file of many masks
    except DatasetError as error:
        return Fingerprint(split=split, pair=pair, error=str(error))
    grey = Image.fromarray(image).convert("L")
    cells = np.asarray(grey.resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX), np.int16)
    upright_mask = upright(mask_file)
    stored = np.asarray(upright_mask)
    if stored.ndim == 3:
        stored = np.asarray(upright_mask.convert("RGB"), np.uint16).sum(axis=2) // 3
    mask = sample.mask
    counts = np.bincount(mask.ravel(), minlength=256)
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    return Fingerprint(
        split=split,
        pair=pair,
        image_size=(image.shape[1], image.shape[0]),
        mask_size=upright_mask.size,
        values=tuple(np.unique(stored).tolist()[:256]),
        shares=tuple((counts[: benchmark.num_classes] / max(1, mask.size - counts[IGNORE])).tolist()),
        turn_is_open=turn_is_open(image_file, sample.mask.shape[::-1]) and orientation(mask_file) == 1,
        border_share=float(((border > 0) & (border != IGNORE)).mean()),
        digest=hashlib.sha256(f"{image.shape}".encode() + image.tobytes()).hexdigest(),
        thumbnail=np.asarray(grey.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX), np.float32),
        bits=(cells[:, :-1] < cells[:, 1:]).ravel(),  # each of 8x8 cells is darker than its right neighbour
    )


def exact_groups(prints: Sequence[Fingerprint]) -> list[list[Fingerprint]]:
    """Pairs whose images have the same pixels, in groups of two and more."""
    groups: dict[str, list[Fingerprint]] = {}
    for fingerprint in prints:
        groups.setdefault(fingerprint.digest, []).append(fingerprint)
    return [group for group in groups.values() if len(group) > 1]


def near_pairs(prints: Sequence[Fingerprint]) -> list[tuple[Fingerprint, Fingerprint]]:
    """Images that are copies but not exact ones, mirrored copies included."""
    if len(prints) < 2:
        return []
    thumbnails = np.stack([fingerprint.thumbnail for fingerprint in prints])
    bits = np.stack([fingerprint.bits for fingerprint in prints])
    # A mirror image swaps the neighbours, so "darker than the right one" turns into its negation, read from the right.
    turned = ~bits.reshape(-1, HASH_SIDE, HASH_SIDE)[:, :, ::-1].reshape(len(prints), -1)
    contrasted = thumbnails.std(axis=(1, 2)) >= LEAST_CONTRAST
    pairs = set()
    for other_bits, others in ((bits, thumbnails), (turned, thumbnails[:, :, ::-1])):
        for first, second in _close(bits, other_bits):
            if not (contrasted[first] and contrasted[second]) or prints[first].digest == prints[second].digest:
                continue
            if np.abs(thumbnails[first] - others[second]).mean() <= MOST_DIFFERENCE:
                pairs.add((first, second))
    return [(prints[first], prints[second]) for first, second in sorted(pairs)]


def _close(bits: NDArray[np.bool_], other_bits: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Index pairs (first < second) whose hashes differ in at most `MOST_BITS`; one matrix product per thousand rows."""
    signs, other_signs = bits.astype(np.float32) * 2 - 1, other_bits.astype(np.float32) * 2 - 1
    close: list[tuple[int, int]] = []
    for start in range(0, len(signs), _ROWS):
        agreement = signs[start : start + _ROWS] @ other_signs.T
        rows, columns = np.nonzero(agreement >= bits.shape[1] - 2 * MOST_BITS)
        candidates = zip((rows + start).tolist(), columns.tolist(), strict=True)
        close += [(row, column) for row, column in candidates if row < column]
    return close
