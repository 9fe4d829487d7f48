"""NAS-LoRA: who is learnt when, on which data, by which optimiser, and what a cell that only skips amounts to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from harness.contract.case import ContractCase
from harness.contract.start import logits
from harness.methods.base import ARCHITECTURE, WEIGHTS
from harness.methods.lora import LoRA, LoRAConfig
from harness.methods.naslora import NASLoRA, NASLoRAConfig, NASPCLoRA, NASPCLoRAConfig
from harness.methods.parts.placement import MethodError
from harness.models.build import build_segmenter
from tests.methods.compared import attached

W, A = (WEIGHTS,), (ARCHITECTURE,)
BOTH: dict[str, Any] = {"alternate": "both", "search_start_epoch": 1}
JOINT: dict[str, Any] = {"alternate": "joint", "search_start_epoch": 1}
FROM_TWO: dict[str, Any] = {"search_start_epoch": 2, "alternate": "iteration"}
WEIGHTS_FIRST: dict[str, Any] = {"search_start_epoch": 0, "order": "weights-first", "alternate": "iteration"}


@pytest.mark.parametrize(
    ("options", "epoch", "passes"),
    [
        ({}, 0, [(W,)] * 5),
        ({}, 9, [(W,)] * 5),
        (FROM_TWO, 2, [(A,), (W,)] * 2),
        (FROM_TWO, 3, [(W,), (A,)] * 2),  # so that epochs of one step reach both
        (FROM_TWO | {"search_start_epoch": 1}, 1, [(A,), (W,)] * 2),  # turns count from T_B, not from the first epoch
        (FROM_TWO | {"search_start_epoch": 3}, 3, [(A,), (W,)] * 2),
        (FROM_TWO | {"search_start_epoch": 3}, 4, [(W,), (A,)] * 2),
        (FROM_TWO | {"search_start_epoch": 3, "order": "weights-first"}, 3, [(W,), (A,)] * 2),
        (FROM_TWO | {"alternate": "epoch"}, 2, [(A,)] * 3),
        (FROM_TWO | {"alternate": "epoch"}, 3, [(W,)] * 3),
        (BOTH, 0, [(W,)] * 2),
        (BOTH, 1, [(A, W)] * 3),
        (BOTH | {"order": "weights-first"}, 1, [(W, A)]),
        (WEIGHTS_FIRST, 0, [(W,), (A,)]),
        (JOINT, 0, [(W,)]),
        (JOINT, 1, [(W + A,)]),
        (BOTH | {"operations": "skip_connect"}, 20, [(W,)]),
        ({"operations": "sep_conv_3x3", "search_start_epoch": 0}, 3, [(W,)]),
        ({"stagewise": False}, 0, [(W + A,)]),
    ],
)
def test_passes_of_the_first_steps_of_an_epoch(options: dict[str, Any], epoch: int, passes: list[Any]) -> None:
    method = NASLoRA(NASLoRAConfig(**options))
    assert [method.passes_at(epoch=epoch, step=step) for step in range(len(passes))] == passes


@pytest.mark.parametrize(
    ("options", "spares"),
    [
        ({"alternate": "iteration"}, True),
        ({"alternate": "epoch"}, True),
        ({"alternate": "joint"}, False),
        ({"alternate": "both"}, False),
        ({"alternate": "both", "alpha_data": "holdout"}, True),
        ({"alternate": "iteration", "stagewise": False}, False),
        ({"alternate": "iteration", "operations": "skip_connect"}, False),
    ],
)
def test_a_configuration_knows_whether_the_weights_lose_updates(options: dict[str, Any], spares: bool) -> None:
    assert NASLoRAConfig(**options).spares_weight_updates is spares


def test_groups_split_weights_from_architecture_with_their_own_rates() -> None:
    segmenter, method = attached("naslora", lr=2e-4, alpha_lr=3e-3)
    weights, architecture = method.parameter_groups()
    trained = {name for name, p in segmenter.named_parameters() if p.requires_grad}
    assert (weights.role, weights.lr, weights.weight_decay) == (WEIGHTS, 2e-4, None)
    assert (architecture.role, architecture.lr, architecture.weight_decay) == (ARCHITECTURE, 3e-3, 0.0)
    assert weights.named.keys() | architecture.named.keys() == trained
    assert not weights.named.keys() & architecture.named.keys()
    assert len(architecture.named) == 4
    assert all(name.endswith(".alpha") for name in architecture.named)


def test_a_single_operation_leaves_nothing_to_search() -> None:
    _, method = attached("naslora", operations="sep_conv_3x3", search_start_epoch=0, alpha_std=0.0)
    assert [group.role for group in method.parameter_groups()] == [WEIGHTS]
    assert method.architecture() == {}
    assert not method.decode()


def test_architecture_names_every_cell_and_sums_to_one() -> None:
    _, method = attached("naslora", sites="q,v", blocks="0,3")
    shares = method.architecture()
    assert list(shares) == ["blocks.0.qkv.q", "blocks.0.qkv.v", "blocks.3.qkv.q", "blocks.3.qkv.v"]
    assert all(len(share) == 8 and sum(share) == pytest.approx(1) for share in shares.values())
    assert len({tuple(share) for share in shares.values()}) == 4  # every cell draws its own α


@pytest.mark.parametrize("backbone", ["tiny", "tiny_timm"])
@pytest.mark.parametrize("partial", [False, True])
def test_a_cell_that_only_skips_is_plain_lora(backbone: str, partial: bool) -> None:
    """h = W0 x + Wd We x: the formula without α/r, equal to LoRA with α = r, prefix tokens included."""
    outputs = []
    config = (NASPCLoRAConfig if partial else NASLoRAConfig)(operations="skip_connect")
    for method in (LoRA(LoRAConfig(rank=3, alpha=3.0)), (NASPCLoRA if partial else NASLoRA)(config)):
        segmenter = build_segmenter(backbone, task="binary")
        method.attach(segmenter)
        for index, adapter in enumerate(method.adapters().values()):
            generator = torch.Generator().manual_seed(index)
            nn.init.normal_(adapter.down, generator=generator)
            nn.init.normal_(adapter.up, std=0.1, generator=generator)
        side = segmenter.encoder.shape.image_size
        outputs.append(segmenter(torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(9))).masks)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)


def test_channel_ratio_chooses_whole_channels() -> None:
    assert [NASPCLoRAConfig(channel_ratio=ratio).cell_channels for ratio in (1 / 3, 2 / 3, 1.0, 0.01)] == [1, 2, 3, 1]
    with pytest.raises(MethodError, match="channel_ratio"):
        NASPCLoRAConfig(channel_ratio=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scope": "images"}, "scope='images'"),
        ({"alternate": "step"}, "alternate='step'"),
        ({"norm": "layer"}, "choose batch or none"),
        ({"alternate": "joint", "alpha_data": "holdout"}, "use alternate=both"),
        ({"alternate": "joint", "alpha_data": "shuffled"}, "use alternate=both"),
        ({"stagewise": False, "alpha_data": "shuffled"}, "stagewise=False"),
        ({"alpha_data": "val"}, "alpha_data='val'"),
        ({"operations": "conv"}, "'conv' is unknown"),
        ({"rank": 0}, "rank=0"),
        ({"alpha_std": -1e-3}, "alpha_std=-0.001"),
    ],
)
def test_impossible_settings_are_refused_with_a_reason(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        NASLoRAConfig(**options)


@pytest.mark.parametrize(
    ("options", "of_updates", "passes"),
    [
        ({"alternate": "both"}, False, 1.75),
        ({"alternate": "joint"}, True, 1.0),
        ({"alternate": "iteration"}, False, 1.0),
        ({"alternate": "iteration"}, True, 1.75),
        ({"alternate": "both", "operations": "skip_connect"}, True, 1.0),
        ({"alternate": "both", "search_start_epoch": 40}, True, 1.0),
        ({"alternate": "both", "search_start_epoch": 50}, True, 1.0),
    ],
)
def test_passes_are_known_before_a_run(options: dict[str, Any], of_updates: bool, passes: float) -> None:
    assert NASLoRAConfig(**options).passes(epochs=40, of_updates=of_updates) == passes


def test_partial_channels_at_rank_one_are_naslora_and_say_so() -> None:
    images = ContractCase(method=NASLoRA, config=NASLoRAConfig()).images
    outputs = []
    for method, config in ((NASLoRA, NASLoRAConfig(rank=1)), (NASPCLoRA, NASPCLoRAConfig(rank=1))):
        segmenter, attached = ContractCase(method=method, config=config).trained()
        outputs.append((attached.state(), logits(segmenter, images)))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=0)
    assert NASPCLoRAConfig(rank=1).label_note == "no channel left out: naslora"
    assert NASPCLoRAConfig(channel_ratio=1.0).label_note == "no channel left out: naslora"
    assert NASPCLoRAConfig().label_note == NASLoRAConfig(rank=1).label_note == ""


@pytest.mark.parametrize(
    ("scope", "seen"),
    [
        ("window", {"blocks.1.qkv": 8, "blocks.1.proj": 4, "blocks.2.qkv": 6, "blocks.3.proj": 3, "blocks.4.qkv": 4}),
        ("image", {"blocks.1.qkv": 16, "blocks.1.proj": 8, "blocks.2.qkv": 8, "blocks.3.proj": 4, "blocks.4.qkv": 4}),
    ],
)
def test_a_cell_of_sam_2_sees_the_window_or_map_of_its_site(scope: Any, seen: dict[str, int]) -> None:
    """At 64 px the maps of the stages are 16, 8, 4 and 2 tokens a side; attention pools in blocks 1, 3 and 5."""
    segmenter, method = attached("naslora", backbone="tiny_sam2", sites="qkv,proj", scope=scope)
    sides: dict[str, int] = {}
    for site, cell in method.cells().items():
        cell.register_forward_hook(lambda _, inputs, __, site=site: sides.update({site: inputs[0].shape[-1]}))
    with torch.no_grad():
        segmenter.eval()(torch.randn(1, 3, 64, 64))
    assert seen.items() <= sides.items()
