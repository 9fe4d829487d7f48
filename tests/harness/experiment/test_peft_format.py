"""Adapters in PEFT's format, held against peft and transformers themselves; adapters that travel in our own."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import IA3Config, LoKrConfig, LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.functional import interpolate
from transformers import SamConfig, SamModel

from harness.archive.schema import Run
from harness.cli import export, predict
from harness.experiment.adopting import merged_adapter
from harness.experiment.exporting import calibration_images
from harness.experiment.trained import load_adapter, of_results
from harness.methods.peft import split
from harness.models.build import build_segmenter
from harness.models.catalog import backbone
from harness.models.original_sam import plain_sam, sam_state_dict
from harness.models.published import fingerprint, hf_name
from harness.models.sam2 import unpacked
from harness.system.errors import UsageError
from harness.training.batches import draw_number
from tests.harness.experiment.finished import export_to, finished
from tests.harness.models.trackers import embeddings, images_of, masks, oracle

SIDE = 128


def _plain_hf(run: Run) -> SamModel:
    """transformers' SAM with the pretrained weights that the run started from."""
    entry = backbone(run.backbone)
    shape, decoder = entry.shape, entry.decoder
    config = SamConfig(
        vision_config={
            "hidden_size": shape.dim, "num_hidden_layers": shape.depth, "num_attention_heads": shape.blocks[0].heads,
            "mlp_dim": shape.blocks[0].mlp_dim, "image_size": SIDE, "patch_size": shape.patch,
            "output_channels": shape.neck_dim, "window_size": shape.blocks[0].window,
            "global_attn_indexes": list(shape.global_blocks), "num_pos_feats": decoder.dim // 2,
        },
        prompt_encoder_config={
            "hidden_size": decoder.dim,
            "image_size": SIDE,
            "patch_size": shape.patch,
            "mask_input_channels": decoder.mask_channels,
        },
        mask_decoder_config={
            "hidden_size": decoder.dim, "mlp_dim": decoder.mlp_dim, "num_hidden_layers": decoder.depth,
            "num_attention_heads": decoder.heads, "iou_head_hidden_dim": decoder.dim,
        },
    )  # fmt: skip
    model = SamModel(config)
    state = {hf_name(name): tensor for name, tensor in _start(run).items()}
    state["shared_image_embedding.positional_embedding"] = state["prompt_encoder.shared_embedding.positional_embedding"]
    model.load_state_dict(state, strict=True)
    return model.eval()


def _start(run: Run) -> dict[str, torch.Tensor]:
    """Under segment_anything's names: the run's start, which decoder-only shares with every method."""
    segmenter = build_segmenter(
        run.backbone, task="binary", image_size=SIDE, head_seed=draw_number("head", run.seed) % 2**31
    )
    return sam_state_dict(segmenter)


METHODS: list[tuple[str, dict[str, Any], list[str]]] = [
    ("lora", {}, []),
    ("lora", {"sites": "q,k,v,proj,mlp", "blocks": "0,2"}, []),
    ("naslora", {}, ["--merge", "calibrated"]),
    ("convlora", {}, ["--merge", "calibrated"]),
    ("peft/miss", {"r": 4, "sites": "qkv,mlp"}, []),
    ("peft/lokr", {"r": 4, "blocks": "0,2"}, []),
    ("peft/vera", {"r": 8, "sites": "q,v,proj"}, []),
    ("peft/randlora", {"r": 8, "randlora_alpha": 8}, []),
]


@pytest.mark.parametrize(("method", "options", "arguments"), METHODS)
@torch.no_grad()
def test_peft_and_transformers_load_an_export_and_encode_and_segment_alike(
    results: Path, tmp_path: Path, capsys: Any, method: str, options: dict[str, Any], arguments: list[str]
) -> None:
    run, out = finished(results, method, **options), tmp_path / "adapter"

    assert export.main(["--results", str(results), "--run", run.key, "--out", str(out), "--peft", *arguments]) == 0
    for said in (capsys.readouterr().out, (out / "README.md").read_text()):
        assert ("cannot merge" in said) == method.startswith("peft/")

    plain = _plain_hf(run)
    if run.method.startswith("peft/") and "qkv" not in run.method_config["sites"]:  # slices are no layers there
        split(plain)
    images = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    untrained = plain.vision_encoder(images).last_hidden_state
    loaded: Any = PeftModel.from_pretrained(plain, out).eval()
    expected, adapted = of_results(results, run.key).segmenter(None)
    if arguments:
        train, *_ = calibration_images(run, results / "sample-data" / "kvasir")
        adapted.merge("calibrated", calibration=train)
    embedding = loaded.base_model.model.vision_encoder(images).last_hidden_state
    torch.testing.assert_close(embedding, expected.encode(images), atol=1e-5, rtol=1e-5)
    assert (embedding - untrained).abs().max() > 1e-2

    masks = loaded(image_embeddings=embedding, multimask_output=False).pred_masks[:, 0]
    torch.testing.assert_close(masks, expected(images).masks, atol=1e-4, rtol=1e-4)


