"""Cached embeddings of a frozen encoder: the very same numbers, computed once, never taken for another image's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from harness.training.embeddings import EmbeddingCache, RememberedEmbeddings, weights_fingerprint
from tests.harness.training.tiny import Run, attached, protocol

IMAGE = torch.arange(12, dtype=torch.uint8).view(3, 2, 2)
VALUE = torch.randn(4, 2, 2, generator=torch.Generator().manual_seed(0))


def cache(folder: Path | None = None, **fields: Any) -> EmbeddingCache:
    return EmbeddingCache(**{"names": ["a", "b", "c"], "key": "encoder fp32 64", "folder": folder, **fields})


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
def test_an_embedding_is_computed_once_and_kept_exactly(folder: Path | None, dtype: torch.dtype) -> None:
    embeddings, encode = cache(folder), Encode(VALUE.to(dtype))
    assert not embeddings.ready(1, flip=True)
    first = embeddings.get(1, flip=True, image=IMAGE, encode=encode)
    assert embeddings.ready(1, flip=True)
    again = embeddings.get(1, flip=True, image=None, encode=encode)
    assert encode.calls == 1
    assert again.dtype == dtype
    assert torch.equal(first, encode.value)
    assert torch.equal(again, encode.value)


def test_a_flipped_image_has_its_own_embedding(folder: Path | None) -> None:
    embeddings = cache(folder)
    for flip in (False, True):
        embeddings.get(0, flip=flip, image=IMAGE, encode=Encode(VALUE + flip))
    assert torch.equal(embeddings.get(0, flip=False, image=None, encode=Encode()), VALUE)
    assert torch.equal(embeddings.get(0, flip=True, image=None, encode=Encode()), VALUE + 1)


@pytest.mark.parametrize(
    ("change", "image", "expected"),
    [
        ({}, IMAGE, VALUE),
        ({}, IMAGE + 1, VALUE + 1),
        ({"key": "another encoder"}, IMAGE, VALUE + 1),
        ({"names": ["a", "b", "c", "d"]}, IMAGE, VALUE + 1),
        ({"names": ["b", "a", "c"]}, IMAGE, VALUE + 1),
    ],
)
def test_a_later_process_reads_the_file_of_its_own_encoder_split_and_images(tmp_path, change, image, expected) -> None:
    cache(tmp_path).get(0, flip=False, image=IMAGE, encode=Encode())
    encode = Encode(VALUE + 1)
    assert torch.equal(cache(tmp_path, **change).get(0, flip=False, image=image, encode=encode), expected)
    assert encode.calls == int(expected is not VALUE)


def test_another_split_at_work_at_the_same_time_changes_nothing(folder: Path | None) -> None:
    """Folds of one benchmark train side by side; each goes on reading what it stored."""
    first, second = cache(folder), cache(folder, names=["c", "a", "b"])
    first.get(0, flip=False, image=IMAGE, encode=Encode())
    second.get(0, flip=False, image=IMAGE + 1, encode=Encode(VALUE + 1))
    assert torch.equal(first.get(0, flip=False, image=None, encode=Encode()), VALUE)
    assert torch.equal(second.get(0, flip=False, image=None, encode=Encode()), VALUE + 1)


def test_a_damaged_entry_is_encoded_again(tmp_path: Path) -> None:
    cache(tmp_path).get(0, flip=False, image=IMAGE, encode=Encode())
    path = next(tmp_path.glob("*.embeddings"))
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)
    encode = Encode()
    assert torch.equal(cache(tmp_path).get(0, flip=False, image=IMAGE, encode=encode), VALUE)
    assert encode.calls == 1


def test_what_another_user_left_is_neither_used_nor_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache(tmp_path).get(0, flip=False, image=IMAGE, encode=Encode(VALUE + 1))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert torch.equal(cache(tmp_path).get(0, flip=False, image=IMAGE, encode=Encode()), VALUE)
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("suffix", [".txt", ".embeddings", ".sums"])
def test_a_planted_link_is_not_written_through(tmp_path: Path, suffix: str) -> None:
    folder, target = tmp_path / "embeddings", tmp_path / "mine"
    cache(folder).get(0, flip=False, image=IMAGE, encode=Encode())
    target.write_text("mine")
    for path in folder.glob(f"*{suffix}"):
        path.unlink()
        path.symlink_to(target)
    assert torch.equal(cache(folder).get(1, flip=False, image=IMAGE, encode=Encode()), VALUE)
    assert target.read_text() == "mine"


def test_memory_has_a_bound() -> None:
    size = VALUE.numel() * 4
    embeddings, encode = cache(memory_limit=2 * size), Encode()
    for _ in range(2):
        for index in range(3):
            assert torch.equal(embeddings.get(index, flip=False, image=IMAGE, encode=encode), VALUE)
    assert encode.calls == 4  # the third image has no room


def test_a_split_too_large_for_its_file_stays_in_memory(tmp_path: Path) -> None:
    embeddings = cache(tmp_path, file_limit=100)
    assert torch.equal(embeddings.get(0, flip=False, image=IMAGE, encode=Encode()), VALUE)
    assert embeddings.ready(0, flip=False)
    assert not list(tmp_path.iterdir())


def test_scored_images_are_encoded_once_and_alone() -> None:
    segmenter: Any = attached("decoder")[0]
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    remembered, counts = RememberedEmbeddings(), []
    segmenter.encoder.register_forward_hook(lambda module, inputs, output: counts.append(len(inputs[0])))
    with torch.no_grad():
        alone = torch.cat([segmenter.encode(image[None]) for image in images])
        counts.clear()
        assert torch.equal(remembered.get(images, segmenter.encode), alone)
        assert counts == [1, 1, 1]
        assert torch.equal(remembered.get(images[[2, 0]], segmenter.encode), alone[[2, 0]])
        assert counts == [1, 1, 1]
        changed = images.clone()
        changed[0, 0, 0, 0] += 1
        assert not torch.equal(remembered.get(changed, segmenter.encode)[0], alone[0])
        assert counts == [1, 1, 1, 1]


def test_remembered_embeddings_have_a_bound() -> None:
    calls: list[torch.Tensor] = []

    def encode(image: torch.Tensor) -> torch.Tensor:
        calls.append(image)
        return image

    remembered = RememberedEmbeddings(memory_limit=3 * 4 * 4)
    images = torch.arange(24.0).view(2, 3, 2, 2)
    for _ in range(2):
        assert torch.equal(remembered.get(images, encode), images)
    assert len(calls) == 3


def test_a_folder_without_room_falls_back_to_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10})())
    embeddings, encode = cache(tmp_path), Encode()
    for _ in range(2):
        assert torch.equal(embeddings.get(0, flip=False, image=IMAGE, encode=encode), VALUE)
    assert encode.calls == 1
    assert not list(tmp_path.glob("*.embeddings"))


@pytest.mark.parametrize(("spare", "made"), [(1.05, False), (1.2, True)])
def test_a_tenth_of_its_size_stays_free(tmp_path, monkeypatch, spare: float, made: bool) -> None:
    embeddings = cache(tmp_path)
    free = spare * 2 * 3 * VALUE.numel() * VALUE.element_size()
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": free})())
    embeddings.get(0, flip=False, image=IMAGE, encode=Encode())
    assert bool(list(tmp_path.glob("*.embeddings"))) == made


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
    last = load_file(expected.last_state)
    for name, folder in (("memory", None), ("file", tmp_path / "embeddings")):
        embeddings = cache(folder, names=list("abcd"))
        cached = Run(folder=tmp_path / name, method="decoder", rules=rules, images=4, embeddings=embeddings).train()
        assert [entry["loss"] for entry in cached.history] == [entry["loss"] for entry in expected.history]
        other = load_file(cached.last_state)
        assert all(torch.equal(last[name], other[name]) for name in last)


def test_batches_of_cached_embeddings_are_close_to_batches_of_images(tmp_path: Path) -> None:
    # Kernels may sum a batch of two in another order than one image, so equality holds up to rounding only.
    plain = Run(folder=tmp_path / "plain", method="decoder").train()
    cached = Run(folder=tmp_path / "cached", method="decoder", embeddings=cache(None, names=list("abcdefg"))).train()
    for a, b in zip(plain.history, cached.history, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)


def encoded(run: Run) -> list[int]:
    """Counts how many images pass the encoder in training (validation aside)."""
    counts: list[int] = []
    run.validate = lambda: {"iou": 0.0}
    encoder = run.segmenter.get_submodule("encoder")
    encoder.register_forward_hook(lambda module, inputs, output: counts.append(len(inputs[0])))
    return counts


def test_each_image_passes_the_encoder_once_a_flip(tmp_path: Path) -> None:
    embeddings = cache(None, names=list("abcdefg"))
    first, second = (
        Run(folder=tmp_path / name, method="decoder", rules=protocol(epochs=8), images=2, embeddings=embeddings)
        for name in ("first", "second")
    )
    counts, later = encoded(first), encoded(second)
    first.train()
    assert counts == [1] * 4
    second.train()
    assert later == []
    assert second.source.asked == []


@pytest.mark.parametrize(
    ("method", "rules"), [("lora", {}), ("lst", {}), ("bitfit", {}), ("decoder", {"cache_embeddings": False})]
)
def test_no_embedding_is_cached_where_the_encoder_trains_or_the_switch_is_off(tmp_path, method, rules):
    run = Run(
        folder=tmp_path, method=method, rules=protocol(epochs=2, **rules), embeddings=cache(None, names=list("abcdefg"))
    )
    counts = encoded(run)
    run.train()
    assert sum(counts) == 14
