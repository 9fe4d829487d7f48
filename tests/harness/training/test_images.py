"""Images at the input size, and the cache that jobs share."""

from __future__ import annotations

import io
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from harness.datasets.base import Benchmark, DataOptions, DatasetError, Pair, Sample
from harness.datasets.kvasir import Kvasir
from harness.datasets.own import own_benchmark
from harness.training.cache import ArrayCache
from harness.training.images import ImageSource, _decoding_rules

SIZE = 32
COUNT = 5


class Tiny(Benchmark):
    """A benchmark that counts how often it decodes."""

    name = "tiny"
    decoded = 0

    def locate(self, data_root):
        return data_root

    def splits(self, root):
        raise NotImplementedError

    def read(self, pair):
        type(self).decoded += 1
        try:
            image = np.asarray(Image.open(pair.image).convert("RGB"))
        except OSError as error:  # missing or broken
            raise DatasetError(f"{pair.image} is unreadable ({error})") from error
        return Sample(image=image, mask=np.asarray(Image.open(pair.mask)))


@pytest.fixture
def pairs(tmp_path):
    rng = np.random.default_rng(0)
    made = []
    (tmp_path / "data").mkdir()
    for index in range(COUNT):
        image, mask = tmp_path / "data" / f"{index}.png", tmp_path / "data" / f"{index}_mask.png"
        Image.fromarray(rng.integers(0, 256, (40 + index, 50, 3), dtype=np.uint8)).save(image)
        Image.fromarray(rng.integers(0, 2, (40 + index, 50), dtype=np.uint8)).save(mask)
        made.append(Pair(stem=str(index), image=image, mask=mask))
    Tiny.decoded = 0
    return made


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def source(pairs, cache=None, *, size=SIZE, options=None, gib=1.0):
    kept = None if cache is None else ArrayCache(cache, gib=gib)
    return ImageSource(Tiny(options), pairs, image_size=size, cache=kept)


def everything(images):
    return [
        (images.image(i).copy(), images.mask_input(i).copy(), images.mask_native(i).copy()) for i in range(len(images))
    ]


def decodes(images):
    """How many of them are not in the cache."""
    Tiny.decoded = 0
    everything(images)
    return Tiny.decoded


def assert_same(first, second):
    for left, right in zip(first, second, strict=True):
        for a, b in zip(left, right, strict=True):
            np.testing.assert_array_equal(a, b)


def test_an_image_is_resized_bicubic_and_its_mask_to_nearest(pairs):
    images = source(pairs)
    picture, mask = Image.open(pairs[1].image), Image.open(pairs[1].mask)
    resized = np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    np.testing.assert_array_equal(images.image(1), resized)
    np.testing.assert_array_equal(images.mask_input(1), np.asarray(mask.resize((SIZE, SIZE), Image.Resampling.NEAREST)))
    np.testing.assert_array_equal(images.mask_native(1), np.asarray(mask))
    assert images.image(1).dtype == images.mask_input(1).dtype == images.mask_native(1).dtype == np.uint8
    assert len(images) == COUNT
    assert images.stem(1) == "1"


def test_a_second_job_reads_the_same_arrays_and_decodes_nothing(pairs, cache):
    plain, first = everything(source(pairs)), everything(source(pairs, cache))
    Tiny.decoded = 0
    assert_same(first, plain)
    assert_same(everything(source(pairs, cache)), plain)
    assert Tiny.decoded == 0


@pytest.mark.parametrize("part", ["image", "mask"])
def test_a_changed_file_of_the_same_size_and_time_is_read_anew(pairs, cache, part):
    everything(source(pairs, cache))
    path: Path = getattr(pairs[2], part)
    before = path.stat()
    other = getattr(pairs[2], part).with_suffix(".other.png")
    Image.fromarray(255 - np.asarray(Image.open(path)) if part == "image" else 1 - np.asarray(Image.open(path))).save(
        other
    )
    os.replace(other, path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert_same(everything(source(pairs, cache)), everything(source(pairs)))


@pytest.mark.parametrize("change", [{"size": 16}, {"options": DataOptions(mask_255_only=True)}])
def test_another_protocol_has_its_own_entries(pairs, cache, change):
    everything(source(pairs, cache))
    assert decodes(source(pairs, cache, **change)) == COUNT


def test_other_classes_have_entries_of_their_own() -> None:
    """Every data set of one's own is of one class, and a further list of its classes gives a mask other indices."""
    lists = (("bg", "a", "b"), ("bg", "b", "a"), ("bg", "a"))
    first, again = ([_decoding_rules(own_benchmark("mine", names)(DataOptions())) for names in lists] for _ in range(2))
    assert len({*first}) == 3
    assert first == again


@pytest.mark.parametrize("spoil", [lambda path: path.write_bytes(b"broken"), Path.unlink])
def test_an_unreadable_or_missing_image_is_the_benchmarks_error_with_and_without_cache(pairs, cache, spoil):
    spoil(pairs[0].image)
    for images in (source(pairs), source(pairs, cache)):
        with pytest.raises(DatasetError, match="unreadable"):
            images.image(0)


class Code:
    def __reduce__(self):
        return pytest.fail, ("code of an entry ran",)


def saved(array):
    np.save(content := io.BytesIO(), array, allow_pickle=True)
    return content.getvalue()


DAMAGED = {
    "empty": b"",
    "head": b"\x93NUMPY",
    "code": saved(np.array([Code()], dtype=object)),
    "type": saved(np.ones(9)),
    "cut": None,
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_entry_is_decoded_and_written_anew(pairs, cache, damage):
    plain = everything(source(pairs, cache))
    for path in cache.rglob("*.npy"):
        path.write_bytes(path.read_bytes()[:-7] if damage is None else damage)
    assert_same(everything(source(pairs, cache)), plain)
    assert_same(everything(source(pairs, cache)), plain)
    assert decodes(source(pairs, cache)) == 0


def test_the_cache_stays_within_its_bound_and_what_finds_no_room_is_decoded(pairs, cache, caplog):
    entry = 4 * SIZE * SIZE + 128
    images = source(pairs, cache, gib=3 * entry / 2**30)
    plain = [read[0] for read in everything(source(pairs))]
    for _ in range(2):
        for index in range(COUNT):
            np.testing.assert_array_equal(images.image(index), plain[index])
    assert len(list(cache.rglob("*.npy"))) == 3
    assert caplog.text.count("cache_gib") == 1  # said once


@pytest.mark.parametrize(
    ("free", "folder", "said"), [(1 << 20, "cache", "nearly full"), (1 << 50, "data/0.png", "director")]
)
def test_a_cache_that_cannot_be_written_costs_time_and_no_result(
    pairs, tmp_path, caplog, monkeypatch, free, folder, said
):
    monkeypatch.setattr("harness.training.cache.shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    assert_same(everything(source(pairs, tmp_path / folder)), everything(source(pairs)))
    assert not (tmp_path / "cache").exists()
    assert caplog.text.count("is full") == 1
    assert said in caplog.text


@pytest.mark.parametrize("module", ["decoding.py", "opening.py", "folder_benchmark.py", "base.py", "kvasir.py"])
def test_entries_of_another_reader_are_not_met(module, monkeypatch):
    """The source of every module that decodes is part of an entry's name, in whichever folder it lies."""
    before, read = _decoding_rules(Kvasir()), Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + b"# changed" * (path.name == module))
    assert _decoding_rules(Kvasir()) != before
