"""Losses on full-resolution masks: structure loss, class-balanced BCE, cross entropy, and the choice by the protocol.

Targets are (B, S, S) uint8 class indices; 255 is ignored: such pixels carry no weight in any term.

The multi-class loss: each image's class regions are matched to mask tokens, then classes, masks and dice are
scored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.datasets.base import IGNORE
from harness.models.decoders import LABELLING, Task
from harness.models.device import to_device, to_host
from harness.models.segmenter import SegmenterOutput, upsample
from harness.protocols.protocol import Protocol, Quirk
from harness.system.errors import UsageError

Loss = Callable[[SegmenterOutput, Tensor], Tensor]
"""Loss of a prediction and a target (B, S, S) uint8: a scalar with gradient, in fp32 whatever precision the prediction has."""


class Terms(NamedTuple):
    """Weights of the three terms: class cross entropy, mask cross entropy, dice."""

    classes: float
    mask: float
    dice: float


@dataclass(frozen=True, kw_only=True)
class Mask2FormerLoss:
    """``w_c · CE + w_m · BCE + w_d · dice`` after Hungarian matching (Mask2Former 2112.01527, after
    MaskFormer 2107.06278).

    A class that occurs in an image is one region (semantic segmentation). The regions of an image are matched one to
    one to its K mask tokens at the least cost. That is a sum of the same three terms with weights of its own, where the class
    term is −p(class). Unmatched tokens learn the class "no object".

    Deviations, both ours: every pixel of the matched masks counts, at the input's resolution, where the papers score 12,544 random
    points to save memory. And matching uses area-averaged regions at the decoder's own resolution. With fewer tokens than regions, only the
    regions that fit best are learnt.

    Args:
        num_classes: C, background included.
        weights: w_c, w_m, w_d (2, 5, 5 in Mask2Former; AutoGluon names 10, 5, 5 and trains with 1, 1, 1, because it
            sums what transformers' loss returns, which is not weighted yet).
        matching: the weights where regions are matched to tokens (2, 5, 5 in both).
        divide_by_all: divide mask and dice by the number of all regions, as transformers does, not of those matched;
            equal where there are enough tokens.
        no_object_weight: weight of "no object" in the cross entropy (0.1 in both papers).
    """

    num_classes: int
    weights: Terms
    matching: Terms
    divide_by_all: bool = False
    no_object_weight: float = 0.1

    def __call__(self, prediction: SegmenterOutput, target: Tensor) -> Tensor:
        """Args: ``prediction.classes`` (B, K, C + 1) logits, the last one "no object".

        Raises:
            ValueError: a mask holds a class that the head does not have.
        """
        assert prediction.classes is not None
        classes, device = prediction.classes.float(), prediction.classes.device
        present = self._present(target)
        valid = [image != IGNORE for image in target]
        region = [
            torch.stack([target[image] == label for label in labels] or [valid[image]]) & valid[image]
            for image, labels in enumerate(present)
        ]
        costs = [
            self._costs(prediction.masks[image], classes[image], region[image].float(), valid[image].float(), labels)
            for image, labels in enumerate(present)
        ]
        tokens_at, regions_at = zip(*_matched(costs), strict=True)
        labels_at = torch.full(classes.shape[:2], self.num_classes)
        for image, (tokens, regions) in enumerate(zip(tokens_at, regions_at, strict=True)):
            labels_at[image, tokens] = torch.tensor([present[image][at] for at in regions], dtype=torch.long)
        chosen = [region[image][at] for image, regions in enumerate(regions_at) for at in regions]
        # One transfer for all matches; from here on the host waits for nothing.
        moved = to_device(
            torch.cat([labels_at.flatten(), torch.tensor([at for each in tokens_at for at in each], dtype=torch.long)]),
            device,
        )
        labels_on, chosen_tokens = moved[: labels_at.numel()].view_as(labels_at), moved[labels_at.numel() :]
        weight = torch.ones(self.num_classes + 1, device=device)
        weight[-1:].fill_(self.no_object_weight)  # an assignment would copy the number from the host
        entropy = F.cross_entropy(classes.flatten(0, 1), labels_on.flatten(), weight=weight, reduction="sum")
        count = sum(map(len, present if self.divide_by_all else tokens_at))
        divisors = torch.stack([weight.gather(0, labels_on.flatten()).sum(), weight.new_full((), float(count))])
        loss = self.weights.classes * entropy / divisors[0].clamp(min=torch.finfo(torch.float32).tiny)
        if not chosen:
            return loss + 0 * prediction.masks.sum()
        tokens_of = chosen_tokens.split(list(map(len, tokens_at)))
        return loss + self._of_masks(prediction.masks, tokens_of, torch.stack(chosen).float(), valid) / divisors[1]

    def _of_masks(self, masks: Tensor, tokens: Sequence[Tensor], mask: Tensor, valid: Sequence[Tensor]) -> Tensor:
        """The terms of the masks, summed over the regions.

        Args:
            masks: (B, K, h, w) logits.
            tokens: the matched tokens of each image.
            mask: (M, S, S) in {0, 1}, the regions of all images in the order of their tokens.
            valid: (S, S) of each image.
        """
        counts = list(map(len, tokens))
        logits_of = [masks[image].index_select(0, at) for image, at in enumerate(tokens) if counts[image]]
        known = torch.cat([each.float().expand(number, -1, -1) for each, number in zip(valid, counts, strict=True)])
        size = (int(mask.shape[-2]), int(mask.shape[-1]))
        logits = upsample(torch.cat(logits_of)[:, None].float(), size)[:, 0]
        bce = F.binary_cross_entropy_with_logits(logits, mask, reduction="none")
        bce = (bce * known).sum((1, 2)) / known.sum((1, 2))
        probability = logits.sigmoid() * known
        dice = 1 - (2 * (probability * mask).sum((1, 2)) + 1) / (probability.sum((1, 2)) + mask.sum((1, 2)) + 1)
        return self.weights.mask * bce.sum() + self.weights.dice * dice.sum()

    def _present(self, target: Tensor) -> list[list[int]]:
        """The classes that each mask (S, S) of a batch holds, ascending. Raises ValueError: the head lacks one of them."""
        seen = torch.zeros(len(target), 256, dtype=torch.bool, device=target.device)
        seen.scatter_(1, target.flatten(1).long(), value=True)
        present = [[label for label in range(IGNORE) if row[label]] for row in to_host(seen)().tolist()]
        if (top := max((labels[-1] for labels in present if labels), default=0)) >= self.num_classes:
            raise ValueError(f"a mask holds class {top}, but there are {self.num_classes} classes")
        return present

    @torch.no_grad()
    def _costs(self, masks: Tensor, classes: Tensor, region: Tensor, valid: Tensor, present: list[int]) -> Tensor:
        """The cost of each pair of a token and a region, (K, M).

        Args:
            masks: (K, h, w) logits.
            classes: (K, C + 1) logits.
            region: (M, S, S) in {0, 1}.
            valid: (S, S) in {0, 1}.
            present: M classes of the regions; M may be 0.
        """
        if not present:
            return masks.new_zeros(len(masks), 0, dtype=torch.float32)
        size = (int(masks.shape[-2]), int(masks.shape[-1]))
        inside = F.adaptive_avg_pool2d(region, size).flatten(1)
        weight = F.adaptive_avg_pool2d(valid[None], size).flatten(1)
        logits = masks.float().flatten(1)
        positive, negative = F.softplus(-logits), F.softplus(logits)
        bce = (positive @ inside.T + negative @ (weight - inside).T) / weight.sum()
        probability = logits.sigmoid() * weight
        dice = 1 - (2 * probability @ inside.T + 1) / (probability.sum(1)[:, None] + inside.sum(1) + 1)
        shares, by = classes.softmax(-1), self.matching
        of_class = torch.stack([shares[:, label] for label in present], dim=1)
        cost = by.mask * bce + by.dice * dice - by.classes * of_class
        # A prediction that is not finite fails later with its own error; the assignment only has to survive it.
        return cost.nan_to_num()


def _matched(costs: list[Tensor]) -> list[tuple[list[int], list[int]]]:
    """Token and region indices of the cheapest one-to-one assignment of every image, read from the device at once."""
    from scipy.optimize import linear_sum_assignment  # needed for several classes only

    flat = to_host(torch.cat([cost.flatten() for cost in costs]))().numpy()
    matched, start = [], 0
    for cost in costs:
        rows, columns = linear_sum_assignment(flat[start : start + cost.numel()].reshape(cost.shape))
        matched.append((rows.tolist(), columns.tolist()))
        start += cost.numel()
    return matched


def boundary_weight(mask: Tensor, *, side: int = 31, strength: float = 5.0) -> Tensor:
    """1 + 5·|mean of the mask around a pixel − mask|: large at boundaries (the pixel position aware loss of
    F3Net, 1911.11445, with a square of 31 pixels as there and in PraNet).

    Args:
        mask: (B, S, S) in [0, 1]. The square is zero-padded, as in both papers' average pooling.

    The square is averaged along rows, then columns: equal to one two-dimensional pooling and 15 times less work.
    """
    mean = _averaged(_averaged(mask.mT, side).mT, side)
    return 1 + strength * (mean - mask).abs()


def _averaged(mask: Tensor, side: int) -> Tensor:
    """(B, S, S) averaged along its columns. Its rows are pixels with S channels, which are contiguous: CPUs add many at once."""
    rows = mask.contiguous().unsqueeze(2).permute(0, 3, 1, 2)
    return F.avg_pool2d(rows, (side, 1), stride=1, padding=(side // 2, 0)).permute(0, 2, 3, 1).squeeze(2)


def _binary(prediction: SegmenterOutput, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, foreground in {0, 1} and validity in {0, 1}, each (B, S, S) fp32."""
    size = (int(target.shape[-2]), int(target.shape[-1]))
    logits = upsample(prediction.masks[:, :1].float(), size)[:, 0]
    valid = (target != IGNORE).float()
    return logits, (target > 0).float() * valid, valid


def structure_loss(prediction: SegmenterOutput, target: Tensor, *, quirk: Quirk) -> Tensor:
    """BCE + weighted IoU, averaged over images (PraNet 2006.11392 after F3Net 1911.11445).

    With w the boundary weight, p the probability and g the mask:
    ``L_iou = 1 − (Σ w·p·g + 1) / (Σ w·(p + g − p·g) + 1)``; ``L_bce = Σ w·bce / Σ w``.

    Args:
        quirk: ``intended`` as above. ``released``: public code passes ``reduce='none'``, which the library reads as
            "average", so the boundary weight cancels out of L_bce and plain mean BCE remains.
    """
    logits, mask, valid = _binary(prediction, target)
    weight = boundary_weight(mask) * valid
    bce = F.binary_cross_entropy_with_logits(logits, mask, reduction="none")
    bce_weight = weight if quirk == "intended" else valid
    bce_loss = (bce_weight * bce).sum((1, 2)) / bce_weight.sum((1, 2)).clamp(min=1)
    probability = logits.sigmoid()
    intersection = (weight * probability * mask).sum((1, 2))
    union = (weight * (probability + mask)).sum((1, 2)) - intersection
    iou_loss = 1 - (intersection + 1) / (union + 1)
    return (bce_loss + iou_loss).sum() / len(target)


def balanced_bce(prediction: SegmenterOutput, target: Tensor) -> Tensor:
    """BCE whose two classes weigh the same over the batch, for shadows (SBU) in SAM-Adapter and Conv-LoRA:
    ``(N₋ · Σ₊ bce + N₊ · Σ₋ bce) / (N₊ + N₋)²``, with N± the pixels of each class in the batch."""
    logits, mask, valid = _binary(prediction, target)
    positive, pixels = mask.sum(), valid.sum().clamp(min=1)
    weight = (mask * (pixels - positive) + (1 - mask) * positive) * valid / pixels
    bce = F.binary_cross_entropy_with_logits(logits, mask, reduction="none")
    return (weight * bce).sum() / pixels


def cross_entropy(prediction: SegmenterOutput, target: Tensor, *, num_classes: int) -> Tensor:
    """Mean cross entropy of the pixels that count, over all images of the batch (Segmenter, 2105.05633); for labels, which are maps of
    one pixel, over the images.

    Logits (B, C, h, w) of the classes, or (B, 1, h, w) of the foreground against the background, resized to the target.

    Args:
        num_classes: C, background included.

    Raises:
        ValueError: a mask holds a class that the decoder does not have.
    """
    if prediction.masks.shape[1] == 1:
        logits, mask, valid = _binary(prediction, target)
        entropy = (valid * F.binary_cross_entropy_with_logits(logits, mask, reduction="none")).sum()
        return entropy / valid.sum().clamp(min=1)
    known = target != IGNORE
    counted, top = known.sum(), int(torch.where(known, target, 0).max())
    if top >= num_classes:
        raise ValueError(f"a mask holds class {top}, but there are {num_classes} classes")
    size = (int(target.shape[-2]), int(target.shape[-1]))
    logits = upsample(prediction.masks.float(), size)
    entropy = F.cross_entropy(logits, target.long(), ignore_index=IGNORE, reduction="sum")
    return entropy / counted.to(logits.dtype).clamp(min=1)


def of_every_layer(prediction: Any, target: Tensor, *, loss: Loss) -> Tensor:
    """The sum of one loss over the predictions of all decoder layers, as Mask2Former is trained (2112.01527)."""
    return torch.stack([loss(layer, target) for layer in (prediction, *prediction.auxiliary)]).sum()


def build_loss(protocol: Protocol, *, task: Task, num_classes: int) -> Loss:
    """The loss that ``protocol`` names for a task; ``auto`` is structure loss for binary, Mask2Former's for
    multi-class, cross entropy for decoders that give the classes' own maps, Mask2Former's of every layer for its own.

    Args:
        num_classes: classes with the background, as masks encode them.

    Raises:
        UsageError: the loss does not fit the task.
    """
    by_query = protocol.decoder == "mask2former"
    by_class = protocol.decoder in ("linear", "mask-transformer", *LABELLING)
    if by_query or (task == "multiclass" and not by_class):
        fitting = ["mask2former"]
    else:
        fitting = ["structure", "balanced-bce", "cross-entropy"] if task == "binary" else ["cross-entropy"]
    usual = "cross-entropy" if by_class else fitting[0]
    name = usual if protocol.loss == "auto" else protocol.loss
    if name not in fitting:
        under = f" under decoder={protocol.decoder}" if protocol.decoder != "sam" else ""
        raise UsageError(
            f"loss={name} does not fit a {task} benchmark{under}; set loss to auto or to {' or '.join(fitting)}"
        )
    if name == "cross-entropy":
        return partial(cross_entropy, num_classes=num_classes)
    if name == "structure":
        return partial(structure_loss, quirk=protocol.quirks.structure_loss)
    if name == "balanced-bce":
        return balanced_bce
    named = (protocol.class_weight, protocol.mask_weight, protocol.dice_weight)
    overrides = (protocol.match_class_weight, protocol.match_mask_weight, protocol.match_dice_weight)
    matching = [weight if override is None else override for weight, override in zip(named, overrides, strict=True)]
    as_released = protocol.quirks.mask2former == "released"
    loss = Mask2FormerLoss(
        num_classes=num_classes,
        weights=Terms(1.0, 1.0, 1.0) if as_released else Terms(*named),
        matching=Terms(*matching),
        divide_by_all=as_released,
    )
    return partial(of_every_layer, loss=loss) if by_query else loss
