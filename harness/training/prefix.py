"""What runs before the first trained block: for one image and flip its tokens are the same in every step, so they are kept.

Each image is run alone, as for embeddings (`harness.training.embeddings`), whose cache holds the tokens; kernels may sum a
batch in another order than one image, so training equals training without the cache to the bit for batches of one, and to
rounding for others. A step then costs what it trains, and validation and the tests of unmerged and merged models share
what no method changed.

What is in front must be what the harness built: modules of torch, timm, segment_anything and the harness, nothing trained,
no hooks, no replaced ``forward``. Where a method touches the embedding of patches, reads tokens on their way or brings an
encoder of its own, nothing is kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from harness.models.sam_encoder import run_blocks
from harness.models.segmenter import Segmenter
from harness.training.bounds import SCORED_BYTES, worth_keeping
from harness.training.embeddings import RememberedEmbeddings, bytes_of

_PLAIN = ("torch.nn.", "timm.", "segment_anything.", "harness.models.")
_AFTER = ("blocks.", "neck.", "norm.")
"""Beginnings of names in an encoder that do not run before its blocks."""


@dataclass(frozen=True, kw_only=True)
class FrozenPrefix:
    """An encoder cut in front of its first trained block.

    Args:
        segmenter: see `harness.models.segmenter`.
        blocks: how many are in front.
        layouts: size of images -> `_order`.
    """

    segmenter: Any
    blocks: int
    layouts: dict[tuple[int, int], list[int]] = field(default_factory=dict, repr=False)

    def tokens(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to the tokens that enter the first trained block."""
        encoder = self.segmenter.encoder
        return run_blocks(encoder.blocks[: self.blocks], encoder.embed(images), recompute=False)

    def embedding(self, tokens: Tensor, *, size: tuple[int, int]) -> Tensor:
        """What `tokens` returns to what ``encode`` returns.

        Args:
            size: of the images, which may never have been embedded in this process.
        """
        encoder = self.segmenter.encoder
        order = self._order(tokens.device, size)
        patch = encoder.shape.patch
        encoder.grid.height, encoder.grid.width = size[0] // patch, size[1] // patch
        laid = tokens.permute(order).contiguous().permute([order.index(place) for place in range(len(order))])
        rest = run_blocks(encoder.blocks[self.blocks :], laid, recompute=encoder.activation_checkpointing)
        return encoder.finish(rest)

    def _order(self, device: torch.device, size: tuple[int, int]) -> list[int]:
        """The dimensions of tokens as embedding lays them out in memory: kernels sum another layout in another order."""
        if size not in self.layouts:
            with torch.no_grad():
                strides = self.segmenter.encoder.embed(torch.zeros(1, 3, *size, device=device)).stride()
            self.layouts[size] = [0, *sorted(range(1, len(strides)), key=lambda place: -strides[place])]
        return self.layouts[size]

    def fingerprint(self) -> str:
        """Hash of what is in front: the same for every method and seed that leaves it alone."""
        digest = hashlib.blake2b(f"{self.blocks} blocks".encode(), digest_size=8)
        for name, tensor in sorted(self.segmenter.encoder.state_dict().items()):
            if _in_front(name, self.blocks):
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(bytes_of(tensor))
        return digest.hexdigest()


def frozen_prefix(segmenter: nn.Module) -> FrozenPrefix | None:
    """The part of an attached segmenter that is worth keeping the tokens of; None where there is none."""
    blocks = blocks_in_front(segmenter)
    if blocks is None:
        return None
    encoder: Any = segmenter.encoder
    return FrozenPrefix(segmenter=segmenter, blocks=blocks) if worth_keeping(encoder.shape, blocks) else None


def blocks_in_front(segmenter: nn.Module) -> int | None:
    """How many blocks run before anything that trains, that a method brought, or that somebody watches; None where not
    even the first block's input is such."""
    encoder: Any = getattr(segmenter, "encoder", None)
    says_so = vars(type(encoder)).get("blocks_in_a_row")  # the class itself: a subclass may do otherwise
    if not isinstance(segmenter, Segmenter) or not says_so:
        return None
    if type(segmenter).encode is not Segmenter.encode or type(segmenter).forward is not Segmenter.forward:
        return None
    if _touched(segmenter) or _touched(encoder) or not all(map(_plain, _before(encoder))):
        return None
    if any(p.requires_grad for name, p in encoder.named_parameters() if not name.startswith(_AFTER)):
        return None
    plain = (all(map(_plain, block.modules())) for block in encoder.blocks)
    return sum(takewhile(bool, plain))


class RememberedTokens:
    """`harness.training.embeddings.RememberedEmbeddings` of a prefix: images to embeddings in evaluation.

    Args:
        prefix: of the first segmenter; others that `like` it share its tokens.
    """

    def __init__(self, prefix: FrozenPrefix) -> None:
        self._blocks, self._made_by = prefix.blocks, prefix.fingerprint()
        self._known = RememberedEmbeddings(memory_limit=SCORED_BYTES)

    def like(self, segmenter: nn.Module) -> FrozenPrefix | None:
        """The prefix of a segmenter that has the same blocks in front; a merged model is one."""
        in_front = blocks_in_front(segmenter)
        if in_front is None or in_front < self._blocks:
            return None
        prefix = FrozenPrefix(segmenter=segmenter, blocks=self._blocks)
        return prefix if prefix.fingerprint() == self._made_by else None

    def get(self, images: Tensor, prefix: FrozenPrefix) -> Tensor:
        """(B, D, h, w) of normalised ``images`` (B, 3, S, S)."""
        height, width = images.shape[-2:]
        return prefix.embedding(self._known.get(images, prefix.tokens), size=(height, width))


def _before(encoder: nn.Module) -> Iterator[nn.Module]:
    """The modules that embed patches."""
    for name, module in encoder.named_children():
        if not f"{name}.".startswith(_AFTER):
            yield from module.modules()


def _in_front(name: str, blocks: int) -> bool:
    if name.startswith("blocks."):
        return int(name.split(".")[1]) < blocks
    return not name.startswith(_AFTER)


def _plain(module: nn.Module) -> bool:
    """Whether it is as it was built, and gives the same every time."""
    if not f"{type(module).__module__}.".startswith(_PLAIN) or _touched(module):
        return False
    if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
        return False
    return not (isinstance(module, nn.Dropout) and module.p > 0) and not isinstance(
        module, nn.modules.batchnorm._BatchNorm
    )


def _touched(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module)
