"""bf16 products on a CPU without bf16 instructions: torch's own results up to the rounding of bf16, in its types."""

import pytest
import torch
from torch import Tensor, nn

from harness.cli.cost import _device
from harness.experiment.environment import own_device
from harness.protocols.card import Protocol
from harness.training import precision
from harness.training.precision import WideProducts, autocast, products
from tests.harness.training.tiny import protocol as tiny_protocol

CPU = torch.device("cpu")
HALF = 2.0**-8  # the largest relative error of one rounding to bf16


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


class Products(nn.Module):
    """Each kind of product that a trunk, a decoder or a cell has."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.qkv = nn.Linear(16, 48, bias=False)
        self.out = nn.Linear(16, 16)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.depthwise(self.patches(images))
        tokens = maps.flatten(2).transpose(1, 2)
        q, k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in self.qkv(tokens).chunk(3, dim=-1))
        fused = nn.functional.scaled_dot_product_attention(q, k, v)
        bias = drawn(1, 2, q.shape[2], k.shape[2]).to(q.dtype)  # as of MobileSAM's windows
        fused = fused + nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        plain = (q @ k.transpose(-1, -2) / 8**0.5).softmax(dim=-1).to(v.dtype) @ v
        mixed = self.out((fused + plain).transpose(1, 2).flatten(2)) + torch.baddbmm(
            tokens, tokens, drawn(1, 16, 16).bfloat16().expand(2, 16, 16)
        )
        return self.up(mixed.transpose(1, 2).unflatten(-1, maps.shape[-2:]))


def passed(*modes: torch.utils._python_dispatch.TorchDispatchMode) -> tuple[Tensor, dict[str, Tensor]]:
    model = Products()
    with modes[0] if modes else torch.enable_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(drawn(2, 3, 32, 32))
        output.float().square().mean().backward()
    return output, {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def test_products_are_those_of_torch_up_to_rounding() -> None:
    output, gradients = passed(WideProducts())
    try:
        plain, expected = passed()
    except RuntimeError as error:
        if "avx512" not in str(error):
            raise
        pytest.skip(
            f"torch's own attention in bf16 says {error}: ATEN_CPU_CAPABILITY hides it from a part of torch alone"
        )
    assert output.dtype is plain.dtype is torch.bfloat16
    assert (output - plain).float().norm() <= 2 * HALF * plain.float().norm()
    assert gradients.keys() == expected.keys() == dict(Products().named_parameters()).keys()
    for name, value in expected.items():
        assert gradients[name].dtype is value.dtype is torch.float32
        assert (gradients[name] - value).norm() <= 4 * HALF * value.norm(), name


def test_a_product_is_the_exact_one_rounded_once() -> None:
    a, b = drawn(64, 96).bfloat16(), drawn(96, 32).bfloat16()
    with WideProducts():
        product = a @ b
    exact = a.double() @ b.double()
    assert product.dtype is torch.bfloat16
    assert ((product.double() - exact).abs() <= HALF * exact.abs() * 1.01 + 1e-5).all()


def test_fp32_and_what_is_no_product_stay_bit_for_bit() -> None:
    a, b = drawn(8, 8), drawn(8, 8)
    half = a.bfloat16()
    expected = [a @ b, half + half, half.softmax(dim=-1), nn.functional.conv2d(a[None, None], b[None, None, :3, :3])]
    with WideProducts():
        results = [a @ b, half + half, half.softmax(dim=-1), nn.functional.conv2d(a[None, None], b[None, None, :3, :3])]
    assert all(torch.equal(x, y) for x, y in zip(results, expected, strict=True))


def kind(protocol: Protocol, device: torch.device = CPU) -> bool:
    return isinstance(products(protocol, device), WideProducts)


def test_only_bf16_on_a_cpu_without_its_instructions_is_widened(monkeypatch: pytest.MonkeyPatch) -> None:
    half, full = tiny_protocol(precision="bf16"), tiny_protocol(precision="fp32")
    monkeypatch.setattr(precision, "multiplies_bf16", lambda: False)
    assert kind(half)
    assert not kind(full)
    assert not kind(half, torch.device("cuda"))
    monkeypatch.setenv(precision.SWITCH, "native")
    assert not kind(half)
    monkeypatch.delenv(precision.SWITCH)
    monkeypatch.setattr(precision, "multiplies_bf16", lambda: True)
    assert not kind(half)


def test_autocast_widens_the_forward_pass_and_leaves_fp32_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "multiplies_bf16", lambda: False)
    layer, x = nn.Linear(8, 8), drawn(4, 8)
    with autocast(tiny_protocol(precision="bf16"), CPU):
        half = layer(x)
        assert torch.utils._python_dispatch._get_current_dispatch_mode() is not None
    with autocast(tiny_protocol(precision="fp32"), CPU):
        full = layer(x)
    assert half.dtype is torch.bfloat16
    assert full.dtype is torch.float32
    assert torch.equal(
        half,
        nn.functional.linear(
            x.bfloat16().float(), layer.weight.bfloat16().float(), layer.bias.bfloat16().float()
        ).bfloat16(),
    )


@pytest.mark.parametrize("of", [own_device, lambda: _device(None)], ids=["runs", "costs"])
def test_convolutions_on_a_gpu_are_as_exact_as_matrix_products(of) -> None:
    torch.backends.cudnn.allow_tf32 = True  # torch's default
    of()
    assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 is False
