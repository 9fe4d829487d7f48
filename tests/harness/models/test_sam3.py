"""SAM 3 against transformers' `Sam3TrackerModel` with equal weights, which reach it as a file of the Hub's layout through its own
``from_pretrained``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from harness.methods.configs.lowrank import LoRAConfig
from harness.methods.lora import LoRA
from harness.methods.parts.sites import halves
from harness.models import catalog
from harness.models.build import build_segmenter, require_checkpoint
from harness.models.catalog import backbone, backbone_shape, decoder_parameters, encoder_parameters, total_parameters
from harness.models.original_sam import sam_state_dict
from harness.models.sam2 import unpacked
from harness.models.segmenter import Prompts
from harness.planning.memory import activation_bytes
from harness.registry import METHODS, method_config
from harness.system.errors import UsageError
from tests.harness.models.test_sam2 import require_equal_at_the_images_size
from tests.harness.planned import job_of

transformers = pytest.importorskip("transformers", minversion="5.0")
sam3 = pytest.importorskip("harness.models.sam3")
LEFT_OUT = (
    "detector_model.text_encoder.text_model.final_layer_norm.weight",
    "detector_model.vision_encoder.neck.fpn_layers.0.proj1.weight",
    "tracker_neck.fpn_layers.3.proj1.weight",
    "tracker_model.memory_encoder.projection.weight",
    "tracker_model.no_object_pointer",
)
"""Names of ``facebook/sam3`` through which no image passes on its way to the tracker's masks."""


def _oracle(name: str, state: dict[str, Tensor], folder: Path, *, size: int, scales: list[float] = sam3.SCALES) -> Any:
    """`Sam3TrackerModel` with the numbers of the backbone and ``state``, of which nothing is missing or left; in training mode, so that
    token 0 gives the mask always."""
    shape, own = backbone_shape(name, size), backbone(name).decoder
    vision = sam3.vision_config(shape)
    vision.scale_factors = scales
    config = transformers.Sam3TrackerConfig(
        vision_config=vision.to_dict(),
        prompt_encoder_config={"hidden_size": own.dim, "image_size": size, "patch_size": shape.patch},
        mask_decoder_config={
            "hidden_size": own.dim,
            "mlp_dim": own.mlp_dim,
            "num_attention_heads": own.heads,
            "iou_head_hidden_dim": own.dim,
        },
    )
    config.save_pretrained(folder)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    model, info = transformers.Sam3TrackerModel.from_pretrained(folder, output_loading_info=True)
    missing = [key for key in info["missing_keys"] if ".fpn_layers.3." not in key]
    assert [*missing, *info["unexpected_keys"], *info["mismatched_keys"]] == []
    return model.train()


def _built(folder: Path, *, dtype: torch.dtype, size: int = 64, fused: bool = True, **more: Any) -> tuple[Any, Any]:
    """Ours and transformers', but for the positions of the decoder, which both make in float32."""
    segmenter: Any = build_segmenter("tiny_sam3", task="binary", image_size=size, head_seed=3, fused_attention=fused)
    theirs = _oracle("tiny_sam3", sam_state_dict(segmenter), folder, size=size, **more).to(dtype)
    segmenter.to(dtype)
    for module in (
        segmenter.prompt_encoder.pe_layer,
        theirs.shared_image_embedding,
        theirs.prompt_encoder.shared_embedding,
    ):
        module.float()
    return segmenter.train(), theirs


def _images(size: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)).to(dtype)


def _masks(theirs: Any, embeddings: list[Tensor], **prompt: Any) -> Tensor:
    """Of token 0; without a prompt of no tokens, as in Meta's image predictor (`Sam3TrackerModel.forward` makes one of no points).

    Args:
        embeddings: the two finer maps, as the decoder adds them, and the image's.
        prompt: arguments of transformers' prompt encoder.
    """
    batch, dim = embeddings[-1].shape[:2]
    names = ("input_points", "input_labels", "input_boxes", "input_masks")
    sparse, dense = theirs.prompt_encoder(**{name: prompt.get(name) for name in names})
    return theirs.mask_decoder(
        image_embeddings=embeddings[-1],
        image_positional_embeddings=theirs.get_image_wide_positional_embeddings().expand(batch, -1, -1, -1),
        sparse_prompt_embeddings=embeddings[-1].new_empty(batch, 1, 0, dim) if sparse is None else sparse,
        dense_prompt_embeddings=dense,
        multimask_output=False,
        high_resolution_features=embeddings[:-1],
    )[0][:, 0]


