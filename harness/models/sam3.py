"""The image path of SAM 3 (2511.16719) as its tracker has it: transformers' trunk and neck, and SAM 2's mask decoder.

The trunk's modules are transformers' own and compute as they do. What methods need is added: q, k and v as one linear layer, tokens as
maps, a block in two halves, and further tokens to attend to. Left out are SAM 3's detector, its text encoder, its memory, and the fourth
map of its neck, which its tracker does not read. As in Meta's image predictor the embedding that stands for "no memory" is added to the
image's (`Sam3TrackerModel` of transformers adds it to that fourth map where ``scale_factors`` names four), and without a prompt there are
no prompt tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import Sam3VisionConfig, Sam3ViTConfig
from transformers.models.sam3.modeling_sam3 import (
    Sam3VisionNeck,
    Sam3ViTEmbeddings,
    Sam3ViTLayer,
    Sam3ViTModel,
    Sam3ViTPatchEmbeddings,
    Sam3ViTRoPEAttention,
    apply_rotary_pos_emb_2d,
    window_partition,
    window_unpartition,
)

from harness.methods.parts.placement import BackboneShape
from harness.models.attention import full_attention
from harness.models.published import hf_name
from harness.models.sam2 import packed
from harness.models.sam_encoder import BlockEncoder
from harness.system.errors import UsageError
from harness.system.streams import say

SCALES = [4.0, 2.0, 1.0]
"""Resolutions of the neck's maps that the tracker reads, relative to the trunk's last map."""


class Third(nn.Module):
    """Selects q, k or v, (…, C), from all three side by side, (…, 3 C). It takes the place of transformers' linear layer for that one.

    Args:
        index: 0, 1 or 2.
    """

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index

    def forward(self, fused: Tensor) -> Tensor:
        part = fused.chunk(3, dim=-1)[self.index]
        # q and k are copied when they are rotated; v as a view would keep all three for the backward pass.
        return part.contiguous() if self.index == 2 else part


class FusedAttention(Sam3ViTRoPEAttention):
    """transformers' attention with rotary positions, its q, k and v computed by one linear layer ``qkv`` and its output by ``o_proj``."""

    qkv: nn.Linear

    def fuse(self, *, fused: bool) -> None:
        """Put ``qkv`` in place of the three layers; ``fused``: see `SAM3Encoder`."""
        layers = self.q_proj, self.k_proj, self.v_proj
        self.qkv = nn.utils.skip_init(nn.Linear, self.hidden_size, 3 * self.hidden_size)
        self.qkv.weight = nn.Parameter(torch.cat([layer.weight.detach() for layer in layers]))
        self.qkv.bias = nn.Parameter(torch.cat([layer.bias.detach() for layer in layers]))
        for index, part in enumerate("qkv"):
            self.register_module(f"{part}_proj", Third(index))
        self.config._attn_implementation = "sdpa" if fused else "eager"

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        prefix: Tensor | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend within each map.

        Args:
            hidden_states: (B', h, w, C), one window or one whole image per entry, already normalised.
            position_embeddings: cosines and sines, (h·w, C / heads) each.
            prefix: (B' or 1, n, C) further tokens, already normalised and without a position, that are attended to and have no output.

        Returns:
            (B', h, w, C), and what else transformers' attention returns.
        """
        fused = self.qkv(hidden_states)
        if prefix is None:
            attended: Any = super().forward(fused, position_embeddings, **options)
            return attended
        q, k, v = (self._heads(part) for part in fused.flatten(1, 2).chunk(3, dim=-1))
        q, k = apply_rotary_pos_emb_2d(q, k, *position_embeddings)
        _, further_k, further_v = (self._heads(part) for part in self.qkv(prefix).chunk(3, dim=-1))
        k = torch.cat([k, further_k.expand(len(q), -1, -1, -1)], dim=2)
        v = torch.cat([v, further_v.expand(len(q), -1, -1, -1)], dim=2)
        kernel = self.config._attn_implementation == "sdpa"
        out = scaled_dot_product_attention(q, k, v) if kernel else full_attention(q, k, v, scale=self.scaling)
        return self.o_proj(out.transpose(1, 2).reshape(hidden_states.shape)), None

    def _heads(self, tokens: Tensor) -> Tensor:
        """(B', N, C) to (B', heads, N, C/heads)."""
        return tokens.unflatten(-1, (self.num_attention_heads, -1)).transpose(1, 2)


class HalvedBlock(Sam3ViTLayer):
    """transformers' block with its own ``forward``, and its two halves for methods that act between them."""

    def attention_half(self, x: Tensor) -> Tensor:
        """x + attention(norm(x)) for a map (B, h, w, C), in windows where the block has them."""
        tokens, size = self.layer_norm1(x), x.shape[1:3]
        if self.window_size:
            tokens, padded = window_partition(tokens, self.window_size)
        # Before transformers 5.20 its rotary module held the positions itself.
        known = (tokens, self.position_ids) if hasattr(self, "position_ids") else ()
        tokens, _ = self.attention(tokens, self.rotary_emb(*known))
        if self.window_size:
            tokens = window_unpartition(tokens, self.window_size, padded, size)
        return x + tokens

    def mlp_half(self, x: Tensor) -> Tensor:
        """x + MLP(norm(x))."""
        return x + self.dropout(self.mlp(self.layer_norm2(x)))


class PatchMap(Sam3ViTPatchEmbeddings):
    """transformers' patch projection, from images (B, 3, H, W) to a map (B, h, w, C) instead of a sequence."""

    def forward(self, pixel_values: Tensor) -> Tensor:
        height, width = (side // self.patch_size[0] for side in pixel_values.shape[-2:])
        return super().forward(pixel_values).unflatten(1, (height, width))


class SAM3Encoder(BlockEncoder):
    """Images (B, 3, S, S) to `packed` maps (B, 21 · neck_dim, S/p, S/p), where S is the shape's ``image_size``.

    Args:
        shape: the encoder's numbers.
        fused: scaled_dot_product_attention; False builds the score matrix.
        activation_checkpointing: see `BlockEncoder`.
    """

    def __init__(self, shape: BackboneShape, *, fused: bool, activation_checkpointing: bool) -> None:
        super().__init__(shape, activation_checkpointing=activation_checkpointing)
        config = vision_config(shape)
        vit: Any = Sam3ViTModel(_trunk(config))
        self.patch_embed = vit.embeddings.patch_embeddings
        self.patch_embed.__class__ = PatchMap
        self.pos_embed = vit.embeddings.position_embeddings
        self.layer_norm = vit.layer_norm
        self.blocks = vit.layers
        self.neck = Sam3VisionNeck(config)
        for block in vit.layers:
            block.__class__, block.attention.__class__ = HalvedBlock, FusedAttention
            block.attention.fuse(fused=fused)
        self.register_load_state_dict_post_hook(_restore_positions)

    def embed(self, images: Tensor) -> Tensor:
        """Patches with absolute positions (repeated over the image), then normalised, (B, h, w, C); writes the grid."""
        self._write_grid(images)
        size = self.grid.height, self.grid.width
        tiled: Any = Sam3ViTEmbeddings._tile_position_embeddings
        return self.layer_norm(self.patch_embed(images) + tiled(None, self.pos_embed, *size).unflatten(1, size))

    def finish(self, tokens: Tensor) -> Tensor:
        """The neck: (B, h, w, C) to `packed` maps."""
        last = tokens.permute(0, 3, 1, 2)
        levels: Any = self.neck.fpn_layers
        return packed([level(last) for level in reversed(levels)])

    def from_published(self, state: dict[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
        given = dict(state)
        for name in (left_out := list(filter(_is_left_out, given))):
            del given[name]
        if left_out:
            say(f"SAM 3: {len(left_out)} tensors of its detector, its text encoder and its memory are left out")
        of_image, of_prompts = given.pop(_IMAGE_POSITIONS, None), given.get(_POSITIONS)
        if (
            of_image is not None
            and of_prompts is not None
            and not (of_image.is_meta or torch.equal(of_image, of_prompts))
        ):
            raise UsageError(
                f"{_IMAGE_POSITIONS} and {_POSITIONS} differ in this checkpoint, but SAM 3 has one for both"
            )
        if (points := given.pop(_POINTS, None)) is not None:
            given |= {_POINTS.replace("weight", f"{row}.weight"): points[row : row + 1] for row in range(len(points))}
        for name in names:
            parts = _published(name)
            if all(part in given for part in parts):
                given[name] = torch.cat([given.pop(part) for part in parts])
        return given

    def to_published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        named: dict[str, Tensor] = {}
        for name, tensor in state.items():
            parts = _published(name)
            named |= zip(parts, tensor.chunk(len(parts)), strict=True)
        rows = [_POINTS.replace("weight", f"{row}.weight") for row in range(_KINDS_OF_POINTS)]
        return named | {_POINTS: torch.cat([named.pop(row) for row in rows]), _IMAGE_POSITIONS: named[_POSITIONS]}


def vision_config(shape: BackboneShape) -> Sam3VisionConfig:
    """transformers' configuration of the trunk and the neck with the numbers of ``shape``."""
    block, side = shape.blocks[0], shape.image_size // shape.patch
    vit = Sam3ViTConfig(
        hidden_size=shape.dim,
        intermediate_size=block.mlp_dim,
        num_hidden_layers=shape.depth,
        num_attention_heads=block.heads,
        image_size=shape.image_size,
        patch_size=shape.patch,
        window_size=max(block.window for block in shape.blocks),
        global_attn_indexes=list(shape.global_blocks),
        pretrain_image_size=isqrt(shape.learnt_positions or side**2) * shape.patch,
    )
    sizes = [[int(scale) * side] * 2 for scale in SCALES]
    return Sam3VisionConfig(
        backbone_config=vit, fpn_hidden_size=shape.neck_dim, scale_factors=SCALES, backbone_feature_sizes=sizes
    )


def _trunk(config: Sam3VisionConfig) -> Sam3ViTConfig:
    assert isinstance(config.backbone_config, Sam3ViTConfig)
    return config.backbone_config


def _restore_positions(encoder: Any, _: object) -> None:
    """Rotations are in no checkpoint: compute them for a model that was built on the meta device and then filled from one."""
    if not any(buffer.is_meta for buffer in encoder.buffers()):
        return
    shape, config = encoder.shape, _trunk(vision_config(encoder.shape))
    # They depend only on the width of a head, so blocks with a single head have the same ones.
    config.hidden_size, config.num_attention_heads = shape.dim // shape.blocks[0].heads, 1
    made = {window: Sam3ViTLayer(config, window) for window in {block.window_size for block in encoder.blocks}}
    for block in encoder.blocks:
        for name, buffer in made[block.window_size].named_buffers():
            owner, _, leaf = name.rpartition(".")
            setattr(block.get_submodule(owner), leaf, buffer)


_TRUNK, _NECK, _TRACKER = "detector_model.vision_encoder.backbone.", "tracker_neck.", "tracker_model."
"""Prefixes of the names in the Hub's ``facebook/sam3``: its tracker and its detector share one trunk and have a neck each."""
_IN_FILE = (("vision_encoder.backbone.", _TRUNK), ("vision_encoder.neck.", _NECK))
_POSITIONS = f"{_TRACKER}prompt_encoder.shared_embedding.positional_embedding"
_IMAGE_POSITIONS = f"{_TRACKER}shared_image_embedding.positional_embedding"
_POINTS = f"{_TRACKER}prompt_encoder.point_embed.weight"
_KINDS_OF_POINTS = 4
_MEMORY = (
    *("memory_", "mask_downsample", "object_pointer_proj", "temporal_positional_encoding_projection_layer"),
    *("no_memory_positional_encoding", "no_object_pointer", "occlusion_spatial_embedding_parameter"),
)
_RENAMED = (
    ("image_encoder.neck.", _NECK),
    ("image_encoder.blocks.", f"{_TRUNK}layers."),
    ("image_encoder.patch_embed.", f"{_TRUNK}embeddings.patch_embeddings."),
    ("image_encoder.pos_embed", f"{_TRUNK}embeddings.position_embeddings"),
    ("image_encoder.", _TRUNK),
)


def tracker_names(name: str) -> list[str]:
    """The names that ``image_encoder.…``, ``prompt_encoder.…`` or ``mask_decoder.…`` has in `Sam3TrackerModel` itself: one, or those of q,
    k and v. Layers are named as their tensors are."""
    names = _published(name)
    for own, published in (*_IN_FILE, ("", _TRACKER)):
        names = [own + each.removeprefix(published) if each.startswith(published) else each for each in names]
    return names


def _is_left_out(name: str) -> bool:
    """Whether the tracker's masks for an image do not depend on a tensor of the Hub's file."""
    if name.startswith("detector_model."):
        return not name.startswith(_TRUNK)
    return name.startswith((f"{_NECK}fpn_layers.{len(SCALES)}.", *(_TRACKER + part for part in _MEMORY)))


def _published(name: str) -> list[str]:
    """The names that ``image_encoder.…``, ``prompt_encoder.…`` or ``mask_decoder.…`` has in the Hub's file: one, or those of q, k and v."""
    for own, published in _RENAMED:
        if name.startswith(own):
            whole = published + name.removeprefix(own)
            return [whole.replace(".qkv", f".{part}_proj") for part in "qkv"] if ".qkv" in whole else [whole]
    if name == "mask_decoder.no_mem_embed":
        return [f"{_TRACKER}no_memory_embedding"]
    named = hf_name(name).replace(".out_proj.", ".o_proj.")
    return [_TRACKER + named.replace(".mlp.lin1.", ".mlp.proj_in.").replace(".mlp.lin2.", ".mlp.proj_out.")]
