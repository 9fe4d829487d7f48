"""The rules of training and evaluation as one frozen dataclass, filled from YAML; an unknown key is refused, with the nearest known name.

In comments, *paper* marks what a paper states, *code* what released code does, and *ours* our choice (docs/nas-lora.md).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from harness.evaluation.conventions import LABEL_METRICS, METRICS, Conventions
from harness.models.decoders import Decoder
from harness.models.known import RGB
from harness.system.errors import did_you_mean, shortened
from harness.system.files import checked_name

Quirk = Literal["released", "intended"]

RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("epochs", "accumulate", "select_every", "calibration_images"), (1, 10**6)),
    **dict.fromkeys(("batch_size", "mask_tokens"), (1, 10**4)),
    "image_size": (1, 2**14),
    **dict.fromkeys(("epoch_images", "train_limit", "val_limit", "test_limit", "warmup", "patience"), (0, 10**9)),
    **dict.fromkeys(("clip", "weight_decay", "split_seed", "class_weight", "mask_weight", "dice_weight"), (0, 10**9)),
    **dict.fromkeys(("match_class_weight", "match_mask_weight", "match_dice_weight"), (0, 10**9)),
    "flip": (0, 1),
    **dict.fromkeys(("prompt_jitter", "prompt_noise"), (0, 0.5)),
    "prompt_points": (1, 100),
    "keep_masks": (0, 100),
}
"""Smallest and largest allowed value of each field, so that what no machine can do is refused at once."""


@dataclass(frozen=True, kw_only=True)
class Quirks:
    """Switches between what public code does and what it was meant to do, each with its number in docs/quirks.md.

    Args:
        structure_loss: 1: ``released`` is plain mean BCE + weighted IoU; ``intended`` weights the BCE towards boundaries.
        moe_gate: 5: ``released`` gives Conv-LoRA's gate no task gradient.
        ssf_init: 6: ``released`` starts SSF from noise, ``intended`` from the identity.
        class_count: 7: ``released`` infers the number of classes from mask values seen in training.
        selection: 8: ``released`` (in some code) selects the checkpoint on the test split; such table cells are labelled.
        camo_train: 9: ``intended`` trains on CAMO alone, ``released`` on CAMO and COD10K.
        mask_decoding: 11: ``released`` keeps only the value 255 of a mask.
        strict_loading: 12: ``released`` loads without SAM's positional encoding.
        mask2former: 13: ``released`` weights the terms of the multi-class loss 1 : 1 : 1, whatever the protocol's weights, and divides
            the mask and dice terms by all regions, matched or not; ``intended`` applies the weights and divides by the matched regions.
        spare_tokens: 14: ``released`` leaves SAM's mask tokens 1-3 out of the decoder, ``intended`` lets the others attend
            to them.
        samadapter_embedding: 15: ``released`` scrambles the patch embedding that SAM-Adapter tunes.
    """

    structure_loss: Quirk = "intended"
    moe_gate: Quirk = "released"
    ssf_init: Quirk = "intended"
    class_count: Quirk = "intended"
    selection: Quirk = "intended"
    camo_train: Quirk = "intended"
    mask_decoding: Quirk = "intended"
    strict_loading: Quirk = "intended"
    mask2former: Quirk = "intended"
    spare_tokens: Quirk = "intended"
    samadapter_embedding: Quirk = "intended"


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The frozen rules of one comparison, or of one of its benchmarks; the latter are in variables called *rules*.

    Args:
        data: ``files`` reads the benchmarks below ``--data``; ``sample`` generates small stand-ins in the same layouts.
        backbone: name in the backbone catalogue; ``--backbone`` overrides it.
        task: ``segmentation``, one class per pixel, or ``classification``, one class per image; decoder and benchmark
            must fit it (a `Benchmark.task` also says how many classes masks have).
        decoder: ``sam``; or on a plain ViT of timm ``linear`` | ``mask-transformer`` (Segmenter's, 2105.05633) or
            ``mask2former`` (transformers', 2112.01527); for image labels, a linear layer on the ``class-token`` or on the mean
            of the patches (``mean-pool``).
        image_size: side of the square input in pixels; aspect ratio is lost, as released by Conv-LoRA (code).
        pixel_mean, pixel_std: normalisation of RGB in [0, 1]; null for what the backbone was trained with.
        normalisation: who chose these two: the protocol (``card``), or the ``backbone``, whose values planning then filled in.
        prompt: ``box`` | ``points`` | ``none`` (`harness.training.prompts`): prompts for the objects of an image, from its true mask, in
            training and in tests. For SAM's decoder and one foreground.
        prompt_jitter: in training, each edge of a box is moved by at most this share of the box's side.
        prompt_noise: the same in tests, so that a table shows how much a method leans on the box; validation has none.
        prompt_points: points for each object.
        flip: probability of a horizontal flip in training (0.5, code).
        augment: further changes of training images and their masks (`harness.training.augmentations`); turns the cache of embeddings off.
        train_limit, val_limit, test_limit: use at most this many images, chosen by the split seed; 0 for all.
        test_untrained: also test training images that ``train_limit`` leaves out. Those that share a group (a lesion, a sequence) with an
            image that trains or selects are excluded. Planning sets it to false for own data with a given test split.
        test_given_first: take the given test images first, and test those of ``test_untrained`` as a split of its own, ``untrained``,
            with what ``test_limit`` leaves. Scores on ``all`` are those of both. False draws ``test_limit`` of both together.
        epochs, batch_size, accumulate: a forward pass takes ``batch_size`` images; the gradients of ``accumulate``
            passes are averaged for one update.
        epoch_images: how many images make an epoch; a smaller training split is repeated within it. 0: each training image once.
        budget: what runs of one protocol share. ``epochs``: the number of epochs. ``updates``: the number of weight updates that
            ``epochs`` epochs over the whole training split would make, however many steps a method needs for them.
        optimizer: ``adam`` or ``adamw``; lr, weight_decay, eps, betas: its settings (no decay on norms and biases).
        decoder_lr: learning rate of everything outside the encoder; null for the method's learning rate.
        schedule: ``linear`` | ``cosine``, which fall to zero over all updates, or ``constant``; each after ``warmup`` updates.
        clip: largest gradient norm, 0 for none.
        precision: ``fp32`` | ``bf16`` | ``fp16`` autocast.
        loss: ``structure`` | ``balanced-bce`` | ``mask2former`` | ``cross-entropy`` | ``auto`` (structure for binary,
            mask2former for multi-class; cross entropy with Segmenter's decoders, as published, and for labels).
        mask_tokens: K mask tokens of the multi-class head (quirk 10).
        class_weight, mask_weight, dice_weight: terms of the multi-class loss (2, 5, 5 in Mask2Former; the release names
            10, 5, 5 and never applies them, see quirk 13).
        match_class_weight, match_mask_weight, match_dice_weight: the same terms where regions are matched to mask tokens
            (2, 5, 5 in the release); null for those of the loss.
        select_by: the metric that validation computes and by which the best checkpoint is chosen; empty for the benchmark's own.
        select: the checkpoint that is tested as the run's model: ``best`` on validation, or ``last``, so that none is chosen.
        select_every: epochs between two validations; the best checkpoint is kept. A method that needs more epochs for as many
            weight updates (``budget: updates``) is validated as often as the others.
        patience: stop after this many validations in a row without a better one; 0 never stops early.
        checkpoint_minutes: longest time between two resumable checkpoints; one is also written at each epoch's end.
        activation_checkpointing: recompute block activations in backward.
        attention: kernel of SAM's attention, all equal up to rounding (`harness.models.attention`): ``auto`` times them on a
            GPU; on a CPU it is the harness's own.
        fused_attention, cache_embeddings: optimisations; False computes the same numbers, up to rounding, the plain way.
        keep_masks: the predicted masks of this many test images, the same ones for every method and seed, are stored with the record;
            above 0, also those of the run's best, median and worst test images.
        merge: merge modes (``exact``, ``conv``, ``calibrated``) whose merged model is tested as well, if the method has them.
        split_follows_seed: each seed has its own split: planning sets ``split_seed`` to the seed, so that the seeds of a row are folds.
        split_rule, group, category, invert: see `harness.datasets.base.DataOptions`.
        own_classes: class names of a user's own data, filled in by planning, so that a run need not read them from the data.
        evaluation: see `Conventions`.
        quirks: see `Quirks`.
        methods: method name -> this protocol's overrides of its configuration.
        benchmarks: benchmark name -> overrides of fields of this protocol.
        tune: field of the methods' configurations, or a rule (`harness.planning.tuning.TUNABLE_RULES`) -> the values that
            ``--tune protocol`` tries; changes no number by itself.
    """

    name: str
    data: Literal["files", "sample"] = "files"
    backbone: str = "vit_b"
    task: Literal["segmentation", "classification"] = "segmentation"
    decoder: Decoder = "sam"
    image_size: int = 1024
    pixel_mean: RGB | None = None
    pixel_std: RGB | None = None
    normalisation: Literal["card", "backbone"] = "card"
    prompt: Literal["none", "box", "points"] = "none"
    prompt_jitter: float = 0.1
    prompt_noise: float = 0.0
    prompt_points: int = 1
    flip: float = 0.5
    augment: tuple[Literal["vertical-flip", "rotate", "scale", "colour-jitter"], ...] = ()
    train_limit: int = 0
    val_limit: int = 0
    test_limit: int = 0
    test_untrained: bool = False
    test_given_first: bool = False
    split_rule: str = "default"
    split_seed: int = 0
    split_follows_seed: bool = False
    group: str = ""
    category: str = ""
    invert: bool | None = None
    own_classes: tuple[str, ...] = ()
    epochs: int = 30
    batch_size: int = 4
    accumulate: int = 1
    epoch_images: int = 0
    budget: Literal["epochs", "updates"] = "epochs"
    optimizer: Literal["adam", "adamw"] = "adamw"
    lr: float = 1e-4
    decoder_lr: float | None = None
    weight_decay: float = 1e-4
    eps: float = 1e-8
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: int = 0
    clip: float = 1.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    loss: Literal["auto", "structure", "balanced-bce", "mask2former", "cross-entropy"] = "auto"
    mask_tokens: int = 1
    class_weight: float = 10.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    match_class_weight: float | None = None
    match_mask_weight: float | None = None
    match_dice_weight: float | None = None
    select_by: str = ""
    select: Literal["best", "last"] = "best"
    select_every: int = 1
    patience: int = 0
    checkpoint_minutes: float = 10.0
    activation_checkpointing: bool = False
    fused_attention: bool = True
    attention: Literal["auto", "widened", "bias", "math"] = "auto"
    cache_embeddings: bool = True
    keep_masks: int = 6
    merge: tuple[Literal["exact", "conv", "calibrated"], ...] = ()
    calibration_images: int = 16
    evaluation: Conventions = field(default_factory=Conventions)
    quirks: Quirks = field(default_factory=Quirks)
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)
    benchmarks: dict[str, dict[str, Any]] = field(default_factory=dict)
    tune: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checked_name(self.name, what="the protocol's name")
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise ValueError(f"{name}={shortened(value)} must be at least {least} and at most {most}")
        if self.prompt_noise and self.prompt != "box":
            raise ValueError(
                f"prompt_noise={self.prompt_noise} moves boxes, but prompt is {self.prompt}; set prompt=box"
            )
        _check_pattern(self.group)
        if self.select_by and self.select_by not in (known := {*METRICS, *LABEL_METRICS}):
            raise ValueError(
                f"select_by={shortened(self.select_by)} is not a metric{did_you_mean(self.select_by, known)}"
            )
        if self.select == "last" and (self.patience or self.quirks.selection == "released"):
            raise ValueError("select=last chooses no checkpoint, so patience and quirks.selection do not apply to it")
        for name in ("lr", "decoder_lr", "eps", "checkpoint_minutes"):
            if (rate := getattr(self, name)) is not None and not rate > 0:
                raise ValueError(f"{name}={rate} must be above 0")
        if self.pixel_std is not None and min(self.pixel_std) <= 0:
            raise ValueError(f"pixel_std={list(self.pixel_std)} must each be above 0")
        if not 0 <= min(self.betas) <= max(self.betas) < 1:
            raise ValueError(f"betas={list(self.betas)} must be in [0, 1)")

    def updates(self, images: int) -> int:
        """Number of updates in all epochs over ``images`` training images, if every step updated the weights; the last update of an epoch
        takes the images that are left."""
        return -(-(self.epoch_images or images) // (self.batch_size * self.accumulate)) * self.epochs

    @property
    def pixels(self) -> tuple[RGB, RGB]:
        """Mean and standard deviation; known once those of a backbone are filled in (`harness.protocols.load.for_backbone`)."""
        if self.pixel_mean is None or self.pixel_std is None:
            raise ValueError("the protocol leaves pixel_mean and pixel_std to a backbone that is not filled in yet")
        return self.pixel_mean, self.pixel_std


def _check_pattern(text: str) -> None:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"group={shortened(text)} is not a regular expression: {error}") from error
    if len(text) > 200:
        raise ValueError(f"group={shortened(text)} must be at most 200 characters")
