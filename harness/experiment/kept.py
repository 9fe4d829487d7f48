"""The predicted masks that a run keeps of a few test images, to look at; no score depends on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from harness.archive.masks import KeptMask, chosen_images
from harness.training.images import ImageSource


def kept_masks(
    tests: Mapping[str, ImageSource],
    *,
    count: int,
    predict: Callable[[Tensor], Tensor],
    read: Callable[[ImageSource, int], Tensor],
    threshold: float | None,
) -> list[KeptMask]:
    """The images that `chosen_images` names, one a forward pass.

    Args:
        tests: test split -> its images.
        predict: inputs (1, 3, S, S) to probabilities (1, S, S) or (1, 1, S, S), or class scores (1, C, S, S).
        read: one image's input (3, S, S).
        threshold: of probabilities, as the overlap metrics have it; None takes the likeliest class.
    """
    places = {name: {one.stem(index): index for index in range(len(one))} for name, one in tests.items()}
    found = []
    for split, stem in chosen_images(places, count):
        source, index = tests[split], places[split][stem]
        with torch.no_grad():
            scores = predict(read(source, index).unsqueeze(0)).float()
        label = scores.argmax(dim=1) if threshold is None else scores.reshape(1, *scores.shape[-2:]) > threshold
        predicted = label[0].to(torch.uint8).cpu().numpy()
        found.append(KeptMask(split=split, stem=stem, predicted=predicted, truth=source.mask_input(index)))
    return found
