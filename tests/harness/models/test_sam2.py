"""SAM 2 against transformers' `Sam2Model` with equal weights, which reach it under Meta's names through the rules of transformers'
own conversion (``convert_sam2_to_hf.py``)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from harness.cli import predict
from harness.methods.configs.lowrank import LoRAConfig
from harness.methods.lora import LoRA
from harness.methods.parts.placement import BackboneShape
from harness.models.build import build_segmenter, require_checkpoint
from harness.models.catalog import backbone, decoder_parameters, encoder_parameters, total_parameters
from harness.models.original_sam import sam_state_dict
from harness.models.sam2 import PoolingAttention, packed, unpacked
from harness.models.segmenter import Prompts
from harness.system.errors import UsageError

transformers = pytest.importorskip("transformers", minversion="4.56")
SIZES = ("tiny", "small", "base_plus", "large")
MEMORY = (
    "maskmem_tpos_enc",
    "memory_attention.layers.0.self_attn.q_proj.weight",
    "memory_encoder.out_proj.weight",
    "mask_downsample.weight",
    "no_mem_pos_enc",
    "no_obj_ptr",
    "no_obj_embed_spatial",
    "obj_ptr_proj.layers.0.weight",
    "obj_ptr_tpos_proj.weight",
)
"""One name of each part of Meta's ``sam2.1_hiera_*.pt`` that an image does not pass."""
_CONVERTED = (
    (r"^image_encoder\.trunk\.", "vision_encoder.backbone."),
    (r"^image_encoder\.neck\.convs\.(\d)\.conv\.", r"vision_encoder.neck.convs.\1."),
    (r"^sam_", ""),
    (r"^no_mem_embed$", "no_memory_embedding"),
    (r"\.output_upscaling\.0\.", ".upscale_conv1."),
    (r"\.output_upscaling\.1\.", ".upscale_layer_norm."),
    (r"\.output_upscaling\.3\.", ".upscale_conv2."),
    (r"\.mask_downscaling\.0\.", ".mask_embed.conv1."),
    (r"\.mask_downscaling\.1\.", ".mask_embed.layer_norm1."),
    (r"\.mask_downscaling\.3\.", ".mask_embed.conv2."),
    (r"\.mask_downscaling\.4\.", ".mask_embed.layer_norm2."),
    (r"\.mask_downscaling\.6\.", ".mask_embed.conv3."),
    (r"\.point_embeddings\.", ".point_embed."),
    (r"\.pe_layer\.positional_encoding_gaussian_matrix$", ".shared_embedding.positional_embedding"),
    (r"\.patch_embed\.proj\.", ".patch_embed.projection."),
    (r"\.norm", ".layer_norm"),
    (r"\.out_proj\.", ".o_proj."),
    (r"(\.mlp)\.layers\.0\.", r"\1.proj_in."),
    (r"(\.mlp)\.layers\.1\.", r"\1.proj_out."),
    (r"(_head|_mlps\.\d)\.layers\.0\.", r"\1.proj_in."),
    (r"(_head|_mlps\.\d)\.layers\.2\.", r"\1.proj_out."),
    (r"(_head|_mlps\.\d)\.layers\.1\.", r"\1.layers.0."),
)


def _converted(name: str) -> str:
    for old, new in _CONVERTED:
        name = re.sub(old, new, name)
    return name


