"""Images and masks at the network's input size, decoded once and kept in a cache that jobs share.

Input (as released with Conv-LoRA): the RGB image is resized to S×S with Pillow's bicubic filter, which antialiases when
it shrinks, and its aspect ratio is lost; the mask is resized to nearest.

A folder of arrays that jobs on one node or on a shared file system read and fill together.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import inspect
import io
import logging
import os
import shutil
import threading
import time
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
from harness.system.files import read_regular, write_atomically
from harness.system.user_cache import SUM_BYTES, own_key, own_sum, user_cache
from harness.training.bounds import CACHE_BYTES

_log = logging.getLogger(__name__)

_STALE = 24 * 3600.0  # seconds without use after which an entry may make room for another
_TOUCH = 3600.0  # use is noted at most this often, to spare the file system
_RESCAN = 64  # stored entries after which the folder is measured again: other jobs write too
_OVERHEAD = 128 + SUM_BYTES  # bytes that .npy puts before the array, and what follows it
_RESERVE = 2 * 2**30  # bytes of the disk that stay free


class ImageCache:
    """uint8 arrays by key, one ``.npy`` file each with a sum at its end.

    Nothing in the folder is trusted, which others may write to or have sent: the sum is keyed with a secret of the user's
    (`harness.system.user_cache`), and an array whose sum does not fit (another's, a failing disk) counts as not there. It is
    read whole, since what is mapped may change after it was summed. A user who has nowhere to keep a secret stores nothing.

    No locks: a file is written under a temporary name, flushed to disk and renamed, so that it is whole or not there;
    jobs that race write the same bytes, and the last rename wins.

    Bounded: when the folder is full, entries that no job used for a day make room, oldest first; entries in use never
    do, or an epoch over more data than fits would replace each entry before it is used again. What finds no room is
    not kept, which costs time and never a result. With several jobs the bound holds to within the entries that each
    stores between two looks at the folder (64).

    Users may share the folder and its bound, not the entries.

    Args:
        root: the folder; made when first written to.
        max_bytes: bound on its size.
    """

    def __init__(self, root: Path, *, max_bytes: int) -> None:
        self.root = root
        self.max_bytes = max_bytes
        self._size: int | None = None
        self._stored = 0
        self._secret = own_key()
        self._full = False

    def get(self, key: str) -> NDArray[np.uint8] | None:
        """The array, None if it is not there."""
        path = self._path(key)
        if self._secret is None or not path.exists():
            return None
        try:
            data = read_regular(path, largest=self.max_bytes)
            content = memoryview(data)[:-SUM_BYTES]
            if not hmac.compare_digest(data[len(content) :], own_sum(self._secret, key, content)):
                raise ValueError("it is not what this user stored")
            array: NDArray[np.uint8] = np.load(io.BytesIO(content), allow_pickle=False)
            if time.time() - path.stat().st_mtime > _TOUCH:
                with contextlib.suppress(OSError):
                    os.utime(path)
        except (OSError, ValueError, EOFError) as error:
            _log.warning("cached image %s is not used (%s); it is decoded again", path, error)
            return None
        return array

    def put(self, key: str, array: NDArray[np.uint8]) -> None:
        """Keep an array, where there is room; never raises for want of it."""
        if self._full:
            return
        if self._secret is None:
            self._stop(f"{user_cache() or 'a home'} cannot keep what only this user reads")
            return
        try:
            if not self._room(array.nbytes + _OVERHEAD):
                return
            content = io.BytesIO()
            np.save(content, array)
            data = content.getvalue()
            write_atomically(self._path(key), data + own_sum(self._secret, key, data))
        except OSError as error:
            self._full = True
            _log.warning("images are no longer cached in %s: %s", self.root, error)
            return
        self._stored += 1
        self._size = (self._size or 0) + array.nbytes + _OVERHEAD

    def _path(self, key: str) -> Path:
        return self.root / key[:2] / f"{key}.npy"

    def _room(self, needed: int) -> bool:
        """Whether ``needed`` bytes fit, after stale entries went if they must."""
        if self._size is None or self._stored % _RESCAN == 0:
            self._size = sum(size for _, size, _ in self._entries())
        if self._size + needed > self.max_bytes:
            self._drop_stale(self._size + needed - self.max_bytes)
        if self._size + needed > self.max_bytes:
            self._stop(f"the bound of {self.max_bytes / 2**30:.1f} GiB is reached")
            return False
        existing = next(parent for parent in (self.root, *self.root.absolute().parents) if parent.exists())
        if shutil.disk_usage(existing).free < needed + min(_RESERVE, self.max_bytes):
            self._stop("the disk is nearly full")
            return False
        return True

    def _stop(self, reason: str) -> None:
        self._full = True
        _log.warning("images beyond those in %s are decoded each time: %s", self.root, reason)

    def _drop_stale(self, excess: int) -> None:
        """Remove what no job used lately, oldest first, until ``excess`` bytes are gone."""
        before = time.time() - _STALE
        for used, size, path in sorted(self._entries()):
            if excess <= 0 or used > before:
                return
            path.unlink(missing_ok=True)
            excess -= size
            self._size = max(0, (self._size or 0) - size)

    def _entries(self) -> list[tuple[float, int, Path]]:
        """(last use, bytes, path) of every file, temporary files of dead jobs included."""
        entries = []
        for path in self.root.glob("*/*.npy*"):
            try:
                status = path.stat()
            except FileNotFoundError:  # another job removed or renamed it
                continue
            entries.append((status.st_mtime, status.st_size, path))
        return entries


Array = NDArray[np.uint8]

_FORMAT = 1  # raise it when what `ImageSource` stores changes


class ImageSource:
    """The images of a split by position.

    A cached entry is found by content: the bytes of image and mask file, the input size, and the code and options that
    decode them. So copies of the data share a user's entries wherever they lie (a job's scratch folder included), and a
    mended file, a switch of the protocol or a changed reader never meets a stale entry. Files are hashed once a process,
    when first asked for; reading is far cheaper than decoding. Safe to use from several threads.

    Args:
        benchmark: decodes the pairs.
        pairs: what to serve, in order.
        image_size: S.
        cache: folder of the cache, None to decode each time.
        cache_bytes: bound on the size of the folder; see `ImageCache`.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        pairs: Sequence[Pair],
        *,
        image_size: int,
        cache: Path | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.benchmark = benchmark
        self.pairs = tuple(pairs)
        self.image_size = image_size
        self._cache = ImageCache(cache, max_bytes=cache_bytes) if cache is not None else None
        # Keyed, so that users who share a folder do not write over each other's entries.
        self._rules = own_sum(own_key() or b"", "rules", _decoding_rules(benchmark)) if cache is not None else b""
        self._keys: dict[int, str] = {}
        self._of_many = {pair.mask for pair in self.pairs if pair.entry}
        self._shared: dict[Path, bytes] = {}
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
        # A label is no content of the file, by which the cache finds its entries.
        if self.pairs[index].label is not None:
            return self.mask_input(index)
        return self._kept(index, "native", lambda: self._decode(index).mask)

    # A thread asks for image and mask of one item one after the other: it decodes, resizes and reads once for both.

    def _input(self, index: int) -> Array:
        """(4, S, S): RGB and mask."""
        last: tuple[int, Array] | None = getattr(self._last, "input", None)
        if last is None or last[0] != index:
            made = self._kept(index, str(self.image_size), lambda: to_input(self._decode(index), self.image_size))
            last = self._last.input = (index, made)
        return last[1]

    def _kept(self, index: int, form: str, make: Callable[[], Array]) -> Array:
        """What ``make`` returns, from the cache where it is there."""
        key = self._key(index) if self._cache is not None else None
        if self._cache is None or key is None:
            return make()
        array = self._cache.get(f"{key}-{form}")
        if array is None:
            array = make()
            self._cache.put(f"{key}-{form}", array)
        return array

    def _decode(self, index: int) -> Sample:
        last: tuple[int, Sample] | None = getattr(self._last, "sample", None)
        if last is None or last[0] != index:
            last = self._last.sample = (index, self.benchmark.read(self.pairs[index]))
        return last[1]

    def _digest(self, path: Path) -> bytes:
        """Hash of a file's bytes; one that holds the masks of many images is read once."""
        if path in self._shared:
            return self._shared[path]
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "blake2b").digest()
        if path in self._of_many:
            self._shared[path] = digest
        return digest

    def _key(self, index: int) -> str | None:
        """Hash of the item's files and how they are decoded; None if unreadable, as decoding will say."""
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
    """What turns given files into given arrays: options, the source of the readers, Pillow's version."""
    parts = [
        str(_FORMAT),
        PIL.__version__,
        type(benchmark).__qualname__,
        repr(sorted(asdict(benchmark.options).items())),
        repr((benchmark.task, benchmark.num_classes, benchmark.class_names)),  # one's own are all of one class, Own
    ]
    package = Path(inspect.getfile(Benchmark)).parent
    sources = {*package.glob("*.py"), *(package / "reading").glob("*.py")}
    members = [member for cls in type(benchmark).__mro__ for member in vars(cls).values()]
    sources.update(Path(member.__code__.co_filename) for member in members if isinstance(member, FunctionType))
    digest = hashlib.blake2b("\n".join(parts).encode())
    for source in sorted((path for path in sources if path.is_file()), key=lambda path: path.name):
        digest.update(source.read_bytes())
    return digest.digest()
