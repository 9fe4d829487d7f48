"""Cached embeddings of a frozen encoder: the very same numbers, computed once, never taken for another image's."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from harness.training import cache as caching
from harness.training.cache import ArrayCache, EmbeddingCache, InMemory, weights_fingerprint
from harness.training.checkpoint import LAST
from tests.harness.training.tiny import Run, attached, protocol

IMAGE = torch.arange(12, dtype=torch.uint8).view(3, 2, 2)
VALUE = torch.randn(4, 2, 2, generator=torch.Generator().manual_seed(0))


def cache(folder: Path | None = None, *, encoder: str = "encoder fp32 64") -> EmbeddingCache:
    return EmbeddingCache(encoder=encoder, store=InMemory() if folder is None else ArrayCache(folder))


def got(embeddings: EmbeddingCache, encode: Encode, *, image: Tensor = IMAGE) -> Tensor:
    """As a thread that loads and the one that computes get it between them."""
    embedding = embeddings.get(embeddings.look_up(image), encode)
    embeddings.flush()
    return embedding


class Encode:
    def __init__(self, value: Tensor = VALUE) -> None:
        self.value, self.calls = value, 0

    def __call__(self) -> Tensor:
        self.calls += 1
        return self.value


@pytest.fixture(params=["memory", "file"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return None if request.param == "memory" else tmp_path / "embeddings"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_embedding_is_computed_once_and_kept_exactly(folder: Path | None, dtype: torch.dtype, monkeypatch) -> None:
    monkeypatch.setattr(caching, "_UNWRITTEN", 0)  # the next one waits until it is stored
    embeddings, encode = cache(folder), Encode(VALUE.to(dtype))
    others = [got(embeddings, encode), got(embeddings, encode)]
    others += [] if folder is None else [got(cache(folder), encode)]
    assert encode.calls == 1
    assert all(other.dtype == dtype and torch.equal(other, encode.value) for other in others)


@pytest.mark.parametrize(
    ("encoder", "image", "expected"),
    [
        ("encoder fp32 64", IMAGE, VALUE),
        ("encoder fp32 64", IMAGE + 1, VALUE + 1),
        ("another encoder", IMAGE, VALUE + 1),
    ],
)
def test_a_later_process_reads_what_its_own_encoder_made_of_the_same_pixels(tmp_path, encoder, image, expected) -> None:
    got(cache(tmp_path), Encode())
    encode = Encode(VALUE + 1)
    assert torch.equal(got(cache(tmp_path, encoder=encoder), encode, image=image), expected)
    assert encode.calls == int(expected is not VALUE)


def test_the_fingerprint_changes_with_any_weight() -> None:
    segmenter, _ = attached("decoder")
    encoder = segmenter.get_submodule("encoder")
    before = weights_fingerprint(encoder)
    assert weights_fingerprint(attached("decoder")[0].get_submodule("encoder")) == before
    with torch.no_grad():
        next(encoder.parameters()).view(-1)[0] += 1
    assert weights_fingerprint(encoder) != before


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_with_cached_embeddings_equals_training_without(tmp_path: Path, precision: str) -> None:
    rules = protocol(precision=precision, batch_size=1, epochs=2)
    expected = Run(folder=tmp_path / "plain", method="decoder", rules=rules, images=4).train()
    last = load_file(tmp_path / "plain" / LAST)
    for name, folder in (("memory", None), ("file", tmp_path / "embeddings")):
        embeddings = cache(folder)
        cached = Run(folder=tmp_path / name, method="decoder", rules=rules, images=4, embeddings=embeddings).train()
        assert [entry["loss"] for entry in cached.history] == [entry["loss"] for entry in expected.history]
        other = load_file(tmp_path / name / LAST)
        assert all(torch.equal(last[name], other[name]) for name in last)


def test_batches_of_cached_embeddings_are_close_to_batches_of_images(tmp_path: Path) -> None:
    # Kernels may sum a batch of two in another order than one image, so equality holds up to rounding only.
    plain = Run(folder=tmp_path / "plain", method="decoder").train()
    cached = Run(folder=tmp_path / "cached", method="decoder", embeddings=cache()).train()
    for a, b in zip(plain.history, cached.history, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)


def encoded(run: Run) -> list[int]:
    """Counts how many images pass the encoder in training (validation aside)."""
    counts: list[int] = []
    run.validate = lambda: {"iou": 0.0}
    encoder = run.segmenter.get_submodule("encoder")
    encoder.register_forward_hook(lambda module, inputs, output: counts.append(len(inputs[0])))
    return counts


def test_each_image_passes_the_encoder_alone_and_not_again_once_it_is_stored(tmp_path: Path) -> None:
    """But for images that are prepared again before they are stored."""
    embeddings = cache()
    first, second = (
        Run(folder=tmp_path / name, method="decoder", rules=protocol(epochs=6), embeddings=embeddings)
        for name in ("first", "second")
    )
    counts, later = encoded(first), encoded(second)
    first.train()
    assert set(counts) == {1}
    assert 14 <= len(counts) < 30, "of 42, seven images and their mirrored ones"
    second.train()
    assert later == []


def test_the_thread_that_computes_neither_hashes_nor_reads_nor_writes(tmp_path: Path, monkeypatch) -> None:
    """In a first run and in a later one; readers compute on one thread each."""
    doing: list[tuple[str, bool, int]] = []

    def watched(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def noted(*given: Any) -> Any:
            doing.append((name, threading.current_thread() is threading.main_thread(), torch.get_num_threads()))
            return real(*given)

        monkeypatch.setattr(owner, name, noted)

    for owner, name in ((caching, "bytes_of"), (ArrayCache, "get"), (ArrayCache, "put")):
        watched(owner, name)
    for folder in ("first", "second"):
        embeddings = cache(tmp_path / "e")
        run = Run(folder=tmp_path / folder, method="decoder", rules=protocol(epochs=2), embeddings=embeddings)
        counts = encoded(run)
        run.train()
    assert counts == []
    assert {name for name, *_ in doing} == {"bytes_of", "get", "put"}
    assert not any(computes for _, computes, _ in doing)
    assert {threads for name, _, threads in doing if name != "put"} == {1}


@pytest.mark.parametrize(
    ("method", "rules"),
    [
        ("lora", {}),
        ("lst", {}),
        ("bitfit", {}),
        ("decoder", {"cache_embeddings": False}),
        ("decoder", {"augment": ("rotate",)}),
    ],
)
def test_no_embedding_is_cached_where_the_encoder_trains_images_change_or_the_switch_is_off(tmp_path, method, rules):
    run = Run(folder=tmp_path, method=method, rules=protocol(epochs=2, **rules), embeddings=cache())
    counts = encoded(run)
    run.train()
    assert sum(counts) == 14