OF_SAM_3: list[tuple[str, dict[str, Any], list[str]]] = [
    ("lora", {}, []),
    ("lora", {"sites": "q,v,proj,mlp", "blocks": "0,2"}, []),
    ("naslora", {}, ["--merge", "calibrated"]),
    ("peft/miss", {"r": 4, "sites": "q,v,mlp"}, []),
    ("peft/lokr", {"r": 4}, []),
]


@pytest.mark.parametrize(("method", "options", "arguments"), OF_SAM_3)
@torch.no_grad()
def test_peft_loads_an_export_of_sam_3_into_its_tracker(results, tmp_path, method, options, arguments) -> None:
    run, out = finished(results, method, backbone="tiny_sam3", **options), tmp_path / "adapter"
    assert export_to(results, run, out, "--peft", *arguments) == 0
    segmenter, adapted = of_results(results, run.key).segmenter(None)
    if arguments:
        train, *_ = calibration_images(run, results / "sample-data" / "kvasir")
        adapted.merge("calibrated", calibration=train)
    plain = oracle("tiny_sam3", _start(run), tmp_path, size=SIDE).eval()
    images = images_of(SIDE)
    untrained = embeddings(plain, images)[-1]
    loaded: Any = PeftModel.from_pretrained(plain, out).train()  # in which token 0 gives the mask always
    given = embeddings(tracker := loaded.base_model.model, images)
    expected = unpacked(segmenter.encode(images))[0] + tracker.no_memory_embedding.view(1, -1, 1, 1)
    torch.testing.assert_close(given[-1], expected, atol=1e-5, rtol=1e-5)
    assert (given[-1] - untrained).abs().max() > 1e-3
    torch.testing.assert_close(masks(tracker, given), segmenter(images).masks, atol=1e-4, rtol=1e-4)
    if method == "lora":
        merged = loaded.merge_and_unload()
        torch.testing.assert_close(
            masks(merged, embeddings(merged, images)), segmenter(images).masks, atol=1e-4, rtol=1e-4
        )
    assert "Sam3TrackerModel" in (out / "README.md").read_text()


def _trained_elsewhere(results: Path, folder: Path, config: Any) -> Any:
    """transformers' SAM with an adapter far from its start, saved as ``adapter`` in the folder, and its start as
    ``start.safetensors``."""
    run = finished(results, "lora")
    save_file(_start(run), folder / "start.safetensors")
    theirs: Any = get_peft_model(_plain_hf(run), config)
    generator = torch.Generator().manual_seed(0)
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    theirs.save_pretrained(folder / "adapter")
    path = folder / "adapter" / "adapter_config.json"  # a newer peft's option at its default is none that matters
    path.write_text(json.dumps({**json.loads(path.read_text()), "option_of_tomorrow": None}))
    return theirs.eval()


ELSEWHERE = pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=4, target_modules=["qkv", "lin1"], modules_to_save=["mask_decoder"]),
        LoKrConfig(r=4, target_modules=r"vision_encoder\.layers\.[02]\.attn\.(qkv|proj)"),
    ],
    ids=["lora", "lokr"],
)

QKV: dict[str, Any] = {"r": 4, "target_modules": ["qkv"]}
OF_LAYERS = {
    "rank_pattern": LoraConfig(**QKV, rank_pattern={"layers.0.attn.qkv": 2}),
    "alpha_pattern": LoraConfig(**QKV, alpha_pattern={r"vision_encoder\.layers\.[12]\.attn\.qkv": 32}),
    "bias": LoraConfig(**QKV, bias="lora_only"),
    "dora": LoraConfig(r=4, target_modules=["qkv", "projection", "conv2"], use_dora=True, use_rslora=True),
    "a parameter": LoraConfig(r=4, target_modules=["lin2"], target_parameters=["layers.1.attn.qkv.weight"]),
    "modules_to_save": LoraConfig(**QKV, modules_to_save=["prompt_encoder", "neck"]),
    "ia3": IA3Config(target_modules=["qkv", "layers.0.mlp.lin2"], feedforward_modules=["layers.0.mlp.lin2"]),
}