def _oracle(name: str, state: dict[str, Tensor], *, image_size: int) -> Any:
    """`Sam2Model` with the numbers of the backbone and Meta's ``state``, loaded strictly; in training mode, so that token 0 gives the
    mask always."""
    entry = backbone(name)
    shape, ends = entry.shape, entry.shape.stage_ends
    hiera = transformers.Sam2HieraDetConfig(
        hidden_size=shape.embedded,
        num_attention_heads=ends[0].heads,
        blocks_per_stage=[behind - first for first, behind in shape.stages],
        embed_dim_per_stage=[block.dim for block in ends],
        num_attention_heads_per_stage=[block.heads for block in ends],
        window_size_per_stage=[_window(shape, *stage) for stage in shape.stages],
        global_attention_blocks=list(shape.global_blocks),
        window_positional_embedding_background_size=list(state["image_encoder.trunk.pos_embed"].shape[2:]),
    )
    vision = transformers.Sam2VisionConfig(
        backbone_config=hiera,
        backbone_channel_list=[block.dim for block in reversed(ends)],
        backbone_feature_sizes=[[image_size // side] * 2 for side in (4, 8, 16)],
        fpn_hidden_size=shape.neck_dim,
    )
    own = entry.decoder
    config = transformers.Sam2Config(
        vision_config=vision,
        prompt_encoder_config=transformers.Sam2PromptEncoderConfig(
            hidden_size=own.dim, image_size=image_size, patch_size=16
        ),
        mask_decoder_config=transformers.Sam2MaskDecoderConfig(
            hidden_size=own.dim, mlp_dim=own.mlp_dim, num_attention_heads=own.heads, iou_head_hidden_dim=own.dim
        ),
    )
    with torch.device("meta"):
        model = transformers.Sam2Model(config)
    named = {_converted(key): tensor for key, tensor in state.items()}
    points = [named.pop(f"prompt_encoder.point_embed.{number}.weight") for number in range(4)]
    named["prompt_encoder.point_embed.weight"] = torch.cat(points)
    named["shared_image_embedding.positional_embedding"] = named["prompt_encoder.shared_embedding.positional_embedding"]
    model.load_state_dict(named, strict=True, assign=True)
    return model.train()


def _window(shape: BackboneShape, first: int, behind: int) -> int:
    """Of a stage: what the next one begins with, and of the last what its own further blocks have, if any."""
    return shape.blocks[behind].window if behind < shape.depth else max(b.window for b in shape.blocks[first:]) // 2


def _built(name: str, *, image_size: int, seed: int = 3) -> tuple[Any, Any]:
    """Ours and transformers', in float64 but for the positions of the decoder, which both make in float32."""
    segmenter: Any = build_segmenter(name, task="binary", image_size=image_size, head_seed=seed)
    theirs = _oracle(name, sam_state_dict(segmenter), image_size=image_size).double()
    segmenter.double()
    for module in (
        segmenter.prompt_encoder.pe_layer,
        theirs.shared_image_embedding,
        theirs.prompt_encoder.shared_embedding,
    ):
        module.float()
    return segmenter.train(), theirs


def _maps(theirs: Any, images: Tensor) -> list[Tensor]:
    """The embedding and the two finer maps, coarse to fine, without what the mask decoder does to them."""
    return list(reversed(theirs.vision_encoder(images, return_dict=True).fpn_hidden_states))


def _masks(theirs: Any, images: Tensor, sparse: Tensor | None = None) -> Tensor:
    """Of token 0.

    Args:
        sparse: (B, 1, n, D), a prompt an image; none if None, as in Meta's image predictor (`Sam2Model` makes one of no points).
    """
    embedding, middle, fine = _maps(theirs, images)
    decoder, dim = theirs.mask_decoder, embedding.shape[1]
    return decoder(
        image_embeddings=embedding + theirs.no_memory_embedding.view(1, -1, 1, 1),
        image_positional_embeddings=theirs.get_image_wide_positional_embeddings().expand(len(images), -1, -1, -1),
        sparse_prompt_embeddings=images.new_empty(len(images), 1, 0, dim) if sparse is None else sparse,
        dense_prompt_embeddings=theirs.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1),
        multimask_output=False,
        high_resolution_features=[decoder.conv_s0(fine), decoder.conv_s1(middle)],
    )[0][:, 0]


def _require_near(actual: Tensor, expected: Tensor, what: str) -> None:
    # transformers' pyramid passes float32, which rounds by 6e-8; all else is float64.
    bound = 1e-6 * float(expected.detach().abs().max())
    torch.testing.assert_close(actual, expected, atol=bound, rtol=0, msg=lambda text: f"{what}: {text}")


# The published size takes seconds: it is what the toy stands for.
@pytest.mark.parametrize(("name", "size"), [("tiny_sam2", 64), ("tiny_sam2", 160), ("sam2_hiera_tiny", 128)])
def test_outputs_and_gradients_are_those_of_transformers(name: str, size: int) -> None:
    segmenter, theirs = _built(name, image_size=size)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, size, size, generator=generator, dtype=torch.float64).requires_grad_()
    images_of_theirs = images.detach().clone().requires_grad_()
    for number, (own, other) in enumerate(
        zip(unpacked(segmenter.encode(images)), _maps(theirs, images_of_theirs), strict=True)
    ):
        _require_near(own, other, f"map {number}")
    own, other = segmenter(images).masks, _masks(theirs, images_of_theirs)
    _require_near(own, other, "masks")
    weights = torch.randn(own.shape, generator=generator, dtype=torch.float64)
    (own * weights).sum().backward()
    (other * weights).sum().backward()
    assert images.grad is not None
    assert images_of_theirs.grad is not None
    _require_near(images.grad, images_of_theirs.grad, "images")
    gradients = {key: p.grad for key, p in theirs.named_parameters() if p.grad is not None}
    compared = 0
    for key, parameter in segmenter.encoder.named_parameters():
        assert parameter.grad is not None, key
        published = _converted("image_encoder." + segmenter.encoder.published(key))
        _require_near(parameter.grad, gradients[published], key)
        compared += 1
    for key in ("obj_score_token.weight", "conv_s0.weight", "conv_s1.bias", "transformer.layers.1.mlp.lin1.weight"):
        named = key.replace("lin1", "proj_in")
        _require_near(segmenter.mask_decoder.get_parameter(key).grad, gradients[f"mask_decoder.{named}"], key)
    assert compared == len([key for key in gradients if key.startswith("vision_encoder.")])


