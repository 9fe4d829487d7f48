"""What is SAM 3's alone: its blocks, its memory, the Hub's file; `test_trackers` holds the rest against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from harness.models import catalog
from harness.models.build import build_segmenter
from harness.models.catalog import backbone, decoder_parameters, encoder_parameters, total_parameters
from harness.models.original_sam import sam_state_dict
from harness.models.sam2 import unpacked
from harness.planning.work import activation_bytes
from harness.registry import METHODS, method_config
from harness.system.errors import UsageError
from tests.harness.models.trackers import built, images_of, masks, require_near, sam3, transformers
from tests.harness.planned import job_of


def test_with_four_scales_transformers_leaves_the_embedding_of_no_memory_out(tmp_path: Path) -> None:
    """Its default: what it adds it to is the fourth map, which it drops. Everything else is the same."""
    segmenter, theirs = built("tiny_sam3", tmp_path, dtype=torch.float32, scales=[*sam3.SCALES, 0.5])
    given = theirs.get_image_embeddings(images := images_of(64))
    require_near(given[-1], unpacked(segmenter.encode(images))[0], "embedding")
    given[-1] = given[-1] + theirs.no_memory_embedding.view(1, -1, 1, 1)
    require_near(segmenter(images).masks, masks(theirs, given), "masks")


@pytest.mark.parametrize("fused", [True, False])
def test_further_tokens_have_no_position_and_give_no_output(fused: bool) -> None:
    segmenter: Any = build_segmenter("tiny_sam3", task="binary", fused_attention=fused)
    attention = segmenter.encoder.blocks[0].attention.double()
    windows, further = (torch.randn(*size, 64, dtype=torch.float64) for size in ((2, 3, 3), (1, 2)))
    angles = torch.rand(9, 32, dtype=torch.float64).repeat_interleave(2, dim=0)[:9]
    unmoved = torch.cat([angles, torch.zeros(2, 32, dtype=torch.float64)])
    tokens = torch.cat([windows.flatten(1, 2), further.expand(2, -1, -1)], dim=1)[:, None]
    expected, _ = attention(tokens, (unmoved.cos(), unmoved.sin()))
    out, _ = attention(windows, (angles.cos(), angles.sin()), further)
    torch.testing.assert_close(out.flatten(1, 2), expected[:, 0, :9], atol=1e-6, rtol=0)


def test_closed_forms_are_those_of_the_published_size() -> None:
    with torch.device("meta"):
        segmenter: Any = build_segmenter("sam3", task="binary")
        theirs = transformers.Sam3TrackerModel(transformers.Sam3TrackerConfig())
    counts = [sum(p.numel() for p in part.parameters()) for part in (segmenter, segmenter.encoder)]
    assert counts == [total_parameters("sam3", task="binary"), encoder_parameters("sam3")]
    assert decoder_parameters("sam3", task="binary") == 3_505_536 + 256 + (256 * 96 + 96)
    fourth = theirs.vision_encoder.neck.fpn_layers[3]
    assert counts[0] == sum(p.numel() for p in theirs.parameters()) - sum(p.numel() for p in fourth.parameters())
    ours, named = backbone("sam3").shape, theirs.config.vision_config.backbone_config
    assert (ours.image_size, ours.patch, ours.global_blocks) == (1008, 14, tuple(named.global_attn_indexes))
    assert sam3.vision_config(ours).backbone_config.to_dict() == named.to_dict()


class _Flash(torch.autograd.Function):
    """What a fused kernel keeps for backward; it computes nothing."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out)
        return out


@pytest.mark.parametrize("method", ["lora", "full"])
def test_memory_of_a_plan_is_what_a_step_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Counted without memory, of one image at 1008 px in fp32: storages that backward needs, each once."""
    fused = "torch.nn.functional.scaled_dot_product_attention"
    monkeypatch.setattr(fused, lambda q, k, v, *_, **__: _Flash.apply(q, k, v))
    with torch.device("meta"):
        segmenter = build_segmenter("sam3", task="binary")
        METHODS.get(method)(method_config(method, {})).attach(segmenter)
    segmenter.to("meta").train()
    own = {p.untyped_storage()._cdata for p in segmenter.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        segmenter(torch.zeros(1, 3, 1008, 1008, device="meta"))
    counted = sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in own)
    rules = {"image_size": 1008, "batch_size": 1, "precision": "fp32"}
    run = job_of(tmp_path, method, backbones=("sam3",), image_size=1008, batch_size=1).run
    assert run.rules.items() >= rules.items()
    assert activation_bytes(run, backbone("sam3").shape) == pytest.approx(counted, rel=0.12)  # full: 11 % above


def test_without_transformers_it_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'sam-peft-harness\[sam3\]'"):
        catalog.require_stands("sam", "sam3")
    catalog.require_stands("sam", "sam2_hiera_tiny")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda state: state.pop("tracker_neck.fpn_layers.1.proj1.bias"), "missing image_encoder.neck.fpn_layers.1"),
        (lambda state: state.pop(f"{sam3._TRUNK}layers.2.attention.k_proj.weight"), "blocks.2.attention.qkv.weight"),
        (lambda state: state.update({f"{sam3._TRUNK}layers.9.mlp.fc1.bias": torch.zeros(2)}), "unexpected"),
        (lambda state: state.update({sam3._IMAGE_POSITIONS: torch.zeros(2, 32)}), "differ"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, change: Any, word: str) -> None:
    state = sam_state_dict(build_segmenter("tiny_sam3", task="binary"))
    change(state)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match=word):
        build_segmenter("tiny_sam3", task="binary", checkpoint=tmp_path / "model.safetensors")
