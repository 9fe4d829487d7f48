"""The segmenter: backbone, decoder and head; image in, logits out, prompts only where they are given."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from segment_anything.modeling import PromptEncoder
from torch import Tensor, nn
from torch.nn.functional import interpolate

from harness.models.device import to_device
from harness.models.mask_decoder import BatchedMaskDecoder


class SegmenterOutput(NamedTuple):
    """The decoder's prediction, before any resizing.

    Args:
        masks: logits, never in half precision. SAM's decoder: (B, K, h, w) of masks at four times the encoder's grid (a quarter of the
            input for 16-pixel patches). Segmenter's: (B, 1, h, w) of the foreground or (B, C, h, w) of the classes, at
            the encoder's grid. A classifier's: (B, C, 1, 1).
        classes: (B, K, C + 1) class logits of each mask, the last one "nothing"; None for a binary task, and where
            ``masks`` are the classes' own.
        foreground: whether ``classes`` are the background, the foreground and "nothing" of a binary task.
        auxiliary: in training, the predictions of the layers before the last, for decoders that learn from all of them.
    """

    masks: Tensor
    classes: Tensor | None = None
    foreground: bool = False
    auxiliary: tuple[SegmenterOutput, ...] = ()


class Prompts(NamedTuple):
    """Prompts that point out the objects of a batch. An image may have several prompts, whose masks are merged, or none.

    Args:
        image: (P,) index in the batch of the image that each prompt is for, ascending, on the CPU.
        boxes: (P, 4) left, top, right, bottom in pixels of the network's input; None where only points are given.
        points: (P, k, 2) x and y of k points; None where only boxes are given.
        labels: (P, k) of the points, 1 on the object and 0 off it; None where all are on it and no box is given.
    """

    image: Tensor
    boxes: Tensor | None = None
    points: Tensor | None = None
    labels: Tensor | None = None


PROMPTS_AT_ONCE = 16
"""Prompts that are decoded together: each needs as much memory as an image."""


class Segmenter(nn.Module, ABC):
    """Images (B, 3, H, W), normalised, to `SegmenterOutput`. Satisfies `harness.methods.parts.sites.Adaptable`.

    Args:
        encoder: see `harness.methods.parts.sites.Encoder`.
    """

    encoder: Any  # see `harness.methods.parts.sites.Adaptable`

    def __init__(self, *, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to the image embedding (B, D, h, w), or to a timm ViT's features (B, C, h, w)."""
        return self.encoder(images)

    @abstractmethod
    def decode(self, embedding: Tensor) -> SegmenterOutput:
        """From what `encode` returns to logits; since `encode` is separate, embeddings of a frozen encoder can be cached."""

    @abstractmethod
    def decoder_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that every method trains besides its own: those of decoder, neck and head."""

    def prompted(self, embedding: Tensor, prompts: Prompts) -> SegmenterOutput:
        """`decode` with objects pointed out; only SAM's decoder can do it."""
        raise NotImplementedError(f"{type(self).__name__} takes no prompts")

    def forward(self, images: Tensor, prompts: Prompts | None = None) -> SegmenterOutput:
        embedding = self.encode(images)
        return self.decode(embedding) if prompts is None else self.prompted(embedding, prompts)


