"""Tokens of the blocks in front of the first trained one are kept, and nothing but the time of a step changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from harness.models.build import build_segmenter
from harness.registry import METHODS, method_config_class
from harness.training.embeddings import EmbeddingCache
from harness.training.prefix import FrozenPrefix, RememberedTokens, frozen_prefix
from tests.harness.training.tiny import SIZE, Run, attached, protocol

LATE: dict[str, Any] = {"blocks": "last-half"}


def cache(folder: Path | None) -> EmbeddingCache:
    return EmbeddingCache(names=[str(index) for index in range(7)], key="tokens", folder=folder)


def kept(run: Run, embeddings: EmbeddingCache) -> Run:
    run.embeddings, run.prefix = embeddings, frozen_prefix(run.segmenter)
    assert run.prefix is not None
    return run


def first_block_calls(segmenter: nn.Module) -> list[int]:
    """How many images each call of the first block had, seen without a hook on it."""
    calls: list[int] = []
    block: Any = segmenter.get_submodule("encoder.blocks.0")
    plain = type(block).forward

    class Counted(type(block)):  # type: ignore[misc]
        def forward(self, tokens: Tensor) -> Tensor:
            calls.append(len(tokens))
            return plain(self, tokens)

    Counted.__module__ = type(block).__module__
    block.__class__ = Counted
    return calls


@pytest.mark.parametrize(
    ("method", "precision"), [("lora", "fp32"), ("lora", "bf16"), ("naslora", "fp32"), ("convlora", "fp32")]
)
def test_training_with_kept_tokens_equals_training_without(tmp_path: Path, method: str, precision: str) -> None:
    rules = protocol(precision=precision, batch_size=1, epochs=2)
    plain = Run(folder=tmp_path / "plain", method=method, config=LATE, rules=rules, images=4).train()
    last = load_file(plain.last_state)
    for folder in (None, tmp_path / "cache"):  # in memory, and in a file
        fast = Run(folder=tmp_path / f"kept-{folder is None}", method=method, config=LATE, rules=rules, images=4)
        fast_run = kept(fast, EmbeddingCache(names=list("abcd"), key="tokens", folder=folder)).train()
        assert [entry["loss"] for entry in fast_run.history] == [entry["loss"] for entry in plain.history]
        other = load_file(fast_run.last_state)
        assert all(torch.equal(last[name], other[name]) for name in last)


def test_in_batches_the_kept_tokens_give_the_same_losses_and_weights_but_for_rounding(tmp_path: Path) -> None:
    """Each image passes the front alone, where a plain step takes the batch at once: kernels may sum in another order."""
    # Where a gradient is zero but for rounding, Adam makes whole steps of the rounding, unless eps is larger than that.
    rules = protocol(batch_size=3, epochs=2, eps=1e-3)
    plain = Run(folder=tmp_path / "plain", config=LATE, rules=rules).train()
    fast = kept(Run(folder=tmp_path / "kept", config=LATE, rules=rules), cache(tmp_path / "cache"))
    calls = first_block_calls(fast.segmenter)
    fast.validate = lambda: {"iou": 0.0}
    trained = fast.train()
    assert set(calls) == {1}
    losses = [entry["loss"] for entry in plain.history]
    assert [entry["loss"] for entry in trained.history] == pytest.approx(losses, rel=1e-5)
    last, other = load_file(plain.last_state), load_file(trained.last_state)
    for name in last:
        torch.testing.assert_close(other[name], last[name], atol=1e-4, rtol=1e-4)


def test_each_image_passes_the_front_once_a_flip_and_for_every_seed(tmp_path: Path) -> None:
    embeddings = cache(tmp_path / "cache")
    counts = []
    for seed in (0, 1):
        run = kept(Run(folder=tmp_path / str(seed), config=LATE, rules=protocol(epochs=8), images=2), embeddings)
        run.validate = lambda: {"iou": 0.0}
        calls = first_block_calls(run.segmenter)
        run.train()
        counts.append(calls)
    assert counts == [[1] * 4, []]


def test_the_switch_leaves_every_step_whole(tmp_path: Path) -> None:
    run = Run(folder=tmp_path, config=LATE, rules=protocol(epochs=1, batch_size=1, cache_prefix=False))
    run.validate = lambda: {"iou": 0.0}
    kept(run, cache(None))
    calls = first_block_calls(run.segmenter)
    run.train()
    assert calls == [1] * 7


@pytest.mark.parametrize(
    ("method", "config", "expected"),
    [
        ("lora", {"blocks": "last-half"}, True),
        ("naslora", {"blocks": "last-half"}, True),
        ("adapter", {"blocks": "last-half"}, True),
        ("lora", {"blocks": "all"}, False),
        ("samadapter", {"blocks": "last-half"}, False),  # reads the embedding of patches in later blocks
        ("lst", {}, False),  # reads the tokens of every block
        ("decoder", {}, False),  # its whole encoder is frozen: embeddings are kept
        ("full", {}, False),
        ("bitfit", {"blocks": "last-half"}, None),  # may train biases outside blocks
        ("vpt", {}, False),
    ],
)
@pytest.mark.parametrize("backbone", ["tiny", "tiny_timm"])
def test_what_a_method_touches_is_not_in_front(backbone, method, config, expected):
    segmenter = build_segmenter(backbone, task="binary", image_size=SIZE)
    METHODS.get(method)(method_config_class(method)(**config)).attach(segmenter)
    prefix = frozen_prefix(segmenter)
    if expected is not None:
        assert (prefix is not None) == expected
    if prefix is None:
        return
    images = torch.randn(2, 3, SIZE, SIZE)
    expected_embedding = segmenter.encode(images)
    torch.testing.assert_close(prefix.embedding(prefix.tokens(images), size=(SIZE, SIZE)), expected_embedding)
    assert not prefix.tokens(images).requires_grad


def test_a_watched_or_replaced_module_is_not_in_front() -> None:
    for touch in (
        lambda encoder: encoder.register_forward_hook(lambda *_: None),
        lambda encoder: encoder.blocks[0].register_forward_pre_hook(lambda *_: None),
        lambda encoder: vars(encoder.blocks[0].norm1).update(forward=lambda tokens: tokens),
        lambda encoder: encoder.patch_embed.requires_grad_(True),
        lambda encoder: setattr(encoder.blocks[0], "norm1", nn.Dropout(0.1)),
        lambda encoder: setattr(encoder.blocks[0], "norm1", nn.BatchNorm1d(4, affine=False)),
    ):
        segmenter, _ = attached("lora", **LATE)
        assert frozen_prefix(segmenter) is not None
        touch(segmenter.get_submodule("encoder"))
        assert frozen_prefix(segmenter) is None


def test_the_tests_of_unmerged_and_merged_models_share_what_is_in_front() -> None:
    segmenter, method = attached("lora", **LATE)
    with torch.no_grad():
        for parameter in method.parameter_groups()[0].named.values():
            parameter.add_(0.02 * torch.randn_like(parameter))
    shared = RememberedTokens(frozen_prefix(segmenter))  # type: ignore[arg-type]
    merged, merging = attached("lora", **LATE)
    merging.load_state(method.state())
    merging.merge("exact")
    other, _ = attached("lora", seed=3, **LATE)
    with torch.no_grad():
        other.get_submodule("encoder.blocks.0.norm1").weight.add_(1)  # type: ignore[operator]
    assert shared.like(other) is None
    images = torch.randn(2, 3, SIZE, SIZE)
    calls = first_block_calls(segmenter), first_block_calls(merged)
    for model in (segmenter, merged):
        cut = shared.like(model)
        assert isinstance(cut, FrozenPrefix)
        with torch.no_grad():
            torch.testing.assert_close(shared.get(images, cut), model.encode(images))  # type: ignore[operator]
    assert calls[0] == [1, 1, 2]
    assert calls[1] == [2]  # of the plain forward pass alone
