"""Arrays by key in a folder that jobs share and fill together: decoded images, and embeddings of frozen encoders.

An embedding is a constant for a method that trains nothing in the encoder. Every image is encoded alone, so that its embedding does not
depend on a batch, and is stored in the encoder's output type. Its key is a hash of the encoder, of what computes it and of the image's
pixels: flips and corrected files have entries of their own, and training, validation and tests share theirs.
"""

from __future__ import annotations

import hashlib
import io
import logging
import shutil
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from harness.methods.base import Method
from harness.models.device import to_host
from harness.settings import CACHE_GIB
from harness.system.files import write_atomically

_log = logging.getLogger(__name__)

_RESCAN = 512  # stored arrays after which the folder is measured again: other jobs write too
_RESERVE = 2 << 30  # bytes of the disk that stay free


class ArrayCache:
    """One ``.npy`` file per key.

    No locks: a file is written under a temporary name and renamed, and jobs that race write the same bytes. An unreadable file counts as
    missing. When the bound is reached, or the disk is nearly full, the cache stops filling and logs it once; that costs time and never a
    result. Nothing is evicted: to start over delete the folder.

    Args:
        folder: created at the first write.
        gib: bound on its size; several jobs may exceed it by what they store between two measurements of the folder.
    """

    def __init__(self, folder: Path, *, gib: float = CACHE_GIB) -> None:
        self.folder, self._bound = folder, int(gib * 2**30)
        self._size = self._stored = 0
        self._full = False

    def get(self, key: str) -> NDArray | None:
        """The array, None if it is missing."""
        path = self._path(key)
        try:
            return np.load(path, allow_pickle=False)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError, MemoryError) as error:
            _log.warning("%s is not used (%s) and replaced", path, error)
            return None

    def put(self, key: str, array: NDArray) -> None:
        """Store an array if there is room; without room, nothing is raised."""
        if self._full:
            return
        try:
            if self._stored % _RESCAN == 0:
                self._size = sum(path.stat().st_size for path in self.folder.glob("*/*.npy"))
            content = io.BytesIO()
            np.save(content, array)
            data = content.getbuffer()
            if self._size + len(data) > self._bound:
                self._stop(f"the bound of {self._bound / 2**30:.3g} GiB (cache_gib) is reached")
                return
            existing = next(parent for parent in (self.folder, *self.folder.absolute().parents) if parent.exists())
            if shutil.disk_usage(existing).free < len(data) + min(_RESERVE, self._bound):
                self._stop("the disk is nearly full")
                return
            write_atomically(self._path(key), bytes(data), durable=False)
        except OSError as error:
            self._stop(str(error))
            return
        self._stored += 1
        self._size += len(data)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.npy"

    def _stop(self, reason: str) -> None:
        self._full = True
        _log.warning("%s is full, so further images are decoded or encoded each time: %s", self.folder, reason)


class InMemory(dict[str, NDArray]):
    """The arrays of one process, without a bound on their size."""

    def put(self, key: str, array: NDArray) -> None:
        self[key] = array.copy()  # out of pinned memory


Store = ArrayCache | InMemory


_UNWRITTEN = 64  # at most so many embeddings wait to be stored


def encoder_is_frozen(method: Method, segmenter: nn.Module) -> bool:
    """Whether training does not change the image embedding, so that it can be cached."""
    encoder = segmenter.get_submodule("encoder")
    return not method.config.trains_encoder and not any(parameter.requires_grad for parameter in encoder.parameters())


def weights_fingerprint(module: nn.Module) -> str:
    """Hash of all parameters and buffers, and of an encoder's kind of output; 16 hex digits."""
    return state_fingerprint(module.state_dict(), b"class token" * getattr(module, "gives_class_token", False))


def state_fingerprint(tensors: Mapping[str, Tensor], kind: bytes = b"") -> str:
    """Hash of tensors by name; 16 hex digits."""
    digest = hashlib.blake2b(kind, digest_size=8)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()


KnownEmbedding = tuple[str, Tensor | None]
"""The key of an image's embedding, and the embedding if it was stored already."""


class EmbeddingCache:
    """Embeddings (C, h, w) in a store that other runs may read as well.

    Threads that load images call `look_up`, which hashes and reads. The thread that launches kernels calls `get`, which does neither: what
    it encodes is copied to the host and stored by a thread of the cache.

    Args:
        encoder: everything but the image that determines an embedding: `weights_fingerprint`, precision, normalisation, device, code.
        store: where they are.
    """

    def __init__(self, *, encoder: str, store: Store) -> None:
        self._encoder, self._stored = encoder.encode(), store
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="embeddings")
        self._pending: deque[Future[None]] = deque()

    def look_up(self, image: Tensor) -> KnownEmbedding:
        """The embedding of an image (3, S, S) uint8 on the CPU, if it is stored."""
        key = hashlib.blake2b(self._encoder + bytes_of(image), digest_size=16).hexdigest()
        if (stored := self._stored.get(key)) is None:
            return key, None
        embedding = torch.from_numpy(stored)
        return key, embedding.view(torch.bfloat16) if embedding.dtype is torch.int16 else embedding

    def get(self, known: KnownEmbedding, encode: Callable[[], Tensor]) -> Tensor:
        """The embedding (C, h, w), on the CPU where `look_up` found it, else on the device of what ``encode`` computes."""
        key, found = known
        if found is not None:
            return found
        embedding = encode().detach().contiguous()
        self._pending.append(self._writer.submit(self._store, key, to_host(embedding)))
        if len(self._pending) > _UNWRITTEN:
            self._pending.popleft().result()
        return embedding

    def flush(self) -> None:
        """Wait until all embeddings are stored."""
        while self._pending:
            self._pending.popleft().result()

    def _store(self, key: str, wait: Callable[[], Tensor]) -> None:
        embedding = wait()
        half = embedding.dtype is torch.bfloat16  # NumPy has no bfloat16
        self._stored.put(key, (embedding.view(torch.int16) if half else embedding).numpy())


def bytes_of(tensor: Tensor) -> bytes:
    """The bytes of a tensor's elements in memory order."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