class SAMSegmenter(Segmenter):
    """A segmenter with SAM's mask decoder.

    Args:
        encoder: see `harness.methods.parts.sites.Encoder`.
        prompt_encoder: segment_anything's; gives the positional encoding and the "no mask" embedding, always frozen.
        mask_decoder: see `BatchedMaskDecoder`.
        neck: from the encoder's features to the embedding that the decoder reads; None for SAM, whose encoder holds
            its pretrained neck. A timm ViT was never trained with one, so here it belongs to what every method trains.
        head: class head (.., D) to (.., C + 1) for a multi-class task, None for a binary one.
    """

    def __init__(
        self,
        *,
        encoder: nn.Module,
        prompt_encoder: PromptEncoder,
        mask_decoder: BatchedMaskDecoder,
        neck: nn.Module | None = None,
        head: nn.Module | None,
    ) -> None:
        super().__init__(encoder=encoder)
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        self.neck = neck
        self.head = head

    def decode(self, embedding: Tensor) -> SegmenterOutput:
        if self.neck is not None:
            embedding = self.neck(embedding)
        masks, tokens = self._decoded([embedding])
        return SegmenterOutput(widened(masks), None if self.head is None else widened(self.head(tokens)))

    def prompted(self, embedding: Tensor, prompts: Prompts) -> SegmenterOutput:
        """`decode` with prompts: at each position the largest logit of an image's prompts, which is their merged mask. An image
        without a prompt is decoded as by `decode`."""
        if self.neck is not None:
            embedding = self.neck(embedding)
        owners = prompts.image.tolist()
        counts = [owners.count(index) for index in range(len(embedding))]
        bare = [index for index, count in enumerate(counts) if not count]
        order = to_device(torch.tensor([*owners, *bare]), embedding.device)
        owned, unprompted = embedding.index_select(0, order).split([len(owners), len(bare)])
        prompted: Iterator[Tensor] = iter(())
        alone: Iterator[Tensor] = iter(())
        if owners:
            sparse = self._sparse(prompts).split(PROMPTS_AT_ONCE)
            masks, _ = self._decoded(owned.split(PROMPTS_AT_ONCE), sparse)
            prompted = iter(masks.split([count for count in counts if count]))
        if bare:
            alone = iter(self._decoded(unprompted.split(PROMPTS_AT_ONCE))[0])
        by_image = [next(prompted).amax(dim=0) if count else next(alone) for count in counts]
        return SegmenterOutput(widened(torch.stack(by_image)), None)

    def _sparse(self, prompts: Prompts) -> Tensor:
        """(P, n, D): the tokens of every prompt."""
        encoder = self.prompt_encoder
        no_point = encoder.not_a_point_embed.weight.expand(len(prompts.image), 1, -1)
        if prompts.points is None or prompts.labels is not None:
            points = None if prompts.points is None else (prompts.points, prompts.labels)
            sparse, _ = encoder(points=points, boxes=prompts.boxes, masks=None)
            ends = prompts.boxes is not None and self.mask_decoder.ends_boxes
            return torch.cat([sparse, no_point.to(sparse.dtype)], dim=1) if ends else sparse
        # segment_anything assigns by label, for which the host waits and which cannot be traced. Here all points are on the object.
        encoded = encoder.pe_layer.forward_with_coords(prompts.points + 0.5, encoder.input_image_size)
        on_object = encoded + encoder.point_embeddings[1].weight
        return torch.cat([on_object, no_point.to(on_object.dtype)], dim=1)

    def _decoded(self, parts: Sequence[Tensor], sparse: Sequence[Tensor | None] = ()) -> tuple[Tensor, Tensor]:
        """Masks and their tokens of embeddings that are decoded part by part, each with its prompts where there are any."""
        positions = self.prompt_encoder.pe_layer(parts[0].shape[-2:]).unsqueeze(0)
        no_mask = self.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        decoded = [
            self.mask_decoder(part, positions=positions, dense_prompt=no_mask, sparse_prompt=prompt)
            for part, prompt in zip(parts, sparse or (None,) * len(parts), strict=True)
        ]
        masks, tokens = (torch.cat(tensors) if len(parts) > 1 else tensors[0] for tensors in zip(*decoded, strict=True))
        return masks, tokens

    def decoder_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Mask decoder, neck (timm) and head, without IoU head, spare mask tokens and spare hypernetwork MLPs."""
        for name, parameter in self.mask_decoder.trained_parameters():
            yield f"mask_decoder.{name}", parameter
        for prefix, module in (("neck", self.neck), ("head", self.head)):
            if module is not None:
                for name, parameter in module.named_parameters():
                    yield f"{prefix}.{name}", parameter

    def decoder_linears(self) -> Iterator[str]:
        """See `harness.methods.parts.sites.AdaptableDecoder`."""
        return (f"mask_decoder.{name}" for name in self.mask_decoder.used_linears())

    def new_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """See `harness.methods.parts.sites.AdaptableDecoder`."""
        several = len(self.mask_decoder.mask_tokens) > 1
        for name, parameter in self.decoder_parameters():
            if not name.startswith("mask_decoder.") or (several and name == "mask_decoder.mask_tokens"):
                yield name, parameter


class DenseSegmenter(Segmenter):
    """A segmenter with a decoder of `harness.models.dense_decoders`, which gives every position the logits of all classes.

    Args:
        encoder: see `harness.methods.parts.sites.Encoder`; its prefix tokens are gone and its final norm is applied.
        decoder: (B, d, h, w) to (B, C, h, w).
        binary: C is 2 (background, foreground), and the output is the foreground's logit less the background's. Its
            sigmoid is the softmax of the two. Resizing is linear, so it may come before or after.
    """

    def __init__(self, *, encoder: nn.Module, decoder: nn.Module, binary: bool) -> None:
        super().__init__(encoder=encoder)
        self.decoder = decoder
        self.binary = binary

    def decode(self, embedding: Tensor) -> SegmenterOutput:
        logits = widened(self.decoder(embedding))
        return SegmenterOutput(logits[:, 1:] - logits[:, :1] if self.binary else logits, None)

    def decoder_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((f"decoder.{name}", parameter) for name, parameter in self.decoder.named_parameters())


class QuerySegmenter(DenseSegmenter):
    """A segmenter with Mask2Former's decoder of `harness.models.dense_decoders`, whose queries each give a mask and a class.

    Args:
        encoder: see `harness.methods.parts.sites.Encoder`; its prefix tokens are gone and its final norm is applied.
        decoder: features to pairs of masks and classes, the last layer's first.
        binary: the classes are background and foreground.
    """

    def decode(self, embedding: Tensor) -> SegmenterOutput:
        (masks, classes), *before = self.decoder(embedding)
        auxiliary = tuple(SegmenterOutput(*layer) for layer in before)
        return SegmenterOutput(masks, classes, foreground=self.binary, auxiliary=auxiliary)


def upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, K, h, w) to (B, K, *size), bilinear without aligned corners, as in SAM and in Conv-LoRA's release (256 to 1024)."""
    return interpolate(logits, size=size, mode="bilinear", align_corners=False)


