"""SAM 2 and SAM 3 against transformers' models with equal weights: maps, masks, gradients, prompts and `predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from harness.cli import predict
from harness.models.build import build_segmenter, require_checkpoint
from harness.models.original_sam import sam_state_dict
from harness.models.sam2 import unpacked
from harness.models.segmenter import Prompts
from tests.harness.models.trackers import (
    built,
    embeddings,
    images_of,
    maps,
    masks,
    names_there,
    oracle,
    require_near,
    transformers,
)

LEFT_OUT = {
    "tiny_sam2": (
        *("maskmem_tpos_enc", "memory_attention.layers.0.self_attn.q_proj.weight", "memory_encoder.out_proj.weight"),
        *("mask_downsample.weight", "no_mem_pos_enc", "no_obj_ptr", "no_obj_embed_spatial"),
        *("obj_ptr_proj.layers.0.weight", "obj_ptr_tpos_proj.weight"),
    ),
    "tiny_sam3": (
        "detector_model.text_encoder.text_model.final_layer_norm.weight",
        "detector_model.vision_encoder.neck.fpn_layers.0.proj1.weight",
        *("tracker_neck.fpn_layers.3.proj1.weight", "tracker_model.memory_encoder.projection.weight"),
        "tracker_model.no_object_pointer",
    ),
}
"""One name of each part of Meta's ``sam2.1_hiera_*.pt``, and of the Hub's ``facebook/sam3``, that an image does not pass."""
FAMILIES = pytest.mark.parametrize("name", ["tiny_sam2", "tiny_sam3"])
SINGLE, DOUBLE = torch.float32, torch.float64


# The published size of SAM 2 takes seconds: it is what the toy stands for.
@pytest.mark.parametrize(("name", "size", "dtype", "fused"), [
    ("tiny_sam2", 64, DOUBLE, True), ("tiny_sam2", 160, DOUBLE, False),
    pytest.param("sam2_hiera_tiny", 128, DOUBLE, True, marks=pytest.mark.slow),
    ("tiny_sam3", 64, SINGLE, True), ("tiny_sam3", 64, DOUBLE, True),
    ("tiny_sam3", 128, SINGLE, False), ("tiny_sam3", 128, DOUBLE, False),
])  # fmt: skip
def test_maps_masks_and_gradients_are_those_of_transformers(tmp_path: Path, name: str, size, dtype, fused) -> None:
    segmenter, theirs = built(name, tmp_path, dtype=dtype, size=size, fused=fused)
    sam_2 = bool(segmenter.encoder.shape.pyramid)
    for layer in [] if sam_2 else theirs.vision_encoder.backbone.layers:
        layer.attention.config._attn_implementation = "sdpa" if fused else "eager"
    own_images, images = (images_of(size, dtype).requires_grad_() for _ in range(2))
    for number, (own, other) in enumerate(
        zip(unpacked(segmenter.encode(own_images)), maps(theirs, images), strict=True)
    ):
        require_near(own, other, f"map {number}", sam_2=sam_2)
    given = embeddings(theirs, images)
    for own, other in zip(theirs.get_image_embeddings(images), given, strict=True):
        require_near(own, other, "what transformers itself calls embeddings", sam_2=sam_2)
    own, other = segmenter(own_images).masks, masks(theirs, given)
    require_near(own, other, "masks", sam_2=sam_2)
    weights = torch.randn(own.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    (own * weights).sum().backward()
    (other * weights).sum().backward()
    require_near(own_images.grad, images.grad, "images", sam_2=sam_2)
    expected = {key: p.grad for key, p in theirs.named_parameters() if p.grad is not None}
    encoder = {f"image_encoder.{key}": p.grad for key, p in segmenter.encoder.named_parameters()}
    decoder = ("obj_score_token.weight", "conv_s0.weight", "conv_s1.bias", "transformer.layers.1.mlp.lin1.weight")
    gradients = encoder | {f"mask_decoder.{k}": segmenter.mask_decoder.get_parameter(k).grad for k in decoder}
    for key, gradient in gradients.items():
        require_near(gradient, torch.cat([expected[n] for n in names_there(segmenter, key)]), key, sam_2=sam_2)
    compared = {each for key in encoder for each in names_there(segmenter, key)}
    assert compared == {key for key in expected if key.startswith("vision_encoder.")}


@pytest.mark.parametrize(("name", "dtype"), [("tiny_sam2", DOUBLE), ("tiny_sam3", SINGLE), ("tiny_sam3", DOUBLE)])
def test_masks_of_prompts_are_those_of_transformers(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    segmenter, theirs = built(name, tmp_path, dtype=dtype)
    sam_2, images = name == "tiny_sam2", images_of(64, dtype)
    boxes = torch.tensor([[3.0, 5.0, 40.0, 60.0], [20.0, 1.0, 33.0, 9.0]])
    points = boxes.view(2, 2, 2)
    labels = torch.ones(2, 1, 2, dtype=torch.int32)
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"boxes": boxes}, {"input_boxes": boxes[:, None]}),
        ({"points": points}, {"input_points": points[:, None], "input_labels": labels}),
    ]
    with torch.no_grad():
        for own, other in cases:
            found, what = segmenter(images, Prompts(image=torch.arange(2), **own)).masks, next(iter(own))
            require_near(found, masks(theirs, embeddings(theirs, images), **other), what, sam_2=sam_2)
            whole = theirs(images, multimask_output=False, **other).pred_masks[:, 0]
            require_near(found, whole, f"{what} through transformers' own forward", sam_2=sam_2)


@FAMILIES
def test_a_published_file_loads_without_what_no_image_passes_and_an_export_gives_the_rest_back(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    segmenter = build_segmenter(name, task="binary", head_seed=5).eval()
    state, left_out = sam_state_dict(segmenter), {key: torch.zeros(2, 3) for key in LEFT_OUT[name]}
    if name == "tiny_sam2":
        torch.save({"model": state | left_out}, path := tmp_path / "sam2.1_hiera_toy.pt")
    else:
        save_file(state | left_out, path := tmp_path / "model.safetensors")
    require_checkpoint(name, path)
    assert (f"{len(left_out)} tensors" in capsys.readouterr().err) == (name == "tiny_sam3"), "more than its memory"
    loaded = build_segmenter(name, task="binary", checkpoint=path).eval()
    exported = sam_state_dict(loaded)
    assert exported.keys() == state.keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in exported.items())
    images = images_of(128)
    with torch.no_grad():  # of SAM 3 with the rotations, which no checkpoint holds
        torch.testing.assert_close(loaded(images).masks, segmenter(images).masks, atol=0, rtol=0)


@FAMILIES
@pytest.mark.parametrize("kind", ["box", "points", "both"])
def test_predict_without_a_run_gives_what_transformers_gives_at_the_images_size(kind, name, tmp_path: Path) -> None:
    state = sam_state_dict(build_segmenter(name, task="binary", head_seed=3))
    theirs, size = oracle(name, state, tmp_path, size=128), {"height": 128, "width": 128}
    if name == "tiny_sam2":
        torch.save({"model": state}, file := tmp_path / "sam2.pt")
        processor = transformers.Sam2Processor(transformers.Sam2ImageProcessor(size=size), target_size=128)
    else:
        file = tmp_path / "model.safetensors"
        processor = transformers.Sam3TrackerProcessor(transformers.Sam3ImageProcessor(size=size), target_size=128)
    pixels = np.random.default_rng(0).integers(0, 256, (100, 160, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(photo := tmp_path / "photo.png")
    box = [10.0, 20.0, 60.0, 85.0] if kind != "points" else None
    points = [[30.0, 40.0, 1], [50.0, 60.0, 0]] if kind != "box" else []
    given: Any = {"input_boxes": [[box]]} if box else {}
    given |= {"input_points": [[[p[:2] for p in points]]], "input_labels": [[[p[2] for p in points]]]} if points else {}
    inputs = processor(images=Image.fromarray(pixels), **given, return_tensors="pt")
    sizes = inputs.pop("original_sizes")
    with torch.no_grad():
        low = theirs(**inputs, multimask_output=False).pred_masks
    (expected,) = processor.post_process_masks(low, sizes, binarize=False)
    assert expected.abs().max() < 5, "where probabilities do not hide what logits differ by"
    words = ["--checkpoint", str(file), "--images", str(photo), "--out", str(tmp_path / "out"), "--probabilities"]
    words += ["--box", ",".join(map(str, box))] if box else []
    words += [word for p in points for word in ("--point", ",".join(map(str, p)))]
    assert predict.main(["--backbone", name, *words]) == 0
    found = torch.from_numpy(np.load(tmp_path / "out" / "probabilities" / "photo.npy")).logit()
    torch.testing.assert_close(found, expected[0, 0], atol=1e-4, rtol=0)
