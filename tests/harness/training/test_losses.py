"""Losses against the papers' formulas written down plainly, and what sharing a batch and ignoring pixels must not
change."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from harness.models.segmenter import SegmenterOutput as Output
from harness.protocols.load import load_protocol
from harness.protocols.protocol import Protocol, Quirks
from harness.system.errors import UsageError
from harness.training.losses import (
    IGNORE,
    Loss,
    Mask2FormerLoss,
    Terms,
    balanced_bce,
    boundary_weight,
    build_loss,
    cross_entropy,
    structure_loss,
)


def binary_case(*, batch: int = 3, side: int = 48, ignore: bool = False, seed: int = 0) -> tuple[Output, Tensor]:
    """Logits at a quarter of the target's size, and blobs with or without an ignored stripe."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, 1, side // 4, side // 4, generator=generator)
    target = (F.avg_pool2d(torch.randn(batch, 1, side, side, generator=generator), 9, 1, 4)[:, 0] > 0.02).byte()
    if ignore:
        target[:, :7] = IGNORE
    return Output(logits.requires_grad_()), target


def multiclass_case(*, batch: int = 3, tokens: int = 5, side: int = 32, seed: int = 0) -> tuple[Any, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randn(batch, tokens, side // 4, side // 4, generator=generator).requires_grad_()
    classes = torch.randn(batch, tokens, 5, generator=generator).requires_grad_()
    target = torch.randint(0, 4, (batch, 4, 4), generator=generator).byte()
    target = target.repeat_interleave(side // 4, 1).repeat_interleave(side // 4, 2)
    return Output(masks, classes), target


def multiclass_loss() -> Mask2FormerLoss:
    return Mask2FormerLoss(num_classes=4, weights=Terms(10, 5, 5), matching=Terms(10, 5, 5))


def structure_reference(logits: Tensor, mask: Tensor, *, boundary: bool) -> Tensor:
    """Structure loss as published code writes it, in two dimensions, without ignored pixels."""
    weight = 1 + 5 * (F.avg_pool2d(mask, 31, stride=1, padding=15) - mask).abs()
    if boundary:
        bce = F.binary_cross_entropy_with_logits(logits, mask, reduction="none")
        bce = (weight * bce).sum((2, 3)) / weight.sum((2, 3))
    else:
        bce = F.binary_cross_entropy_with_logits(logits, mask)
    probability = logits.sigmoid()
    intersection = (probability * mask * weight).sum((2, 3))
    union = ((probability + mask) * weight).sum((2, 3))
    return (bce + 1 - (intersection + 1) / (union - intersection + 1)).mean()


@pytest.mark.parametrize("quirk", ["released", "intended"])
def test_structure_loss_equals_the_published_formula(quirk: Any) -> None:
    output, target = binary_case()
    logits = F.interpolate(output.masks, size=target.shape[-2:], mode="bilinear", align_corners=False)
    expected = structure_reference(logits, target[:, None].float(), boundary=quirk == "intended")
    torch.testing.assert_close(structure_loss(output, target, quirk=quirk), expected)


def test_pixels_to_ignore_are_no_foreground_to_their_neighbours_weights() -> None:
    output, target = binary_case()
    valid = torch.ones_like(target, dtype=torch.bool)
    valid[:, : target.shape[1] // 3] = False
    background = torch.where(valid, target, 0)
    logits = F.interpolate(output.masks, size=target.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    mask, weight = background.float(), boundary_weight(background.float()) * valid
    bce = F.binary_cross_entropy_with_logits(logits, mask, reduction="none")
    intersection = (weight * logits.sigmoid() * mask).sum((1, 2))
    union = (weight * (logits.sigmoid() + mask)).sum((1, 2)) - intersection
    expected = ((weight * bce).sum((1, 2)) / weight.sum((1, 2)) + 1 - (intersection + 1) / (union + 1)).mean()
    ignoring = torch.where(valid, target, IGNORE).to(torch.uint8)
    torch.testing.assert_close(structure_loss(output, ignoring, quirk="intended"), expected)


def test_balanced_bce_equals_bce_with_class_weights() -> None:
    output, target = binary_case()
    mask = target.float()
    logits = F.interpolate(output.masks, size=target.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    positive, negative = mask.sum(), (1 - mask).sum()
    expected = F.binary_cross_entropy_with_logits(logits, mask, pos_weight=negative / positive)
    expected = expected * positive / (positive + negative)
    torch.testing.assert_close(balanced_bce(output, target), expected)


@pytest.mark.parametrize("seed", [0, 6])
def test_mask2former_loss_equals_the_best_of_all_assignments(seed: int) -> None:
    output, target = multiclass_case(batch=1, seed=seed)
    logits = F.interpolate(output.masks, size=target.shape[-2:], mode="bilinear", align_corners=False)[0].flatten(1)
    coarse = output.masks[0].flatten(1)
    present = target.unique().long()
    region = (target[0] == present[:, None, None]).float()
    small = F.avg_pool2d(region, 4).flatten(1)
    classes = output.classes[0]

    def dice(logit: Tensor, mask: Tensor) -> Tensor:
        return 1 - (2 * (logit.sigmoid() * mask).sum() + 1) / (logit.sigmoid().sum() + mask.sum() + 1)

    def cost(tokens: tuple[int, ...]) -> float:
        total = 0.0
        for position, token in enumerate(tokens):
            bce = F.binary_cross_entropy_with_logits(coarse[token], small[position])
            chance = classes[token].softmax(-1)[present[position]]
            total += float(5 * bce + 5 * dice(coarse[token], small[position]) - 10 * chance)
        return total

    with torch.no_grad():
        best = min(itertools.permutations(range(5), len(present)), key=cost)
    wanted = torch.full((5,), 4)
    wanted[list(best)] = present
    weight = torch.tensor([1.0, 1, 1, 1, 0.1])
    expected = 10 * F.cross_entropy(output.classes[0], wanted, weight=weight)
    for position, token in enumerate(best):
        mask = region[position].flatten()
        bce = F.binary_cross_entropy_with_logits(logits[token], mask)
        expected = expected + (5 * bce + 5 * dice(logits[token], mask)) / len(present)
    torch.testing.assert_close(multiclass_loss()(output, target), expected)


@pytest.fixture
def every_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' loss draws random points; here it gets the centre of every pixel of a 16 x 16 mask, each once."""
    module = pytest.importorskip("transformers.models.mask2former.modeling_mask2former")
    at = (torch.arange(16) + 0.5) / 16
    grid = torch.stack(torch.meshgrid(at, at, indexing="xy"), dim=-1).reshape(1, -1, 2)
    monkeypatch.setattr(module.torch, "rand", lambda *size, device=None: grid.expand(size[0], -1, -1))
    sampled = module.Mask2FormerLoss
    monkeypatch.setattr(
        sampled, "sample_points_using_uncertainty", lambda self, logits, *rest: grid.expand(len(logits), -1, -1)
    )


@pytest.mark.usefixtures("every_pixel")
@pytest.mark.parametrize("tokens", [1, 2, 9])
def test_the_released_loss_is_the_unweighted_sum_of_what_transformers_returns(tokens: int) -> None:
    """AutoGluon: weights 10, 5, 5 given to `Mask2FormerLoss`, its dictionary summed, matching by the default 2, 5, 5."""
    from transformers.models.mask2former.configuration_mask2former import Mask2FormerConfig
    from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss as Oracle

    numbers: dict[str, Any] = {"num_labels": 4, "train_num_points": 16 * 16}
    config = Mask2FormerConfig(**numbers)
    assert (config.class_weight, config.mask_weight, config.dice_weight) == (2, 5, 5)
    oracle = Oracle(config, weight_dict={"loss_cross_entropy": 10.0, "loss_mask": 5.0, "loss_dice": 5.0})
    output, target = multiclass_case(tokens=tokens, side=16)
    masks = F.interpolate(output.masks.detach(), size=(16, 16)).requires_grad_()
    present = [image.unique().long() for image in target]
    assert min(map(len, present)) > 2, "with one or two tokens some regions must find none"
    regions = [(image == classes[:, None, None]).float() for image, classes in zip(target, present, strict=True)]
    expected = sum(oracle(masks, output.classes, regions, present).values())

    released = load_protocol("conv-lora")
    loss = build_loss(released, task="multiclass", num_classes=4)(Output(masks, output.classes), target)
    torch.testing.assert_close(loss, expected)
    gradients = [torch.autograd.grad(value, (masks, output.classes)) for value in (loss, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_loss_as_intended_weighs_its_terms_and_divides_by_matched_masks() -> None:
    output, target = multiclass_case(tokens=1)
    even, weighed = Terms(1, 1, 1), Terms(10, 5, 5)

    def parts(weights: Terms, *, divide_by_all: bool = False) -> float:
        built = Mask2FormerLoss(num_classes=4, weights=weights, matching=even, divide_by_all=divide_by_all)
        return float(built(output, target).detach())

    classes, masks = parts(Terms(1, 0, 0)), parts(Terms(0, 1, 1))
    assert parts(weighed) == pytest.approx(10 * classes + 5 * masks, rel=1e-5)
    regions = sum(len(image.unique()) for image in target)
    assert parts(Terms(0, 1, 1), divide_by_all=True) == pytest.approx(masks * len(target) / regions, rel=1e-5)


def test_matching_has_weights_of_its_own() -> None:
    masks = torch.full((1, 2, 8, 8), -9.0)
    masks[0, 0, :, :4] = 9.0  # token 0 draws the region and token 1 names it
    classes = torch.tensor([[[9.0, 0.0, 0.0], [0.0, 9.0, 0.0]]])
    target = torch.full((1, 8, 8), IGNORE, dtype=torch.uint8)
    target[0, :, :4] = 1
    target[0, 0, 4:] = IGNORE

    def loss(matching: Terms) -> float:
        return float(
            Mask2FormerLoss(num_classes=2, weights=Terms(0, 1, 0), matching=matching)(Output(masks, classes), target)
        )

    assert loss(Terms(1, 9, 9)) < 0.01 < 5 < loss(Terms(99, 1, 1))


def test_what_a_pair_costs_is_of_the_pixels_that_count_at_the_size_of_the_masks() -> None:
    output, target = multiclass_case(batch=1)
    masks, classes = output.masks[0].detach(), output.classes[0].detach()
    valid = (torch.arange(32) >= 12).float().expand(32, 32)
    region = (target == target[0, 0, -1]) * valid
    inside, weight = (F.avg_pool2d(each, 4)[0] for each in (region, valid[None]))
    chance = masks.sigmoid()
    bce = F.binary_cross_entropy(chance, torch.ones_like(chance), reduction="none") * inside
    bce += F.binary_cross_entropy(chance, torch.zeros_like(chance), reduction="none") * (weight - inside)
    dice = 1 - (2 * (chance * inside).sum((1, 2)) + 1) / ((chance * weight).sum((1, 2)) + inside.sum() + 1)
    expected = 5 * bce.sum((1, 2)) / weight.sum() + 4 * dice - 3 * classes.softmax(1)[:, 2]
    loss = Mask2FormerLoss(num_classes=4, weights=Terms(1, 1, 1), matching=Terms(3, 5, 4))
    torch.testing.assert_close(loss._costs(masks, classes, region, valid, [2])[:, 0], expected)


def test_cards_give_the_weights_that_they_name() -> None:
    def named(protocol: str, **overrides: str) -> Any:
        return build_loss(load_protocol(protocol, overrides), task="multiclass", num_classes=4)

    for protocol in ("conv-lora", "nas-lora"):
        assert (named(protocol).weights, named(protocol).matching) == ((1, 1, 1), (2, 5, 5))
        assert named(protocol, **{"quirks.mask2former": "intended"}).weights == (10, 5, 5)
        assert named(protocol).divide_by_all
    for protocol in ("standard", "mini", "demo"):  # as their first records
        assert (named(protocol).weights, named(protocol).matching) == ((10, 5, 5), (10, 5, 5))
        assert not named(protocol).divide_by_all
    assert named("demo", **{"quirks.mask2former": "released", "class_weight": "2"}).weights == (1, 1, 1)


def test_a_class_beyond_the_head_is_named() -> None:
    output, target = multiclass_case()
    target[0, 0, 0] = 9
    with pytest.raises(ValueError, match="class 9, but there are 4 classes"):
        multiclass_loss()(output, target)


LOSSES = [
    pytest.param(partial(structure_loss, quirk="released"), binary_case, id="structure released"),
    pytest.param(partial(structure_loss, quirk="intended"), binary_case, id="structure intended"),
    pytest.param(balanced_bce, binary_case, id="balanced bce"),
    pytest.param(multiclass_loss(), multiclass_case, id="mask2former"),
    pytest.param(
        Mask2FormerLoss(num_classes=4, weights=Terms(1, 1, 1), matching=Terms(2, 5, 5), divide_by_all=True),
        partial(multiclass_case, tokens=2),
        id="mask2former released, two tokens",
    ),
    pytest.param(partial(cross_entropy, num_classes=2), binary_case, id="cross entropy, one logit"),
    pytest.param(partial(cross_entropy, num_classes=5), multiclass_case, id="cross entropy"),
]


@pytest.mark.parametrize(("loss", "case"), LOSSES)
def test_ignored_pixels_carry_no_gradient(loss: Loss, case: Any) -> None:
    output, target = case()
    side = target.shape[-1]
    masks = F.interpolate(output.masks.detach(), size=(side, side)).requires_grad_()
    target[:, : side // 2] = IGNORE
    loss(Output(masks, output.classes), target).backward()
    gradient: Any = masks.grad
    assert not gradient[:, :, : side // 2].any()
    assert gradient[:, :, side // 2 :].any()


@pytest.mark.parametrize(("loss", "case"), LOSSES)
@pytest.mark.parametrize("value", [0, 1, IGNORE])
def test_degenerate_targets_give_finite_loss_and_gradient(loss: Loss, case: Any, value: int) -> None:
    output, target = case()
    total = loss(output, torch.full_like(target, value))
    total.backward()
    gradient: Any = output.masks.grad
    assert torch.isfinite(total)
    assert gradient.isfinite().all()
    assert value != IGNORE or not gradient.any()


@pytest.mark.parametrize(("loss", "case"), LOSSES)
def test_half_precision_predictions_are_scored_in_fp32(loss: Loss, case: Any) -> None:
    output, target = case()
    half = Output(output.masks.bfloat16(), None if output.classes is None else output.classes.bfloat16())
    value = loss(half, target)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(output, target), rtol=0.02, atol=0.02)
    assert loss(half, torch.full_like(target, IGNORE)).dtype == torch.float32


def built(task: Any, **fields: Any) -> Any:
    return build_loss(Protocol(name="x", **fields), task=task, num_classes=4)


def test_the_protocol_chooses_the_loss() -> None:
    assert built("binary").func is structure_loss
    assert built("binary", quirks=Quirks(structure_loss="released")).keywords == {"quirk": "released"}
    assert built("binary", loss="balanced-bce") is balanced_bce
    chosen = built("multiclass", class_weight=2.0)
    assert chosen.weights.classes == chosen.matching.classes == 2.0
    for decoder, task in itertools.product(("linear", "mask-transformer"), ("binary", "multiclass")):
        assert built(task, decoder=decoder).func is cross_entropy  # as Segmenter is published


def test_a_loss_that_does_not_fit_is_refused() -> None:
    assert built("binary", decoder="linear", loss="structure").func is structure_loss
    for name in ("mask2former", "structure"):
        with pytest.raises(UsageError, match="under decoder=linear; set loss to auto or to cross-entropy"):
            built("multiclass", decoder="linear", loss=name)
    with pytest.raises(UsageError, match="a binary benchmark; set loss"):
        built("binary", loss="mask2former")


def test_cross_entropy_is_pytorchs_mean_over_the_pixels_that_count() -> None:
    _, target = multiclass_case()
    target[:, :5] = IGNORE
    logits = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(2)).requires_grad_()
    full = F.interpolate(logits, size=(32, 32), mode="bilinear", align_corners=False)
    expected = torch.nn.CrossEntropyLoss(ignore_index=IGNORE)(full, target.long())
    torch.testing.assert_close(cross_entropy(Output(logits), target, num_classes=4), expected)
    label = torch.tensor([[[2]]], dtype=torch.uint8)  # of a whole image
    expected = F.cross_entropy(logits[:1, :, 0, 0], torch.tensor([2]))
    torch.testing.assert_close(cross_entropy(Output(logits[:1, :, :1, :1]), label, num_classes=4), expected)
    with pytest.raises(ValueError, match="a mask holds class 3, but there are 3 classes"):
        cross_entropy(Output(logits[:, :3]), target, num_classes=3)


def test_one_logit_of_two_classes_has_the_same_cross_entropy() -> None:
    _, target = binary_case(ignore=True)
    two = torch.randn(3, 2, 12, 12, generator=torch.Generator().manual_seed(2))
    full = F.interpolate(two, size=(48, 48), mode="bilinear", align_corners=False)
    expected = torch.nn.CrossEntropyLoss(ignore_index=IGNORE)(full, target.long())
    torch.testing.assert_close(cross_entropy(Output(two[:, 1:] - two[:, :1]), target, num_classes=2), expected)
