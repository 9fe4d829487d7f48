"""Images and masks at the network's input size, decoded once and kept in a cache that jobs share.

Input (as released with Conv-LoRA): the RGB image is resized to S×S with Pillow's bicubic filter, which antialiases when
it shrinks, and its aspect ratio is lost; the mask is resized to the nearest pixel.
"""

from __future__ import annotations

import hashlib
import inspect
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FunctionType

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from harness.datasets.base import Benchmark, Pair, Sample
from harness.evaluation.resize import resize_nearest
from harness.training.cache import ArrayCache

Array = NDArray[np.uint8]

_FORMAT = 2  # raise it when what `ImageSource` stores changes


class ImageSource:
    """The images of a split by position.

    The key of a cached entry is a hash of the bytes of image and mask file, the input size, and the code and options that decode them.
    So copies of the data share entries, and a corrected file, another option or a changed reader never gets a stale entry. Files are
    hashed once per process, when first used. Safe to use from several threads.

    Args:
        benchmark: decodes the pairs.
        pairs: what to serve, in order.
        image_size: S.
        cache: None to decode each time.
    """

    def __init__(
        self, benchmark: Benchmark, pairs: Sequence[Pair], *, image_size: int, cache: ArrayCache | None = None
    ) -> None:
        self.benchmark = benchmark
        self.pairs = tuple(pairs)
        self.image_size = image_size
        self._cache = cache
        self._rules = _decoding_rules(benchmark) if cache is not None else b""
        self._keys: dict[int, str] = {}
        self._digests: dict[Path, bytes] = {}
        self._last = threading.local()

    def __len__(self) -> int:
        return len(self.pairs)

    def stem(self, index: int) -> str:
        return self.pairs[index].stem

    def image(self, index: int) -> Array:
        """(3, S, S) RGB.

        Raises:
            DatasetError: the files cannot be decoded.
        """
        return self._input(index)[:3]

    def mask_input(self, index: int) -> Array:
        """(S, S) class index, 255 = ignore; (1, 1) of an image with a label."""
        label = self.pairs[index].label
        return self._input(index)[3] if label is None else np.array([[label]], dtype=np.uint8)

    def mask_native(self, index: int) -> Array:
        """(H, W) class index at the mask's own size; (1, 1) of an image with a label."""
        # A label is not content of the file, by which the cache finds its entries.
        if self.pairs[index].label is not None:
            return self.mask_input(index)
        return self._kept(index, "native", lambda: self._decode(index).mask)

    # A thread needs the image and the mask of an item in turn, so it remembers the last item.

    def _input(self, index: int) -> Array:
        """(4, S, S): RGB and mask."""
        last: tuple[int, Array] | None = getattr(self._last, "input", None)
        if last is None or last[0] != index:
            made = self._kept(index, str(self.image_size), lambda: to_input(self._decode(index), self.image_size))
            last = self._last.input = (index, made)
        return last[1]

    def _kept(self, index: int, form: str, make: Callable[[], Array]) -> Array:
        """What ``make`` returns, taken from the cache if it is there."""
        key = self._key(index) if self._cache is not None else None
        if self._cache is None or key is None:
            return make()
        array = self._cache.get(f"{key}-{form}")
        if array is None or array.dtype != np.uint8:
            array = make()
            self._cache.put(f"{key}-{form}", array)
        return array

    def _decode(self, index: int) -> Sample:
        last: tuple[int, Sample] | None = getattr(self._last, "sample", None)
        if last is None or last[0] != index:
            last = self._last.sample = (index, self.benchmark.read(self.pairs[index]))
        return last[1]

    def _digest(self, path: Path) -> bytes:
        """Hash of a file's bytes, which may hold the masks of many images and is read once."""
        if path not in self._digests:
            with path.open("rb") as file:
                self._digests[path] = hashlib.file_digest(file, "blake2b").digest()
        return self._digests[path]

    def _key(self, index: int) -> str | None:
        """Hash of the item's files and how they are decoded; None if unreadable, which decoding will report."""
        if index not in self._keys:
            digest = hashlib.blake2b(self._rules, digest_size=16)
            try:
                for path in (self.pairs[index].image, self.pairs[index].mask):
                    digest.update(self._digest(path))
                digest.update(self.pairs[index].entry.encode())
            except OSError:
                return None
            self._keys[index] = digest.hexdigest()
        return self._keys[index]


def to_input(sample: Sample, image_size: int) -> Array:
    """(4, S, S) uint8: the sample's RGB, bicubic, and its mask, nearest."""
    size = (image_size, image_size)
    image = Image.fromarray(sample.image)
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    out = np.empty((4, *size), dtype=np.uint8)
    out[:3] = np.asarray(image).transpose(2, 0, 1)
    out[3] = resize_nearest(sample.mask, size)
    return out


def _decoding_rules(benchmark: Benchmark) -> bytes:
    """Everything besides the files that determines the arrays: options, the source of the readers, Pillow's version."""
    parts = [
        str(_FORMAT),
        PIL.__version__,
        type(benchmark).__qualname__,
        repr(sorted(asdict(benchmark.options).items())),
        repr((benchmark.task, benchmark.num_classes, benchmark.class_names)),  # all own data sets have one class, Own
    ]
    package = Path(inspect.getfile(Benchmark)).parent
    sources = {*package.glob("*.py"), *(package / "readers").glob("*.py")}
    members = [member for cls in type(benchmark).__mro__ for member in vars(cls).values()]
    sources.update(Path(member.__code__.co_filename) for member in members if isinstance(member, FunctionType))
    digest = hashlib.blake2b("\n".join(parts).encode())
    for source in sorted((path for path in sources if path.is_file()), key=lambda path: path.name):
        digest.update(source.read_bytes())
    return digest.digest()