def probabilities(output: SegmenterOutput, size: tuple[int, int]) -> Tensor:
    """Probabilities at ``size``: (B, H, W) of the foreground, or (B, C, H, W) by class.

    Multi-class: sum over masks of softmax(class) without "nothing", times sigmoid(mask) (Mask2Former, 2112.01527), or
    the softmax over the classes' own maps. For background and foreground the former gives the foreground's share.
    """
    masks = upsample(output.masks, size)
    if output.classes is not None:
        scores = torch.einsum("bkc,bkhw->bchw", output.classes.softmax(dim=-1)[..., :-1], masks.sigmoid())
        return scores[:, 1] / scores.sum(dim=1).clamp(min=1e-12) if output.foreground else scores
    return masks[:, 0].sigmoid() if masks.shape[1] == 1 else masks.softmax(dim=1)


def count_parameters(segmenter: nn.Module) -> dict[str, int]:
    """Trained parameters by part, and all of the segmenter's (the method's own included)."""
    trained = {name: p.numel() for name, p in segmenter.named_parameters() if p.requires_grad}
    encoder = sum(count for name, count in trained.items() if name.startswith("encoder."))
    everything = sum(p.numel() for p in segmenter.parameters())
    return {
        "encoder": encoder,
        "decoder": sum(trained.values()) - encoder,
        "trainable": sum(trained.values()),
        "total": everything,
    }


def full_precision(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """A context without autocast; the meta device has none."""
    return contextlib.nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def widened(tensor: Tensor) -> Tensor:
    """The tensor in float32 if it is in half precision; float64, in which tests compare models, stays."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
