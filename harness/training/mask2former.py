"""The multi-class loss: each image's class regions are matched to mask tokens, then classes, masks and dice are
scored."""

from __future__ import annotations

from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from harness.training.prediction import IGNORE, Loss, Prediction, Total, alone, upsampled


class Terms(NamedTuple):
    """Weights of the three terms: class cross entropy, mask cross entropy, dice."""

    classes: float
    mask: float
    dice: float


class Mask2FormerLoss(Loss):
    """``w_c · CE + w_m · BCE + w_d · dice`` after Hungarian matching (Mask2Former 2112.01527, after
    MaskFormer 2107.06278).

    A class that occurs in an image is one region (semantic segmentation). The regions of an image are matched one to
    one to its K mask tokens at the least cost of the same three terms, which may weigh otherwise there, the class term
    being −p(class). Unmatched tokens learn the class "no object".

    Deviations, both ours: no random points are drawn (the papers score 12,544 points to save memory; here every pixel
        of the matched masks
    counts, at the input's resolution), and matching works at the decoder's own resolution on area-averaged regions.
    With fewer tokens than regions, the regions that fit best are learnt and the others are not.

    Args:
        num_classes: C, background included.
        weights: w_c, w_m, w_d (2, 5, 5 in Mask2Former; AutoGluon names 10, 5, 5 and trains with 1, 1, 1, because it
            sums what transformers' loss returns, which is not weighted yet).
        matching: the weights where regions are matched to tokens (2, 5, 5 in both).
        divide_by_all: divide mask and dice by the number of all regions, as transformers does, not of those matched;
            the same where there are tokens enough.
        no_object_weight: weight of "no object" in the cross entropy (0.1 in both papers).
    """

    def __init__(
        self,
        *,
        num_classes: int,
        weights: Terms,
        matching: Terms,
        divide_by_all: bool = False,
        no_object_weight: float = 0.1,
    ) -> None:
        self.num_classes = num_classes
        self.weights = weights
        self.matching = matching
        self.divide_by_all = divide_by_all
        self.no_object_weight = no_object_weight

    def __call__(self, prediction: Prediction, target: Tensor, *, total: Total = alone) -> Tensor:
        """Args: ``prediction.classes`` (B, K, C + 1) logits, the last one "no object".

        Raises:
            ValueError: the prediction has no class logits, or a mask holds a class that the head does not have.
        """
        if prediction.classes is None:
            raise ValueError("the multi-class loss needs a segmenter with a class head")
        classes = prediction.classes.float()
        wanted = torch.full(classes.shape[:2], self.num_classes, dtype=torch.long, device=classes.device)
        chosen_masks, regions, validity = [], [], []
        count = 0
        for image in range(len(target)):
            valid = target[image] != IGNORE
            present = torch.unique(target[image][valid]).long()
            if len(present) and int(present.max()) >= self.num_classes:
                raise ValueError(f"a mask holds class {int(present.max())}, but there are {self.num_classes} classes")
            if not len(present):
                continue
            region = ((target[image][None] == present[:, None, None]) & valid).float()
            token_at, region_at = self._match(prediction.masks[image], classes[image], region, valid.float(), present)
            wanted[image, token_at] = present[region_at]
            chosen_masks.append(prediction.masks[image, token_at])
            regions.append(region[region_at])
            validity.append(valid.float().expand(len(region_at), -1, -1))
            count += len(present if self.divide_by_all else region_at)

        weight = torch.ones(self.num_classes + 1, device=classes.device)
        weight[-1] = self.no_object_weight
        entropy = F.cross_entropy(classes.flatten(0, 1), wanted.flatten(), weight=weight, reduction="sum")
        divisors = total(torch.stack([weight[wanted].sum(), weight.new_tensor(float(count))]))
        loss = self.weights.classes * entropy / divisors[0].clamp(min=torch.finfo(torch.float32).tiny)
        if not regions:
            return loss + 0 * prediction.masks.sum()
        mask, valid = torch.cat(regions), torch.cat(validity)
        size = (int(mask.shape[-2]), int(mask.shape[-1]))
        logits = upsampled(torch.cat(chosen_masks)[:, None], size)[:, 0]
        bce = F.binary_cross_entropy_with_logits(logits, mask, reduction="none")
        bce = (bce * valid).sum((1, 2)) / valid.sum((1, 2)).clamp(min=1)
        probability = logits.sigmoid() * valid
        dice = 1 - (2 * (probability * mask).sum((1, 2)) + 1) / (probability.sum((1, 2)) + mask.sum((1, 2)) + 1)
        return loss + (self.weights.mask * bce.sum() + self.weights.dice * dice.sum()) / divisors[1]

    @torch.no_grad()
    def _match(
        self, masks: Tensor, classes: Tensor, region: Tensor, valid: Tensor, present: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Token and region indices of the cheapest one-to-one assignment.

        Args:
            masks: (K, h, w) logits.
            classes: (K, C + 1) logits.
            region: (M, S, S) in {0, 1}.
            valid: (S, S) in {0, 1}.
            present: (M,) the regions' classes.
        """
        size = (int(masks.shape[-2]), int(masks.shape[-1]))
        inside = F.adaptive_avg_pool2d(region, size).flatten(1)
        weight = F.adaptive_avg_pool2d(valid[None], size).flatten(1)
        logits = masks.float().flatten(1)
        positive, negative = F.softplus(-logits), F.softplus(logits)
        bce = (positive @ inside.T + negative @ (weight - inside).T) / weight.sum().clamp(min=1e-6)
        probability = logits.sigmoid() * weight
        dice = 1 - (2 * probability @ inside.T + 1) / (probability.sum(1)[:, None] + inside.sum(1) + 1)
        by = self.matching
        cost = by.mask * bce + by.dice * dice - by.classes * classes.softmax(-1)[:, present]
        # A prediction that is not finite fails later with its own error; the assignment only has to survive it.
        rows, columns = linear_sum_assignment(cost.nan_to_num(0.0, 1e9, -1e9).cpu().numpy())
        device = masks.device
        return torch.as_tensor(rows, device=device), torch.as_tensor(columns, device=device)
