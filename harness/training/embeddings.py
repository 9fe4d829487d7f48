"""Image embeddings of a frozen encoder, computed once for what each image shows.

For a method that trains nothing in the encoder (`harness.methods.configs.MethodConfig.trains_encoder` is False) the embedding is a
constant. Every image is encoded alone, so that its embedding does not depend on which others it met, and it is kept in the very type in
which the encoder gives it, so that nothing is rounded. It is found by the encoder and the image's pixels: flips, other splits and
mended files have entries of their own, and training, validation and tests share theirs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable

import torch
from torch import Tensor, nn

from harness.methods.base import Method
from harness.training.cache import ArrayCache

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
    """Embeddings (C, h, w), in memory and in a folder that other runs read as well.

    Args:
        encoder: whatever determines an embedding besides the image: `weights_fingerprint`, precision, normalisation.
        cache: where they are kept, None for memory alone.
        memory_limit: bytes that embeddings in memory may take.
    """

    def __init__(self, *, encoder: str, cache: ArrayCache | None = None, memory_limit: int = MEMORY_LIMIT) -> None:
        self._encoder, self._cache, self._room = encoder.encode(), cache, memory_limit
        self._memory: dict[str, Tensor] = {}
        self._keys: dict[Hashable, str] = {}

    def ready(self, entry: Hashable) -> bool:
        """Whether the embedding of an entry that was met before is in memory, so that its image need not be loaded."""
        return self._keys.get(entry, "") in self._memory

    def get(self, entry: Hashable, *, image: Tensor | None, encode: Callable[[], Tensor]) -> Tensor:
        """The embedding (C, h, w) on the CPU.

        Args:
            entry: names the image in this process, flip included; None for one that is not met again.
            image: (3, S, S) uint8 as it is encoded; may be None for an entry that is `ready`.
            encode: computes the embedding of that image.
        """
        if image is None:
            return self._memory[self._keys[entry]]
        key = hashlib.blake2b(self._encoder + bytes_of(image), digest_size=16).hexdigest()
        if entry is not None:
            self._keys[entry] = key
        if key in self._memory:
            return self._memory[key]
        stored = None if self._cache is None else self._cache.get(key)
        if stored is None:
            embedding = encode().detach().cpu().contiguous()
            if self._cache is not None:
                half = embedding.dtype is torch.bfloat16  # which NumPy does not know
                self._cache.put(key, (embedding.view(torch.int16) if half else embedding).numpy())
        else:
            embedding = torch.from_numpy(stored)
            embedding = embedding.view(torch.bfloat16) if embedding.dtype is torch.int16 else embedding
        size = embedding.numel() * embedding.element_size()
        if size <= self._room:
            self._room -= size
            self._memory[key] = embedding
        return embedding


def bytes_of(tensor: Tensor) -> bytes:
    """The bytes of a tensor's elements as they lie in memory."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
