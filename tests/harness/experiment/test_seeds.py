"""A seed changes everything that draws, and which images a limit leaves hangs on the card alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from harness.experiment.building import attached_segmenter, open_data
from harness.training.batches import UpdatePlan
from tests.harness.planned import job_of

LIMITS = {"train_limit": 4, "val_limit": 2, "test_limit": 2}


def test_head_mask_tokens_and_method_start_from_the_seed(tmp_path: Path) -> None:
    run = job_of(tmp_path, "lora", benchmarks=("trans10k_v2",)).run
    states = []
    for seed in (0, 1, 1):
        segmenter, method = attached_segmenter(
            replace(run, seed=seed), task="multiclass", num_classes=12, checkpoint=None
        )
        states.append({**segmenter.state_dict(), **method.state()})
    drawn = [
        name
        for name in states[0]
        if name in ("head.weight", "mask_decoder.mask_tokens", "mask_decoder.iou_token.weight")
        or name.endswith((".down", "patch_embed.proj.weight"))
    ]
    assert len(drawn) > 4
    for name in drawn:
        assert not torch.equal(states[0][name], states[1][name]), name
        assert torch.equal(states[1][name], states[2][name]), name


def test_batches_flips_and_those_of_the_architecture_are_drawn_anew_by_seed_and_epoch() -> None:
    def drawn(seed: int, epoch: int) -> list[object]:
        plan = UpdatePlan(indices=range(16), batch_size=4, seed=seed, flip=0.5)
        return [
            [plan.update(epoch, step) for step in range(4)],
            [plan.update(epoch, step, for_architecture=True) for step in range(4)],
            [plan.flipped(epoch, index) for index in range(16)],
        ]

    for other in (drawn(1, 0), drawn(0, 1)):
        assert all(first != second for first, second in zip(drawn(0, 0), other, strict=True))


def test_a_limit_leaves_the_same_images_to_every_seed(tmp_path: Path) -> None:
    job = job_of(tmp_path, "lora", **LIMITS)
    left = []
    for seed in (0, 1):
        data = open_data(replace(job.run, seed=seed), Path(job.dataset_root))
        sources = (data.train, data.val, *data.tests.values())
        left.append([[source.stem(index) for index in range(len(source))] for source in sources])
    assert left[0] == left[1]
    assert [len(stems) for stems in left[0]] == [4, 2, 2]
