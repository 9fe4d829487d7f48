"""Prompts that are drawn from masks: boxes of objects, moved in training, and points on them."""

from __future__ import annotations

import numpy as np
import pytest

from harness.protocols.protocol import Protocol
from harness.training.prompts import MOST_OBJECTS, prompts_of, together


def rules(**changes: object) -> Protocol:
    return Protocol(name="prompts", **changes)  # type: ignore[arg-type]


def mask_of(*squares: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros((40, 50), dtype=np.uint8)
    for left, top, right, bottom in squares:
        mask[top : bottom + 1, left : right + 1] = 1
    return mask


def test_every_object_has_a_box_the_largest_first() -> None:
    mask = mask_of((2, 3, 5, 6), (20, 10, 40, 30))
    mask[7, 6] = 1  # touches the first by a corner
    mask[35:, :] = 255
    assert prompts_of(mask, rules(prompt="box"), 0, "a", moved=0).tolist() == [[20, 10, 40, 30], [2, 3, 6, 7]]


def test_boxes_move_in_training_alone_within_their_share_and_the_image() -> None:
    mask, protocol = mask_of((0, 10, 19, 29)), rules(prompt="box", prompt_jitter=0.2)
    moved = np.array([prompts_of(mask, protocol, seed, "a", moved=protocol.prompt_jitter)[0] for seed in range(50)])
    shift = moved - np.array([0, 10, 19, 29])
    assert moved.min() >= 0
    assert 0.2 * 19 < np.abs(shift).max() <= 0.2 * 20
    assert np.abs(shift[:, 1:]).max(axis=0).min() > 2  # each edge that can move does
    assert np.unique(moved[:, 1]).size > 40
    assert all((sign * shift[:, 1:] > 1).any(axis=0).all() for sign in (-1, 1))  # both ways
    assert np.array_equal(moved[3], prompts_of(mask, protocol, 3, "a", moved=protocol.prompt_jitter)[0])


def test_moved_boxes_reach_the_last_pixel_and_no_further() -> None:
    mask, protocol = mask_of((0, 0, 49, 39)), rules(prompt="box", prompt_jitter=0.5)
    moved = np.array([prompts_of(mask, protocol, seed, "a", moved=protocol.prompt_jitter)[0] for seed in range(50)])
    assert moved[:, [0, 2]].max() == 49
    assert moved[:, [1, 3]].max() == 39
    assert moved.min() == 0


def test_points_lie_on_their_object_and_depend_on_image_and_seed() -> None:
    mask, protocol = mask_of((2, 3, 12, 13), (20, 10, 40, 30)), rules(prompt="points", prompt_points=3)
    prompts = prompts_of(mask, protocol, 0, "a", moved=0)
    assert prompts.shape == (2, 3, 2)
    for (left, top, right, bottom), points in zip([(20, 10, 40, 30), (2, 3, 12, 13)], prompts, strict=True):
        assert ((points >= [left, top]) & (points <= [right, bottom])).all()
    # The numbers of a run are those of these points, also in a later version.
    assert prompts.tolist() == [[[35, 16], [25, 11], [34, 27]], [[10, 8], [6, 11], [8, 5]]]
    for other in ((1, "a"), (0, "b")):
        assert not np.array_equal(prompts, prompts_of(mask, protocol, *other, moved=0))


@pytest.mark.parametrize(("kind", "shape"), [("box", (0, 4)), ("points", (0, 1, 2))])
def test_an_empty_mask_has_no_prompt(kind: str, shape: tuple[int, ...]) -> None:
    prompts = prompts_of(np.zeros((9, 9), dtype=np.uint8), rules(prompt=kind), 0, "a", moved=0)
    assert prompts.shape == shape
    assert together([prompts]).image.tolist() == []


def test_specks_beyond_the_largest_objects_are_left_out() -> None:
    mask = np.zeros((60, 60), dtype=np.uint8)
    mask[::4, ::4] = 1
    mask[30:40, 30:40] = 1
    prompts = prompts_of(mask, rules(prompt="box"), 0, "a", moved=0)
    assert len(prompts) == MOST_OBJECTS
    assert np.ptp(prompts[0]) >= 8
