"""The half-diagonal of the spectrum against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from harness.evidence.measuring import FLOOR, half_diagonal


def test_a_shifted_delta_holds_all_frequencies_alike():
    maps = torch.zeros(1, 3, 14, 14)
    maps[0, :, 5, 9] = 2.0
    assert half_diagonal(maps).tolist() == pytest.approx([0.0] * 7, abs=1e-5)


def test_white_noise_is_flat_behind_frequency_zero():
    maps = torch.randn(4, 3000, 14, 14, generator=torch.Generator().manual_seed(0))
    found = half_diagonal(maps)
    assert found[0] == 0
    assert found[1:].tolist() == pytest.approx([math.log(2) / 2] * 6, abs=0.04)


@pytest.mark.parametrize("cycles", [1, 3, 6])
def test_a_cosine_stands_at_its_frequency(cycles: int):
    rows, columns = torch.meshgrid(torch.arange(14.0), torch.arange(14.0), indexing="ij")
    wave = torch.cos(2 * math.pi * cycles * (rows + columns) / 14)
    found = half_diagonal(wave.double().float()[None, None])
    assert int(found.argmax()) == cycles
    # All else is 0 but for rounding, so the step is at most that from the floor.
    assert 10 < float(found[cycles]) <= math.log(14 * 14 / 2) - math.log(FLOOR) + 1e-3


def test_it_is_the_mean_of_the_logarithms_and_not_the_logarithm_of_a_mean():
    generator = np.random.default_rng(0)
    maps = generator.standard_normal((2, 3, 9, 9)).astype(np.float32)
    amplitude = np.fft.fftshift(np.log(np.abs(np.fft.fft2(maps)) + FLOOR), axes=(-2, -1)).mean(axis=(0, 1))
    diagonal = np.diag(amplitude)[4:]
    assert half_diagonal(torch.from_numpy(maps)).tolist() == pytest.approx(list(diagonal - diagonal[0]), abs=1e-4)


def test_a_map_that_is_not_square_is_refused():
    with pytest.raises(ValueError, match="4 × 6"):
        half_diagonal(torch.zeros(1, 1, 4, 6))
