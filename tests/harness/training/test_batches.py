"""Batches, flips, augmentations and subsets are functions of (seed, epoch, position) and nothing else."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F

from harness.training.augmentations import AUGMENTATIONS, augmented
from harness.training.batches import UpdatePlan, draw_number, hold_out, load_one, shuffled, subset
from harness.training.feeding import Feeder
from tests.harness.training.tiny import CPU, Discs, Run, protocol, summary


def plan(count: int = 10, **fields: object) -> UpdatePlan:
    return UpdatePlan(**{"indices": range(count), "batch_size": 3, "flip": 0.5, "seed": 1, **fields})  # type: ignore[arg-type]


def epoch_of(plan: UpdatePlan, epoch: int) -> list[int]:
    steps = range(plan.updates_per_epoch)
    return [index for step in steps for batch in plan.update(epoch, step) for index in batch]


def test_draws_are_the_same_in_every_version_of_every_library() -> None:
    assert draw_number("flip", 0, 1, 2) == 134270804541780628  # b2sum -l 64 of "flip:0:1:2"
    assert shuffled(6, "order", 0, 0) == (5, 0, 1, 4, 2, 3)


def test_an_epoch_has_every_image_once() -> None:
    assert sorted(epoch_of(plan(), 0)) == list(range(10))
    assert [len(batch) for step in range(4) for batch in plan().update(0, step)] == [3, 3, 3, 1]


def test_order_depends_on_seed_and_epoch_alone() -> None:
    backwards = [plan().update(4, step) for step in (3, 2, 1, 0)]
    assert backwards[::-1] == [plan().update(4, step) for step in range(4)]
    assert epoch_of(plan(), 0) != epoch_of(plan(), 1)
    assert epoch_of(plan(), 0) != epoch_of(plan(seed=2), 0)


def test_accumulation_shares_one_update_among_batches() -> None:
    accumulating, single = plan(accumulate=2), plan(batch_size=6)
    assert accumulating.updates_per_epoch == single.updates_per_epoch == 2
    assert epoch_of(accumulating, 0) == epoch_of(single, 0)
    assert [len(batch) for batch in accumulating.update(0, 1)] == [3, 1]


def test_a_flip_is_a_function_of_seed_epoch_and_image() -> None:
    def drawn(seed: int, epoch: int, index: int) -> float:
        digest = hashlib.blake2b(f"flip:{seed}:{epoch}:{index}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64

    for seed, epoch, share in ((1, 0, 0.5), (1, 3, 0.25), (2, 0, 0.5), (1, 0, 0.0), (1, 0, 1.0)):
        flips = [plan(seed=seed, flip=share).flipped(epoch, index) for index in range(64)]
        assert flips == [drawn(seed, epoch, index) < share for index in range(64)]


@pytest.mark.parametrize("fields", [{}, {"batch_size": 5}, {"accumulate": 2}, {"seed": 4}])
def test_an_images_flip_does_not_depend_on_where_in_the_epoch_it_comes(fields: dict[str, int]) -> None:
    chosen = plan(**fields)
    feeder = Feeder(torch.nn.Identity(), Discs(10), plan=chosen, protocol=protocol(), device=CPU, embeddings=None)
    with feeder:
        for step in range(chosen.updates_per_epoch):
            feeder.prepare(2, step)
        batches: Any = [batch for _ in range(chosen.updates_per_epoch) for batch in feeder.take()[0]]
    flips = {index: flip for batch in batches for index, flip in batch.entries}
    assert flips == {index: chosen.flipped(2, index) for index in range(10)}
    assert len(set(flips.values())) == 2
    for batch in batches:
        for position, (index, _) in enumerate(batch.entries):
            image = torch.from_numpy(Discs(10).image(index))
            assert torch.equal(batch.images[position], image.flip(-1) if flips[index] else image)


def test_boxes_move_otherwise_in_every_epoch() -> None:
    """And the same in the same epoch; of the same objects, as nothing is mirrored."""
    chosen, rules = plan(count=3, flip=0.0), protocol(prompt="box", prompt_jitter=0.2)
    feeder = Feeder(torch.nn.Identity(), Discs(3), plan=chosen, protocol=rules, device=CPU, embeddings=None)
    boxes = []
    with feeder:
        for epoch in (0, 1, 1):
            feeder.prepare(epoch, 0)
            ((batch,), _) = feeder.take()
            assert batch.prompts is not None
            assert batch.prompts.boxes is not None
            order = np.argsort([index for index, _ in batch.entries])
            boxes.append(batch.prompts.boxes[torch.from_numpy(order)])
    assert (boxes[0] != boxes[1]).any(dim=1).all()
    assert torch.equal(boxes[1], boxes[2])


def test_an_image_that_repeats_in_an_epoch_has_another_flip() -> None:
    """Five images eight times an epoch: what is drawn for a turn after the first depends on the turn, too."""
    chosen = plan(indices=range(5), epoch_images=40, batch_size=2, accumulate=2)
    feeder = Feeder(torch.nn.Identity(), Discs(5), plan=chosen, protocol=protocol(), device=CPU, embeddings=None)
    seen: dict[int, list[bool]] = {}
    with feeder:
        for step in range(chosen.updates_per_epoch):
            assert [[len(part) for part in parts] for parts in (chosen.update(0, step), chosen.turns(step))] == [
                [2, 2]
            ] * 2
            feeder.prepare(0, step)
            for batch in feeder.take()[0]:
                for index, flip in batch.entries:
                    seen.setdefault(index, []).append(flip)
    assert seen == {index: [chosen.flipped(0, index, turn) for turn in range(8)] for index in range(5)}
    assert all(len(set(flips)) == 2 for flips in seen.values())
    assert chosen.turns(2, for_architecture=True) == [[1, 1], [2, 2]]  # images 8 to 11 of rounds of five


def test_a_flip_mirrors_image_and_mask_alike() -> None:
    source = Discs(3)
    for flip in (True, False):
        image, target = load_one(source, 1, flip=flip, mask=1)
        assert image is not None
        for loaded, plain in ((image, source.image(1)), (target, source.mask_input(1))):
            assert torch.equal(loaded.flip(-1) if flip else loaded, torch.from_numpy(plain))


def test_a_smaller_limit_is_a_subset_of_a_larger_one() -> None:
    few, many = subset(100, 10, seed=0, split="train"), subset(100, 40, seed=0, split="train")
    assert len(few) == 10
    assert set(few) < set(many)
    assert few == sorted(few)
    assert subset(100, 10, seed=1, split="train") != few
    assert subset(100, 0, seed=0, split="train") == subset(100, 200, seed=0, split="train") == list(range(100))


@pytest.mark.parametrize(("count", "fraction", "held"), [(10, 0.5, 5), (10, 0.01, 1), (3, 0.99, 2), (10, 0.0, 0)])
def test_the_held_out_part_is_disjoint_and_leaves_something(count: int, fraction: float, held: int) -> None:
    kept, held_out = hold_out(count, fraction, seed=0)
    assert len(held_out) == held
    assert sorted(kept + held_out) == list(range(count))


def test_architecture_steps_go_round_the_held_out_part() -> None:
    kept, held_out = hold_out(10, 0.4, seed=0)
    halves = plan(indices=kept, held_out=held_out)
    seen = [index for step in range(4) for index in halves.update(0, step, for_architecture=True)[0]]
    assert set(seen) == set(held_out)
    assert sorted(seen[:4]) == sorted(held_out)
    assert set(epoch_of(halves, 0)) == set(kept)
    others = [
        plan(indices=kept, held_out=held_out, seed=seed).update(epoch, 0, for_architecture=True)
        for seed, epoch in ((1, 1), (2, 0))
    ]
    assert seen[:3] not in [other for (other,) in others], "the order depends on seed and epoch, too"


def test_with_other_masks_every_image_has_anothers() -> None:
    chosen = plan()
    masks = chosen.other_masks(range(10))
    assert sorted(masks) == list(range(10))
    assert all(mask != image for image, mask in enumerate(masks))
    assert masks != plan(seed=5).other_masks(range(10))
    feeder = Feeder(torch.nn.Identity(), Discs(10), plan=chosen, protocol=protocol(), device=CPU, embeddings=None)
    with feeder:
        for other in (True, False):
            feeder.prepare(0, 0, other_masks=other)
            taken: Any = feeder.take()[0]
            (batch,) = taken
            loaded: Any = [load_one(Discs(10), i, flip=flip, mask=i) for i, flip in batch.entries]
            images, targets = (torch.stack(parts) for parts in zip(*loaded, strict=True))
            assert torch.equal(batch.images, images)
            assert [torch.equal(a, b) for a, b in zip(batch.targets, targets, strict=True)] == [not other] * 3


def test_a_small_split_repeats_in_an_epoch_of_more_images() -> None:
    plan = UpdatePlan(indices=range(5), batch_size=4, epoch_images=14, seed=3)
    batches = [plan.update(2, step)[0] for step in range(plan.updates_per_epoch)]
    seen = [index for batch in batches for index in batch]
    assert [len(batch) for batch in batches] == [4, 4, 4, 2]
    assert sorted(seen[:5]) == sorted(seen[5:10]) == list(range(5))
    assert seen[:5] != seen[5:10]
    assert seen[:5] == [
        index for step in range(2) for index in UpdatePlan(indices=range(5), batch_size=4, seed=3).update(2, step)[0]
    ]


def test_the_architectures_own_batches_leave_those_of_the_weights_alone() -> None:
    plan = UpdatePlan(indices=range(8), batch_size=2, seed=1)
    architecture = [plan.update(0, step, for_architecture=True)[0] for step in range(4)]
    assert sorted(index for batch in architecture for index in batch) == list(range(8))
    assert architecture != [plan.update(0, step)[0] for step in range(4)]


GEOMETRIC = ("vertical-flip", "rotate", "scale")
SOURCE = Discs(1)
IMAGE, MASK = (torch.from_numpy(np.asarray(part)) for part in (SOURCE.image(0), SOURCE.mask_input(0)))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_it_changes_pixels_by_the_key_alone_and_keeps_types_and_sizes(name: str) -> None:
    made = [augmented(IMAGE, MASK, (name,), 0, epoch, 5) for epoch in range(12)]
    repeated = [augmented(IMAGE, MASK, (name,), 0, epoch, 5) for epoch in range(12)]
    for (image, mask), (same, alike) in zip(made, repeated, strict=True):
        assert torch.equal(image, same)
        assert torch.equal(mask, alike)
        assert (image.dtype, image.shape, mask.dtype, mask.shape) == (torch.uint8, IMAGE.shape, torch.uint8, MASK.shape)
    assert any(not torch.equal(image, IMAGE) for image, _ in made)
    assert len({image.numpy().tobytes() for image, _ in made}) > 1
    assert any(not torch.equal(mask, MASK) for _, mask in made) == (name in GEOMETRIC)


@pytest.mark.parametrize("name", GEOMETRIC)
def test_a_mask_moves_with_its_image_and_what_comes_in_is_ignored(name: str) -> None:
    drawn = MASK * 255
    for key in range(12):
        image, mask = augmented(drawn.expand(3, -1, -1), MASK, (name,), key)
        counted = mask != 255
        agree = ((image[0] > 127) == (mask == 1))[counted].float().mean()
        assert agree > 0.98  # but for the rim, which the image blends
        assert set(mask.unique().tolist()) <= {0, 1, 255}


@pytest.mark.parametrize(
    ("drawn", "turn", "size", "strength", "hue"), [(0.0, -30, 0.75, 0.8, -0.05), (1.0, 30, 4 / 3, 1.2, 0.05)]
)
def test_the_least_and_the_most_that_is_drawn(
    drawn: float, turn: int, size: float, strength: float, hue: float
) -> None:
    def changed(name: str) -> torch.Tensor:
        return AUGMENTATIONS[name](IMAGE, MASK, lambda word: drawn)[0]

    for name, angle, scale in (("rotate", turn, 1.0), ("scale", 0.0, size)):
        moved = F.affine(IMAGE, angle, [0, 0], scale, [0.0, 0.0], F.InterpolationMode.BILINEAR, fill=[0.0])
        assert torch.equal(changed(name), moved), name
    jittered = F.adjust_contrast(F.adjust_brightness(IMAGE, strength), strength)
    assert torch.equal(changed("colour-jitter"), F.adjust_hue(F.adjust_saturation(jittered, strength), hue))
    assert torch.equal(changed("vertical-flip"), IMAGE if drawn else IMAGE.flip(-2))


def test_a_label_stays() -> None:
    label = torch.tensor([[2]], dtype=torch.uint8)
    assert torch.equal(augmented(IMAGE, label, tuple(AUGMENTATIONS), 1)[1], label)


def test_training_sees_them_and_goes_on_as_if_it_had_not_been_stopped(tmp_path: Path) -> None:
    plain = summary(Run(folder=tmp_path / "plain", rules=protocol(epochs=1)))
    rules = protocol(epochs=1, augment=("vertical-flip", "colour-jitter"))
    first, second = (summary(Run(folder=tmp_path / name, rules=rules)) for name in ("a", "b"))
    assert first == second
    assert first["last"] != plain["last"]
