"""From a run to its segmenter with the method attached, and to its images; the same for training, tests and exports."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from harness.archive.older import same_data
from harness.archive.schema import UNTRAINED, Run
from harness.check import from_mapping
from harness.contract.start import attach_checked
from harness.datasets.base import Benchmark, DatasetError, Pair
from harness.methods.base import Method
from harness.models.attention_choice import Choice, choose
from harness.models.build import build_segmenter
from harness.models.catalog import backbone_shape
from harness.models.decoders import Task
from harness.models.segmenter import Segmenter
from harness.planning.data import benchmark_of, data_fingerprint, manifest_hash
from harness.protocols.keys import current_options
from harness.protocols.load import from_rules
from harness.protocols.protocol import Protocol
from harness.registry import METHODS, add_own_of, method_config_class
from harness.training.batches import draw_number, subset
from harness.training.cache import ArrayCache
from harness.training.images import ImageSource


def attached_segmenter(
    run: Run, *, task: Task, num_classes: int, checkpoint: Path | None, checked_on: torch.device | None = None
) -> tuple[Segmenter, Method]:
    """A fresh segmenter on the CPU, in training mode, and the method attached to it.

    Head and method have random streams of their own, so that for one seed every method gets the same head.

    Args:
        num_classes: classes of a multi-class benchmark, background included.
        checkpoint: the pretrained weights, None for random ones.
        checked_on: where to check that the method starts and counts as it declares (`harness.contract.start`); None to skip that.

    Raises:
        MethodError: it does not attach, or deviates from what it declares.
        MemoryError: what the method adds cannot fit. A file from elsewhere may name any size.
    """
    rules = from_rules(run.rules)
    options = current_options(run.method, run.method_config)
    config = from_mapping(method_config_class(run.method), options, where=f"method {run.method}")
    added = config.added_parameters(backbone_shape(run.backbone))
    needed, there = 4 * added, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise MemoryError(
            f"{run.label} adds {added:,} parameters, {needed / 2**30:.0f} GiB, and this machine has {there / 2**30:.0f}"
        )
    segmenter = build_segmenter(
        run.backbone,
        task=task,
        num_classes=num_classes,
        mask_tokens=rules.mask_tokens,
        image_size=rules.image_size,
        checkpoint=checkpoint,
        head_seed=draw_number("head", run.seed) % 2**31,
        fused_attention=rules.fused_attention,
        activation_checkpointing=rules.activation_checkpointing,
        strict_loading=rules.quirks.strict_loading,
        spare_tokens=rules.quirks.spare_tokens,
        decoder=rules.decoder,
    )
    method: Method = METHODS.get(run.method)(config, seed=draw_number("method", run.seed) % 2**31)
    if checked_on is None:
        method.attach(segmenter)
    else:
        shape = backbone_shape(run.backbone, rules.image_size)
        attach_checked(method, segmenter, label=run.label, shape=shape, device=checked_on)
    return segmenter, method


def attention_of(backbone: str, rules: Protocol, device: torch.device) -> Choice:
    """How SAM's blocks attend under the rules (`choose`)."""
    if not rules.fused_attention:
        return {}
    return choose(
        backbone_shape(backbone), rules.attention, batch=rules.batch_size, image_size=rules.image_size,
        precision=rules.precision, device=device,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RunData:
    """A run's images by split, the protocol's limits applied. ``tests``: by the name of the test split. ``available``: images in each
    split without the limits."""

    benchmark: Benchmark
    train: ImageSource
    val: ImageSource
    tests: dict[str, ImageSource]
    available: dict[str, int] = field(default_factory=dict)

    def groups(self, split: str) -> dict[str, str]:
        """Test image -> its group (`Benchmark.group`); empty where no two of all tests share one."""
        tested = [pair for source in self.tests.values() for pair in source.pairs]
        if len({self.benchmark.group(pair) for pair in tested}) == len(tested):
            return {}
        return {pair.stem: self.benchmark.group(pair) for pair in self.tests[split].pairs}


def first_images(source: ImageSource, count: int) -> Tensor:
    """The first ``count`` images of a split, or all if it has fewer: (N, 3, S, S) uint8."""
    return torch.stack([torch.from_numpy(source.image(index)) for index in range(min(count, len(source)))])


def open_data(run: Run, root: Path, *, cache: ArrayCache | None = None) -> RunData:
    """Open the benchmark below ``root``.

    Args:
        run: says which images of which split, and their size.
        root: the benchmark's folder, as `Benchmark.locate` finds it.
        cache: cache of decoded images; None decodes each time.

    Raises:
        DatasetError: the files are not those that the run was planned with.
    """
    rules = from_rules(run.rules)
    add_own_of(run.benchmark, run.rules)
    benchmark = benchmark_of(run.benchmark, rules)
    splits = benchmark.splits(root)
    folds = rules.split_follows_seed
    fingerprint = data_fingerprint(splits, folds=folds) if run.data_fingerprint else ""
    if manifest_hash(splits, folds=folds) != run.manifest or not same_data(run.data_fingerprint, fingerprint):
        raise DatasetError(
            f"the files of {run.benchmark} below {root} are not those of run {run.key}; give the same data, or repeat the command"
        )

    def chosen(pairs: Sequence[Pair], limit: int, split: str) -> list[Pair]:
        return [pairs[index] for index in subset(len(pairs), limit, seed=rules.split_seed, split=split)]

    def source(pairs: Sequence[Pair]) -> ImageSource:
        return ImageSource(benchmark, pairs, image_size=rules.image_size, cache=cache)

    train, val = chosen(splits.train, rules.train_limit, "train"), chosen(splits.val, rules.val_limit, "val")
    available = {name: len(pairs) for name, pairs in splits.parts.items()}
    tests: dict[str, Sequence[Pair]] = dict(splits.test)
    if rules.test_untrained:
        seen = {benchmark.group(pair) for pair in (*train, *val)}
        untrained = tuple(pair for pair in splits.train if benchmark.group(pair) not in seen)
        if not rules.test_given_first:
            name = next(iter(tests))
            tests[name] = (*tests[name], *untrained)
    tests = {name: chosen(pairs, rules.test_limit, name) for name, pairs in tests.items()}
    if rules.test_untrained and rules.test_given_first:
        left = rules.test_limit - sum(map(len, tests.values()))
        if untrained and (left > 0 or not rules.test_limit):
            tests[UNTRAINED] = chosen(untrained, max(0, left), UNTRAINED)
            available[UNTRAINED] = len(untrained)
    return RunData(
        benchmark=benchmark,
        train=source(train),
        val=source(val),
        tests={name: source(pairs) for name, pairs in tests.items()},
        available=available,
    )
