"""Augmentations of a training image and its mask, by the names in a protocol's ``augment``, in the order of `AUGMENTATIONS`.

To add one, write a function here and add its name to `harness.protocols.protocol.Protocol.augment`. Every random number is a function of a
word and the image's key (seed, epoch, image), and so is independent of threads and interruptions. The horizontal flip is
`harness.training.batches.UpdatePlan.flipped`, by the protocol's ``flip``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from harness.datasets.base import IGNORE
from harness.training.batches import draw_number

Uniform = Callable[[str], float]
"""A random number in [0, 1), by a word."""


def _moved(image: Tensor, mask: Tensor, *, angle: float = 0.0, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Rotated by degrees and scaled about the centre; pixels from outside are black, and ignored in the mask."""
    where = {"angle": angle, "translate": [0, 0], "scale": scale, "shear": [0.0, 0.0]}
    moved = F.affine(image, interpolation=InterpolationMode.BILINEAR, fill=[0.0], **where)
    if mask.shape != image.shape[-2:]:  # a label
        return moved, mask
    return moved, F.affine(mask[None], interpolation=InterpolationMode.NEAREST, fill=[float(IGNORE)], **where)[0]


def _vertical_flip(image: Tensor, mask: Tensor, uniform: Uniform) -> tuple[Tensor, Tensor]:
    """Half of the images upside down."""
    return (image.flip(-2), mask.flip(-2)) if uniform("vertical") < 0.5 else (image, mask)


def _rotate(image: Tensor, mask: Tensor, uniform: Uniform) -> tuple[Tensor, Tensor]:
    """By −30 to 30 degrees."""
    return _moved(image, mask, angle=60 * uniform("angle") - 30)


def _scale(image: Tensor, mask: Tensor, uniform: Uniform) -> tuple[Tensor, Tensor]:
    """By 0.75 to 1.33, enlarging as often as shrinking."""
    return _moved(image, mask, scale=(16 / 9) ** (uniform("scale") - 0.5))


def _colour_jitter(image: Tensor, mask: Tensor, uniform: Uniform) -> tuple[Tensor, Tensor]:
    """Brightness, contrast and saturation by 0.8 to 1.2, hue by 0.05 of its circle at most."""
    for adjust, word in (
        (F.adjust_brightness, "brightness"),
        (F.adjust_contrast, "contrast"),
        (F.adjust_saturation, "saturation"),
    ):
        image = adjust(image, 0.8 + 0.4 * uniform(word))
    return F.adjust_hue(image, 0.1 * uniform("hue") - 0.05), mask


AUGMENTATIONS: dict[str, Callable[[Tensor, Tensor, Uniform], tuple[Tensor, Tensor]]] = {
    "vertical-flip": _vertical_flip,
    "rotate": _rotate,
    "scale": _scale,
    "colour-jitter": _colour_jitter,
}


def augmented(image: Tensor, mask: Tensor, names: Sequence[str], *key: int | str) -> tuple[Tensor, Tensor]:
    """An image (3, S, S) uint8 and its mask (S, S) or label (1, 1) uint8, changed.

    Args:
        names: names in `AUGMENTATIONS`.
        key: what the random numbers depend on.
    """
    for name, change in AUGMENTATIONS.items():
        if name in names:
            image, mask = change(image, mask, lambda word, name=name: draw_number(name, word, *key) / 2**64)  # type: ignore[misc]
    return image.contiguous(), mask.contiguous()
