"""Prompts: what segment_anything's own predictor gives for the same image, several merged, drawn from masks."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor
from segment_anything.modeling.prompt_encoder import PositionEmbeddingRandom
from torch import Tensor

from harness.models.build import build_segmenter
from harness.models.original_sam import plain_sam, sam_state_dict
from harness.models.segmenter import Prompts, SAMSegmenter
from harness.protocols.card import Protocol
from harness.training.prompts import MOST_OBJECTS, prompts_of, together

SIDE = 128
BOXES = np.array([[10.0, 20.0, 60.0, 90.0], [70.0, 5.0, 120.0, 50.0]])
POINTS = np.array([[[30.0, 40.0], [50.0, 60.0]]])


@pytest.fixture(scope="module")
def pair() -> tuple[SAMSegmenter, SamPredictor]:
    """Ours and segment_anything's with the same weights, in float64, places too: segment_anything takes them as float32, whose
    sines depend on how many are taken at once on some processors."""
    segmenter = build_segmenter("tiny", task="binary", image_size=SIDE, head_seed=3)
    assert isinstance(segmenter, SAMSegmenter)
    sam = plain_sam("tiny", image_size=SIDE)
    sam.load_state_dict(sam_state_dict(segmenter), strict=True)
    for model in (segmenter, sam):
        model.double().eval()
        layer = model.prompt_encoder.pe_layer
        layer._pe_encoding = partial(_in_float64, layer)
    plain = sam.preprocess
    sam.preprocess = lambda image: plain(image).double()
    return segmenter, SamPredictor(sam)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def _in_float64(layer: PositionEmbeddingRandom, coordinates: Tensor) -> Tensor:
    return PositionEmbeddingRandom._pe_encoding(layer, coordinates.double())


def ours(segmenter: SAMSegmenter, predictor: SamPredictor, picture: np.ndarray, prompts: Prompts | None) -> Tensor:
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None]
    with torch.no_grad():
        return segmenter(predictor.model.preprocess(pixels.float()), prompts).masks


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ([{"box": BOXES[0]}], BOXES[:1]),
        ([{"box": box} for box in BOXES], BOXES),  # merged
        ([{"point_coords": POINTS[0], "point_labels": np.ones(2)}], POINTS),
    ],
)
def test_prompts_give_what_the_predictor_gives(pair, picture, given, prompts):
    segmenter, predictor = pair
    predictor.set_image(picture)
    said = [predictor.predict(**each, multimask_output=False)[2] for each in given]
    masks = ours(segmenter, predictor, picture, together([prompts]))
    torch.testing.assert_close(masks[0], torch.from_numpy(np.max(said, axis=0)), atol=1e-9, rtol=1e-9)


def test_each_image_has_its_own_prompts_and_one_without_is_decoded_without(pair, picture):
    segmenter, predictor = pair
    pictures = [picture, picture[::-1].copy(), picture[:, ::-1].copy()]
    each = [BOXES, np.zeros((0, 4)), BOXES[1:]]
    images = torch.cat([torch.from_numpy(picture).permute(2, 0, 1)[None] for picture in pictures])
    with torch.no_grad():
        masks = segmenter(predictor.model.preprocess(images.float()), together(each)).masks
    alone = [
        ours(segmenter, predictor, picture, together([boxes]) if len(boxes) else None)
        for picture, boxes in zip(pictures, each, strict=True)
    ]
    torch.testing.assert_close(masks, torch.cat(alone), atol=1e-9, rtol=1e-9)


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
    mask, card = mask_of((0, 10, 19, 29)), rules(prompt="box", prompt_jitter=0.2)
    moved = np.array([prompts_of(mask, card, seed, "a", moved=card.prompt_jitter)[0] for seed in range(50)])
    shift = moved - np.array([0, 10, 19, 29])
    assert moved.min() >= 0
    assert np.abs(shift).max() <= 0.2 * 20
    assert np.abs(shift[:, 1:]).max(axis=0).min() > 2  # each edge that can move does
    assert np.unique(moved[:, 1]).size > 40
    assert np.array_equal(moved[3], prompts_of(mask, card, 3, "a", moved=card.prompt_jitter)[0])


def test_moved_boxes_reach_the_last_pixel_and_no_further() -> None:
    mask, card = mask_of((0, 0, 49, 39)), rules(prompt="box", prompt_jitter=0.5)
    moved = np.array([prompts_of(mask, card, seed, "a", moved=card.prompt_jitter)[0] for seed in range(50)])
    assert moved[:, [0, 2]].max() == 49
    assert moved[:, [1, 3]].max() == 39
    assert moved.min() == 0


def test_points_lie_on_their_object_and_depend_on_image_and_seed() -> None:
    mask, card = mask_of((2, 3, 12, 13), (20, 10, 40, 30)), rules(prompt="points", prompt_points=3)
    prompts = prompts_of(mask, card, 0, "a", moved=0)
    assert prompts.shape == (2, 3, 2)
    for (left, top, right, bottom), points in zip([(20, 10, 40, 30), (2, 3, 12, 13)], prompts, strict=True):
        assert ((points >= [left, top]) & (points <= [right, bottom])).all()
    assert np.array_equal(prompts, prompts_of(mask, card, 0, "a", moved=0))
    for other in ((1, "a"), (0, "b")):
        assert not np.array_equal(prompts, prompts_of(mask, card, *other, moved=0))


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
