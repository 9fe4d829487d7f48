"""What changes a training image and its mask alike, by the names that a card lists (``augment``), in the order of this table.

The one seam for augmentations: a function here, its name in `harness.protocols.card.Protocol.augment`. Every number is drawn by a word
from the image's own key (seed, epoch, image), so that nothing depends on threads, workers or where a run was interrupted; what moves is
done by torchvision's transforms v2. The horizontal flip is `harness.training.batches.UpdatePlan.flipped`, by the card's ``flip``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from harness.training.batches import draw_number
from harness.training.losses import IGNORE

Draw = Callable[[str], float]
"""Uniform in [0, 1), by a word."""


def _moved(image: Tensor, mask: Tensor, *, angle: float = 0.0, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Turned by degrees and scaled about the middle; what comes in from outside is black, and ignored in the mask."""
    where = {"angle": angle, "translate": [0, 0], "scale": scale, "shear": [0.0, 0.0]}
    moved = F.affine(image, interpolation=InterpolationMode.BILINEAR, fill=[0.0], **where)
    if mask.shape != image.shape[-2:]:  # a label
        return moved, mask
    return moved, F.affine(mask[None], interpolation=InterpolationMode.NEAREST, fill=[float(IGNORE)], **where)[0]


def _vertical_flip(image: Tensor, mask: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """Half of the images upside down."""
    return (image.flip(-2), mask.flip(-2)) if draw("vertical") < 0.5 else (image, mask)


def _rotate(image: Tensor, mask: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """By −30 to 30 degrees."""
    return _moved(image, mask, angle=60 * draw("angle") - 30)


def _scale(image: Tensor, mask: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """By 0.75 to 1.33, as likely larger as smaller."""
    return _moved(image, mask, scale=(16 / 9) ** (draw("scale") - 0.5))


def _colour_jitter(image: Tensor, mask: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """Brightness, contrast and saturation by 0.8 to 1.2, hue by 0.05 of its circle at most."""
    for adjust, word in (
        (F.adjust_brightness, "brightness"),
        (F.adjust_contrast, "contrast"),
        (F.adjust_saturation, "saturation"),
    ):
        image = adjust(image, 0.8 + 0.4 * draw(word))
    return F.adjust_hue(image, 0.1 * draw("hue") - 0.05), mask


AUGMENTATIONS: dict[str, Callable[[Tensor, Tensor, Draw], tuple[Tensor, Tensor]]] = {
    "vertical-flip": _vertical_flip,
    "rotate": _rotate,
    "scale": _scale,
    "colour-jitter": _colour_jitter,
}


def augmented(image: Tensor, mask: Tensor, names: Sequence[str], *key: int | str) -> tuple[Tensor, Tensor]:
    """An image (3, S, S) uint8 and its mask (S, S) or label (1, 1) uint8, changed.

    Args:
        names: of `AUGMENTATIONS`.
        key: what the draws depend on.
    """
    for name, change in AUGMENTATIONS.items():
        if name in names:
            image, mask = change(image, mask, lambda word, name=name: draw_number(name, word, *key) / 2**64)  # type: ignore[misc]
    return image.contiguous(), mask.contiguous()
