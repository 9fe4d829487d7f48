"""What a card's ``augment`` does to images and masks, and that it hangs on the image's own key alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from harness.training.augmentations import AUGMENTATIONS, augmented
from harness.training.cache import EmbeddingCache
from tests.harness.training.tiny import Discs, Run, protocol, summary

GEOMETRIC = ("vertical-flip", "rotate", "scale")
SOURCE = Discs(1)
IMAGE, MASK = (torch.from_numpy(np.asarray(part)) for part in (SOURCE.image(0), SOURCE.mask_input(0)))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_it_changes_pixels_by_the_key_alone_and_keeps_types_and_sizes(name: str) -> None:
    made = [augmented(IMAGE, MASK, (name,), 0, epoch, 5) for epoch in range(12)]
    again = [augmented(IMAGE, MASK, (name,), 0, epoch, 5) for epoch in range(12)]
    for (image, mask), (same, alike) in zip(made, again, strict=True):
        assert torch.equal(image, same)
        assert torch.equal(mask, alike)
        assert (image.dtype, image.shape, mask.dtype, mask.shape) == (torch.uint8, IMAGE.shape, torch.uint8, MASK.shape)
    assert any(not torch.equal(image, IMAGE) for image, _ in made)
    assert len({image.numpy().tobytes() for image, _ in made}) > 1
    assert any(not torch.equal(mask, MASK) for _, mask in made) == (name in GEOMETRIC)


@pytest.mark.parametrize("name", GEOMETRIC)
def test_a_mask_moves_with_its_image_and_what_comes_in_is_ignored(name: str) -> None:
    drawn = MASK * 255
    for key in range(12):
        image, mask = augmented(drawn.expand(3, -1, -1), MASK, (name,), key)
        counted = mask != 255
        agree = ((image[0] > 127) == (mask == 1))[counted].float().mean()
        assert agree > 0.98  # but for the rim, which the image blends
        assert set(mask.unique().tolist()) <= {0, 1, 255}


def test_a_label_stays() -> None:
    label = torch.tensor([[2]], dtype=torch.uint8)
    assert torch.equal(augmented(IMAGE, label, tuple(AUGMENTATIONS), 1)[1], label)


def test_training_sees_them_and_goes_on_as_if_it_had_not_been_stopped(tmp_path: Path) -> None:
    plain = summary(Run(folder=tmp_path / "plain", rules=protocol(epochs=1)).train())
    rules = protocol(epochs=1, augment=("vertical-flip", "colour-jitter"))
    first, second = (summary(Run(folder=tmp_path / name, rules=rules).train()) for name in ("a", "b"))
    assert first == second
    assert first["last"] != plain["last"]


def test_no_embedding_is_kept_of_images_that_change(tmp_path: Path) -> None:
    run = Run(
        folder=tmp_path,
        method="decoder",
        rules=protocol(epochs=2, augment=("rotate",)),
        embeddings=EmbeddingCache(encoder="x"),
    )
    counts: list[int] = []
    run.validate = lambda: {"iou": 0.0}
    run.segmenter.get_submodule("encoder").register_forward_hook(
        lambda module, inputs, output: counts.append(len(inputs[0]))
    )
    run.train()
    assert sum(counts) == 14
