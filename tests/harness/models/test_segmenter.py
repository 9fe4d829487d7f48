"""The segmenter against segment_anything as a whole, its outputs, its randomness and its switches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from harness.methods.parts.sites import block_sites
from harness.models.build import build_segmenter
from harness.models.original_sam import plain_sam, sam_state_dict
from harness.models.sam_encoder import resize_positions
from harness.models.segmenter import SAMSegmenter, Segmenter
from tests.harness.models.images import random_images

NAMES = ["tiny", "tiny_timm"]


def _per_image_masks(sam: Any, embedding: Tensor) -> Tensor:
    """As `Sam.forward` does it: one image after the other, no prompts, ``multimask_output=False``."""
    sparse, dense = sam.prompt_encoder(points=None, boxes=None, masks=None)
    dense = dense[..., :1, :1].expand(-1, -1, *embedding.shape[-2:])
    masks = [
        sam.mask_decoder(
            image_embeddings=image.unsqueeze(0),
            image_pe=sam.prompt_encoder.pe_layer(embedding.shape[-2:]).unsqueeze(0),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )[0]
        for image in embedding
    ]
    return torch.cat(masks)


@pytest.mark.parametrize(
    ("fused", "height", "width"), [(True, 8, 8), (False, 8, 8), (True, 5, 10), (False, 11, 2), (True, 1, 1)]
)
def test_embeddings_masks_and_gradients_equal_segment_anything(fused: bool, height: int, width: int) -> None:
    """(8, 8) is the built size; the others interpolate positions and their tables. Windows of 3 are padded."""
    segmenter = build_segmenter("tiny", task="binary", head_seed=1, fused_attention=fused)
    assert isinstance(segmenter, SAMSegmenter)
    sam = plain_sam("tiny")
    with torch.no_grad():
        for name, parameter in segmenter.encoder.named_parameters():
            if "pos" in name:  # which start at zero
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(len(name)))
    sam.load_state_dict(sam_state_dict(segmenter), strict=True)
    positions = sam.image_encoder.pos_embed.detach()
    resized = torch.nn.Parameter(resize_positions(positions, height, width))
    sam.image_encoder.pos_embed = resized
    images = random_images(2, 16 * height, 16 * width)
    embedding = sam.image_encoder(images)
    torch.testing.assert_close(segmenter.encode(images), embedding, atol=1e-5, rtol=1e-4)
    outputs = [segmenter(images).masks, _per_image_masks(sam, embedding)]
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-4)
    assert (segmenter.encoder.grid.height, segmenter.encoder.grid.width) == (height, width)
    for output in outputs:
        output.square().mean().backward()
    ours, theirs = dict(segmenter.encoder.named_parameters()), dict(sam.image_encoder.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, parameter in theirs.items():
        if ours[name].shape == parameter.shape:  # but for resized positions
            scale = float(parameter.grad.abs().max())
            torch.testing.assert_close(ours[name].grad, parameter.grad, atol=1e-4 * scale, rtol=1e-3, msg=name)
    token = sam.mask_decoder.mask_tokens.weight.grad
    decoder: Any = segmenter.mask_decoder
    torch.testing.assert_close(decoder.mask_tokens.grad[0], token[0], atol=1e-7, rtol=1e-3)
    torch.testing.assert_close(decoder.spare_tokens.grad, token[1:], atol=1e-7, rtol=1e-3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_forward_is_embed_blocks_finish(name: str, activation_checkpointing: bool) -> None:
    segmenter = build_segmenter(name, task="binary", activation_checkpointing=activation_checkpointing)
    encoder: Any = segmenter.encoder
    size = encoder.shape.image_size
    images = random_images(2, size)
    tokens = encoder.embed(images)
    assert tokens.is_contiguous()  # else every sum keeps the layout of the convolution and every norm copies it
    side = size // encoder.shape.patch
    assert (encoder.grid.height, encoder.grid.width) == (side, side)
    embedding = encoder.finish(encoder.run_blocks(tokens))
    torch.testing.assert_close(embedding, segmenter.encode(images))
    assert embedding.shape == (2, encoder.shape.neck_dim or encoder.shape.dim, side, side)
    torch.testing.assert_close(segmenter.decode(embedding).masks, segmenter(images).masks)


@pytest.mark.parametrize("name", [*NAMES, "tiny_sam2", "tiny_sam3"])
def test_activation_checkpointing_changes_no_gradient(name: str) -> None:
    gradients = []
    for recompute in (False, True):
        segmenter = build_segmenter(name, task="binary", head_seed=2, activation_checkpointing=recompute)
        segmenter(random_images(2, segmenter.encoder.shape.image_size)).masks.square().mean().backward()
        gradients.append([p.grad for p in segmenter.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_no_graph_below_the_first_trainable_site(name: str) -> None:
    segmenter = build_segmenter(name, task="binary")
    segmenter.requires_grad_(False)
    sites = block_sites(segmenter.encoder, "all")
    sites[2].get("qkv").requires_grad_(True)
    traced: dict[int, bool] = {}
    for site in sites:
        site.block.register_forward_hook(
            lambda _module, _args, out, index=site.index: traced.update({index: out.requires_grad})
        )
    segmenter(random_images(1, segmenter.encoder.shape.image_size))
    assert traced == {index: index >= 2 for index in range(len(sites))}


def _seen(tokens: tuple[int, ...], inside: tuple[int, ...], hidden: int) -> dict[str, tuple[int, ...]]:
    around = dict.fromkeys(("norm1", "norm2", "mlp_in"), tokens)
    return {**around, "qkv": inside, "proj": inside, "mlp_out": (*tokens[:-1], hidden)}


WINDOWS = (2, 8, 8, 64), (18, 3, 3, 64)
"""8x8 tokens padded to 9x9, nine windows of 3x3 an image."""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tiny", _seen(*WINDOWS, 256)),
        ("tiny_timm", _seen((2, 101, 64), (2, 101, 64), 192)),
        ("tiny_dinov3", _seen((2, 69, 64), (2, 69, 64), 256)),  # 64 patches behind five prefix tokens
    ],
)
def test_sites_are_called_as_modules_with_their_layout(name: str, expected: dict[str, tuple[int, ...]]) -> None:
    """A method replaces a site; its stand-in must see every token the site would see."""
    segmenter = build_segmenter(name, task="binary")
    seen: dict[str, tuple[int, ...]] = {}
    for site in block_sites(segmenter.encoder, "0"):
        for part in expected:
            hook = lambda _module, args, part=part: seen.update({part: tuple(args[0].shape)})  # noqa: E731
            site.get(part).register_forward_pre_hook(hook)
    segmenter(random_images(2, segmenter.encoder.shape.image_size))
    assert seen == expected


@pytest.mark.parametrize("name", NAMES)
def test_random_weights_come_from_the_head_seed_alone(name: str) -> None:
    torch.manual_seed(0)
    before = torch.default_generator.get_state()
    first = build_segmenter(name, task="multiclass", num_classes=3, mask_tokens=4, head_seed=5).state_dict()
    assert torch.equal(torch.default_generator.get_state(), before)
    torch.manual_seed(1)
    second = build_segmenter(name, task="multiclass", num_classes=3, mask_tokens=4, head_seed=5).state_dict()
    other = build_segmenter(name, task="multiclass", num_classes=3, mask_tokens=4, head_seed=6).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    for key in ("head.weight", "mask_decoder.mask_tokens", "encoder.blocks.0.attn.qkv.weight"):
        assert not torch.equal(first[key], other[key])


def test_extra_mask_tokens_start_near_token_0() -> None:
    single = build_segmenter("tiny", task="binary", head_seed=5).get_parameter("mask_decoder.mask_tokens")
    segmenter = build_segmenter("tiny", task="multiclass", num_classes=3, mask_tokens=6, head_seed=5)
    many = segmenter.get_parameter("mask_decoder.mask_tokens")
    assert 0.01 < (many - single).std() < 0.03
    assert len({tuple(row.tolist()) for row in many.detach()}) == 6


def test_bf16_autocast_gives_float32_logits() -> None:
    segmenter: Segmenter = build_segmenter("tiny", task="multiclass", num_classes=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = segmenter(random_images(1, 128))
    assert output.masks.dtype == torch.float32
    assert output.classes is not None
    assert output.classes.dtype == torch.float32
    assert output.masks.isfinite().all()


def test_a_multiclass_segmenter_does_not_save_as_a_plain_sam() -> None:
    with pytest.raises(ValueError, match="class head"):
        sam_state_dict(build_segmenter("tiny", task="multiclass", num_classes=3))
    with pytest.raises(ValueError, match="SAM's own backbones"):
        sam_state_dict(build_segmenter("tiny_timm", task="binary"))
    adapted = build_segmenter("tiny", task="binary")
    adapted.encoder.blocks[1].attn.qkv = torch.nn.Sequential(adapted.encoder.blocks[1].attn.qkv)
    with pytest.raises(ValueError, match=r"blocks\.1\.attn\.qkv.*merge it first"):
        sam_state_dict(adapted)
