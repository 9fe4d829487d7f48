"""SAM's mask decoder for a batch of images at once, with or without prompts.

All four of SAM's mask tokens go through the two-way transformer as in segment_anything, because they attend to each
other; only token 0, the one behind ``multimask_output=False``, gives masks here. Tokens 1-3, their hypernetwork MLPs
and the IoU head are kept frozen, so that a trained segmenter still saves as a plain SAM checkpoint. Conv-LoRA's release
deletes tokens 1-3 (quirk 14, ``spare_tokens=False``), which changes what token 0 attends to, and so every logit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from segment_anything.modeling import TwoWayTransformer
from segment_anything.modeling.mask_decoder import MLP, MaskDecoder
from torch import Tensor, nn

from harness.models.decoders import SPARE_TOKENS, DecoderShape


def plain_mask_decoder(shape: DecoderShape) -> MaskDecoder:
    """segment_anything's mask decoder with the numbers of ``shape``."""
    return MaskDecoder(**decoder_parts(shape))


def decoder_parts(shape: DecoderShape) -> dict[str, Any]:
    """The arguments of segment_anything's mask decoder with the numbers of ``shape``."""
    transformer = TwoWayTransformer(
        depth=shape.depth, embedding_dim=shape.dim, mlp_dim=shape.mlp_dim, num_heads=shape.heads
    )
    return {
        "num_multimask_outputs": SPARE_TOKENS,
        "transformer": transformer,
        "transformer_dim": shape.dim,
        "iou_head_depth": 3,
        "iou_head_hidden_dim": shape.dim,
    }


class BatchedMaskDecoder(nn.Module):
    """Embeddings (B, D, h, w) to mask logits (B, K, 4h, 4w) and mask tokens (B, K, D).

    Args:
        plain: the decoder to take over, with its weights.
        mask_tokens: K; further tokens start as copies of token 0 and share its hypernetwork MLP.
        spare_tokens: whether tokens 1-3 take part; they are kept in either case.
    """

    frozen_parts: ClassVar[tuple[str, ...]] = ("spare_tokens", "spare_hypernetworks", "iou_prediction_head")
    """Prefixes of the names of parts that no method trains."""
    ends_boxes: ClassVar[bool] = False
    """Whether the tokens of a box end with that of "no point", as those of points do (SAM 2)."""

    def __init__(self, plain: MaskDecoder, *, mask_tokens: int, spare_tokens: bool = True) -> None:
        super().__init__()
        self.attends_to_spare_tokens = spare_tokens
        self.transformer = plain.transformer
        self.iou_token = plain.iou_token
        table = plain.mask_tokens.weight
        self.mask_tokens = nn.Parameter(table[:1].detach().repeat(mask_tokens, 1))
        self.spare_tokens = nn.Parameter(table[1:].detach().clone())
        self.output_upscaling = plain.output_upscaling
        first, *spare = plain.output_hypernetworks_mlps
        self.hypernetwork: MLP = first
        self.spare_hypernetworks = nn.ModuleList(spare)
        self.iou_prediction_head = plain.iou_prediction_head

    def forward(
        self, embedding: Tensor, *, positions: Tensor, dense_prompt: Tensor, sparse_prompt: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Decode a batch.

        Args:
            embedding: (B, D, h, w).
            positions: (1, D, h, w), the dense positional encoding.
            dense_prompt: (1, D, 1, 1), SAM's "no mask" embedding.
            sparse_prompt: (B, n, D), tokens of a box or of points; None without a prompt.
        """
        embedding, *finer = self.maps(embedding)
        batch, _, height, width = embedding.shape
        spare = [self.spare_tokens] if self.attends_to_spare_tokens else []
        leading = self.leading_tokens()
        tokens = torch.cat([*leading, self.mask_tokens, *spare]).expand(batch, -1, -1)
        if sparse_prompt is not None:
            tokens = torch.cat([tokens, sparse_prompt], dim=1)
        attended, image = self.transformer(embedding + dense_prompt, positions.expand(batch, -1, -1, -1), tokens)
        masks = attended[:, len(leading) : len(leading) + len(self.mask_tokens)]
        upscaled = self.upscaled(image.transpose(1, 2).reshape(batch, -1, height, width), finer)
        return torch.einsum("bkc,bchw->bkhw", self.hypernetwork(masks), upscaled), masks

    def maps(self, embedding: Tensor) -> list[Tensor]:
        """The map (B, D, h, w) of the encoder that tokens attend to, and finer ones for `upscaled`, if any."""
        return [embedding]

    def leading_tokens(self) -> list[Tensor]:
        """The tokens in front of the mask tokens, (1, D) each."""
        return [self.iou_token.weight]

    def upscaled(self, image: Tensor, finer: Sequence[Tensor]) -> Tensor:
        """The attended map (B, D, h, w) at four times its resolution, (B, D / 8, 4h, 4w)."""
        return self.output_upscaling(image)

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that training without prompts changes."""
        return ((name, p) for name, p in self.named_parameters() if name.partition(".")[0] not in self.frozen_parts)

    def used_linears(self) -> list[str]:
        """Names of the linear layers before the masks: two-way transformer and hypernetwork MLP of token 0."""
        linears = (name for name, module in self.named_modules() if isinstance(module, nn.Linear))
        return [name for name in linears if name.partition(".")[0] not in self.frozen_parts]

    def plain_state(self) -> dict[str, Tensor]:
        """The tensors under segment_anything's names; needs K = 1."""
        mlps = {f"spare_hypernetworks.{index}.": index + 1 for index in range(SPARE_TOKENS)} | {"hypernetwork.": 0}
        state = {"mask_tokens.weight": torch.cat([self.mask_tokens, self.spare_tokens]).detach()}
        for name, tensor in self.state_dict().items():
            old = next(filter(name.startswith, mlps), "")
            plain = f"output_hypernetworks_mlps.{mlps[old]}.{name.removeprefix(old)}" if old else name
            if name not in ("mask_tokens", "spare_tokens"):
                state[plain] = tensor
        return state
