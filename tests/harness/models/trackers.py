"""SAM 2 and SAM 3 next to transformers' `Sam2Model` and `Sam3TrackerModel` with equal weights.

Weights reach `Sam2Model` under Meta's names through the rules of transformers' own conversion (``convert_sam2_to_hf.py``), and
`Sam3TrackerModel` as a file of the Hub's layout through its own ``from_pretrained``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from harness.methods.parts.placement import BackboneShape
from harness.models.build import build_segmenter
from harness.models.catalog import backbone, backbone_shape
from harness.models.original_sam import DECODER, ENCODER, published, sam_state_dict

transformers = pytest.importorskip("transformers", minversion="5.0")
sam3 = pytest.importorskip("harness.models.sam3")
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


def names_there(segmenter: Any, name: str) -> list[str]:
    """transformers' name of a tensor of the encoder (``image_encoder.…``) or of the mask decoder; of q, k and v three."""
    if segmenter.encoder.shape.upscaled:
        return sam3.tracker_names(name)
    part = ENCODER if name.startswith(ENCODER) else DECODER
    return [_converted(published(segmenter.encoder, part, name.removeprefix(part)))]


def oracle(name: str, state: dict[str, Tensor], folder: Path, *, size: int, scales: list[float] = sam3.SCALES) -> Any:
    """transformers' model with the numbers of the backbone and ``state``, of which nothing is missing or left; in training mode, so that
    token 0 gives the mask always.

    Args:
        folder: of the files through which weights reach SAM 3.
        size: of the images, pixels a side.
        scales: of SAM 3's neck.
    """
    shape, own = backbone_shape(name, size), backbone(name).decoder
    prompts = {"hidden_size": own.dim, "image_size": size, "patch_size": 16 if shape.pyramid else shape.patch}
    decoder = {
        "hidden_size": own.dim,
        "mlp_dim": own.mlp_dim,
        "num_attention_heads": own.heads,
        "iou_head_hidden_dim": own.dim,
    }
    if shape.pyramid:
        return _sam2(shape, state, {"prompt_encoder_config": prompts, "mask_decoder_config": decoder}).train()
    vision = sam3.vision_config(shape)
    vision.scale_factors = scales
    config = transformers.Sam3TrackerConfig(
        vision_config=vision.to_dict(), prompt_encoder_config=prompts, mask_decoder_config=decoder
    )
    config.save_pretrained(folder)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    model, info = transformers.Sam3TrackerModel.from_pretrained(folder, output_loading_info=True)
    missing = [key for key in info["missing_keys"] if ".fpn_layers.3." not in key]
    assert [*missing, *info["unexpected_keys"], *info["mismatched_keys"]] == []
    return model.train()


def _sam2(shape: BackboneShape, state: dict[str, Tensor], configs: dict[str, Any]) -> Any:
    ends = shape.stage_ends
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
        backbone_feature_sizes=[[shape.image_size // side] * 2 for side in (4, 8, 16)],
        fpn_hidden_size=shape.neck_dim,
    )
    with torch.device("meta"):
        model = transformers.Sam2Model(transformers.Sam2Config(vision_config=vision.to_dict(), **configs))
    named = {_converted(key): tensor for key, tensor in state.items()}
    points = [named.pop(f"prompt_encoder.point_embed.{number}.weight") for number in range(4)]
    named["prompt_encoder.point_embed.weight"] = torch.cat(points)
    named["shared_image_embedding.positional_embedding"] = named["prompt_encoder.shared_embedding.positional_embedding"]
    model.load_state_dict(named, strict=True, assign=True)
    return model


def _window(shape: BackboneShape, first: int, behind: int) -> int:
    """Of a stage: what the next one begins with, and of the last what its own further blocks have, if any."""
    return shape.blocks[behind].window if behind < shape.depth else max(b.window for b in shape.blocks[first:]) // 2


def built(
    name: str, folder: Path, *, dtype: torch.dtype = torch.float64, size: int = 64, fused: bool = True, **more: Any
) -> tuple[Any, Any]:
    """Ours and transformers', in ``dtype`` but for the positions of the decoder, which both make in float32."""
    segmenter: Any = build_segmenter(name, task="binary", image_size=size, head_seed=3, fused_attention=fused)
    theirs = oracle(name, sam_state_dict(segmenter), folder, size=size, **more).to(dtype)
    segmenter.to(dtype)
    for module in (
        segmenter.prompt_encoder.pe_layer,
        theirs.shared_image_embedding,
        theirs.prompt_encoder.shared_embedding,
    ):
        module.float()
    return segmenter.train(), theirs


def images_of(size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)).to(dtype)


def maps(theirs: Any, images: Tensor) -> list[Tensor]:
    """The embedding and the two finer maps, coarse to fine, without what the mask decoder does to them."""
    return list(reversed(theirs.vision_encoder(images, return_dict=True).fpn_hidden_states))


def embeddings(theirs: Any, images: Tensor) -> list[Tensor]:
    """As ``get_image_embeddings``, which leaves out gradients: the two finer maps, as the decoder adds them, and the image's."""
    last, middle, finest = maps(theirs, images)
    decoder = theirs.mask_decoder
    return [decoder.conv_s0(finest), decoder.conv_s1(middle), last + theirs.no_memory_embedding.view(1, -1, 1, 1)]


def masks(theirs: Any, given: list[Tensor], **prompt: Any) -> Tensor:
    """Of token 0; without a prompt of no tokens, as in Meta's image predictors (transformers' ``forward`` makes one of no points).

    Args:
        given: what `embeddings` gives.
        prompt: arguments of transformers' prompt encoder.
    """
    batch, dim = given[-1].shape[:2]
    arguments = ("input_points", "input_labels", "input_boxes", "input_masks")
    sparse, dense = theirs.prompt_encoder(**{argument: prompt.get(argument) for argument in arguments})
    return theirs.mask_decoder(
        image_embeddings=given[-1],
        image_positional_embeddings=theirs.get_image_wide_positional_embeddings().expand(batch, -1, -1, -1),
        sparse_prompt_embeddings=given[-1].new_empty(batch, 1, 0, dim) if sparse is None else sparse,
        dense_prompt_embeddings=dense,
        multimask_output=False,
        high_resolution_features=given[:-1],
    )[0][:, 0]


def require_near(actual: Tensor | None, expected: Tensor | None, what: str, *, sam_2: bool = False) -> None:
    """Within 1e-12 of the largest value in float64 and 1e-5 in float32; of SAM 2 within 1e-6, as transformers' pyramid passes float32."""
    assert actual is not None
    assert expected is not None
    largest = float(expected.detach().abs().max())
    exact = actual.dtype == torch.float64
    bound = 1e-6 * largest if sam_2 else (1e-12 if exact else 1e-5) * max(1.0, largest)
    torch.testing.assert_close(actual, expected, atol=bound, rtol=0, msg=lambda text: f"{what}: {text}")
