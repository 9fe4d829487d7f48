"""Prompts: what segment_anything's own predictor gives for the same image, and several merged."""

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
from harness.training.prompts import together

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
