"""The precision of a pass."""

import pytest
import torch
from torch import nn

from harness.cli.cost import _device
from harness.experiment.environment import own_device
from harness.training.precision import autocast
from tests.harness.training.tiny import protocol


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_a_forward_pass_is_in_the_precision_of_the_card(precision: str, dtype: torch.dtype) -> None:
    with autocast(protocol(precision=precision), torch.device("cpu")):
        assert nn.Linear(8, 8)(torch.ones(4, 8)).dtype is dtype


@pytest.mark.parametrize("of", [own_device, lambda: _device(None)], ids=["runs", "costs"])
def test_convolutions_on_a_gpu_are_as_exact_as_matrix_products(of) -> None:
    torch.backends.cudnn.allow_tf32 = True  # torch's default
    of()
    assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 is False