def _embeddings(theirs: Any, images: Tensor) -> list[Tensor]:
    """As `get_image_embeddings`, which leaves out gradients."""
    finest, middle, last = theirs.vision_encoder(images, return_dict=True).fpn_hidden_states
    decoder = theirs.mask_decoder
    return [decoder.conv_s0(finest), decoder.conv_s1(middle), last + theirs.no_memory_embedding.view(1, -1, 1, 1)]


def _require_near(actual: Tensor | None, expected: Tensor | None, what: str) -> None:
    assert actual is not None
    assert expected is not None
    bound = (1e-12 if actual.dtype == torch.float64 else 1e-5) * max(1.0, float(expected.detach().abs().max()))
    torch.testing.assert_close(actual, expected, atol=bound, rtol=0, msg=lambda text: f"{what}: {text}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("size", "fused"), [(64, True), (128, False)])
def test_maps_masks_and_gradients_are_those_of_transformers(
    tmp_path: Path, dtype: torch.dtype, size: int, fused: bool
) -> None:
    segmenter, theirs = _built(tmp_path, dtype=dtype, size=size, fused=fused)
    for layer in theirs.vision_encoder.backbone.layers:  # the decoder's would round its softmax to float32
        layer.attention.config._attn_implementation = "sdpa" if fused else "eager"
    own_images, images = (_images(size, dtype).requires_grad_() for _ in range(2))
    maps = theirs.vision_encoder(images, return_dict=True).fpn_hidden_states
    for number, (own, other) in enumerate(zip(unpacked(segmenter.encode(own_images)), reversed(maps), strict=True)):
        _require_near(own, other, f"map {number}")
    embeddings = _embeddings(theirs, images)
    for own, other in zip(theirs.get_image_embeddings(images), embeddings, strict=True):
        _require_near(own, other, "what transformers itself calls embeddings")
    own, other = segmenter(own_images).masks, _masks(theirs, embeddings)
    _require_near(own, other, "masks")
    weights = torch.randn(own.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    (own * weights).sum().backward()
    (other * weights).sum().backward()
    _require_near(own_images.grad, images.grad, "images")
    gradients = {f"image_encoder.{key}": p.grad for key, p in segmenter.encoder.named_parameters()}
    expected = {key: p.grad for key, p in theirs.vision_encoder.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    assert len(gradients) == len(expected) - 4 * len(segmenter.encoder.blocks)
    for key, gradient in gradients.items():
        names = [name.replace("tracker_neck.", "neck.") for name in sam3._published(key)]
        inside = [name.removeprefix("detector_model.vision_encoder.") for name in names]
        _require_near(gradient, torch.cat([expected[name] for name in inside]), key)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_masks_of_prompts_are_those_of_transformers(tmp_path: Path, dtype: torch.dtype) -> None:
    segmenter, theirs = _built(tmp_path, dtype=dtype)
    images = _images(64, dtype)
    boxes = torch.tensor([[3.0, 5.0, 40.0, 60.0], [20.0, 1.0, 33.0, 9.0]])
    points = boxes.view(2, 2, 2)
    labels = torch.ones(2, 1, 2, dtype=torch.int32)
    with torch.no_grad():
        for own, other in (
            ({"boxes": boxes}, {"input_boxes": boxes[:, None]}),
            ({"points": points}, {"input_points": points[:, None], "input_labels": labels}),
        ):
            masks = segmenter(images, Prompts(image=torch.arange(2), **own)).masks
            _require_near(masks, _masks(theirs, _embeddings(theirs, images), **other), next(iter(own)))
            whole = theirs(images, multimask_output=False, **other).pred_masks[:, 0]
            _require_near(masks, whole, f"{next(iter(own))} through transformers' own forward")


@pytest.mark.parametrize("kind", ["box", "points", "both"])
def test_predict_without_a_run_gives_what_transformers_gives_at_the_images_size(kind: str, tmp_path: Path) -> None:
    state = sam_state_dict(build_segmenter("tiny_sam3", task="binary", head_seed=3))
    theirs = _oracle("tiny_sam3", state, tmp_path, size=128)
    images = transformers.Sam3ImageProcessor(size={"height": 128, "width": 128})
    processor = transformers.Sam3TrackerProcessor(images, target_size=128)
    require_equal_at_the_images_size("tiny_sam3", theirs, processor, file=tmp_path / "model.safetensors", kind=kind)


def test_with_four_scales_transformers_leaves_the_embedding_of_no_memory_out(tmp_path: Path) -> None:
    """Its default: what it adds it to is the fourth map, which it drops. Everything else is the same."""
    segmenter, theirs = _built(tmp_path, dtype=torch.float32, scales=[*sam3.SCALES, 0.5])
    embeddings = theirs.get_image_embeddings(images := _images(64, torch.float32))
    coarse = unpacked(segmenter.encode(images))[0]
    _require_near(embeddings[-1], coarse, "embedding")
    embeddings[-1] = embeddings[-1] + theirs.no_memory_embedding.view(1, -1, 1, 1)
    _require_near(segmenter(images).masks, _masks(theirs, embeddings), "masks")


def test_the_blocks_that_run_are_those_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The halves are for methods that act between them, and are the same."""
    from transformers.models.sam3 import modeling_sam3 as theirs

    seen: list[str] = []

    def count(owner: Any, name: str, label: str) -> None:
        own = getattr(owner, name)

        def counted(*args: Any, **more: Any) -> Any:
            seen.append(label)
            return own(*args, **more)

        monkeypatch.setattr(owner, name, counted)

    for kind in ("Sam3ViTRoPEAttention", "Sam3ViTRotaryEmbedding", "Sam3MLP", "Sam3FPNLayer"):
        count(getattr(theirs, kind), "forward", kind)
    count(theirs, "window_partition", "window_partition")  # which a block's own forward calls there
    segmenter: Any = build_segmenter("tiny_sam3", task="binary").eval()
    encoder = segmenter.encoder
    with torch.no_grad():
        tokens = encoder.embed(_images(128, torch.float32))
        encoder.finish(encoder.run_blocks(tokens))
        assert {name: seen.count(name) for name in seen} == {
            "Sam3ViTRoPEAttention": 4, "Sam3ViTRotaryEmbedding": 4, "Sam3MLP": 4, "Sam3FPNLayer": 3, "window_partition": 2
        }  # fmt: skip
        for block in encoder.blocks:
            attention_half, mlp_half = halves(block)
            torch.testing.assert_close(mlp_half(attention_half(tokens)), block(tokens), atol=1e-6, rtol=0)


@pytest.mark.parametrize("fused", [True, False])
def test_further_tokens_have_no_position_and_give_no_output(fused: bool) -> None:
    segmenter: Any = build_segmenter("tiny_sam3", task="binary", fused_attention=fused)
    attention = segmenter.encoder.blocks[0].attention.double()
    windows, further = (torch.randn(*size, 64, dtype=torch.float64) for size in ((2, 3, 3), (1, 2)))
    angles = torch.rand(9, 32, dtype=torch.float64).repeat_interleave(2, dim=0)[:9]
    unmoved = torch.cat([angles, torch.zeros(2, 32, dtype=torch.float64)])
    tokens = torch.cat([windows.flatten(1, 2), further.expand(2, -1, -1)], dim=1)[:, None]
    expected, _ = attention(tokens, (unmoved.cos(), unmoved.sin()))
    out, _ = attention(windows, (angles.cos(), angles.sin()), further)
    torch.testing.assert_close(out.flatten(1, 2), expected[:, 0, :9], atol=1e-6, rtol=0)


def test_closed_forms_are_those_of_the_published_size() -> None:
    with torch.device("meta"):
        segmenter: Any = build_segmenter("sam3", task="binary")
        theirs = transformers.Sam3TrackerModel(transformers.Sam3TrackerConfig())
    counts = [sum(p.numel() for p in part.parameters()) for part in (segmenter, segmenter.encoder)]
    assert counts == [total_parameters("sam3", task="binary"), encoder_parameters("sam3")]
    assert decoder_parameters("sam3", task="binary") == 3_505_536 + 256 + (256 * 96 + 96)
    fourth = theirs.vision_encoder.neck.fpn_layers[3]
    assert counts[0] == sum(p.numel() for p in theirs.parameters()) - sum(p.numel() for p in fourth.parameters())
    ours, named = backbone("sam3").shape, theirs.config.vision_config.backbone_config
    assert (ours.image_size, ours.patch, ours.global_blocks) == (1008, 14, tuple(named.global_attn_indexes))
    assert sam3.vision_config(ours).backbone_config.to_dict() == named.to_dict()


class _Flash(torch.autograd.Function):
    """What a fused kernel keeps for backward; it computes nothing."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out)
        return out


@pytest.mark.parametrize("method", ["lora", "full"])
def test_memory_of_a_plan_is_what_a_step_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Counted without memory, of one image at 1008 px in fp32: storages that backward needs, each once."""
    fused = "torch.nn.functional.scaled_dot_product_attention"
    monkeypatch.setattr(fused, lambda q, k, v, *_, **__: _Flash.apply(q, k, v))
    with torch.device("meta"):
        segmenter = build_segmenter("sam3", task="binary")
        METHODS.get(method)(method_config(method, {})).attach(segmenter)
    segmenter.to("meta").train()
    own = {p.untyped_storage()._cdata for p in segmenter.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        segmenter(torch.zeros(1, 3, 1008, 1008, device="meta"))
    counted = sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in own)
    rules = {"image_size": 1008, "batch_size": 1, "precision": "fp32"}
    run = job_of(tmp_path, method, backbones=("sam3",), image_size=1008, batch_size=1).run
    assert run.rules.items() >= rules.items()
    assert activation_bytes(run, backbone("sam3").shape) == pytest.approx(counted, rel=0.12)  # full: 11 % above


def test_without_transformers_it_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'sam-peft-harness\[sam3\]'"):
        catalog.require_stands("sam", "sam3")
    catalog.require_stands("sam", "sam2_hiera_tiny")


def test_a_published_file_loads_and_says_what_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    segmenter = build_segmenter("tiny_sam3", task="binary", head_seed=5).eval()
    state, path = sam_state_dict(segmenter), tmp_path / "model.safetensors"
    save_file(state | {key: torch.zeros(2, 3) for key in LEFT_OUT}, path)
    require_checkpoint("tiny_sam3", path)
    assert f"{len(LEFT_OUT)} tensors" in capsys.readouterr().err
    loaded = build_segmenter("tiny_sam3", task="binary", checkpoint=path).eval()
    exported = sam_state_dict(loaded)
    assert exported.keys() == state.keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in exported.items())
    images = _images(128, torch.float32)
    with torch.no_grad():  # with the rotations, which no checkpoint holds
        torch.testing.assert_close(loaded(images).masks, segmenter(images).masks, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda state: state.pop("tracker_neck.fpn_layers.1.proj1.bias"), "missing image_encoder.neck.fpn_layers.1"),
        (lambda state: state.pop(f"{sam3._TRUNK}layers.2.attention.k_proj.weight"), "blocks.2.attention.qkv.weight"),
        (lambda state: state.update({f"{sam3._TRUNK}layers.9.mlp.fc1.bias": torch.zeros(2)}), "unexpected"),
        (lambda state: state.update({sam3._IMAGE_POSITIONS: torch.zeros(2, 32)}), "differ"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, change: Any, word: str) -> None:
    state = sam_state_dict(build_segmenter("tiny_sam3", task="binary"))
    change(state)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match=word):
        build_segmenter("tiny_sam3", task="binary", checkpoint=tmp_path / "model.safetensors")


def test_a_merged_model_is_loaded_by_transformers_and_gives_the_same_masks(tmp_path: Path) -> None:
    segmenter = build_segmenter("tiny_sam3", task="binary", image_size=64)
    method = LoRA(LoRAConfig(sites="q,v,proj,mlp"))
    method.attach(segmenter)
    for adapter in method.adapters().values():
        nn.init.normal_(adapter.up, std=0.1, generator=torch.Generator().manual_seed(0))
    images = _images(64, torch.float32)
    with torch.no_grad():
        trained = segmenter.eval()(images).masks
        method.merge("exact")
        theirs = _oracle("tiny_sam3", sam_state_dict(segmenter), tmp_path, size=64)
        _require_near(_masks(theirs, _embeddings(theirs, images)), trained, "masks")
