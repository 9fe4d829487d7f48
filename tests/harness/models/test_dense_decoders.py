"""Decoders on a plain ViT. Segmenter's against the published structure in plain tensor operations, the linear one against timm's; of
Mask2Former transformers' own modules, their counts, and the scores of their predictions."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from timm import create_model
from torch import Tensor
from torch.nn import functional as F
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from harness.models import decoders
from harness.models.build import build_segmenter
from harness.models.catalog import backbone
from harness.models.decoders import LABELLING, DecoderShape
from harness.models.dense_decoders import MaskTransformer, dense_parameters
from harness.models.known import TOYS
from harness.models.segmenter import DenseSegmenter, QuerySegmenter, SegmenterOutput, probabilities, upsample
from harness.protocols.protocol import Protocol
from harness.training.cache import weights_fingerprint
from harness.training.losses import build_loss
from tests.harness.models.images import random_images

DENSE = ["linear", "mask-transformer"]


def _linear_written_out(w: dict[str, Tensor], tokens: Tensor) -> Tensor:
    return tokens @ w["head.weight"].T + w["head.bias"]


def _mask_transformer_written_out(w: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """(B, N, d) patches to (B, N, C): 2105.05633, section 3.2 and its released configuration, without dropout."""
    batch, patches, dim = tokens.shape
    heads = dim // 64
    x = torch.cat([tokens @ w["proj_dec.weight"].T + w["proj_dec.bias"], w["cls_emb"].expand(batch, -1, -1)], dim=1)

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return (
            centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]
        )

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    for n in range(2):
        q, k, v = linear(norm(x, f"blocks.{n}.norm1"), f"blocks.{n}.attn.qkv").chunk(3, dim=-1)
        out = []
        for head in range(heads):
            part = slice(64 * head, 64 * (head + 1))
            out.append(torch.softmax(q[..., part] @ k[..., part].mT / 8, dim=-1) @ v[..., part])
        x = x + linear(torch.cat(out, dim=-1), f"blocks.{n}.attn.proj")
        hidden = linear(norm(x, f"blocks.{n}.norm2"), f"blocks.{n}.mlp.fc1")
        x = x + linear(hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2, f"blocks.{n}.mlp.fc2")
    x = norm(x, "decoder_norm")
    own, of_classes = x[:, :patches] @ w["proj_patch"], x[:, patches:] @ w["proj_classes"]
    own, of_classes = (
        own / own.square().sum(-1, keepdim=True).sqrt(),
        of_classes / of_classes.norm(dim=-1, keepdim=True),
    )
    return norm(own @ of_classes.mT, "mask_norm")


WRITTEN_OUT = {"linear": _linear_written_out, "mask-transformer": _mask_transformer_written_out}


@pytest.mark.parametrize("decoder", DENSE)
@pytest.mark.parametrize("fused", [True, False])
def test_outputs_and_gradients_equal_the_published_structure(decoder: Any, fused: bool) -> None:
    segmenter = build_segmenter(
        "timm/test_vit", task="multiclass", num_classes=5, decoder=decoder, image_size=64, fused_attention=fused
    )
    segmenter = segmenter.double().eval()
    vit = create_model("test_vit", num_classes=0, global_pool="", img_size=64).double().eval()
    vit.load_state_dict(segmenter.encoder.state_dict(), strict=True)
    ours = dict(segmenter.get_submodule("decoder").named_parameters())
    theirs = {name: p.detach().clone().requires_grad_() for name, p in ours.items()}
    with torch.no_grad():  # away from zero biases and unit norms, which would hide a mistake
        for name, p in ours.items():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))))
            theirs[name].copy_(p)
    images, target = (
        random_images().double(),
        torch.randint(0, 5, (2, 64, 64), generator=torch.Generator().manual_seed(1)),
    )
    tokens = vit(images)[:, 1:]  # after timm's final norm, without the class token
    expected = WRITTEN_OUT[decoder](theirs, tokens).mT.reshape(2, 5, 4, 4)
    masks = segmenter(images).masks
    torch.testing.assert_close(masks, expected, atol=1e-11, rtol=0)
    full = F.interpolate(expected, size=(64, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(upsample(masks, (64, 64)), full, atol=1e-11, rtol=0)
    F.cross_entropy(upsample(masks, (64, 64)), target).backward()
    F.cross_entropy(full, target).backward()
    for name, p in ours.items():
        torch.testing.assert_close(p.grad, theirs[name].grad, atol=1e-11, rtol=0, msg=name)
    timm = dict(vit.named_parameters())
    for name, p in segmenter.encoder.named_parameters():
        torch.testing.assert_close(p.grad, timm[name].grad, atol=1e-11, rtol=0, msg=name)


@pytest.mark.parametrize("decoder", DENSE)
def test_two_classes_become_one_logit_with_the_same_probability(decoder: Any) -> None:
    segmenter = build_segmenter("tiny_timm", task="binary", decoder=decoder, image_size=64).eval()
    assert isinstance(segmenter, DenseSegmenter)
    with torch.no_grad():
        two = segmenter.decoder(segmenter.encode(random_images()))
        output = segmenter(random_images())
    assert two.shape[1] == 2
    assert output.masks.shape == (2, 1, 4, 4)
    expected = upsample(two, (64, 64)).softmax(dim=1)[:, 1]
    torch.testing.assert_close(probabilities(output, (64, 64)), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("dim", "classes", "count"), [
    (768, 2, 15_949_060), (768, 12, 15_956_760), (768, 150, 16_063_020), (384, 2, 3_993_220),
])  # fmt: skip
def test_the_mask_transformer_has_the_published_count(dim: int, classes: int, count: int) -> None:
    assert dense_parameters("mask-transformer", dim, shape=DecoderShape(), classes=classes) == count


def test_dropout_is_in_training_alone_and_follows_torchs_seed() -> None:
    segmenter = build_segmenter("tiny_timm", task="binary", decoder="mask-transformer", image_size=64)
    with torch.no_grad():
        seen = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            seen.append(segmenter(random_images()).masks)
        assert torch.equal(seen[0], seen[1])
        assert not torch.equal(seen[0], seen[2])
        segmenter.eval()
        assert torch.equal(segmenter(random_images()).masks, segmenter(random_images()).masks)


def test_bf16_keeps_the_last_norm_in_fp32() -> None:
    segmenter = build_segmenter("tiny_timm", task="binary", decoder="mask-transformer", image_size=64).eval()
    with torch.no_grad():
        exact = segmenter(random_images()).masks
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = segmenter(random_images()).masks
    assert half.dtype == torch.float32
    assert (half - exact).norm() / exact.norm() < 0.1


def test_no_patch_of_length_zero_gives_nan() -> None:
    decoder = MaskTransformer(64, classes=2).eval()
    with torch.no_grad():
        decoder.proj_patch.zero_()
        assert decoder(torch.randn(1, 64, 3, 3)).isfinite().all()


POOL = {"class-token": "token", "mean-pool": "avg"}
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    name: (model, dict(options)) for name, (model, _, options) in TOYS.items()
}


def _built(backbone: str, decoder: Any, *, classes: int = 5, side: int = 64) -> Any:
    return build_segmenter(backbone, task="classification", num_classes=classes, decoder=decoder, image_size=side)


@pytest.mark.parametrize("backbone", TINY)
@pytest.mark.parametrize("decoder", LABELLING)
def test_logits_and_gradients_are_those_of_timms_classifier(backbone: str, decoder: Any) -> None:
    model, options = TINY[backbone]
    ours = _built(backbone, decoder).eval()
    norm: dict[str, Any] = {"fc_norm": False} if backbone == "tiny_timm" else {"use_fc_norm": False}
    theirs: Any = create_model(model, num_classes=5, global_pool=POOL[decoder], img_size=64, **norm, **options).eval()
    theirs.load_state_dict({**theirs.state_dict(), **ours.encoder.state_dict()}, strict=True)
    with torch.no_grad():
        theirs.head.weight.copy_(ours.decoder.head.weight)
        theirs.head.bias.copy_(ours.decoder.head.bias.normal_())
        assert not theirs.state_dict().keys() - ours.encoder.state_dict().keys() - {"head.weight", "head.bias"}
    labels = torch.tensor([4, 0, 2])

    output = ours(random_images(3))
    expected = theirs(random_images(3))

    assert output.masks.shape == (3, 5, 1, 1)
    torch.testing.assert_close(output.masks[:, :, 0, 0], expected, atol=1e-5, rtol=1e-5)
    chances = probabilities(output, (1, 1))
    torch.testing.assert_close(chances[:, :, 0, 0], expected.softmax(dim=1), atol=1e-6, rtol=1e-5)
    loss = build_loss(Protocol(name="test", decoder=decoder), task="classification", num_classes=5)
    share = loss(output, labels[:, None, None].byte())
    torch.testing.assert_close(share, cross_entropy(expected, labels), atol=1e-5, rtol=1e-5)
    share.backward()
    cross_entropy(expected, labels).backward()
    named = dict(theirs.named_parameters())
    torch.testing.assert_close(ours.decoder.head.weight.grad, named["head.weight"].grad, atol=1e-5, rtol=1e-4)
    for name, parameter in ours.encoder.named_parameters():
        torch.testing.assert_close(parameter.grad, named[name].grad, atol=1e-5, rtol=1e-4, msg=name)


def test_embeddings_of_class_tokens_are_no_others() -> None:
    prints = {weights_fingerprint(_built("tiny_timm", decoder).encoder) for decoder in LABELLING}
    assert len(prints) == 2
    assert weights_fingerprint(_built("tiny_timm", "mean-pool").encoder) in prints


@pytest.fixture(scope="module")
def segmenter() -> QuerySegmenter:
    built = build_segmenter("tiny_timm", task="multiclass", num_classes=4, decoder="mask2former", image_size=64)
    assert isinstance(built, QuerySegmenter)
    return built


def test_mask2former_gives_what_transformers_modules_give_on_the_pyramid(segmenter: QuerySegmenter) -> None:
    inner: Any = segmenter.eval().decoder.model
    with torch.no_grad():
        output = segmenter(random_images())
        maps = inner.model.pixel_level_module.encoder.pyramid(segmenter.encode(random_images()))
        pixels = inner.model.pixel_level_module.decoder(maps)
        said = inner.model.transformer_module(
            multi_scale_features=pixels.multi_scale_features,
            mask_features=pixels.mask_features,
            output_hidden_states=True,
        )
        classes = inner.class_predictor(said.intermediate_hidden_states[-1].transpose(0, 1))
    assert [tuple(level.shape[1:]) for level in maps] == [(16, 16, 16), (32, 8, 8), (64, 4, 4), (64, 2, 2)]
    torch.testing.assert_close(output.masks, said.masks_queries_logits[-1], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(output.classes, classes, atol=1e-6, rtol=1e-5)
    assert output.masks.shape == (2, 100, 16, 16)
    assert output.classes.shape == (2, 100, 5)


def test_every_layer_is_learnt_from_in_training_and_the_last_alone_is_used_otherwise(segmenter: QuerySegmenter):
    with torch.no_grad():
        assert len(segmenter.train()(random_images()).auxiliary) == 9
        assert segmenter.eval()(random_images()).auxiliary == ()


def test_several_classes_are_scored_as_transformers_post_processing_does(segmenter: QuerySegmenter) -> None:
    from transformers import Mask2FormerImageProcessor

    with torch.no_grad():
        output = segmenter.eval()(random_images())
    said = SimpleNamespace(class_queries_logits=output.classes, masks_queries_logits=output.masks)
    maps: Any = Mask2FormerImageProcessor().post_process_semantic_segmentation(said)  # at 384 px
    ours = probabilities(output, (384, 384)).argmax(dim=1)
    assert (torch.stack(maps) == ours).float().mean() > 0.9999  # ties by rounding


def test_of_background_and_foreground_the_probability_is_the_foregrounds_share() -> None:
    masks = torch.tensor([[[[2.0]], [[-1.0]]]])
    classes = torch.tensor([[[0.0, 1.0, 3.0], [2.0, 0.0, -1.0]]])
    chance = probabilities(SegmenterOutput(masks, classes, foreground=True), (1, 1))
    weights, seen = classes.softmax(-1)[0], masks.sigmoid()[0, :, 0, 0]
    back, front = (float((weights[:, kind] * seen).sum()) for kind in (0, 1))
    assert chance.shape == (1, 1, 1)
    assert float(chance) == pytest.approx(front / (back + front), rel=1e-6)


def test_mask2formers_operations_are_those_that_torch_counts(segmenter: QuerySegmenter) -> None:
    counted = []
    for run in (segmenter.eval(), segmenter.encode):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            run(random_images()[:1])
        counted.append(counter.get_total_flops())
    shape, own = backbone("tiny_timm").shape, backbone("tiny_timm").decoder
    sizes = {"width": own.dim, "mlp": own.mlp_dim, "heads": own.heads}
    operations = decoders.mask2former_flops(dim=shape.dim, tokens=(64 // shape.patch) ** 2, **sizes)
    assert operations == pytest.approx(counted[0] - counted[1], rel=2e-3)


def test_the_loss_is_the_sum_over_the_layers_and_reaches_every_parameter(segmenter: QuerySegmenter) -> None:
    loss: Any = build_loss(Protocol(name="x", decoder="mask2former"), task="multiclass", num_classes=4)
    target = torch.zeros(2, 64, 64, dtype=torch.uint8)
    target[:, 20:40, 10:50], target[:, :5] = 3, 255
    output = segmenter.train()(random_images())
    total = loss(output, target)
    each = [loss.keywords["loss"](layer, target) for layer in (output._replace(auxiliary=()), *output.auxiliary)]
    torch.testing.assert_close(total, torch.stack(each).sum())
    total.backward()
    assert not [name for name, p in segmenter.named_parameters() if p.grad is None]
    segmenter.zero_grad()
