"""LST: no gradient through the backbone, and the memory that this saves."""

from __future__ import annotations

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from harness.contract.case import IMAGE_SIZE, ContractCase
from harness.methods.configs.baselines import LSTConfig
from harness.methods.configs.lowrank import LoRAConfig
from harness.methods.lora import LoRA
from harness.methods.lst import LST, Rung
from harness.models.catalog import backbone_shape


def _lst(backbone: str = "tiny") -> ContractCase:
    return ContractCase(method=LST, config=LSTConfig(), backbone=backbone)


def _kept_inside_blocks(subject: ContractCase) -> int:
    """How many tensors made inside frozen blocks backward keeps."""
    segmenter, method = subject.attached()
    inside: dict[int, torch.Tensor] = {}
    for block in segmenter.encoder.blocks:
        for module in block.modules():
            if module is not block and not isinstance(module, nn.ModuleList | nn.ModuleDict):
                module.register_forward_hook(lambda _m, _i, out: inside.__setitem__(out.data_ptr(), out))  # kept alive
    saved: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.data_ptr())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = subject.loss(segmenter, method)
    loss.backward()
    return len(set(saved) & set(inside))


def test_backward_keeps_no_activation_made_inside_a_frozen_block() -> None:
    for backbone in ("tiny", "tiny_timm"):
        assert _kept_inside_blocks(_lst(backbone)) == 0
        assert _kept_inside_blocks(ContractCase(method=LoRA, config=LoRAConfig(), backbone=backbone)) > 0, (
            "the probe sees"
        )


def test_rung_mixes_the_blocks_output_and_the_side_by_its_gate() -> None:
    segmenter, _ = _lst().attached()
    rung = segmenter.encoder.get_submodule("ladder.rungs.1")
    assert isinstance(rung, Rung)
    segmenter.encoder.grid.height = segmenter.encoder.grid.width = IMAGE_SIZE // 16
    generator = torch.Generator().manual_seed(0)
    side, frozen = torch.randn(1, 4, 4, 8, generator=generator), torch.randn(1, 4, 4, 64, generator=generator)
    torch.testing.assert_close(rung(side, frozen), rung.block((rung.down(frozen) + side) / 2))
    with torch.no_grad():
        rung.gate.fill_(0.2)  # σ(2) of the block
    share = torch.tensor(2.0).sigmoid()
    torch.testing.assert_close(rung(side, frozen), rung.block(share * rung.down(frozen) + (1 - share) * side))


def test_side_attention_stays_inside_its_blocks_windows() -> None:
    segmenter, _ = _lst().attached()
    grid = segmenter.encoder.grid
    grid.height = grid.width = 6
    windowed, whole = (segmenter.encoder.get_submodule(f"ladder.rungs.{index}.block") for index in (0, 1))
    tokens = torch.randn(1, 6, 6, 8, generator=torch.Generator().manual_seed(0))
    other = tokens.clone()
    other[:, 0, 0] += torch.randn(8, generator=torch.Generator().manual_seed(1))
    moved = [(block(other) - block(tokens)).abs().amax(-1)[0] > 1e-7 for block in (windowed, whole)]
    assert moved[0][:3, :3].all()
    assert not moved[0][3:].any()
    assert not moved[0][:, 3:].any()
    assert moved[1].all()


def test_the_published_size_is_met_by_no_reduction_and_the_nearest_is_the_one_that_the_page_names() -> None:
    shape, published = backbone_shape("vit_h"), 11_490_000
    decoder = 3_505_536
    sizes = {r: decoder + LSTConfig(reduction=r).encoder_parameters(shape) for r in range(1, 65)}
    assert sizes[8] == decoder + 16_860_512
    assert 33 * 1280 * (1280 // 8) == 6_758_400
    nearest = min(sizes, key=lambda r: abs(sizes[r] - published))
    assert (nearest, sizes[nearest]) == (13, decoder + 8_000_196)
    assert abs(sizes[nearest] - published) > 5_000, "11.49 M as printed"
