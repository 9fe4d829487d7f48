"""The generator is deterministic and quick, and refuses what it cannot do."""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.datasets import samples
from harness.datasets.base import DatasetError
from harness.registry import SEGMENTED


def _digest(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("name", list(SEGMENTED))
def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path: Path, name: str, monkeypatch) -> None:
    monkeypatch.setattr(samples, "scene", inspect.unwrap(samples.scene))  # drawn twice indeed
    first, again, other = (
        _digest(samples.write_samples(name, tmp_path / folder, images=12, size=48, seed=seed))
        for folder, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first == again
    assert first != other


def test_images_vary_in_size_and_some_are_odd(tmp_path: Path) -> None:
    folder = samples.write_samples("kvasir", tmp_path)
    sizes = {Image.open(path).size for path in (folder / "images").glob("*.jpg")}
    assert len(sizes) >= 4
    assert any(width % 2 or height % 2 for width, height in sizes)
    assert any(width > height for width, height in sizes)
    assert any(width < height for width, height in sizes)


@pytest.mark.parametrize("name", list(SEGMENTED))
def test_colour_tells_the_classes(name: str) -> None:
    """Nearest class colour, learnt on one half of the scenes, finds the classes of the other half."""
    scenes = [samples.scene(name, index) for index in range(36)]
    pixels = [
        (np.concatenate([s.image.reshape(-1, 3) for s in part]), np.concatenate([s.classes.ravel() for s in part]))
        for part in (scenes[::2], scenes[1::2])
    ]
    (train, train_classes), (test, test_classes) = pixels
    known = np.unique(train_classes)
    centres = np.stack([train[train_classes == index].mean(axis=0) for index in known])
    nearest = known[((test[:, None, :] - centres[None]) ** 2).sum(axis=2).argmin(axis=1)]
    assert (nearest == test_classes).mean() > 0.85


@pytest.mark.parametrize(
    ("name", "options", "word"),
    [
        ("pets", {}, "choose from kvasir"),
        ("cvc612", {"images": 3}, "at least 12 images"),
        ("cvc612", {"size": 8}, "at least 32 pixels"),
        ("cvc612", {"seed": -1}, "at least 0 seed"),
    ],
)
def test_unknown_name_and_too_few_images_are_refused(tmp_path: Path, name: str, options: dict, word: str) -> None:
    with pytest.raises(DatasetError, match=word):
        samples.write_samples(name, tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_the_same_sample_is_kept_and_nothing_else_is_overwritten(tmp_path: Path) -> None:
    folder = samples.write_samples("kvasir", tmp_path, images=24, size=48)
    before = (folder / "images").stat().st_mtime_ns
    samples.write_samples("kvasir", tmp_path, images=24, size=48)
    assert (folder / "images").stat().st_mtime_ns == before
    with pytest.raises(DatasetError, match="not this generated sample"):
        samples.write_samples("kvasir", tmp_path, images=12, size=48)
    assert len(list((folder / "images").glob("*.jpg"))) == 24
    (tmp_path / "CVC-ClinicDB").mkdir()
    with pytest.raises(DatasetError, match="not this generated sample"):
        samples.write_samples("cvc612", tmp_path)
    assert not list((tmp_path / "CVC-ClinicDB").iterdir())


def test_a_sample_that_failed_half_way_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    def full_disk(*arguments, **options) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(samples, "_write_tree", full_disk)
    with pytest.raises(OSError, match="No space left"):
        samples.write_samples("kvasir", tmp_path, images=12, size=48)
    assert not list(tmp_path.iterdir())