@pytest.mark.parametrize("config", OF_LAYERS.values(), ids=OF_LAYERS.keys())
@torch.no_grad()
def test_what_an_adapter_says_of_single_layers_holds_as_in_peft(results: Path, tmp_path: Path, config: Any) -> None:
    _trained_elsewhere(results, tmp_path, config)
    plain = _plain_hf(finished(results, "lora"))
    expected = PeftModel.from_pretrained(plain, tmp_path / "adapter").merge_and_unload().state_dict()
    state, changed = merged_adapter(tmp_path / "adapter", backbone="tiny", checkpoint=tmp_path / "start.safetensors")
    for name, tensor in state.items():
        torch.testing.assert_close(tensor, expected[hf_name(name)], atol=1e-6, rtol=1e-6, msg=name)
    before = load_file(tmp_path / "start.safetensors")
    assert changed
    assert any(not torch.equal(tensor, before[name]) for name, tensor in state.items())


@torch.no_grad()
def test_links_as_in_the_hubs_cache_lead_to_the_adapter(results: Path, tmp_path: Path) -> None:
    _trained_elsewhere(results, tmp_path, LoraConfig(**QKV))
    (snapshot := tmp_path / "snapshot").mkdir()
    for number, name in enumerate(("adapter_config.json", "adapter_model.safetensors")):
        (tmp_path / "adapter" / name).rename(tmp_path / f"blob{number}")
        (snapshot / name).symlink_to(f"../blob{number}")
    (link := tmp_path / "link").symlink_to(snapshot)
    state, changed = merged_adapter(link, backbone="tiny", checkpoint=tmp_path / "start.safetensors")
    assert len(changed) == 4
    assert state.keys() == plain_sam("tiny").state_dict().keys()


def _changed_config(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


def _changed_tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        tensors = load_file(file := folder / "adapter_model.safetensors")
        change(tensors)
        save_file(tensors, file)

    return write


def _cut(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, size)


def _linked_to(name: str, target: str) -> Callable[[Path], None]:
    def link(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return link


LAYER = "base_model.model.vision_encoder.layers.1.attn.qkv"
WRONG = {
    "half a file of tensors": (_cut("adapter_model.safetensors", 3000), "truncated or damaged"),
    "a configuration that is a list": (lambda folder: (folder / "adapter_config.json").write_text("[1]"), "adapter_config"),
    "no configuration": (lambda folder: (folder / "adapter_config.json").unlink(), "not the folder"),
    "another kind": (_changed_config(peft_type="PROMPT_TUNING"), "prompt_tuning"),
    "layers of another model": (_changed_config(target_modules=["q_proj_of_llama"]), "not found"),
    "no rank": (_changed_config(r=0), "not an adapter for tiny"),
    "no tensors": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "does not exist"),
    "a link to a device": (_linked_to("adapter_config.json", "/dev/zero"), "not a regular file"),
    "a layer is not there": (_changed_tensors(lambda t: t.pop(f"{LAYER}.lora_B.weight")), "lacks .*layers.1.attn.qkv.lora_B"),
    "a layer too many": (_changed_tensors(lambda t: t.update({LAYER + ".x": torch.zeros(1)})), "holds.*qkv.x"),
    "NaN": (_changed_tensors(lambda t: t[f"{LAYER}.lora_B.weight"].fill_(torch.nan)), "NaN"),
    "an endless number": (_changed_config(lora_alpha=float("inf")), "lora_alpha=inf"),
    "a number beyond all weights": (_changed_config(lora_alpha=1e300), "not finite"),
    "a pattern that never ends": (_changed_config(target_modules="(([a-z.]+)+)+x"), "pattern.*target_modules"),
    "a repeated group with a blank": (_changed_config(target_modules="(?x)(.+) +!"), "pattern.*target_modules"),
    "one of many repeats": (_changed_config(exclude_modules=".*" * 20 + "x"), "pattern.*exclude_modules"),
    "one of many choices": (_changed_config(rank_pattern={"(.|..)" * 30: 2}), "pattern.*rank_pattern"),
    "a start from random numbers": (_changed_config(init_lora_weights="pissa_niter_4"), "pissa_niter_4"),
    "a start from gradients": (_changed_config(init_lora_weights="lora_ga"), "lora_ga"),
    "another rank": (_changed_config(r=8), "size mismatch"),
    "an option of the future": (_changed_config(use_new_thing=True), "sets use_new_thing"),
    "an option that is not merged": (_changed_config(alora_invocation_tokens=[1]), "not support merging"),
    "a rank beyond all memory": (_changed_config(r=10**12), "asks for [0-9,]+ numbers"),
    "no targets": (_changed_config(target_modules=None), "not an adapter for tiny"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "word"), WRONG.values(), ids=WRONG.keys())
@torch.no_grad()
def test_a_damaged_adapter_is_refused_in_one_line(results: Path, tmp_path: Path, change: Any, word: str) -> None:
    _trained_elsewhere(results, tmp_path, LoraConfig(**QKV))
    change(tmp_path / "adapter")
    with pytest.raises(UsageError, match=word) as caught:
        merged_adapter(tmp_path / "adapter", backbone="tiny", checkpoint=tmp_path / "start.safetensors")
    assert "\n" not in str(caught.value)


@torch.no_grad()
def test_a_checkpoint_of_another_model_is_refused_in_one_line(results: Path, tmp_path: Path) -> None:
    _trained_elsewhere(results, tmp_path, LoraConfig(**QKV))
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    for name, word in (("tiny", "other.safetensors .*; unexpected x"), ("mobile_sam", "not for mobile_sam")):
        with pytest.raises(UsageError, match=word):
            merged_adapter(tmp_path / "adapter", backbone=name, checkpoint=tmp_path / "other.safetensors")


@ELSEWHERE
@torch.no_grad()
def test_an_adapter_that_was_trained_elsewhere_becomes_a_sam_checkpoint(
    results: Path, tmp_path: Path, config: Any
) -> None:
    theirs, out = _trained_elsewhere(results, tmp_path, config), tmp_path / "merged.safetensors"

    words = ["--backbone", "tiny", "--checkpoint", str(tmp_path / "start.safetensors"), "--out", str(out)]
    assert export.main(["--adopt", str(tmp_path / "adapter"), *words]) == 0

    sam = plain_sam("tiny").eval()
    sam.load_state_dict(load_file(out), strict=True)
    images = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    embedding = theirs.base_model.model.vision_encoder(images).last_hidden_state
    torch.testing.assert_close(sam.image_encoder(images), embedding, atol=1e-5, rtol=1e-5)
    sparse, dense = sam.prompt_encoder(points=None, boxes=None, masks=None)
    masks, _ = sam.mask_decoder(
        image_embeddings=embedding, image_pe=sam.prompt_encoder.get_dense_pe(), sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense, multimask_output=False,
    )  # fmt: skip
    expected = theirs(image_embeddings=embedding, multimask_output=False).pred_masks[:, 0]
    torch.testing.assert_close(masks, expected, atol=1e-4, rtol=1e-4)


@ELSEWHERE
@torch.no_grad()
def test_an_adapter_that_was_trained_elsewhere_predicts_as_it_stands(
    results: Path, tmp_path: Path, config: Any
) -> None:
    theirs, photos, out = _trained_elsewhere(results, tmp_path, config), tmp_path / "i", tmp_path / "o"
    pixels = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8)
    photos.mkdir()
    for name, image in zip("ab", pixels, strict=True):
        Image.fromarray(image).save(photos / f"{name}.png")
    model = [
        "--adapter",
        str(tmp_path / "adapter"),
        "--backbone",
        "tiny",
        "--checkpoint",
        str(tmp_path / "start.safetensors"),
    ]
    wanted = ["--images", str(photos), "--out", str(out), "--probabilities"]

    assert predict.main([*model, *wanted]) == 0

    mean, spread = (torch.tensor(channel).view(3, 1, 1) for channel in backbone("tiny").pixels)
    inputs = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / spread
    logits = theirs(pixel_values=inputs, multimask_output=False).pred_masks[:, 0]
    expected = interpolate(logits, (SIDE, SIDE), mode="bilinear", align_corners=False).sigmoid()[:, 0].numpy()
    given = np.stack([np.load(out / "probabilities" / f"{name}.npy") for name in "ab"])
    np.testing.assert_allclose(given, expected, atol=1e-4)
    assert 0 < (expected > 0.5).mean() < 1


