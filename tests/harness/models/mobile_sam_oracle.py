"""MobileSAM's own modules (github.com/ChaoningZhang/MobileSAM at 34bbbfd), where a checkout is at hand, and what they gave.

    python -m tests.harness.models.mobile_sam_oracle CHECKOUT     writes mobile_sam_expected.json beside this file

Weights and images are made of integers by a fixed rule, and all is computed in float64, so that any machine has the same.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.plain_training import AnySize, own_sam

EXPECTED = Path(__file__).with_name("mobile_sam_expected.json")
SIZES = (512, 1024)
SAMPLES = 16


def load(sam: Any, state: Mapping[str, Tensor]) -> Any:
    """Strictly, and in evaluation mode; but attention in training mode, or its biases get no gradient."""
    sam.load_state_dict(state, strict=True)
    sam.eval()
    for module in sam.modules():
        if hasattr(module, "attention_biases"):
            module.train()
    return sam


def numbers(name: str, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """float64 in [-1/2, 1/2), the same everywhere."""
    count = int(torch.Size(shape).numel())
    mixed = torch.arange(count) * 0x2545F4914F6CDD1D + zlib.crc32(name.encode())
    for shift in (29, 32):
        mixed = (mixed ^ (mixed >> shift)) * 0x5851F42D4C957F2D
    return ((mixed >> 11 & 0xFFFFFFFF).double() / 2**32 - 0.5).view(shape)


def weights(shapes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint under MobileSAM's names: products keep the size of what they multiply, norms stay near one."""
    made = {}
    for name, tensor in shapes.items():
        value = numbers(name, tensor.shape)
        if not tensor.is_floating_point():
            value = torch.full_like(tensor, 7)
        elif name.endswith("running_var"):
            value = 1 + value
        elif tensor.ndim > 1 and not name.endswith("attention_biases"):
            value = value * (12 / tensor[0].numel()) ** 0.5
        elif name.endswith("weight"):
            value = 1 + 0.2 * value
        made[name] = value
    return made


def images(size: int) -> Tensor:
    """(1, 3, size, size)."""
    return 4 * numbers("images", (1, 3, size, size))


def observed(encoder: nn.Module, embedding: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The embedding, and the gradient of its weighted sum by the images and by every parameter of the encoder."""
    parameters = {
        name: p for name, p in encoder.named_parameters() if ".head." not in f".{name}" and "norm_head" not in name
    }
    score = (embedding * numbers("direction", embedding.shape).to(embedding)).sum()
    by_images, *gradients = torch.autograd.grad(score, [inputs, *parameters.values()])
    return embedding.detach(), by_images, dict(zip(parameters, gradients, strict=True))


def some(values: Tensor) -> list[float]:
    """A few of them, and their norm."""
    flat = values.detach().double().flatten()
    return [*flat[:: len(flat) // SAMPLES][:SAMPLES].tolist(), float(flat.norm())]


def main(checkout: Path) -> None:
    recorded: dict[str, Any] = {}
    for size in SIZES:
        sam = own_sam(checkout, image_size=size).double()
        encoder = load(sam, weights(sam.state_dict())).image_encoder
        inputs = images(size).requires_grad_()
        embedding, by_images, gradients = observed(encoder, AnySize(encoder)(inputs), inputs)
        recorded[str(size)] = {"embedding": some(embedding), "images": some(by_images)}
        if size == SIZES[0]:
            recorded["gradients"] = {name: float(gradient.norm()) for name, gradient in sorted(gradients.items())}
    EXPECTED.write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