@pytest.mark.parametrize("kind", ["boxes", "points"])
def test_masks_of_a_prompt_are_those_of_transformers(kind: str) -> None:
    segmenter, theirs = _built("tiny_sam2", image_size=64)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    boxes = torch.tensor([[3.0, 5.0, 40.0, 60.0], [20.0, 1.0, 33.0, 9.0]])
    points = boxes.view(2, 2, 2)
    given: Any = {"boxes": boxes} if kind == "boxes" else {"points": points}
    labels = None if kind == "boxes" else torch.ones(2, 1, 2, dtype=torch.int32)
    with torch.no_grad():
        sparse, _ = theirs.prompt_encoder(
            input_boxes=boxes[:, None] if kind == "boxes" else None,
            input_points=points[:, None] if kind == "points" else None,
            input_labels=labels,
            input_masks=None,
        )
        masks = segmenter(images, Prompts(image=torch.arange(2), **given)).masks
        _require_near(masks, _masks(theirs, images, sparse), kind)


def require_equal_at_the_images_size(name: str, theirs: Any, processor: Any, *, file: Path, kind: str) -> None:
    """Probabilities of ``predict`` without a run, and those that transformers' model and processor give for the same photo and prompt."""
    pixels = np.random.default_rng(0).integers(0, 256, (100, 160, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(photo := file.with_name("photo.png"))
    box = [10.0, 20.0, 60.0, 85.0] if kind != "points" else None
    points = [[30.0, 40.0, 1], [50.0, 60.0, 0]] if kind != "box" else []
    given: Any = {"input_boxes": [[box]]} if box else {}
    given |= {"input_points": [[[p[:2] for p in points]]], "input_labels": [[[p[2] for p in points]]]} if points else {}
    inputs = processor(images=Image.fromarray(pixels), **given, return_tensors="pt")
    sizes = inputs.pop("original_sizes")
    with torch.no_grad():
        masks = theirs(**inputs, multimask_output=False).pred_masks
    (expected,) = processor.post_process_masks(masks, sizes, binarize=False)
    assert expected.abs().max() < 5, "where probabilities do not hide what logits differ by"
    words = ["--checkpoint", str(file), "--images", str(photo), "--out", str(file.with_name("out")), "--probabilities"]
    words += ["--box", ",".join(map(str, box))] if box else []
    words += [word for p in points for word in ("--point", ",".join(map(str, p)))]
    assert predict.main(["--backbone", name, *words]) == 0
    found = torch.from_numpy(np.load(file.with_name("out") / "probabilities" / "photo.npy")).logit()
    torch.testing.assert_close(found, expected[0, 0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["box", "points", "both"])
def test_predict_without_a_run_gives_what_transformers_gives_at_the_images_size(kind: str, tmp_path: Path) -> None:
    state = sam_state_dict(build_segmenter("tiny_sam2", task="binary", head_seed=3))
    torch.save({"model": state}, file := tmp_path / "sam2.pt")
    images = transformers.Sam2ImageProcessor(size={"height": 128, "width": 128})
    processor = transformers.Sam2Processor(images, target_size=128)
    theirs = _oracle("tiny_sam2", state, image_size=128)
    require_equal_at_the_images_size("tiny_sam2", theirs, processor, file=file, kind=kind)


def test_attention_without_the_fused_kernel_is_the_same() -> None:
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fused, built = (
        build_segmenter("tiny_sam2", task="binary", image_size=64, fused_attention=fused).double().encode(images)
        for fused in (True, False)
    )
    torch.testing.assert_close(built, fused, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("size", SIZES)
def test_closed_forms_and_names_are_those_of_the_published_sizes(size: str) -> None:
    """timm has the trunk under Meta's names but for the MLP's; its classifier is its own."""
    name = f"sam2_hiera_{size}"
    with torch.device("meta"):
        segmenter: Any = build_segmenter(name, task="binary")
        trunk = timm.create_model(name, num_classes=0)
    assert sum(p.numel() for p in segmenter.encoder.parameters()) == encoder_parameters(name)
    assert sum(p.numel() for _, p in segmenter.decoder_parameters()) == decoder_parameters(name, task="binary")
    assert decoder_parameters(name, task="binary") == 3_505_536 + 256 + (256 * 96 + 96)
    assert sum(p.numel() for p in segmenter.parameters()) == total_parameters(name, task="binary")
    expected = {
        "trunk." + key.replace("mlp.fc1", "mlp.layers.0").replace("mlp.fc2", "mlp.layers.1"): tensor.shape
        for key, tensor in trunk.state_dict().items()
        if not key.startswith("head.")
    }
    ours = {segmenter.encoder.published(key): tensor.shape for key, tensor in segmenter.encoder.state_dict().items()}
    assert {key: shape for key, shape in ours.items() if key.startswith("trunk.")} == expected


@pytest.mark.parametrize("fused", [True, False])
def test_further_tokens_are_attended_to_in_every_window_and_give_no_output(fused: bool) -> None:
    attention = PoolingAttention(backbone("tiny_sam2").shape.blocks[0], fused=fused).double()
    windows, further = (torch.randn(*size, attention.qkv.in_features).double() for size in ((3, 4, 4), (1, 2)))
    tokens = torch.cat([windows.flatten(1, 2), further.expand(3, -1, -1)], dim=1)
    q, k, v = (attention._heads(part) for part in attention.qkv(tokens).chunk(3, dim=-1))
    weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1)
    expected = attention.proj((weights @ v).transpose(1, 2).flatten(2))[:, :16].unflatten(1, (4, 4))
    torch.testing.assert_close(attention(windows, further), expected)


def test_blocks_say_what_they_see() -> None:
    blocks = [(b.entering, b.dim, b.heads, b.window, b.pool, b.scale) for b in backbone("sam2_hiera_tiny").shape.blocks]
    assert blocks[:5] == [
        (96, 96, 1, 8, 1, 8), (96, 192, 2, 8, 2, 4), (192, 192, 2, 4, 1, 4), (192, 384, 4, 4, 2, 2), (384, 384, 4, 14, 1, 2)
    ]  # fmt: skip
    assert blocks[10:] == [(384, 768, 8, 14, 2, 1), (768, 768, 8, 7, 1, 1)]
    assert backbone("sam2_hiera_tiny").shape.global_blocks == (5, 7, 9)


def test_a_published_file_loads_without_its_memory_and_an_export_gives_the_rest_back(tmp_path: Path) -> None:
    state = sam_state_dict(build_segmenter("tiny_sam2", task="binary", head_seed=5))
    assert {key.partition(".")[0] for key in state} == {
        "image_encoder", "sam_prompt_encoder", "sam_mask_decoder", "no_mem_embed"
    }  # fmt: skip
    path = tmp_path / "sam2.1_hiera_toy.pt"
    torch.save({"model": state | {key: torch.zeros(2, 3) for key in MEMORY}}, path)
    require_checkpoint("tiny_sam2", path)
    exported = sam_state_dict(build_segmenter("tiny_sam2", task="binary", checkpoint=path))
    assert exported.keys() == state.keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in exported.items())


def test_a_merged_model_saves_under_metas_names_and_gives_the_same_masks(tmp_path: Path) -> None:
    segmenter = build_segmenter("tiny_sam2", task="binary", image_size=64)
    method = LoRA(LoRAConfig(sites="q,v,proj,mlp"))
    method.attach(segmenter)
    for adapter in method.adapters().values():
        nn.init.normal_(adapter.up, std=0.1, generator=torch.Generator().manual_seed(0))
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        trained = segmenter.eval()(images).masks
        method.merge("exact")
        torch.save({"model": sam_state_dict(segmenter)}, tmp_path / "merged.pt")
        reloaded = build_segmenter("tiny_sam2", task="binary", checkpoint=tmp_path / "merged.pt", image_size=64)
        torch.testing.assert_close(reloaded.eval()(images).masks, trained, atol=1e-5, rtol=1e-5)


def test_maps_are_packed_without_loss_and_sides_may_differ() -> None:
    maps = [torch.randn(2, 3, 2 * side, 5 * side) for side in (1, 2, 4)]
    assert all(map(torch.equal, unpacked(packed(maps)), maps))
    assert build_segmenter("tiny_sam2", task="binary")(torch.randn(1, 3, 96, 160)).masks.shape == (1, 1, 24, 40)
    with pytest.raises(UsageError, match="not a multiple of the 32 px patch"):
        build_segmenter("sam2_hiera_tiny", task="binary", image_size=1008)
