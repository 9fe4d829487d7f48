"""A label from an image: encoder and linear head against timm's own classifiers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm import create_model
from torch.nn.functional import cross_entropy

from harness.models.build import build_segmenter
from harness.models.catalog import require_stands
from harness.models.decoders import LABELLING
from harness.models.known import known_backbones
from harness.models.segmenter import probabilities
from harness.protocols.card import Protocol
from harness.system.errors import UsageError
from harness.training.embeddings import weights_fingerprint
from harness.training.losses import build_loss
from tests.harness.models.images import random_images

POOL = {"class-token": "token", "mean-pool": "avg"}
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    name: (entry.timm_model, dict(entry.timm_options))
    for name, entry in known_backbones().items()
    if name in ("tiny_timm", "tiny_dinov3")
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


def test_a_backbone_without_class_token_is_refused_in_one_line() -> None:
    with pytest.raises(UsageError, match=r"a classifier and stands on a plain ViT of timm, not on vit_b; take one"):
        require_stands("mean-pool", "vit_b")
    with pytest.raises(UsageError, match="tiny_sam3 has no class token; take decoder=mean-pool"):
        require_stands("class-token", "tiny_sam3")
    with pytest.raises(UsageError, match="has no class token"):  # its one prefix token is a register
        require_stands("class-token", "timm/vit_base_patch16_reg4_gap_256")
    require_stands("mean-pool", "tiny_sam3")
    require_stands("class-token", "timm/vit_small_patch14_reg4_dinov2")


@pytest.mark.parametrize("loss", ["structure", "mask2former"])
def test_a_loss_of_masks_is_refused(loss: Any) -> None:
    protocol = Protocol(name="test", decoder="class-token", loss=loss)
    with pytest.raises(
        UsageError, match=f"loss={loss} does not fit a classification benchmark under decoder=class-token"
    ):
        build_loss(protocol, task="classification", num_classes=3)