@torch.no_grad()
def test_an_adapter_loads_in_python_on_the_weights_that_it_was_trained_on_and_on_no_others(results: Path, tmp_path):
    own, other = tmp_path / "mine.pth", tmp_path / "other.pth"
    weights = plain_sam("tiny").state_dict()
    torch.save(weights, own)
    torch.save({name: tensor + 1 for name, tensor in weights.items()}, other)
    run, file = finished(results, "lora", checkpoint=own), tmp_path / "adapter.safetensors"
    command = ["--results", str(results), "--run", run.key, "--out", str(file), "--checkpoint", str(own)]
    assert export.main([*command, "--adapter-only"]) == 0

    segmenter, method = load_adapter(file, checkpoint=own)

    expected, _ = of_results(results, run.key).segmenter(own)
    images = torch.randn(1, 3, SIDE, SIDE)
    assert torch.equal(segmenter(images).masks, expected(images).masks)
    assert method.merge("exact").folded
    with pytest.raises(ValueError, match=rf"is not the file that run {run.key} started from.*{fingerprint(own)}"):
        load_adapter(file, checkpoint=other)
    with pytest.raises(ValueError, match="started from pretrained tiny weights"):
        load_adapter(file)
    with pytest.raises(ValueError, match="--adapter-only"):
        load_adapter(results / "state" / run.key / "best.safetensors", checkpoint=own)
