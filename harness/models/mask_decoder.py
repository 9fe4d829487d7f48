"""SAM's mask decoder for a batch of images at once, with or without prompts.

All four of SAM's mask tokens go through the two-way transformer as in segment_anything, because they attend to each
other; only token 0, the one behind ``multimask_output=False``, gives masks here. Tokens 1-3, their hypernetwork MLPs
and the IoU head are kept frozen, so that a trained segmenter still saves as a plain SAM checkpoint. Conv-LoRA's release
deletes tokens 1-3 (quirk 14, ``spare_tokens=False``), which changes what token 0 attends to, and so every logit.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from segment_anything.modeling import TwoWayTransformer
from segment_anything.modeling.mask_decoder import MLP, MaskDecoder
from torch import Tensor, nn

from harness.models.decoder_shape import SPARE_TOKENS, DecoderShape

_FROZEN = ("spare_tokens", "spare_hypernetworks", "iou_prediction_head")


def plain_mask_decoder(shape: DecoderShape) -> MaskDecoder:
    """segment_anything's mask decoder with the numbers of ``shape``."""
    transformer = TwoWayTransformer(
        depth=shape.depth, embedding_dim=shape.dim, mlp_dim=shape.mlp_dim, num_heads=shape.heads
    )
    return MaskDecoder(
        num_multimask_outputs=SPARE_TOKENS,
        transformer=transformer,
        transformer_dim=shape.dim,
        iou_head_depth=3,
        iou_head_hidden_dim=shape.dim,
    )


class BatchedMaskDecoder(nn.Module):
    """Embeddings (B, D, h, w) to mask logits (B, K, 4h, 4w) and mask tokens (B, K, D).

    Args:
        plain: the decoder to take over, with its weights.
        mask_tokens: K; further tokens start as copies of token 0, and share its hypernetwork MLP.
        spare_tokens: whether tokens 1-3 take part; they are kept in either case.
    """

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
        batch, dim, height, width = embedding.shape
        spare = [self.spare_tokens] if self.attends_to_spare_tokens else []
        tokens = torch.cat([self.iou_token.weight, self.mask_tokens, *spare]).expand(batch, -1, -1)
        if sparse_prompt is not None:
            tokens = torch.cat([tokens, sparse_prompt], dim=1)
        attended, image = self.transformer(embedding + dense_prompt, positions.expand(batch, -1, -1, -1), tokens)
        masks = attended[:, 1 : 1 + len(self.mask_tokens)]
        upscaled = self.output_upscaling(image.transpose(1, 2).reshape(batch, dim, height, width))
        logits = torch.einsum("bkc,bchw->bkhw", self.hypernetwork(masks), upscaled)
        return logits, masks

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What training a segmenter without prompts changes."""
        return ((name, p) for name, p in self.named_parameters() if name.partition(".")[0] not in _FROZEN)

    def used_linears(self) -> list[str]:
        """Names of the linear layers behind the masks: two-way transformer and hypernetwork MLP of token 0."""
        linears = (name for name, module in self.named_modules() if isinstance(module, nn.Linear))
        return [name for name in linears if name.partition(".")[0] not in _FROZEN]

    def plain_state(self) -> dict[str, Tensor]:
        """The tensors under segment_anything's names; needs K = 1."""
        renamed = {
            "mask_tokens": "",
            "spare_tokens": "",
            "hypernetwork": "output_hypernetworks_mlps.0",
            **{f"spare_hypernetworks.{i}": f"output_hypernetworks_mlps.{i + 1}" for i in range(SPARE_TOKENS)},
        }
        state = {"mask_tokens.weight": torch.cat([self.mask_tokens, self.spare_tokens]).detach()}
        for name, tensor in self.state_dict().items():
            old = next((prefix for prefix in renamed if name == prefix or name.startswith(prefix + ".")), "")
            if old in ("mask_tokens", "spare_tokens"):
                continue
            state[renamed[old] + name.removeprefix(old) if old else name] = tensor
        return state
