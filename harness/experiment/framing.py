"""How an image becomes the network's input, and how the network's scores become a mask of the image's size.

A run's model sees what it was trained on, an image stretched to a square (`Framing`). A published SAM without a run sees what its
authors' predictor would show it (`AsPublished`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad

from harness.datasets.base import Sample
from harness.evaluation.resize import resize_bilinear
from harness.experiment.scoring import class_scores
from harness.models.segmenter import SegmenterOutput
from harness.protocols.protocol import Protocol
from harness.training.feeding import normalise
from harness.training.images import to_input

Array = NDArray[np.uint8]
Float32s = NDArray[np.float32]
Size = tuple[int, int]
"""Height and width."""


class Framing:
    """As in runs: stretched to the square input with Pillow's bicubic filter; probabilities at its side, resized to the image.

    Args:
        rules: rules of the run.
        num_classes: number of classes of its benchmark.
        labels: whether images have one label each, whose probabilities are (C, 1, 1).
    """

    def __init__(self, rules: Protocol, *, num_classes: int, labels: bool = False) -> None:
        self._rules, self._num_classes, self._labels, self._side = rules, num_classes, labels, rules.image_size

    def tensor(self, pixels: Array) -> Tensor:
        """The image (H, W, 3) as the network's input (3, S, S), normalised, on the CPU."""
        stretched = to_input(Sample(image=pixels, mask=pixels[..., 0]), self._side)[:3]
        return normalise(torch.from_numpy(stretched)[None], self._rules.pixels)[0]

    def inside(self, size: Size) -> Size:
        """The part of the input, from its upper left, that an image of this size fills."""
        return self._side, self._side

    def scores(self, output: SegmenterOutput) -> Tensor:
        """The part of an output that is kept: (B, h, w) for a binary task, (B, C, h, w) for several classes."""
        return class_scores(output, side=1 if self._labels else self._side, num_classes=self._num_classes)

    def restored(self, scores: Float32s, size: Size) -> tuple[Float32s, Array]:
        """The probabilities (H, W) or (C, H, W) of one image from its scores, and its mask (H, W) of class indices."""
        resized = resize_bilinear(scores, size)
        chosen = resized.argmax(axis=0) if scores.ndim == 3 else resized > self._rules.evaluation.threshold
        return resized, chosen.astype(np.uint8)


class AsPublished(Framing):
    """As segment_anything's ``SamPredictor`` for SAM and MobileSAM: the longest side fills the input, bilinear with Pillow, and zeros
    after normalisation fill the rest. As transformers' processors for SAM 2 and SAM 3: stretched to the square, bilinear with torchvision.

    Args:
        rules: side and normalisation of the input.
        padded: whether it is the first of the two.
    """

    def __init__(self, rules: Protocol, *, padded: bool) -> None:
        super().__init__(rules, num_classes=2)
        self._padded = padded

    def tensor(self, pixels: Array) -> Tensor:
        height, width = self.inside(pixels.shape[:2])
        if self._padded:
            resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
            image = torch.from_numpy(np.array(resized)).permute(2, 0, 1)
        else:
            from torchvision.transforms.v2.functional import resize  # torchvision takes a second

            image = resize(torch.from_numpy(pixels.copy()).permute(2, 0, 1), [height, width], antialias=True)
        return pad(normalise(image[None], self._rules.pixels)[0], (0, self._side - width, 0, self._side - height))

    def inside(self, size: Size) -> Size:
        if not self._padded:
            return super().inside(size)
        scale = self._side / max(size)
        height, width = (max(1, int(length * scale + 0.5)) for length in size)
        return height, width

    def scores(self, output: SegmenterOutput) -> Tensor:
        return output.masks[:, 0]

    def restored(self, scores: Float32s, size: Size) -> tuple[Float32s, Array]:
        logits = self.logits(torch.from_numpy(scores), size)
        return logits.sigmoid().numpy(), (logits > 0).to(torch.uint8).numpy()

    def logits(self, low: Tensor, size: Size) -> Tensor:
        """Logits (h, w) of the decoder at the image's own size (H, W)."""
        maps: Any = low[None, None]
        if self._padded:
            height, width = self.inside(size)
            whole = (self._side, self._side)
            maps = interpolate(maps, size=whole, mode="bilinear", align_corners=False)[..., :height, :width]
        return interpolate(maps, size=size, mode="bilinear", align_corners=False)[0, 0]
