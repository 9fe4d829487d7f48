from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from harness.evaluation.resize import resize_bilinear, resize_nearest

SIZES = [(40, 50), (9, 12), (17, 60), (34, 62), (1, 1), (17, 31)]


@pytest.mark.parametrize("size", SIZES)
def test_bilinear_equals_interpolate(size):
    """In float64, but for what two directions of a rounded weight, two products and a sum may lose: 8 roundings below 1."""
    scores = np.random.default_rng(0).random((3, 17, 31), dtype=np.float32)
    expected = torch.nn.functional.interpolate(torch.from_numpy(scores).double()[None], size, mode="bilinear")[0]
    np.testing.assert_allclose(resize_bilinear(scores, size), expected.numpy(), atol=8 * 2**-24, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_nearest_equals_pillow(size):
    labels = np.random.default_rng(0).integers(0, 12, (17, 31), dtype=np.uint8)
    expected = Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST)
    assert (resize_nearest(labels, size) == np.asarray(expected)).all()
