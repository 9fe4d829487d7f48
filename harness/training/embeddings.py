"""Image embeddings of a frozen encoder, computed once for each image and flip.

For a method that trains nothing in the encoder (`harness.methods.configs.MethodConfig.trains_encoder` is False) the embedding is a
constant. Every image is encoded alone, so that its embedding does not depend on which others it met; it is stored in
the very type in which the encoder gives it (fp32, or what autocast leaves), so nothing is rounded.

Kept in memory without a folder, else in a memory-mapped file that later attempts and other seeds of the same user read
as well, and nobody else. A file is found by the encoder's weights, precision, image size and shape; each entry carries a
sum, keyed with the user's secret (`harness.system.user_cache`), of the image it was computed from and of its own bytes, verified
when a process first uses it. Writers may race: they write the same bytes, and a torn entry fails its sum and is computed
again.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import shutil
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

from harness.methods.base import Method
from harness.system.files import own_folder
from harness.system.user_cache import SUM_BYTES, own_key, own_sum
from harness.training.bounds import CACHE_BYTES

MEMORY_LIMIT = 4 << 30


def encoder_is_frozen(method: Method, segmenter: nn.Module) -> bool:
    """Whether the image embedding is the same before and after training, so that it can be kept."""
    encoder = segmenter.get_submodule("encoder")
    return not method.config.trains_encoder and not any(parameter.requires_grad for parameter in encoder.parameters())


def weights_fingerprint(module: nn.Module) -> str:
    """Hash of all parameters and buffers, and of which tokens come out of an encoder; 16 hex digits."""
    digest = hashlib.blake2b(digest_size=8)
    if getattr(module, "gives_class_token", False):
        digest.update(b"class token")
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()


class EmbeddingCache:
    """Embeddings by (position in the split, flip).

    Args:
        names: of the split's images, by position.
        key: whatever else determines an embedding: `weights_fingerprint`, precision, image size, normalisation.
        folder: where files lie, None for memory.
        memory_limit: bytes that embeddings in memory may take; what comes after is computed every time.
        file_limit: bytes that the split's file may take; a larger split is kept in memory, as far as that goes.
    """

    def __init__(
        self,
        *,
        names: Sequence[str],
        key: str,
        folder: Path | None = None,
        memory_limit: int = MEMORY_LIMIT,
        file_limit: int = CACHE_BYTES,
    ) -> None:
        self._count = len(names)
        self._key = hashlib.blake2b("\0".join([key, *names]).encode(), digest_size=16).hexdigest()
        self._secret = own_key() or b""
        self._folder = folder if self._secret else None
        self._room = memory_limit
        self._file_limit = file_limit
        self._memory: dict[tuple[int, bool], Tensor] = {}
        self._file: Tensor | None = None
        self._sums: np.ndarray | None = None
        self._verified: set[tuple[int, bool]] = set()
        self._opened = False

    def ready(self, index: int, *, flip: bool) -> bool:
        """Whether this process has used or made the entry, so that its image need not be loaded."""
        return (index, flip) in self._memory or (index, flip) in self._verified

    def get(self, index: int, *, flip: bool, image: Tensor | None, encode: Callable[[], Tensor]) -> Tensor:
        """The embedding (C, h, w) on CPU.

        Args:
            image: (3, S, S) uint8 as it is encoded, flip included; may be None for an entry that is `ready`.
            encode: computes the embedding (C, h, w) of that image.
        """
        entry = (index, flip)
        if entry in self._memory:
            return self._memory[entry]
        if entry in self._verified:
            assert self._file is not None
            return self._file[self._row(entry)]
        assert image is not None, "an entry that is not ready needs its image"
        picture = hashlib.blake2b(bytes_of(image), digest_size=16).digest()
        if self._file is None and not self._opened and self._folder is not None:
            self._open_existing()
        if self._file is not None and self._matches(entry, picture):
            self._verified.add(entry)
            return self._file[self._row(entry)]
        embedding = encode().detach().cpu().contiguous()
        self._store(entry, embedding, picture)
        return embedding

    def _store(self, entry: tuple[int, bool], embedding: Tensor, picture: bytes) -> None:
        if self._folder is not None and self._file is None:
            self._create(embedding)
        if self._file is not None and self._sums is not None:
            row = self._row(entry)
            self._file[row] = embedding
            self._sums[row] = np.frombuffer(self._sum(row, embedding, picture), dtype=np.uint8)
            self._verified.add(entry)
            return
        size = embedding.numel() * embedding.element_size()
        if size <= self._room:
            self._room -= size
            self._memory[entry] = embedding

    def _row(self, entry: tuple[int, bool]) -> int:
        return 2 * entry[0] + entry[1]

    def _matches(self, entry: tuple[int, bool], picture: bytes) -> bool:
        assert self._sums is not None
        assert self._file is not None
        row = self._row(entry)
        return hmac.compare_digest(self._sums[row].tobytes(), self._sum(row, self._file[row], picture))

    def _sum(self, row: int, embedding: Tensor, picture: bytes) -> bytes:
        return own_sum(self._secret, f"{self._key} {row}", picture + bytes_of(embedding))

    def _description(self) -> Path:
        assert self._folder is not None
        name = hashlib.blake2b(self._key.encode(), key=self._secret, digest_size=8).hexdigest()
        return self._folder / f"{name}.{self._count}.txt"

    def _open_existing(self) -> None:
        """Map the file that an earlier process made; its description says shape and type."""
        self._opened = True
        try:
            with _opened(self._description()) as file:
                kind, *shape = file.read(1000).decode().split()
            self._map([int(side) for side in shape], getattr(torch, kind))
        except (OSError, ValueError, AttributeError):
            return  # none yet, or one that another process is just making

    def _create(self, embedding: Tensor) -> None:
        """Make the file for embeddings like this one; where it cannot be, fall back to memory."""
        assert self._folder is not None
        needed = 2 * self._count * embedding.numel() * embedding.element_size()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if needed > self._file_limit or shutil.disk_usage(self._folder).free < 1.1 * needed:
                raise OSError("not enough room")
            self._map(list(embedding.shape), embedding.dtype)
            kind = str(embedding.dtype).removeprefix("torch.")
            with _opened(self._description(), create=True) as file:
                file.write(" ".join([kind, *map(str, embedding.shape)]).encode())
        except OSError:
            self._folder = None

    def _map(self, shape: list[int], dtype: torch.dtype) -> None:
        size = 2 * self._count * int(np.prod(shape)) * dtype.itemsize
        path = self._description().with_suffix(".embeddings")
        with _opened(path, create=True) as file, _opened(path.with_suffix(".sums"), create=True) as sums:
            if hasattr(os, "posix_fallocate"):  # at once: a disk that fills up later must not kill the process
                os.posix_fallocate(file.fileno(), 0, size)
            else:  # macOS
                file.truncate(size)
            sums.truncate(2 * self._count * SUM_BYTES)
            self._sums = np.memmap(sums, dtype=np.uint8, mode="r+", shape=(2 * self._count, SUM_BYTES))
            mapped = torch.from_numpy(np.memmap(file, dtype=np.uint8, mode="r+", shape=(size,)))
            self._file = mapped.view(dtype).view(2 * self._count, *shape)


def _opened(path: Path, *, create: bool = False) -> BinaryIO:
    """A file that nobody else can change, to read and write.

    Raises:
        OSError: there is none, or it is another's or a link.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | (os.O_CREAT if create else 0)
    if create:
        own_folder(path.parent)
    file = os.fdopen(os.open(path, flags, 0o600), "rb+")
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        file.close()
        raise PermissionError(f"{path} is not this user's alone")
    return file


class RememberedEmbeddings:
    """Embeddings in evaluation, found by what the images show: a split that is scored every epoch is encoded once.

    Each image is encoded alone, so its embedding does not depend on its batch, nor on where a run was interrupted.

    Args:
        memory_limit: bytes that they may take; what comes after is computed every time.
    """

    def __init__(self, *, memory_limit: int = MEMORY_LIMIT) -> None:
        self._room = memory_limit
        self._known: dict[bytes, Tensor] = {}

    def get(self, images: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """(B, D, h, w) on the device of ``images`` (B, 3, S, S), normalised.

        Args:
            encode: (1, 3, S, S) to (1, D, h, w); always the same frozen encoder in the same precision.
        """
        return torch.cat([self._one(image[None], encode) for image in images])

    def _one(self, image: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
        key = hashlib.blake2b(bytes_of(image), digest_size=16).digest()
        if key in self._known:
            return self._known[key].to(image.device)
        embedding = encode(image).detach()
        size = embedding.numel() * embedding.element_size()
        if size <= self._room:
            self._room -= size
            self._known[key] = embedding.cpu()
        return embedding


def bytes_of(tensor: Tensor) -> bytes:
    """The bytes of a tensor's elements as they lie in memory."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
