"""How much runs keep of what does not change between steps. Free of torch, so that plans can be priced by it."""

from __future__ import annotations

from harness.methods.parts.placement import BackboneShape

CACHE_BYTES = 64 * 2**30
"""Of the folder of images, and of a file of embeddings, where nobody says another."""
LEAST_BLOCKS = 2
"""In front of the first trained one, for their tokens to be kept: one costs about what reading its tokens does. A stem of
convolutions costs more than that by itself."""
SCORED_BYTES = 1 << 30
"""Of tokens of scored images that a process holds; what comes after is computed every time."""
TOKEN_BYTES = 16 << 30
"""Of a file of tokens of training images; a larger split is kept in memory as far as `SCORED_BYTES` go."""


def worth_keeping(shape: BackboneShape, blocks: int) -> bool:
    """Whether the tokens that so many blocks leave are kept between steps, where nothing trains in front of them. A pyramid
    reads the maps of earlier stages too."""
    return not shape.pyramid and (0 if shape.stem else LEAST_BLOCKS) <= blocks < shape.depth
